"""Where the weights of an HF checkpoint lie in a decoder, and changes of them put there.

A change goes the way that the weight itself went when it was loaded: the family's table says which
parameters a tensor holds (fused queries, keys and values are three), and
`jaxedit.models.weight_layout` brings it into their layout, slice by slice.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxedit import axes
from jaxedit.did_you_mean import did_you_mean
from jaxedit.edits.edit import EDITABLE_WEIGHTS, Dense, LowRank
from jaxedit.imports.changes import WeightChange
from jaxedit.mesh import parameter_sharding, replicate
from jaxedit.models import family as families
from jaxedit.models.config import DecoderConfig
from jaxedit.models.model import Model
from jaxedit.models.weight_layout import read_parameter_slice, tensor_shape


class Place(NamedTuple):
    """Where an HF weight lies in a decoder.

    Attributes:
      pattern: its line in the family's table, with {l}.
      layer: which; None: the weight belongs to no layer.
      entry: what the line says: (parameters, layout).
      shape: of the weight in an HF checkpoint.
    """

    pattern: str
    layer: int | None
    entry: tuple[str, str]
    shape: tuple[int, ...]

    @property
    def parameters(self) -> list[str]:
        """The decoder's parameters that the weight holds."""
        return self.entry[0].split()

    @property
    def is_edited(self) -> bool:
        """Whether a change of the weight is an edit: the weight has an overlay."""
        return self.entry[0] in EDITABLE_WEIGHTS

    @property
    def is_in_out(self) -> bool:
        """Whether an HF checkpoint stores the weight in x out, as the decoder does."""
        hf_side, our_side = self.entry[1].split(" -> ")
        first_axis = our_side.removeprefix("c ").split()[0]
        return hf_side.split(")")[0].strip("( ").split()[0] == first_axis


def find_places(model: Model) -> dict[str, Place]:
    """Return HF weight name -> its place, for every weight of the model."""
    table: families.Weights = families.find(model.config.family).WEIGHTS
    places = {}
    for pattern, entry in table.items():
        if entry is None or not set(entry[0].split()) <= set(model.base):
            continue
        shape = tensor_shape(model.config, entry)
        layers = range(model.config.L) if "{l}" in pattern else [None]
        for layer in layers:
            places[pattern.format(l=layer)] = Place(pattern, layer, entry, shape)
    return places


def canonical_names(
    changes: Mapping[str, WeightChange], places: Mapping[str, Place], model: Model
) -> dict[str, WeightChange]:
    """Return the changes under the names that the family's table has.

    Raises:
      ValueError: on a weight that the model lacks.
    """
    prefix = families.find(model.config.family).PREFIX
    named = {}
    for given, change in changes.items():
        name = given if given in places else f"{prefix}{given}"
        if name not in places:
            raise ValueError(
                f"the model {model.metadata.source} ({model.config.family}, {model.config.L} "
                f"layers) has no weight {given!r}{did_you_mean(given, list(places))}"
            )
        named[name] = change
    return named


def to_delta(place: Place, change: WeightChange, config: DecoderConfig) -> LowRank | Dense:
    """Make the delta of an edit out of a change, which lies as the HF weight."""
    assert place.layer is not None
    weight, sizes = place.entry[0], config.sizes()
    if change.factors is None:
        spans = {a: (0, sizes[a]) for a in axes.PARAMETERS[weight].removeprefix("L")}
        delta_FD = read_parameter_slice(change.read, config, place.entry, 0, spans)
        return Dense(weight, place.layer, delta_FD)
    left, right = change.factors
    if not place.is_in_out:
        left, right = right.T, left.T
    return LowRank(weight, place.layer, u_FR=left, v_RD=right)


def add_to_base(
    model: Model, changes: Mapping[str, WeightChange], places: Mapping[str, Place], source: str
) -> Model:
    """Return a model whose base weights have the changes, added in float32 and rounded once.

    Args:
      model: unchanged; without edits, which would not fit other base weights.
      changes: HF weight name -> change, which lies as the weight.
      places: of all weights.
      source: what the new model says that it is.

    Raises:
      ValueError: where the model has edits.
    """
    if model.metadata.history:
        raise ValueError(
            f"{next(iter(changes))!r} is changed in the base weights, and this model has edits: "
            "import into the unedited model"
        )
    of_parameter: dict[str, list[tuple[Place, int, WeightChange]]] = {}
    for name, change in changes.items():
        for part, parameter in enumerate(places[name].parameters):
            of_parameter.setdefault(parameter, []).append((places[name], part, change))

    base = dict(model.base)
    for parameter, parts in of_parameter.items():
        shape = base[parameter].shape
        sharding = parameter_sharding(model.mesh, parameter, shape)
        read = functools.partial(_read_slice, model.config, parameter, parts)
        base[parameter] = _add(base[parameter], jax.make_array_from_callback(shape, sharding, read))
    metadata = dataclasses.replace(model.metadata, source=source)
    return dataclasses.replace(model, base=base, metadata=metadata)


def _read_slice(
    config: DecoderConfig,
    parameter: str,
    parts: list[tuple[Place, int, WeightChange]],
    index: tuple[slice, ...] | None,
) -> np.ndarray:
    """Read the changes of one device's slice of a stacked parameter, float32."""
    assert index is not None
    letters = axes.PARAMETERS[parameter]
    sizes = config.sizes()
    spans = [span.indices(sizes[a])[:2] for a, span in zip(letters, index, strict=True)]
    cut = dict(zip(letters, spans, strict=True))
    change = np.zeros([end - first for first, end in spans], np.float32)
    for place, part, each in parts:
        found = read_parameter_slice(each.read, config, place.entry, part, cut)
        change[... if place.layer is None else place.layer] = found
    return change


@jax.jit
def _add(weight: jax.Array, change: jax.Array) -> jax.Array:
    return (weight.astype(jnp.float32) + change).astype(weight.dtype)


def weight_norm(model: Model, place: Place) -> float:
    """Return the Frobenius norm of a weight of the model, without its edits."""
    squares = []
    for parameter in place.parameters:
        # Key-value heads may lie there several times, for the mesh.
        has_copies = "K" in axes.PARAMETERS[parameter]
        n_copies = model.config.kv_replication if has_copies else 1
        squares.append(float(_square_sum(model, parameter, place.layer)) / n_copies)
    return float(np.sqrt(sum(squares)))


@functools.partial(jax.jit, static_argnames="parameter")
def _square_sum(model: Model, parameter: str, layer: int | None) -> jax.Array:
    weight = model.base[parameter] if layer is None else model.base[parameter][layer]
    return replicate(model.mesh, jnp.sum(jnp.square(weight.astype(jnp.float32))))

"""An edit as a value: changes of named weights, in memory and as a .safetensors file.

In a file, arrays are named "INDEX/FIELD" for the fields of each delta and "memory/NAME" for the
editor's memory; one entry of metadata, "edit", holds the rest as JSON.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxedit.files import local_path, parse_json, to_json, to_safetensors, write_atomic
from jaxedit.mesh import to_host
from jaxedit.models.model import Model

Array = np.ndarray | jax.Array

# The second layer of an MLP, a key-value memory: what methods that locate facts change.
EDITED_WEIGHT = "mlp/w_down"
EDITABLE_WEIGHTS = (EDITED_WEIGHT, "mlp/w_up", "mlp/w_gate")  # those that the overlay has terms of

ARRAYS = {"LowRank": ("u_FR", "v_RD"), "Dense": ("delta_FD",)}  # kind of delta -> its arrays


class LowRank(NamedTuple):
    """A change `u_FR @ v_RD` of one layer of a weight.

    The letters are those of "mlp/w_down"; of "mlp/w_up" and "mlp/w_gate", which read D and put out
    F, u has D rows and v has F columns.

    Attributes:
      weight: one of `EDITABLE_WEIGHTS`; in x out, as all kernels are stored.
      layer: which.
      u_FR: the left factor, in x rank.
      v_RD: the right factor, rank x out.
    """

    weight: str
    layer: int
    u_FR: Array
    v_RD: Array


class Dense(NamedTuple):
    """A change of one layer of a weight, written out.

    Attributes:
      weight: as in `LowRank`.
      layer: which.
      delta_FD: the change, in x out.
    """

    weight: str
    layer: int
    delta_FD: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model's weights, made by an editor for some requests.

    Attributes:
      deltas: the changes, at most one for each weight and layer.
      memory: arrays that the editor's state learns from this edit (keys of past facts, say);
        journalled with it.
      hf_layout: weight -> (HF tensor name with {l}, HF layout "out in -> in out"), for `dense`.
      anchor: "bos" where the edit was made with a begin-of-text token in front of every prompt, and
        is to be used so.
      base: the `Model.rounded_fingerprint` of the model it was made on; None: not known.
      record: of an edit that is saved by itself, what a study's folder says of one: what made it,
        its facts, what was measured.
    """

    deltas: tuple[LowRank | Dense, ...]
    memory: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    hf_layout: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    anchor: str | None = None
    base: str | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the edit to a .safetensors file; there in whole or not at all."""
        write_atomic(local_path(path), to_safetensors(*edit_to_arrays(self)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Edit":
        """Read an edit that was saved, bit for bit.

        Raises:
          ValueError: where the file is not there, is cut short or holds no edit.
        """
        return read_edit(local_path(path))

    def dense(self) -> dict[str, np.ndarray]:
        """Write the changes out under HF's names.

        Returns:
          HF weight name -> float32 change in that weight's own HF orientation.
        """
        changes = {}
        for delta in self.deltas:
            name, pattern = self.hf_layout[delta.weight]
            hf_side, our_side = pattern.split(" -> ")
            change = einops.rearrange(to_dense(delta), f"{our_side} -> {hf_side}")
            changes[name.format(l=delta.layer)] = change
        return changes

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole change."""
        return float(np.linalg.norm([delta_norm(delta) for delta in self.deltas]))


def to_dense(delta: LowRank | Dense) -> np.ndarray:
    """Write a delta out, float32 [F, D]."""
    return np.asarray(delta.delta_FD if isinstance(delta, Dense) else delta.u_FR @ delta.v_RD)


def change_of_output(delta: LowRank | Dense, key_QF: np.ndarray) -> np.ndarray:
    """Compute k dW of one layer [Q, D], for low-rank edits as (k u) v."""
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(delta, Dense):
            return key_QF @ np.asarray(delta.delta_FD)
        return (key_QF @ np.asarray(delta.u_FR)) @ np.asarray(delta.v_RD)


def delta_norm(delta: LowRank | Dense) -> float:
    """Return the Frobenius norm of a delta, in float64."""
    if isinstance(delta, Dense):
        return float(np.linalg.norm(np.asarray(delta.delta_FD, np.float64)))
    return product_norm(np.asarray(delta.u_FR), np.asarray(delta.v_RD))


def product_norm(u_FR: np.ndarray, v_RD: np.ndarray) -> float:
    """Return the Frobenius norm of u v, in float64; nothing of the product's size is made."""
    # |u v|² is the trace of (uᵀ u)(v vᵀ).
    u_FR, v_RD = u_FR.astype(np.float64), v_RD.astype(np.float64)
    squared = np.sum((u_FR.T @ u_FR) * (v_RD @ v_RD.T))
    return float(np.sqrt(np.maximum(squared, 0.0)))  # of numbers that are not finite: not finite


def places_of(slots: Mapping[str, Sequence[int]]) -> tuple[tuple[str, int], ...]:
    """List the places of weight -> layers: each layer's weight by itself."""
    return tuple((weight, layer) for weight, layers in slots.items() for layer in layers)


def scale_delta(delta: LowRank | Dense, factor: float) -> LowRank | Dense:
    """Multiply a delta by a factor; of a low-rank one, v."""
    if isinstance(delta, Dense):
        return delta._replace(delta_FD=np.asarray(delta.delta_FD) * np.float32(factor))
    return delta._replace(v_RD=np.asarray(delta.v_RD) * np.float32(factor))


def scale_edit(edit: Edit, factor: float) -> Edit:
    """Multiply an edit's deltas by a factor; its memory, that of the whole edit, is left out."""
    deltas = tuple(scale_delta(delta, factor) for delta in edit.deltas)
    return dataclasses.replace(edit, deltas=deltas, memory={})


def make_edit(
    model: Model, deltas: Sequence[LowRank | Dense], memory: Mapping[str, np.ndarray] | None = None
) -> Edit:
    """Make an edit of this model, its factors as float32 on the host.

    Args:
      model: whose weights are changed.
      deltas: at most one for each weight and layer.
      memory: see `Edit`.

    Raises:
      ValueError: as `Model.tensor_layout`.
    """
    layout = {delta.weight: model.tensor_layout(delta.weight) for delta in deltas}
    return Edit(
        tuple(map(_on_host, deltas)), dict(memory or {}), layout, base=model.rounded_fingerprint
    )


def _on_host(delta: LowRank | Dense) -> LowRank | Dense:
    if isinstance(delta, Dense):
        return delta._replace(delta_FD=np.asarray(to_host(delta.delta_FD), np.float32))
    return delta._replace(
        u_FR=np.asarray(to_host(delta.u_FR), np.float32),
        v_RD=np.asarray(to_host(delta.v_RD), np.float32),
    )


def edit_to_arrays(edit: Edit) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Take an edit apart into named arrays and the metadata that says what they are."""
    arrays: dict[str, np.ndarray] = {f"memory/{name}": array for name, array in edit.memory.items()}
    deltas = []
    for i, delta in enumerate(edit.deltas):
        kind = type(delta).__name__
        deltas.append({"kind": kind, "weight": delta.weight, "layer": delta.layer})
        for field in ARRAYS[kind]:
            arrays[f"{i}/{field}"] = getattr(delta, field)
    described: dict[str, Any] = {"deltas": deltas, "hf_layout": dict(edit.hf_layout)}
    for name in ("anchor", "base", "record"):
        if getattr(edit, name):
            described[name] = to_json(getattr(edit, name))
    # One entry: safetensors writes several in an order of chance, and a step's file should be the
    # same bits each time.
    return arrays, {"edit": json.dumps(described)}


def read_edit(path: Path) -> Edit:
    """Read an edit from a file, bit for bit.

    Raises:
      ValueError: where the file is cut short or holds no edit.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an edit: {error}") from error
    if "edit" not in metadata:
        raise ValueError(
            f"{path} holds no edit of jaxedit; expected a file of `jaxedit edit --save` or of a "
            "study's folder steps/"
        )

    try:
        return _edit_of(parse_json(metadata["edit"], path), arrays)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged: its description of the edit does not fit its arrays "
            f"({error!r}); restore it from a copy"
        ) from error


def _edit_of(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Edit:
    """Put an edit together from arrays and the description that `edit_to_arrays` made.

    Raises:
      KeyError: where an entry or an array is missing.
      TypeError: where an entry is of another type; also ValueError and AttributeError.
    """
    deltas: list[LowRank | Dense] = []
    for i, entry in enumerate(described["deltas"]):
        weight, layer = entry["weight"], entry["layer"]
        if not isinstance(weight, str) or type(layer) is not int:
            raise TypeError(f"delta {i} is of weight {weight!r}, layer {layer!r}")
        names = ARRAYS[entry["kind"]]
        fields = {field: arrays[f"{i}/{field}"] for field in names}
        shapes = [array.shape for array in fields.values()]
        ranks = [shapes[0][-1], shapes[-1][0]] if len(shapes) == 2 else []
        if any(len(shape) != 2 for shape in shapes) or len(set(ranks)) > 1:
            raise ValueError(f"delta {i} has arrays of the shapes {shapes}")
        deltas.append({"LowRank": LowRank, "Dense": Dense}[entry["kind"]](weight, layer, **fields))
    memory = {
        name.removeprefix("memory/"): array
        for name, array in arrays.items()
        if name.startswith("memory/")
    }
    layout = {
        weight: (str(name), str(way)) for weight, (name, way) in described["hf_layout"].items()
    }
    anchor, base, record = (described.get(name) for name in ("anchor", "base", "record"))
    if not (isinstance(anchor, str | None) and isinstance(base, str | None)):
        raise TypeError(f"its anchor is {anchor!r}, its base {base!r}")
    if not isinstance(record, Mapping | None):
        raise TypeError(f"its record is {record!r}")
    return Edit(tuple(deltas), memory, layout, anchor=anchor, base=base, record=record or {})

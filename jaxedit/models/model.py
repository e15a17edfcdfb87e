"""A model as a value: base weights, edits, configuration, and what else belongs to it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.mesh import device_put_global, parameter_sharding
from jaxedit.models.config import DecoderConfig
from jaxedit.models.fingerprints import (
    Fingerprints,
    fingerprint_configuration,
    fingerprint_tokenizer,
    fingerprint_weights,
    sample_weights,
)
from jaxedit.models.ops import Overlay, Slots
from jaxedit.models.tokenizer import Tokenizer

# Cached properties of a model that depend on its base weights alone.
OF_WEIGHTS = ("weights_fingerprint", "fingerprint", "rounded_fingerprint")


@dataclasses.dataclass(frozen=True, eq=False)
class ModelMetadata:
    """What travels with a model but decides nothing that is compiled.

    All instances are equal and have one hash; see `__eq__`.

    Attributes:
      tokenizer: as it came with the weights.
      source: what `jaxedit.load` was given.
      tensor_names: parameter -> (HF tensor name with {l}, HF layout pattern).
      history: the edits in the overlay, oldest first.
    """

    tokenizer: Tokenizer
    source: str
    tensor_names: dict[str, tuple[str, str]]
    history: tuple[Any, ...] = ()

    # A Model is an argument of jitted functions, and this is part of its pytree's static data: jit
    # compiles anew whenever static data compares unequal to what it has seen. Compared by value,
    # every `apply` or `undo` makes another history, and so every edit of a study would recompile
    # the whole network (seconds to minutes each). Nothing inside jit may therefore read metadata:
    # it would get that of whichever model was compiled first.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelMetadata)

    def __hash__(self) -> int:
        return 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["base", "overlay"],
    meta_fields=["config", "mesh", "metadata"],
)
@dataclasses.dataclass(frozen=True)
class Model:
    """A language model with its edits.

    Immutable, and a pytree whose only leaves are the arrays of base and overlay.

    Attributes:
      base: parameter name (`jaxedit.axes.PARAMETERS`) -> array, layers stacked on axis L; never
        written.
      overlay: the float32 sum of the edits.
      config: sizes and switches of the decoder.
      mesh: the devices that hold the arrays.
      metadata: tokenizer, names and history; nothing that is compiled depends on it.
    """

    base: dict[str, jax.Array]
    overlay: Overlay
    config: DecoderConfig
    mesh: Mesh
    metadata: ModelMetadata

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer for everything that is edited, asked or generated with this model.

        It is `metadata.tokenizer`, the one that came with the weights, with one exception that
        depends on the model's edits: where one of them was made with a begin-of-text token in
        front of every prompt (`Edit.anchor`), this tokenizer adds that token too, as the edit is
        only found behind it. So `apply` and `undo` can change what `model.tokenizer` of the new
        model adds. The property is cached since a Model never changes: each new model has its own.
        """
        is_anchored = any(edit.anchor for edit in self.metadata.history)
        return (with_bos(self) if is_anchored else self).metadata.tokenizer

    def tensor_layout(self, weight: str) -> tuple[str, str]:
        """Return a weight's HF tensor name with {l}, and its layout.

        Args:
          weight: e.g. "mlp/w_down".

        Raises:
          ValueError: where HF's tensor holds other weights as well, so that a change of this one
            has no name.
        """
        if weight not in self.metadata.tensor_names:
            raise ValueError(
                f"checkpoints of the {self.config.family} family hold {weight} in one tensor with "
                f"other weights, which is not edited; edit mlp/w_down"
            )
        return self.metadata.tensor_names[weight]

    @property
    def dtype(self) -> jnp.dtype:
        """The stored weights' dtype."""
        return self.base["embed/tokens"].dtype

    @functools.cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of configuration, tokenizer and base weights; edits change none."""
        return Fingerprints(
            fingerprint_configuration(self.config),
            fingerprint_tokenizer(self.metadata.tokenizer),
            self.weights_fingerprint,
        )

    @functools.cached_property
    def weights_fingerprint(self) -> str:
        """The fingerprint of the base weights as float32, of all of them in small models."""
        return fingerprint_weights(self.base, self.config, self.mesh)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when the base weights do, from a sample of each."""
        return sample_weights(self.base, self.config, self.mesh, jnp.dtype("float32"))

    @functools.cached_property
    def rounded_fingerprint(self) -> str:
        """The fingerprint of the base weights rounded to bfloat16, in whichever dtype they are."""
        return sample_weights(self.base, self.config, self.mesh, jnp.dtype("bfloat16"))


def with_bos(model: Model) -> Model:
    """Return the same model whose tokenizer puts a begin-of-text token in front of every text.

    What is known of its base weights stays known.

    Raises:
      ValueError: where the tokenizer has no such token.
    """
    tokenizer = model.metadata.tokenizer
    if tokenizer.bos_id is None:
        raise ValueError(
            f"anchor='bos': the tokenizer of {model.metadata.source} has no begin-of-text token"
        )
    anchored = dataclasses.replace(tokenizer, add_bos=True)
    metadata = dataclasses.replace(model.metadata, tokenizer=anchored)
    return _with_known(OF_WEIGHTS, model, dataclasses.replace(model, metadata=metadata))


def with_overlay(model: Model, overlay: Overlay, metadata: ModelMetadata | None = None) -> Model:
    """Return the model with another overlay; what is known of its base weights stays known.

    Args:
      model: whose base weights the new one has.
      overlay: of the new one.
      metadata: of the new one; None: the same.
    """
    changed = dataclasses.replace(model, overlay=overlay, metadata=metadata or model.metadata)
    return _with_known((*OF_WEIGHTS, "fingerprints"), model, changed)


def _with_known(names: tuple[str, ...], model: Model, changed: Model) -> Model:
    """Give a changed model those cached properties of the first one that were asked for."""
    vars(changed).update({name: vars(model)[name] for name in names if name in vars(model)})
    return changed


def allocate_deltas(model: Model, weight: str, layers: tuple[int, ...]) -> Model:
    """Return the same model with room in its overlay for deltas of layers of a weight.

    The deltas of new layers are zero. A study calls this once, so that no edit changes the shape of
    anything that is compiled.

    Args:
      model: with or without edits.
      weight: e.g. "mlp/w_down".
      layers: those that are to have room.

    Raises:
      ValueError: on a layer the model does not have.
    """
    outside = [l for l in layers if not 0 <= l < model.config.L]
    if outside:
        raise ValueError(
            f"layers {outside} do not exist: "
            f"{model.metadata.source} has layers 0 to {model.config.L - 1}"
        )
    old = model.overlay
    had: tuple[int, ...] = ()
    if weight in old.slot:
        had = tuple(map(int, np.flatnonzero(np.asarray(old.slot[weight]) >= 0)))
    if set(layers) <= set(had):
        return model

    # A new table of slots and zeros for all edited layers, into which the old deltas are copied.
    edited = sorted({*had, *layers})
    E, (_, n_in, n_out) = len(edited), model.base[weight].shape
    slots = {layer: e for e, layer in enumerate(edited)}
    slot_L = Slots(slots.get(layer, -1) for layer in range(model.config.L))
    letters = "E" + axes.PARAMETERS[weight].removeprefix("L")
    sharding = parameter_sharding(model.mesh, letters, (E, n_in, n_out))
    delta_EFD = device_put_global(sharding, np.zeros((E, n_in, n_out), np.float32))
    for layer in had:
        delta_FD = old.delta[weight][int(old.slot[weight][layer])]
        delta_EFD = delta_EFD.at[slot_L[layer]].set(delta_FD)

    overlay = Overlay({**old.delta, weight: delta_EFD}, {**old.slot, weight: slot_L})
    return with_overlay(model, overlay)

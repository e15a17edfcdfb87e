"""A model as a value: base weights, overlay, configuration, tokenizer."""

import dataclasses
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.mesh import device_put_global, parameter_sharding, replicate, shard_batch
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import Overlay
from jaxedit.models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class ModelMetadata:
    """What travels with a model but never decides what is compiled: all companions count as equal
    for jit's cache.
    """

    tokenizer: Tokenizer
    source: str  # what `jaxedit.load` was given
    tensor_names: dict[
        str, tuple[str, str]
    ]  # parameter -> (HF tensor name with {l}, HF layout pattern)
    history: tuple[Any, ...] = ()  # the edits in the overlay, oldest first

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
    """A language model with its edits; immutable, and a pytree whose only leaves are the arrays of
    base and overlay.

    `base` maps parameter names (`jaxedit.axes.PARAMETERS`) to arrays with layers stacked on axis L;
    it is never written. `overlay` is the float32 sum of the edits."""

    base: dict[str, jax.Array]
    overlay: Overlay
    config: DecoderConfig
    mesh: Mesh
    metadata: ModelMetadata

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the weights; it begins every text anew where an edit was
        made so (`Edit.anchor`).
        """
        has_anchor = any(edit.anchor for edit in self.metadata.history)
        return (with_bos(self) if has_anchor else self).metadata.tokenizer

    @property
    def dtype(self) -> jnp.dtype:
        """The stored weights' dtype."""
        return self.base["embed/tokens"].dtype

    @functools.cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change when any base weight does (a strided sample of each
        parameter).
        """
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(self.base):
            copies = self.config.kv_replication if "K" in axes.PARAMETERS[name] else 1
            shape, sample = _sample(
                self.base[name], axes.PARAMETERS[name].find("K"), copies, self.mesh
            )
            digest.update(f"{name}{shape}".encode() + sample.tobytes())
        return digest.hexdigest()


def _sample(
    array: jax.Array, axis: int, copies: int, mesh: Mesh
) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape of an array without the copies along an axis, and some 4096 entries of it; only
    these are gathered.
    """
    shape = tuple(size // copies if i == axis else size for i, size in enumerate(array.shape))
    size = math.prod(shape)
    at = list(np.unravel_index(np.arange(0, size, max(1, size // 4096)), shape))
    if copies > 1:
        at[axis] = at[axis] * copies
    return shape, np.asarray(_entries(array, tuple(at), mesh), np.float32)


@functools.partial(jax.jit, static_argnames="mesh")
def _entries(array: jax.Array, at: tuple[jax.Array, ...], mesh: Mesh) -> jax.Array:
    return replicate(mesh, array[at])


def with_bos(model: Model) -> Model:
    """The same model, whose tokenizer puts a begin-of-text token in front of what is edited, asked
    and generated.

    Raises:
      ValueError: where the tokenizer has no such token.
    """
    tokenizer = model.metadata.tokenizer
    if tokenizer.bos_id is None:
        raise ValueError(
            f"anchor='bos': the tokenizer of {model.metadata.source} has no begin-of-text token"
        )
    metadata = dataclasses.replace(
        model.metadata, tokenizer=dataclasses.replace(tokenizer, add_bos=True)
    )
    return dataclasses.replace(model, metadata=metadata)


def allocate_deltas(model: Model, weight: str, layers: tuple[int, ...]) -> Model:
    """The same model with room in its overlay for `layers` of `weight`; the deltas of new layers
    are zero.

    A study calls this once, so that no edit changes the shape of anything that is compiled.

    Raises:
      ValueError: on a layer the model does not have.
    """
    outside = [l for l in layers if not 0 <= l < model.config.L]
    if outside:
        raise ValueError(
            f"layers {outside} do not exist: {model.metadata.source} has layers 0 to {model.config.L - 1}"
        )
    old = model.overlay
    had = (
        ()
        if weight not in old.slot
        else tuple(int(l) for l in np.flatnonzero(np.asarray(old.slot[weight]) >= 0))
    )
    if set(layers) <= set(had):
        return model
    every = tuple(sorted({*had, *layers}))
    E, (_, n_in, n_out) = len(every), model.base[weight].shape
    slot_L = np.full(model.config.L, -1, np.int32)
    slot_L[list(every)] = np.arange(E)
    sharding = parameter_sharding(model.mesh, "E" + axes.PARAMETERS[weight][1:], (E, n_in, n_out))
    delta_EFD = device_put_global(sharding, np.zeros((E, n_in, n_out), np.float32))
    for layer in had:
        delta_EFD = delta_EFD.at[slot_L[layer]].set(old.delta[weight][int(old.slot[weight][layer])])
    overlay = Overlay(
        {**old.delta, weight: delta_EFD}, {**old.slot, weight: shard_batch(model.mesh, "_", slot_L)}
    )
    return dataclasses.replace(model, overlay=overlay)

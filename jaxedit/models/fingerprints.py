"""Fingerprints of a model: of its configuration, its tokenizer and its weights, kept apart.

What is made with a model (a study, statistics, a converted model) carries the three, and where it
is used with another model the message says which of them differs. Values in a cache have them in
their file's name, as part of a hash.
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.files import to_json
from jaxedit.mesh import replicate, to_host
from jaxedit.models.config import DecoderConfig
from jaxedit.models.tokenizer import Tokenizer

SMALL_PARAMETERS = 1 << 24  # 64 MiB of float32: up to so many, every one counts
SAMPLED = 4096  # else about so many entries of each parameter
# Of a tokenizer: what changes no text's tokens, and what is the configuration's.
NOT_OF_TOKENS = ("chat_template", "vocab_size", "turn_end_ids", "special_tokens", "generation")


class Fingerprints(NamedTuple):
    """What says whether two models are the same, apart from their edits.

    Attributes:
      configuration: of the decoder's sizes and switches.
      tokenizer: of its text and of the ids of special tokens.
      weights: of the base weights as float32. It begins with "all:" where every byte counts, as in
        models up to 64 MiB, or with "sample:" where some 4096 entries of each parameter do.
    """

    configuration: str
    tokenizer: str
    weights: str


def fingerprint_configuration(config: DecoderConfig) -> str:
    """Digest a decoder's configuration, as it is without copies of key-value heads.

    A switch that has its default does not count, so that one which is new in a later version
    changes no model's fingerprint that does not use it.
    """
    K, copies = config.K, config.kv_replication
    config = dataclasses.replace(config, K=K // copies, kv_replication=1)
    return _digest(_changed_fields(config))


def fingerprint_tokenizer(tokenizer: Tokenizer) -> str:
    """Digest a tokenizer: its text and what it says of special tokens."""
    fields = _changed_fields(tokenizer)
    own = {name: held for name, held in fields.items() if name not in NOT_OF_TOKENS}
    return _digest({**own, "backend": tokenizer.backend.to_str()})


def fingerprints_without_bos(model_prints: Fingerprints, tokenizer: Tokenizer) -> Fingerprints:
    """Return fingerprints in which a begin-of-text token in front of texts does not count.

    They are those of what is computed of texts as they are, such as second moments.

    Args:
      model_prints: of a model.
      tokenizer: the model's.
    """
    as_it_is = dataclasses.replace(tokenizer, add_bos=False)
    return model_prints._replace(tokenizer=fingerprint_tokenizer(as_it_is))


def _changed_fields(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields that do not have their default."""
    changed = {}
    for field in dataclasses.fields(value):
        held = getattr(value, field.name)
        if held != field.default:
            held = sorted(held) if isinstance(held, frozenset) else held
            changed[field.name] = _changed_fields(held) if dataclasses.is_dataclass(held) else held
    return changed


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(to_json(fields), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def fingerprint_weights(base: Mapping[str, jax.Array], config: DecoderConfig, mesh: Mesh) -> str:
    """Digest base weights as float32: every byte of small ones, else a sample, and which it is."""
    n_parameters = sum(array.size // _n_copies(name, config) for name, array in base.items())
    if n_parameters > SMALL_PARAMETERS:
        return f"sample:{sample_weights(base, config, mesh, jnp.dtype('float32'))}"
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(base):
        array = to_host(base[name])
        if _n_copies(name, config) > 1:
            heads = np.arange(0, array.shape[_kv_axis(name)], _n_copies(name, config))
            array = array.take(heads, axis=_kv_axis(name))
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return f"all:{digest.hexdigest()}"


def sample_weights(
    base: Mapping[str, jax.Array], config: DecoderConfig, mesh: Mesh, dtype: jnp.dtype
) -> str:
    """Digest a sample of each base weight, rounded to a dtype."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(base):
        shape, sample = _sample(base[name], _kv_axis(name), _n_copies(name, config), mesh)
        rounded = sample.astype(dtype).astype(np.float32)
        digest.update(f"{name}{shape}".encode() + rounded.tobytes())
    return digest.hexdigest()


def _kv_axis(name: str) -> int:
    """Return a parameter's axis of key-value heads; -1: it has none."""
    return axes.PARAMETERS[name].find("K")


def _n_copies(name: str, config: DecoderConfig) -> int:
    """Return how often each key-value head lies in a parameter."""
    return config.kv_replication if _kv_axis(name) >= 0 else 1


def _sample(
    array: jax.Array, kv_axis: int, n_copies: int, mesh: Mesh
) -> tuple[tuple[int, ...], np.ndarray]:
    """Sample some 4096 evenly strided entries of a parameter; only these are gathered.

    Args:
      array: the parameter.
      kv_axis: its axis of key-value heads.
      n_copies: how often each head lies there; the sample is that of the heads without copies.
      mesh: the devices that hold it.

    Returns:
      The shape without the copies, and the entries in float32.
    """
    shape = tuple(size // n_copies if i == kv_axis else size for i, size in enumerate(array.shape))
    size = math.prod(shape)
    places = np.arange(0, size, max(1, size // SAMPLED))
    at = list(np.unravel_index(places, shape))
    if n_copies > 1:
        at[kv_axis] = at[kv_axis] * n_copies
    return shape, np.asarray(_entries(array, tuple(at), mesh), np.float32)


@functools.partial(jax.jit, static_argnames="mesh")
def _entries(array: jax.Array, at: tuple[jax.Array, ...], mesh: Mesh) -> jax.Array:
    return replicate(mesh, array[at])


def compare_fingerprints(theirs: Any, ours: Fingerprints) -> str:
    """Say in words what differs between a model that something was made with and this one.

    Args:
      theirs: the three by name, as they were written; what is missing there is not compared.
      ours: of this model.

    Returns:
      E.g. "its tokenizer (1f.. there, 2e.. here)"; empty where nothing differs.
    """
    given = theirs if isinstance(theirs, Mapping) else {}
    differing = [
        f"its {name} ({given[name]} there, {own} here)"
        for name, own in ours._asdict().items()
        if given.get(name, own) != own
    ]
    return " and ".join(differing)

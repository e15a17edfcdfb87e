"""`jaxedit.load`: a model from a name, an HF or converted directory, a hub id or a .gguf file."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit.files import expand_home
from jaxedit.mesh import make_mesh
from jaxedit.models.built_in import BUILT_IN, built_in_file
from jaxedit.models.checkpoint import load_parameters, log_summary
from jaxedit.models.checkpoint_checks import check_tensors
from jaxedit.models.config import replicate_kv_heads_for
from jaxedit.models.conversion_record import check_same_model
from jaxedit.models.gguf.checkpoint import open_gguf
from jaxedit.models.hf_directory import open_directory
from jaxedit.models.hub import download_model, is_hub_id, split_revision
from jaxedit.models.model import Model, ModelMetadata
from jaxedit.models.ops import Overlay
from jaxedit.models.orbax import is_converted, read_orbax
from jaxedit.models.remote_directory import fetch_model
from jaxedit.models.tokenizer import Tokenizer
from jaxedit.remote import is_remote

_NAMES = " or ".join(map(repr, BUILT_IN))


def load(
    name_or_path: str | os.PathLike[str],
    *,
    mesh: Mesh | str | None = None,
    dtype: str | None = None,
    add_bos: bool | None = None,
    revision: str | None = None,
) -> Model:
    """Load a model and its tokenizer.

    Args:
      name_or_path: "smollm2-135m" or "gemma3-270m" (`jaxedit.models.built_in`), an HF directory, a
        folder of `jaxedit convert`, a .gguf file, or a hub id, with a revision behind an @:
        "EleutherAI/gpt-j-6b@refs/pr/6"; or such a directory, folder or file in a bucket: gs://,
        s3://, hf://.
      mesh: a Mesh or its text form, e.g. "data:4,model:2"; absent: all devices on `data`.
      dtype: of the stored weights; absent: float32 on a CPU, bfloat16 on accelerators.
      add_bos: whether edits and generation put a begin-of-text token in front; absent: as the
        tokenizer says.
      revision: of a model on the hub: a branch, tag, commit or "refs/pr/6", as behind an @.

    Raises:
      ValueError: where the model is not found, not whole, or not one the decoder can compute
        exactly.
    """
    # The opened checkpoint, the devices, and the dtype the weights will have there.
    name = os.fspath(name_or_path)
    if revision is not None:
        if not is_hub_id(name):
            raise ValueError(f"revision={revision!r} is of models on the hub, and {name} is none")
        name = f"{name}@{revision}"
    _check_dtype(dtype)
    path = resolve_path(name)
    source = open_gguf(path) if path.suffix == ".gguf" else open_directory(path)
    if not isinstance(mesh, Mesh):
        mesh = make_mesh(mesh or "")
    stored_dtype = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    log_summary(source, stored_dtype)
    tokenizer = dataclasses.replace(
        _with_add_bos(source.tokenizer, add_bos, name), vocab_size=source.config.V
    )

    # What an edit's changes are called in an HF checkpoint, whatever kind of file this is.
    tensor_names = {
        entry[0]: (tensor, entry[1])
        for tensor, entry in source.family.WEIGHTS.items()
        if entry is not None and " " not in entry[0]
    }
    config = replicate_kv_heads_for(source.config, mesh.shape["model"])
    if is_converted(path):
        base = read_orbax(path, source.config, config, stored_dtype, mesh)
        check_same_model(path, source.config, source.tokenizer)
    else:
        check_tensors(source)
        base = load_parameters(source, config, stored_dtype, mesh)
    metadata = ModelMetadata(tokenizer, name, tensor_names)
    return Model(base, Overlay({}, {}), config, mesh, metadata)


def _check_dtype(dtype: str | None) -> None:
    """Raise a ValueError on a dtype that weights are not stored as; None: the device's default."""
    try:
        is_known = dtype is None or jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
    except (TypeError, ValueError, SyntaxError):  # NumPy reads some texts as Python
        is_known = False
    if not is_known:
        raise ValueError(f"dtype {str(dtype)[:80]!r}: weights are stored as float32 or bfloat16")


def _with_add_bos(tokenizer: Tokenizer, add_bos: bool | None, name: str) -> Tokenizer:
    """Return the tokenizer with the caller's choice of begin-of-text token, if there is one."""
    if add_bos is None:
        return tokenizer
    if add_bos and tokenizer.bos_id is None:
        raise ValueError(f"add_bos=True, but the tokenizer of {name} has no begin-of-text token")
    return dataclasses.replace(tokenizer, add_bos=add_bos)


def resolve_path(name_or_path: str | os.PathLike[str]) -> Path:
    """Find the directory or .gguf file that a name stands for; fetch what lies elsewhere.

    Raises:
      ValueError: where nothing is found; the message says what was tried.
    """
    name_or_path = expand_home(name_or_path)
    if name_or_path in BUILT_IN:
        return built_in_file(name_or_path)
    if is_remote(name_or_path):
        return fetch_model(name_or_path)
    path = Path(name_or_path)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ValueError(
            f"{path} is a file, but not a .gguf one; give an HF directory, a .gguf file or a hub id"
        )
    looks_like_path = path.suffix == ".gguf" or path.is_absolute() or name_or_path.startswith(".")
    hub_id, revision = split_revision(name_or_path)
    if looks_like_path or hub_id.count("/") > 1:
        raise ValueError(
            f"{path} does not exist; give {_NAMES}, an HF directory, a .gguf file or a hub id "
            "(owner/name, owner/name@REVISION)"
        )
    return download_model(hub_id, revision)

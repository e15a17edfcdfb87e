"""Converted models: stacked arrays as Orbax writes them.

Each device reads its own slices, and nothing is rearranged.

    FOLDER/weights                        an Orbax checkpoint of the parameters, key-value heads
                                          without copies
    FOLDER/config.json, tokenizer files   as in the HF directory that it was made from
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.distributed import broadcast_flag, is_first_process
from jaxedit.mesh import parameter_sharding
from jaxedit.messages import first_line
from jaxedit.models.config import DecoderConfig
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.model import Model

WEIGHTS = "weights"
FILES = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
)


def is_converted(folder: Path) -> bool:
    """Return whether a folder holds a converted model."""
    return (folder / WEIGHTS).is_dir()


def write_orbax(model: Model, directory: Path, folder: Path) -> None:
    """Write a model's base weights, configuration and tokenizer.

    Each process writes its own part of the weights.

    Args:
      model: whose mesh asks for no copies of key-value heads.
      directory: the HF directory that it came from.
      folder: new, and the same for all processes.

    Raises:
      ValueError: where there are copies, or something lies in the folder.
    """
    import orbax.checkpoint as ocp  # slow to import

    if model.config.kv_replication > 1:
        raise ValueError(
            f"on {dict(model.mesh.shape)} the model holds its key-value heads "
            f"{model.config.kv_replication} times; "
            "convert it on a mesh whose model axis divides them"
        )
    # The first process decides for all: another one may have begun to write.
    if broadcast_flag(folder.exists() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; give another folder")
    arrays = {_key(name): array for name, array in model.base.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve() / WEIGHTS, arrays)
    if is_first_process():
        for path in sorted({path for pattern in FILES for path in directory.glob(pattern)}):
            shutil.copy(path, folder)


def read_orbax(
    folder: Path, stored: DecoderConfig, config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh
) -> dict[str, jax.Array]:
    """Read every parameter straight to the devices that hold it.

    Args:
      folder: of a converted model.
      stored: its decoder, as it is written.
      config: the same, after `replicate_kv_heads_for`.
      dtype: of the arrays.
      mesh: where they go.

    Raises:
      ValueError: where the checkpoint is not whole, or another model's.
    """
    import orbax.checkpoint as ocp

    # Each device reads its slices of the parameters as they are stored.
    shapes = parameter_shapes(stored)
    wanted = {}
    for name, shape in shapes.items():
        sharding = parameter_sharding(mesh, name, shape)
        wanted[_key(name)] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(folder.resolve() / WEIGHTS, wanted)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is not the whole model of its config.json "
            f"({first_line(error)}); convert it again"
        ) from error
    base = {name: found[_key(name)] for name in shapes}

    # Key-value heads are stored once; the mesh may need each of them several times.
    n_copies = config.kv_replication // stored.kv_replication
    if n_copies == 1:
        return base
    for name, shape in parameter_shapes(config).items():
        kv_axis = axes.PARAMETERS[name].find("K")
        if kv_axis >= 0:
            sharding = parameter_sharding(mesh, name, shape)
            repeat = jax.jit(jnp.repeat, static_argnums=(1, 2), out_shardings=sharding)
            base[name] = repeat(base[name], n_copies, kv_axis)
    return base


def _key(name: str) -> str:
    """Return a parameter's name in the checkpoint, where "/" would nest."""
    return name.replace("/", ".")

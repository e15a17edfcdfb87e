"""Converted models: stacked arrays as Orbax writes them, from which each device reads its own
slices and nothing is rearranged.

FOLDER/weights                      an Orbax checkpoint of the parameters, key-value heads without copies
FOLDER/config.json, tokenizer files as in the HF directory that it was made from
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.distributed import broadcast_flag
from jaxedit.mesh import parameter_sharding
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
    """Whether a folder holds a converted model."""
    return (folder / WEIGHTS).is_dir()


def write_orbax(model: Model, directory: Path, folder: Path) -> None:
    """Writes a model's base weights, each process its own part of them, and what else belongs to
    it.

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
            f"on {dict(model.mesh.shape)} the model holds its key-value heads {model.config.kv_replication} times; convert it on a "
            "mesh whose model axis divides them"
        )
    if broadcast_flag(
        folder.exists() and any(folder.iterdir())
    ):  # another process may have begun to write
        raise ValueError(f"{folder} is not empty; give another folder")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            folder.resolve() / WEIGHTS, {_key(name): array for name, array in model.base.items()}
        )
    if jax.process_index() == 0:
        for path in sorted({path for pattern in FILES for path in directory.glob(pattern)}):
            shutil.copy(path, folder)


def read_orbax(
    folder: Path, stored: DecoderConfig, config: DecoderConfig, dtype: jnp.dtype, mesh: Mesh
) -> dict[str, jax.Array]:
    """Reads every parameter straight to the devices that hold it.

    Args:
      folder: of a converted model.
      stored: its decoder, as it is written.
      config: the same `for_mesh`.
      dtype: of the arrays.
      mesh: where they go.

    Raises:
      ValueError: where the checkpoint is not whole, or another model's.
    """
    import orbax.checkpoint as ocp

    shapes = parameter_shapes(stored)
    wanted = {
        _key(name): jax.ShapeDtypeStruct(
            shape, dtype, sharding=parameter_sharding(mesh, name, shape)
        )
        for name, shape in shapes.items()
    }
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(folder.resolve() / WEIGHTS, wanted)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} is not the whole model of its config.json ({str(error).splitlines()[0]}); convert it again"
        ) from error
    base = {name: found[_key(name)] for name in shapes}
    copies = config.kv_replication // stored.kv_replication
    for name, shape in parameter_shapes(config).items():
        axis = axes.PARAMETERS[name].find("K")
        if copies > 1 and axis >= 0:
            many = jax.jit(
                jnp.repeat,
                static_argnums=(1, 2),
                out_shardings=parameter_sharding(mesh, name, shape),
            )
            base[name] = many(base[name], copies, axis)
    return base


def _key(name: str) -> str:
    return name.replace("/", ".")

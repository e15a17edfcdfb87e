"""Converted models: stacked arrays as Orbax writes them.

Each device reads its own slices, and nothing is rearranged.

    FOLDER/weights                        an Orbax checkpoint of the parameters, key-value heads
                                          without copies
    FOLDER/config.json, tokenizer files   as in the HF directory that it was made from
    FOLDER/converted.json                 fingerprints and digests (`conversion_record.py`)
"""

import contextlib
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxedit import axes
from jaxedit.distributed import broadcast_flag, is_first_process, own_target
from jaxedit.files import partial_path, sync_folder
from jaxedit.mesh import parameter_sharding
from jaxedit.messages import first_line
from jaxedit.models.config import DecoderConfig
from jaxedit.models.conversion_record import WEIGHTS, check_content, write_record
from jaxedit.models.decoder import parameter_shapes
from jaxedit.models.model import Model

SETTLE_S = 0.5  # after a failure: how long threads go on with what they had begun
FILES = (
    "config.json",
    "generation_config.json",
    "*.jinja",
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
      ValueError: where there are copies, something lies in the folder, or another process writes
        it.
      OSError: where it cannot be written; nothing is left of the attempt.
    """
    if model.config.kv_replication > 1:
        raise ValueError(
            f"on {dict(model.mesh.shape)} the model holds its key-value heads "
            f"{model.config.kv_replication} times; "
            "convert it on a mesh whose model axis divides them"
        )
    fingerprints, is_first = model.fingerprints, is_first_process()
    with own_target(folder):
        partial = partial_path(folder)
        if is_first:
            shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        # The first process decides for all: another one may have begun to write.
        if broadcast_flag(folder.exists() and any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty; give another folder")
        try:
            _save_weights(model, partial)
            if is_first:
                for path in sorted({path for name in FILES for path in directory.glob(name)}):
                    shutil.copy(path, partial)
                write_record(partial, fingerprints)
                if folder.exists():
                    folder.rmdir()
                partial.rename(folder)
                sync_folder(folder.parent)
        except BaseException:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        broadcast_flag(True)  # the others wait until it is there


def _save_weights(model: Model, folder: Path) -> None:
    """Save the base weights into a folder, each process its own part of them.

    Raises:
      OSError: where they cannot be written.
    """
    import orbax.checkpoint as ocp  # slow to import

    arrays = {_key(name): array for name, array in model.base.items()}
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(folder).free
    room = f"{needed / 1e9:.3g} GB are written, {free / 1e9:.3g} GB are free"
    if free < needed:
        raise OSError(f"there is no room for the model at {folder.parent}: {room}")
    try:
        with (
            _quiet_threads(),
            ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer,
        ):
            checkpointer.save(folder.resolve() / WEIGHTS, args=ocp.args.StandardSave(arrays))
    except Exception as error:  # TensorStore has many
        code = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(code[1])) if code else first_line(error)
        raise OSError(
            f"the model could not be written to {folder.parent}: {reason}; {room}"
        ) from error


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """Keep Orbax's and TensorStore's threads from printing what the caller's error says.

    Once one has failed, Orbax's log has its traceback several times, and reads and writes that are
    still going on find an event loop that is closed.
    """
    hook, logger = sys.unraisablehook, logging.getLogger("absl")
    was_disabled = logger.disabled

    def report(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    sys.unraisablehook, logger.disabled = report, True
    try:
        yield
    except BaseException:
        time.sleep(SETTLE_S)
        raise
    finally:
        sys.unraisablehook, logger.disabled = hook, was_disabled


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
      ValueError: where the checkpoint is not whole, not as it was written, or another model's.
    """
    import orbax.checkpoint as ocp

    check_content(folder)

    # Each device reads its slices of the parameters as they are stored.
    shapes = parameter_shapes(stored)
    wanted = {}
    for name, shape in shapes.items():
        sharding = parameter_sharding(mesh, name, shape)
        wanted[_key(name)] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    try:
        with _quiet_threads(), ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(folder.resolve() / WEIGHTS, wanted)
    except Exception as error:  # TensorStore has many
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

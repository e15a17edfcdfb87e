"""The devices of a plan: TPU chips described by the TPU compiler, or the devices of this machine.

Rates are a chip's own, from the pages of the Cloud TPU documentation on each version.
`ici_bandwidth` is what a chip sends over all its links to other chips (the pages give it in Gbit/s;
newer ones count both directions)."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxedit.mesh import TPU_BYTES
from jaxedit.messages import first_line
from jaxedit.timing import host_bytes


class Chip(NamedTuple):
    """Memory and rates of one device; None where they are not published."""

    name: str
    hbm_bytes: int
    flops_per_s: float | None  # bfloat16
    hbm_bandwidth: float | None  # bytes a second
    ici_bandwidth: float | None  # bytes a second


CHIPS = {
    "v4": Chip("TPU v4", TPU_BYTES["TPU v4"], 275e12, 1228e9, 2400e9 / 8),
    "v5e": Chip("TPU v5e", TPU_BYTES["TPU v5 lite"], 197e12, 819e9, 1600e9 / 8),
    "v5p": Chip("TPU v5p", TPU_BYTES["TPU v5p"], 459e12, 2765e9, 4800e9 / 8),
    "v6e": Chip("TPU v6e", TPU_BYTES["TPU v6 lite"], 918e12, 1640e9, 3584e9 / 8),
}
DEVICE_KINDS = {  # what JAX calls them
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}

# Without them the compiler asks a metadata server what machine it runs on, writes logs, and one
# process at a time may have it.
COMPILER_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def find_chip(topology: str) -> tuple[list[Any], Chip]:
    """Find the devices of a topology and their chip.

    Args:
      topology: "v5e:2x4", "v5p:4x4x4", ... or "local" for the devices that JAX has here.

    Raises:
      ValueError: where the chip or its arrangement is not known, or the TPU compiler is not
        installed.
    """
    if topology == "local":
        devices = jax.devices()
        return devices, _local_chip(devices)
    version = topology.split(":")[0]
    if version not in CHIPS:
        raise ValueError(
            f"topology {topology!r}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, e.g. "
            "v5e:2x4 or v5p:4x4x4, or local"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology {topology!r} needs the TPU compiler, which is not installed: pip install "
            "'jaxedit[plan]', or give --topology=local for the devices of this machine"
        )
    from jax.experimental import topologies  # loads the compiler

    # A v4 chip is two cores that JAX runs as one device; the description takes them apart unless
    # told.
    options = {"chip_config_name": "megacore"} if version == "v4" else {}
    try:
        with _compiler_environment():
            found = topologies.get_topology_desc(topology, platform="tpu", **options)
            return found.devices, CHIPS[version]
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"topology {topology!r}: {first_line(error)}; e.g. v5e:2x4, v5e:16x16, "
            "v5p:4x4x4, v6e:4x4"
        ) from error


def build_mesh(devices: list[Any], n_data: int, n_model: int) -> Mesh:
    """Build a mesh of the first devices of a topology.

    Raises:
      ValueError: where there are fewer.
    """
    n_wanted = n_data * n_model
    if n_wanted > len(devices):
        raise ValueError(
            f"mesh data:{n_data},model:{n_model} needs {n_wanted} devices, the topology has "
            f"{len(devices)}"
        )
    sizes, names, types = (n_data, n_model), ("data", "model"), (AxisType.Auto,) * 2
    chosen = devices[:n_wanted]
    try:
        return jax.make_mesh(sizes, names, axis_types=types, devices=chosen)
    except NotImplementedError:
        # No axis of the torus, nor a product of them, has such a size: part of an axis is taken.
        arranged = mesh_utils.create_device_mesh(sizes, chosen, allow_split_physical_axes=True)
        return Mesh(arranged, names, axis_types=types)


def _local_chip(devices: list[Any]) -> Chip:
    """Describe a device of this machine: a known chip, or a memory without rates."""
    kind = devices[0].device_kind
    if kind in DEVICE_KINDS:
        return CHIPS[DEVICE_KINDS[kind]]
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:  # a CPU: its devices share the machine's memory
        limit = host_bytes() // len(devices)
    return Chip(kind, int(limit), None, None, None)


@contextlib.contextmanager
def _compiler_environment() -> Iterator[None]:
    """Set what the compiler reads when it is loaded; afterwards the environment is as it was."""
    added = {name: value for name, value in COMPILER_ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)

"""The device mesh `(data, model)`: making one, and placing arrays on it.

With several processes all of them run the same program on the same host data. Each puts on its own
devices what these hold. Whatever the host then branches on is replicated to every device first, so
that all processes take the same branch.
"""

import logging

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxedit import axes
from jaxedit.rounding import read_whole_number

# The memory of one device, by what JAX calls its kind.
TPU_BYTES = {
    "TPU v4": 32 * 10**9,
    "TPU v5 lite": 16 * 10**9,
    "TPU v5": 95 * 10**9,
    "TPU v5p": 95 * 10**9,
    "TPU v6 lite": 32 * 10**9,
}


def make_mesh(spec: str = "") -> Mesh:
    """Make a mesh from text such as "data:4,model:2"; an empty text puts every device on `data`.

    One of the sizes may be -1: the rest, the number of devices divided by the other size. Devices
    that a mesh leaves idle are an error on several hosts and a logged warning on one.

    Raises:
      ValueError: on an unknown axis, a size that is not a positive number or -1, two sizes of -1, a
        product over the number of devices, a rest that does not divide, and idle devices on several
        hosts.
    """
    devices = jax.devices()
    data, model = parse_mesh(spec, len(devices))
    n_used = data * model
    if n_used > len(devices):
        raise ValueError(
            f"mesh {spec!r} needs {n_used} devices, {len(devices)} are there "
            f"({devices[0].platform}); on a CPU, JAX_NUM_CPU_DEVICES=8 simulates eight"
        )
    if n_used < len(devices):
        _report_idle(spec, n_used, len(devices), model)
    # The default axis type, Explicit, makes `table[tokens]` raise; Auto leaves the choice to the
    # partitioner.
    return jax.make_mesh(
        (data, model),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[:n_used],
    )


def parse_mesh(spec: str, n_devices: int) -> tuple[int, int]:
    """Parse text as `make_mesh` takes it into the sizes of `data` and `model`.

    Raises:
      ValueError: on an unknown axis, a size that is not a positive number or -1, two sizes of -1,
        and a rest that does not divide.
    """
    sizes = {"data": 1, "model": 1} if spec else {"data": n_devices, "model": 1}
    for part in filter(None, spec.split(",")):
        name, _, size = part.partition(":")
        is_size = size == "-1" or bool(read_whole_number(size))
        if name not in sizes or not is_size:
            raise ValueError(
                f"mesh {spec[:80]!r}: {part[:80]!r} is not one of data:NUMBER, model:NUMBER; "
                "e.g. --mesh=data:4,model:2"
            )
        sizes[name] = int(size)
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise ValueError(
            f"mesh {spec!r}: only one of the sizes can be -1, the rest; e.g. --mesh=data:-1,model:2"
        )
    if rest:
        other = sizes["model" if rest[0] == "data" else "data"]
        if n_devices % other:
            raise ValueError(
                f"mesh {spec!r}: {n_devices} devices are not divided by {other}, so there is no "
                f"rest for {rest[0]}; give a size that divides {n_devices}"
            )
        sizes[rest[0]] = n_devices // other
    return sizes["data"], sizes["model"]


def _report_idle(spec: str, n_used: int, n_devices: int, model: int) -> None:
    """Raise on several hosts, and warn on one, where a mesh leaves devices idle."""
    remedy = (
        f"give --mesh=data:-1,model:{model} to use all"
        if n_devices % model == 0
        else f"give sizes whose product is {n_devices} to use all"
    )
    message = (
        f"mesh {spec!r} uses {n_used} of {n_devices} devices, {n_devices - n_used} would be idle; "
        f"{remedy}"
    )
    # A host whose devices hold no part of an array cannot run the program on it.
    if jax.process_count() > 1:
        raise ValueError(message)
    logging.getLogger("jaxedit").warning("%s", message)


def platform(mesh: Mesh) -> str:
    """Return what kind of devices a mesh is of: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def device_bytes_limit(mesh: Mesh) -> int | None:
    """Return the memory of one of a mesh's devices; None on CPUs, which share the machine's.

    That of a TPU is known by its kind, also where it is only described; a GPU says what it gives.
    """
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return None
    if device.device_kind in TPU_BYTES:
        return TPU_BYTES[device.device_kind]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit)


def parameter_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of a stored parameter, or of an array by its axis letters.

    Args:
      mesh: the device mesh.
      name: a name of `axes.PARAMETERS`, or axis letters (an overlay's delta is "EFD").
      shape: the array's shape.
    """
    letters = axes.PARAMETERS.get(name, name)
    return NamedSharding(mesh, axes.partition(letters, shape, mesh.shape, axes.PARAMETER_RULES))


def shard_batch(mesh: Mesh, letters: str, array: np.ndarray) -> jax.Array:
    """Put an activation-like host array on the mesh, split by the activation rules."""
    spec = axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)
    return device_put_global(NamedSharding(mesh, spec), array)


def device_put_global(sharding: Sharding, array: np.ndarray) -> jax.Array:
    """Put a host array that every process holds on the devices of all processes.

    Each process reads what its own devices need of it.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """Gather a whole array on the host of every process, wherever its shards lie.

    For the few that have to be there, such as what is journalled.
    """
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def replicate(mesh: Mesh, tree):
    """Constrain arrays inside jit to be whole on every device, so that every process can read them.

    The identity on one device.
    """
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def constrain(mesh: Mesh, letters: str, array: jax.Array) -> jax.Array:
    """Constrain an array inside jit to the activation rules; the identity on one device."""
    if mesh.size == 1:
        return array
    spec = axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

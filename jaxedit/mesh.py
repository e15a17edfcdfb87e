"""The device mesh `(data, model)`: how to make one, place arrays on it and constrain them inside
jit; several processes.

With several processes all of them run the same program on the same host data. Each puts on its
devices what these hold; what the host then decides by is whole on every device, so all decide
alike."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxedit import axes


def make_mesh(spec: str = "") -> Mesh:
    """Makes a mesh from text such as "data:4,model:2"; an empty text puts every device on `data`.

    Raises:
      ValueError: on an unknown axis, a size that is not a positive number, or a product over the
        number of devices.
    """
    devices = jax.devices()
    sizes = {"data": 1, "model": 1}
    if not spec:
        sizes["data"] = len(devices)
    for part in filter(None, spec.split(",")):
        name, _, size = part.partition(":")
        if name not in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(
                f"mesh {spec!r}: {part!r} is not one of data:NUMBER, model:NUMBER; e.g. --mesh=data:4,model:2"
            )
        sizes[name] = int(size)
    n_wanted = sizes["data"] * sizes["model"]
    if n_wanted > len(devices):
        raise ValueError(
            f"mesh {spec!r} needs {n_wanted} devices, {len(devices)} are there ({devices[0].platform}); "
            "on a CPU, JAX_NUM_CPU_DEVICES=8 simulates eight"
        )
    # The default axis type, Explicit, makes `table[tokens]` raise; Auto leaves the choice to the
    # partitioner.
    return jax.make_mesh(
        (sizes["data"], sizes["model"]),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[:n_wanted],
    )


def parameter_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """How a stored parameter (or an overlay's delta, "EFD") lies on the mesh."""
    letters = axes.PARAMETERS.get(name, name)
    return NamedSharding(mesh, axes.partition(letters, shape, mesh.shape, axes.PARAMETER_RULES))


def shard_batch(mesh: Mesh, letters: str, array: np.ndarray) -> jax.Array:
    """Puts an activation-like host array on the mesh: its B axis over `data`, the rest replicated."""
    return device_put_global(
        NamedSharding(
            mesh, axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)
        ),
        array,
    )


def device_put_global(sharding: Sharding, array: np.ndarray) -> jax.Array:
    """Puts a host array that every process holds on devices; each process reads what its own
    devices need of it.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, whole, wherever its pieces lie: for the few that have to be there, such
    as what is journalled.
    """
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def replicate(mesh: Mesh, tree):
    """Constrains arrays inside jit to be whole on every device, so that every process can read
    them.
    """
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def constrain(mesh: Mesh, letters: str, array: jax.Array) -> jax.Array:
    """Constrains an array inside jit to the activation rules; the identity on one device."""
    if mesh.size == 1:
        return array
    spec = axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

"""The device mesh `(data, model)`: how to make one, place arrays on it and constrain them inside jit; several processes.

With several processes all of them run the same program on the same host data. Each puts on its devices what these hold;
what the host then decides by is whole on every device, so all decide alike.
"""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jaxedit import axes


def make_mesh(spec: str = "") -> Mesh:
    """Makes a mesh from text such as "data:4,model:2"; an empty text puts every device on `data`.

    Raises:
      ValueError: on an unknown axis, a size that is not a positive number, or a product over the number of devices.
    """
    devices = jax.devices()
    sizes = {"data": 1, "model": 1}
    if not spec:
        sizes["data"] = len(devices)
    for part in filter(None, spec.split(",")):
        name, _, size = part.partition(":")
        if name not in sizes or not size.isdigit() or int(size) < 1:
            raise ValueError(f"mesh {spec!r}: {part!r} is not one of data:NUMBER, model:NUMBER; e.g. --mesh=data:4,model:2")
        sizes[name] = int(size)
    n_wanted = sizes["data"] * sizes["model"]
    if n_wanted > len(devices):
        raise ValueError(
            f"mesh {spec!r} needs {n_wanted} devices, {len(devices)} are there ({devices[0].platform}); "
            "on a CPU, JAX_NUM_CPU_DEVICES=8 simulates eight"
        )
    # The default axis type, Explicit, makes `table[tokens]` raise; Auto leaves the choice to the partitioner.
    return jax.make_mesh(
        (sizes["data"], sizes["model"]), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices[:n_wanted]
    )


def start_processes(coordinator: str | None = None, n_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes of a run; call it before anything else of JAX.

    Args:
      coordinator: HOST:PORT of process 0; absent: JAX finds the others (TPU pods, Slurm, Open MPI).
      n_processes: how many there are.
      process_id: which of them this is.

    Raises:
      ValueError: where only some of the three are given, or the others cannot be found or reached.
    """
    given = {"coordinator": coordinator, "num_processes": n_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"{', '.join(missing)} missing: give --coordinator=HOST:PORT, --num_processes and --process_id together"
        )
    try:
        jax.distributed.initialize(coordinator, n_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes of this run did not find each other ({str(error).splitlines()[0]}); outside of TPU pods and Slurm "
            "give --coordinator=HOST:PORT, --num_processes=N and --process_id=I"
        ) from error


def are_several() -> bool:
    """Whether the environment says that this is one of several processes: of a Slurm step, or of a TPU slice."""
    n_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return (n_tasks.isdigit() and int(n_tasks) > 1) or "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def parameter_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """How a stored parameter (or an overlay's delta, "EFD") lies on the mesh."""
    letters = axes.PARAMETERS.get(name, name)
    return NamedSharding(mesh, axes.partition(letters, shape, mesh.shape, axes.PARAMETER_RULES))


def place(mesh: Mesh, letters: str, array: np.ndarray) -> jax.Array:
    """Puts an activation-like host array on the mesh: its B axis over `data`, the rest replicated."""
    return put(NamedSharding(mesh, axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)), array)


def put(sharding: Sharding, array: np.ndarray) -> jax.Array:
    """Puts a host array that every process holds on devices; each process reads what its own devices need of it."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, whole, wherever its pieces lie: for the few that have to be there, such as what is journalled."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def agreed(choice: bool) -> bool:
    """The first process's choice, in all of them: for what a clock decides."""
    if jax.process_count() == 1:
        return choice
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(choice)))


def in_shares(items: list, work: Callable[[list], list[np.ndarray]]) -> list[np.ndarray]:
    """The integers [*] that `work` makes of each item: every process works on a share, and all get everything."""
    n = jax.process_count()
    mine = work(items[jax.process_index() :: n])
    if n == 1:
        return mine
    from jax.experimental import multihost_utils

    size_I = np.zeros(-(-len(items) // n), np.int32)  # the last processes may have one item less
    size_I[: len(mine)] = [len(row) for row in mine]
    size_PI = np.asarray(multihost_utils.process_allgather(size_I))
    flat_T = np.zeros(1 << int(size_PI.sum(1).max()).bit_length(), np.int32)  # few lengths, as each is compiled for
    flat_T[: size_I.sum()] = np.concatenate([flat_T[:0], *mine])
    flat_PT = np.asarray(multihost_utils.process_allgather(flat_T))
    shares = [np.split(all_T, np.cumsum(size)) for all_T, size in zip(flat_PT, size_PI, strict=True)]
    return [shares[i % n][i // n] for i in range(len(items))]


def everywhere(mesh: Mesh, tree):
    """Constrains arrays inside jit to be whole on every device, so that every process can read them."""
    if mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def constrain(mesh: Mesh, letters: str, array: jax.Array) -> jax.Array:
    """Constrains an array inside jit to the activation rules; the identity on one device."""
    if mesh.size == 1:
        return array
    spec = axes.partition(letters, array.shape, mesh.shape, axes.ACTIVATION_RULES)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))

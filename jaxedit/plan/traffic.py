"""Count the bytes that one instruction of a compiled program moves and sends.

Moved are bytes between the main memory and the chip, sent are bytes to other chips."""

import math
import re

from jaxedit.plan.hlo import Computation, HloArray, Instruction, Module

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
NOT_MOVING = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "optimization-barrier",
}
NAMING_CALLS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective")  # only name memory
TAKING = ("dynamic-slice", "slice", "gather")  # read what they take, not their whole operand


def is_collective(instruction: Instruction) -> bool:
    """Tell whether an instruction is a collective, or starts one."""
    return instruction.opcode.removesuffix("-start") in COLLECTIVES


def sent_bytes(module: Module, computation: Computation, collective: Instruction) -> float:
    """Return the bytes that each device of a collective's group sends."""
    kind, n = collective.opcode.removesuffix("-start"), _group_size(module, collective)
    size = sum(array.n_bytes for array in _operand_arrays(computation, collective))
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    if kind == "all-gather":
        return (n - 1) * size
    # In a computation of this name the TPU compiler fuses an all-reduce with the slice of it that a
    # device keeps: together they send what a reduce-scatter sends.
    if kind == "all-reduce" and not computation.name.startswith("all-reduce-scatter"):
        return 2 * (n - 1) / n * size
    return (n - 1) / n * size


def describe_collective(computation: Computation, collective: Instruction) -> tuple[str, str]:
    """Return a collective's kind with its operands, and where in the Python code it comes from."""
    arrays = _operand_arrays(computation, collective)
    shown = " ".join(f"{array.dtype}[{','.join(map(str, array.dims))}]" for array in arrays)
    return f"{collective.opcode.removesuffix('-start')} {shown}", collective.op_name


def _operand_arrays(computation: Computation, instruction: Instruction) -> list[HloArray]:
    return [
        array for name in instruction.operands for array in computation.instructions[name].arrays
    ]


def _group_size(module: Module, collective: Instruction) -> int:
    """Return how many devices of a collective exchange with each other.

    Groups are written as {{0,1},{2,3}}, as [4,2]<=[8] or as mesh['a'=2,'b'=4] {'b'}, which may
    say between the two which devices the mesh is of: device_ids=([4,2]T(1,0)). No groups, or {},
    are one of all devices.

    Raises:
      ValueError: where they are written in another way.
    """
    axes = re.search(
        r"replica_groups=[^{]*mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}",
        collective.attributes,
    )
    if axes:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", axes[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", collective.attributes)
    if counted:
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", collective.attributes)
    if listed:
        return len(listed[1].split(","))
    if re.search(r"replica_groups=(?!\{\})", collective.attributes):
        raise ValueError(f"groups of a collective in an unknown form: {collective.attributes}")
    return module.n_devices


def moved_bytes(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Return the bytes that an instruction moves between the main memory and the chip."""
    opcode = instruction.opcode
    if opcode in NOT_MOVING or _only_names(instruction):
        return 0.0
    written = sum(array.main_bytes for array in instruction.arrays)
    # Asynchronous copies count where they end; what they copy is an operand of where they start.
    if opcode in ("copy-done", "slice-done"):
        start = computation.instructions[instruction.operands[0]]
        source = computation.instructions[start.operands[0]] if start.operands else instruction
        taken = 0.0 if source.arrays[0].space else instruction.arrays[0].n_bytes
        return written + taken
    if opcode.endswith(("-start", "-done", "-update")) and not is_collective(instruction):
        return 0.0
    operands = [computation.instructions[name].arrays for name in instruction.operands]
    if opcode in TAKING:
        return written + (0.0 if operands[0][0].space else instruction.arrays[0].n_bytes)
    # An update reads and writes what it changes, in place.
    if opcode == "dynamic-update-slice":
        return 2 * operands[1][0].main_bytes
    if opcode == "scatter":
        return 2 * operands[-1][0].main_bytes
    if opcode == "fusion":
        return _fusion_bytes(module, instruction, operands)
    return written + sum(array.main_bytes for arrays in operands for array in arrays)


def _only_names(instruction: Instruction) -> bool:
    """Tell whether an instruction is a custom call that does nothing but name memory."""
    return instruction.opcode == "custom-call" and any(
        name in instruction.attributes for name in NAMING_CALLS
    )


def _fusion_bytes(
    module: Module, fusion: Instruction, operands: list[tuple[HloArray, ...]]
) -> float:
    """Return what a fusion reads of its operands and writes of its results."""
    inner = module.computations[fusion.called("calls")[0]]
    read = 0.0
    for parameter, arrays in zip(inner.parameters, operands, strict=True):
        whole = sum(array.main_bytes for array in arrays)
        read += min(whole, _read_bytes(module, inner, parameter)) if whole else 0.0
    return read + _written_bytes(inner, fusion.arrays)


def _read_bytes(module: Module, inner: Computation, name: str) -> float:
    """Return what the instructions of a fusion read of one of its parameters, at most all of it.

    Args:
      module: the program.
      inner: the fusion's computation.
      name: of the parameter, or of what only renames it.
    """
    whole = sum(array.n_bytes for array in inner.instructions[name].arrays)
    total = 0.0
    for user in inner.instructions.values():
        if name not in user.operands or user.opcode == "tuple" or user.opcode in COLLECTIVES:
            continue
        # Only the first operand of these is read in part, or not at all; names are followed.
        is_first = user.operands[0] == name
        if user.opcode in TAKING and is_first:
            total += user.arrays[0].n_bytes
        elif (user.opcode == "dynamic-update-slice" and is_first) or _only_names(user):
            continue
        elif user.opcode in ("bitcast", "get-tuple-element"):
            total += _read_bytes(module, inner, user.name)
        elif user.opcode == "fusion":
            nested = module.computations[user.called("calls")[0]]
            pairs = zip(nested.parameters, user.operands, strict=True)
            total += sum(
                _read_bytes(module, nested, parameter)
                for parameter, operand in pairs
                if operand == name
            )
        else:
            return whole
    return min(whole, total)


def _written_bytes(inner: Computation, arrays: tuple[HloArray, ...]) -> float:
    """Return what a fusion writes.

    Of a parameter that is handed on that is nothing, of an array updated in place the update.

    Args:
      inner: the fusion's computation.
      arrays: the fusion's results.
    """
    root = inner.instructions[inner.root]
    names = root.operands if root.opcode == "tuple" else (inner.root,)
    if len(names) != len(arrays):
        return 0.0 if root.opcode == "custom-call" else sum(array.main_bytes for array in arrays)
    total = 0.0
    for name, array in zip(names, arrays, strict=True):
        while inner.instructions[name].opcode == "bitcast":
            name = inner.instructions[name].operands[0]
        made = inner.instructions[name]
        if made.opcode == "dynamic-update-slice":
            update = inner.instructions[made.operands[1]].arrays[0]
            total += 0.0 if array.space else update.n_bytes
        elif made.opcode != "parameter":
            total += array.main_bytes
    return total

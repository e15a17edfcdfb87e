"""Read compiled programs: the text of an optimised HLO module, and how often its loops run.

XLA's own cost analysis counts a loop's body once and names no collective; the text has all that is
needed to do better. A trip count is read from the compiler's annotation or found by following the
counter: its start in the operand of the loop, its step in the body, its end in the condition."""

import math
import re
from typing import NamedTuple

from jaxedit.rounding import ceil_div

ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0}

# An array in a result's type: dtype[dims]{layout}, where the layout may name a memory space, S(n).
ARRAY = re.compile(r"(\w+)\[([^\]]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?")
COPIES = ("copy", "bitcast")  # hand on a value as it is
CONVERSIONS = (*COPIES, "convert", "copy-done", "copy-start", "reshape")  # ... or a number as it is


class HloArray(NamedTuple):
    """One array of an instruction's result; space 0 is the main memory, others are on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def n_bytes(self) -> float:
        """Its size without a layout's padding."""
        width = re.match(r"[su](\d+)|f8", self.dtype)
        item_bytes = int(width[1] or 8) / 8 if width else 4
        return ITEM_BYTES.get(self.dtype, item_bytes) * math.prod(self.dims)

    @property
    def main_bytes(self) -> float:
        """Its size where it lies in the main memory, else 0."""
        return 0.0 if self.space else self.n_bytes


class Instruction(NamedTuple):
    """One line of a computation: its result's arrays, its opcode, its operands' names."""

    name: str
    arrays: tuple[HloArray, ...]  # of a tuple its leaves
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    attributes: str  # the text behind them

    def called(self, key: str) -> list[str]:
        """Return the names of the computations that an attribute holds."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []

    @property
    def op_name(self) -> str:
        """Where in the Python code it comes from, as JAX says it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""


class Computation(NamedTuple):
    """A function of the module: its instructions by name, and the one whose result it returns."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters, in order."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return [each.name for each in sorted(found, key=lambda each: int(each.inside))]

    def original(self, name: str) -> Instruction:
        """Return the instruction whose value a name holds, however often it was copied."""
        found = self.instructions[name]
        while found.opcode in COPIES:
            found = self.instructions[found.operands[0]]
        return found


class Module(NamedTuple):
    """A compiled program; `n_devices` run it together."""

    computations: dict[str, Computation]
    entry: str
    n_devices: int


def parse_module(text: str) -> Module:
    """Parse the text of an optimised module.

    Raises:
      ValueError: where it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, root, instructions = "", "", "", {}
    for line in text.splitlines():
        # An indented line is an instruction of the computation that was opened last.
        if line.startswith((" ", "\t")):
            if name and (instruction := _parse_instruction(line)):
                instructions[instruction.name] = instruction
                root = instruction.name if line.lstrip().startswith("ROOT ") else root
        elif line.startswith("}") and name:
            computations[name], name = Computation(name, instructions, root), ""
        elif line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            name, root, instructions = head[2], "", {}
            entry = name if head[1] else entry
    if entry not in computations:
        raise ValueError(
            "the compiled program's text has no entry computation; this version of XLA writes "
            "another form"
        )
    header = text.split("\n", 1)[0]
    sizes = re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header)
    return Module(computations, entry, math.prod(map(int, sizes)))


def _parse_instruction(line: str) -> Instruction | None:
    """Parse `[ROOT] %name = type opcode(operands), attributes`; None for any other line."""
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    type_end = _end_of_parentheses(rest, 0) if rest.startswith("(") else rest.index(" ")
    result_type, rest = rest[:type_end], rest[type_end:].lstrip()
    opcode = rest[: rest.index("(")]
    end = _end_of_parentheses(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : end - 1], rest[end:]
    arrays = tuple(
        HloArray(dtype, tuple(map(int, re.findall(r"\d+", dims))), int(space or 0))
        for dtype, dims, space in ARRAY.findall(result_type)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(head[1], arrays, opcode, operands, inside, attributes)


def _end_of_parentheses(text: str, start: int) -> int:
    """Return the index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a line of the compiled program ends within parentheses: {text[:80]}")


KnownEntries = dict[int, int]  # entries of a computation's tuple parameter that are known integers


def known_integer(computation: Computation, name: str, known: KnownEntries) -> int | None:
    """Return an instruction's integer result, where it is known before the program runs."""
    found = computation.instructions[name]
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.inside):
        return int(found.inside)
    if found.opcode in CONVERSIONS:
        return known_integer(computation, found.operands[0], known)
    if found.opcode == "get-tuple-element":
        is_parameter = computation.instructions[found.operands[0]].opcode == "parameter"
        return known.get(_tuple_index(found)) if is_parameter else None
    return None


def known_in_loop(
    module: Module, computation: Computation, loop: Instruction, known: KnownEntries
) -> KnownEntries:
    """Return the known integers in a loop's tuple that its body hands on unchanged.

    Args:
      module: the program.
      computation: the one in which the loop stands.
      loop: an instruction `while`.
      known: what is known of the computation's own parameter.
    """
    body = module.computations[loop.called("body")[0]]
    before = _known_entries(computation, loop.operands[0], known)
    result, (parameter,) = body.instructions[body.root], body.parameters
    if result.opcode != "tuple":
        return {}

    def is_unchanged(i: int) -> bool:
        handed_on = body.original(result.operands[i])
        if handed_on.opcode == "get-tuple-element" and handed_on.operands[0] == parameter:
            return _tuple_index(handed_on) == i
        return known_integer(body, handed_on.name, {}) == before[i]

    return {i: value for i, value in before.items() if is_unchanged(i)}


def trip_count(
    module: Module, computation: Computation, loop: Instruction, known: KnownEntries
) -> int | None:
    """Return how often a loop's body runs, None where the text does not say.

    The arguments are those of `known_in_loop`.
    """
    noted = re.search(r'known_trip_count[^\d]*"?(\d+)', loop.attributes)
    if noted:
        return int(noted[1])
    # Else the condition must be `counter < end`, with an end that the loop does not change.
    inside = known_in_loop(module, computation, loop, known)
    condition, body = (module.computations[loop.called(key)[0]] for key in ("condition", "body"))
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter = condition.instructions[test.operands[0]]
    end = known_integer(condition, test.operands[1], inside)
    if counter.opcode != "get-tuple-element" or end is None:
        return None
    # The counter is an entry of the loop's tuple: its start is what the loop is given there.
    i = _tuple_index(counter)
    start = _known_entries(computation, loop.operands[0], known).get(i)
    step = _counter_step(body, i, inside)
    return None if start is None or not step else max(0, ceil_div(end - start, step))


def _counter_step(body: Computation, i: int, known: KnownEntries) -> int | None:
    """Return what a loop's body adds to the i-th entry of its tuple."""
    result = body.instructions[body.root]
    if result.opcode != "tuple":
        return None
    added = body.original(result.operands[i])
    if added.opcode != "add":
        return None
    for one, other in (added.operands, added.operands[::-1]):
        counter = body.original(one)
        if counter.opcode == "get-tuple-element" and _tuple_index(counter) == i:
            return known_integer(body, other, known)
    return None


def _known_entries(computation: Computation, name: str, known: KnownEntries) -> KnownEntries:
    """Return the known integers in a tuple."""
    made = computation.instructions[name]
    if made.opcode != "tuple":
        return dict(known) if made.opcode == "parameter" else {}
    entries = {
        i: known_integer(computation, operand, known) for i, operand in enumerate(made.operands)
    }
    return {i: value for i, value in entries.items() if value is not None}


def _tuple_index(element: Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", element.attributes)
    return int(found[1]) if found else 0

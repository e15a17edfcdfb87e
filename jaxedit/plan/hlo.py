"""Reading compiled programs: the text of an optimised HLO module as computations of instructions,
and loops' trip counts.

XLA's own cost analysis counts a loop's body once and names no collective; the text has all that is
needed to do better. A trip count is read from the compiler's annotation or found by following the
counter: its start in the operand of the loop, its step in the body, its end in the condition."""

import math
import re
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0}


class Array(NamedTuple):
    """One array of an instruction's result; `space` 0 is the main memory, others lie on the chip."""

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def n_bytes(self) -> float:
        """Its size without a layout's padding."""
        width = re.match(r"[su](\d+)|f8", self.dtype)
        item = ITEM_BYTES.get(self.dtype, int(width[1] or 8) / 8 if width else 4)
        return item * math.prod(self.dims)

    @property
    def main_bytes(self) -> float:
        """Its size where it lies in the main memory, else 0."""
        return 0.0 if self.space else self.n_bytes


class Instruction(NamedTuple):
    """One line: what it gives, what it does, with what."""

    name: str
    arrays: tuple[Array, ...]  # of a tuple its leaves
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text between the parentheses
    attributes: str

    def called(self, key: str) -> list[str]:
        """The computations that an attribute names."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes)
        return re.findall(r"[\w.\-]+", found[1]) if found else []

    @property
    def op_name(self) -> str:
        """Where in the Python code it comes from, as JAX says it."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1].replace("\\'", "'") if found else ""


class Computation(NamedTuple):
    """A function of the module."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    @property
    def parameters(self) -> list[str]:
        """The names of its parameters, in order."""
        found = [each for each in self.instructions.values() if each.opcode == "parameter"]
        return [each.name for each in sorted(found, key=lambda each: int(each.inside))]


class Module(NamedTuple):
    """A compiled program; `n_devices` run it together."""

    computations: dict[str, Computation]
    entry: str
    n_devices: int


def parse(text: str) -> Module:
    """Reads the text of an optimised module.

    Raises:
      ValueError: where it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, root, lines = "", "", "", {}
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            if name and (instruction := _instruction(line)):
                lines[instruction.name] = instruction
                root = instruction.name if line.lstrip().startswith("ROOT ") else root
        elif line.startswith("}") and name:
            computations[name], name = Computation(name, lines, root), ""
        elif line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            name, root, lines = head[2], "", {}
            entry = name if head[1] else entry
    if entry not in computations:
        raise ValueError(
            "the compiled program's text has no entry computation; this version of XLA writes another form"
        )
    sizes = [
        int(n)
        for n in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", text.split("\n", 1)[0])
    ]
    return Module(computations, entry, math.prod(sizes))


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    at = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:at], rest[at:].lstrip()
    opcode = rest[: rest.index("(")]
    end = _closing(rest, len(opcode))
    inside, attributes = rest[len(opcode) + 1 : end - 1], rest[end:]
    arrays = tuple(
        Array(dtype, tuple(int(n) for n in re.findall(r"\d+", dims)), int(space or 0))
        for dtype, dims, space in re.findall(
            r"(\w+)\[([^\]]*)\](?:\{[^}]*?(?:S\((\d+)\))?\})?", kind
        )
    )
    return Instruction(
        head[1], arrays, opcode, tuple(re.findall(r"%([\w.\-]+)", inside)), inside, attributes
    )


def _closing(text: str, at: int) -> int:
    """Behind the parenthesis that closes the one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"a line of the compiled program ends within parentheses: {text[:80]}")


Values = dict[int, int]  # entries of a computation's tuple parameter that are known numbers


def number(computation: Computation, name: str, values: Values) -> int | None:
    """The integer that an instruction gives, where it is known before the program runs."""
    found = computation.instructions[name]
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.inside):
        return int(found.inside)
    if found.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"):
        return number(computation, found.operands[0], values)
    if (
        found.opcode == "get-tuple-element"
        and computation.instructions[found.operands[0]].opcode == "parameter"
    ):
        return values.get(_index(found))
    return None


def loop_values(
    module: Module, computation: Computation, loop: Instruction, values: Values
) -> Values:
    """What is known inside a loop: the numbers in its tuple that its body hands on as they are."""
    body = module.computations[loop.called("body")[0]]
    known = _tuple_values(computation, loop.operands[0], values)
    next_, (own,) = body.instructions[body.root], body.parameters
    if next_.opcode != "tuple":
        return {}

    def is_kept(i: int) -> bool:
        name = next_.operands[i]
        while body.instructions[name].opcode in ("copy", "bitcast"):
            name = body.instructions[name].operands[0]
        found = body.instructions[name]
        kept = (
            found.opcode == "get-tuple-element" and found.operands[0] == own and _index(found) == i
        )
        return kept or number(body, name, {}) == known[i]

    return {i: value for i, value in known.items() if is_kept(i)}


def trip_count(
    module: Module, computation: Computation, loop: Instruction, values: Values
) -> int | None:
    """How often a loop's body runs, None where the text does not say."""
    noted = re.search(r'known_trip_count[^\d]*"?(\d+)', loop.attributes)
    if noted:
        return int(noted[1])
    inside = loop_values(module, computation, loop, values)
    condition, body = (module.computations[loop.called(key)[0]] for key in ("condition", "body"))
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter = condition.instructions[test.operands[0]]
    end = number(condition, test.operands[1], inside)
    if counter.opcode != "get-tuple-element" or end is None:
        return None
    i = _index(counter)
    start = _tuple_values(computation, loop.operands[0], values).get(i)
    step = _step(body, i, inside)
    return None if start is None or not step else max(0, -(-(end - start) // step))


def _step(body: Computation, i: int, values: Values) -> int | None:
    """What a loop's body adds to the i-th entry of its tuple."""
    next_ = body.instructions[body.root]
    if next_.opcode != "tuple":
        return None
    name = next_.operands[i]
    while body.instructions[name].opcode in ("copy", "bitcast"):
        name = body.instructions[name].operands[0]
    added = body.instructions[name]
    if added.opcode != "add":
        return None
    for one, other in (added.operands, added.operands[::-1]):
        while body.instructions[one].opcode in ("copy", "bitcast"):
            one = body.instructions[one].operands[0]
        found = body.instructions[one]
        if found.opcode == "get-tuple-element" and _index(found) == i:
            return number(body, other, values)
    return None


def _tuple_values(computation: Computation, name: str, values: Values) -> Values:
    """The known numbers in a tuple."""
    made = computation.instructions[name]
    if made.opcode != "tuple":
        return dict(values) if made.opcode == "parameter" else {}
    found = {i: number(computation, operand, values) for i, operand in enumerate(made.operands)}
    return {i: value for i, value in found.items() if value is not None}


def _index(element: Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", element.attributes)
    return int(found[1]) if found else 0

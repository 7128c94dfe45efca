"""Reads the text of a compiled program: which collectives it runs, how often, and how much they move.

XLA prints a module as computations of one instruction a line. A loop's body is written once, so whatever stands in it
counts as often as the loop runs: by `known_trip_count` where the compiler notes it (CPU and GPU), else (TPU) by the
constant that the condition compares the counter with, divided by the counter's step.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2}
_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(?:calls|to_apply|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation: its name, the shape of its result, the operation, and what follows it."""

    name: str
    shape: str
    operation: str
    rest: str


class Collective(NamedTuple):
    """One collective of a program, as one device sees it.

    `size` is in bytes and of one execution: the result, or of a reduce-scatter the operand. No factor for the part
    that a device already has is applied.
    """

    kind: str
    shape: str
    size: int
    times: int
    op_name: str

    @property
    def moved(self) -> int:
        """Bytes of all its executions in one run of the program."""
        return self.size * self.times


Computations = Mapping[str, Sequence[Instruction]]


def read_program(text: str) -> tuple[Computations, str]:
    """The computations of a module by name, and the name of the one that it enters.

    Raises:
        ValueError: if the text holds no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif found := _INSTRUCTION.match(line):
            shape, rest = _split_shape(line[found.end() :])
            operation, _, rest = rest.partition("(")
            current.append(Instruction(found.group(1), shape, operation, rest))
    if not entry:
        raise ValueError("the text of the program holds no ENTRY computation")
    return computations, entry


def collectives_of(text: str, *, distinct_channels: bool) -> list[Collective]:
    """The collectives of a program, each once, with how often it is executed.

    Args:
        text: as `jax.stages.Compiled.as_text` gives it.
        distinct_channels: whether a channel is one collective, as on TPU, whose compiler writes an asynchronous one
            into each fusion that it runs beside. On GPU and CPU different ones may bear one number.
    """
    computations, entry = read_program(text)
    times = _executions(computations, entry)
    found: list[Collective] = []
    seen: set[tuple[str, str]] = set()
    for name, instructions in computations.items():
        for instruction in instructions:
            kind = instruction.operation.removesuffix("-start")
            if kind not in COLLECTIVES or not times.get(name):
                continue
            channel = _first(r"channel_id=(\d+)", instruction.rest)
            if distinct_channels and channel:
                if (kind, channel) in seen:
                    continue
                seen.add((kind, channel))
            shape, parts = _moved_shape(instruction), 1
            if kind == "reduce-scatter" and instruction.operation == kind:  # Its result is a part of what it moves.
                parts = _group_size(instruction.rest)
            op_name = _first(r'op_name="([^"]*)"', instruction.rest)
            found.append(Collective(kind, shape, array_bytes(shape) * parts, times[name], op_name))
    return found


def array_bytes(shape: str) -> int:
    """Bytes of all arrays of a shape as the compiler writes it, tuples included."""
    arrays = _ARRAY.findall(shape)
    return int(sum(_BYTES.get(dtype, 0) * math.prod(int(n) for n in axes.split(",") if n) for dtype, axes in arrays))


def dimensions(shape: str) -> tuple[int, ...]:
    """The axes of the first array of a shape."""
    found = _ARRAY.search(shape)
    return tuple(int(n) for n in found.group(2).split(",") if n) if found else ()


def _executions(computations: Computations, entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the program; every branch of a condition counts as taken."""
    times: dict[str, int] = {}

    def enter(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for instruction in computations.get(name, ()):
            called = _CALLED.findall(instruction.rest)
            for branches in _BRANCHES.findall(instruction.rest):
                called += [branch.strip().lstrip("%") for branch in branches.split(",")]
            for other in called:
                enter(other, count)
            if instruction.operation == "while":
                enter(_first(r"\bbody=%?([\w.\-]+)", instruction.rest), count * _trips(computations, instruction))

    enter(entry, 1)
    return times


def _trips(computations: Computations, loop: Instruction) -> int:
    """How often a loop runs; 1 where neither the compiler's note nor a constant bound tells."""
    if known := _first(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known)
    condition = computations.get(_first(r"\bcondition=%?([\w.\-]+)", loop.rest), ())
    bounds = [int(c.rest.partition(")")[0]) for c in condition if c.operation == "constant" and _is_count(c.shape)]
    counters = [int(_first(r"index=(\d+)", c.rest)) for c in condition if c.operation == "get-tuple-element"]
    if not bounds or not counters:
        return 1
    body = computations.get(_first(r"\bbody=%?([\w.\-]+)", loop.rest), ())
    return max(1, max(bounds) // max(_step(body, counter) for counter in counters))


def _step(body: Sequence[Instruction], counter: int) -> int:
    """What a loop adds to its counter, entry `counter` of the tuple that it carries; 1 where that cannot be read."""
    by_name = {instruction.name: instruction for instruction in body}
    value = by_name.get(_operands(body[-1])[counter]) if body and counter < len(_operands(body[-1])) else None
    total = 0
    while value is not None and value.operation == "add":  # Unrolled loops add more than once.
        parts = [by_name[name] for name in _operands(value) if name in by_name]
        total += sum(int(p.rest.partition(")")[0]) for p in parts if p.operation == "constant")
        value = next((p for p in parts if p.operation == "add"), None)
    return max(1, total)


def _is_count(shape: str) -> bool:
    return re.match(r"[su]32\[\]", shape) is not None


def _operands(instruction: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", _balanced("(" + instruction.rest))


def _split_shape(text: str) -> tuple[str, str]:
    """The shape that a text begins with, and what follows it. Tuples hold blanks, and layouts brackets."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    shape = _balanced(text)
    return shape, text[len(shape) :].lstrip()


def _balanced(text: str) -> str:
    """The part of a text from the bracket that it begins with to the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1]
    return text


def _moved_shape(instruction: Instruction) -> str:
    """What a collective moves: its results, or of a reduce-scatter that is told its operands, these.

    An asynchronous one gives (operands, results), and sometimes counters.
    """
    if not instruction.operation.endswith("-start") or instruction.operation == "all-reduce-start":
        return instruction.shape
    parts = _elements(instruction.shape)
    which = 0 if instruction.operation == "reduce-scatter-start" else 1
    return parts[which] if len(parts) > 1 else instruction.shape


def _elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, or the shape itself."""
    if not shape.startswith("("):
        return [shape]
    parts, depth, start = [], 0, 1
    for place, letter in enumerate(shape[:-1]):
        depth += letter in "([{"
        depth -= letter in ")]}"
        if letter == "," and depth == 1:
            parts.append(shape[start:place].strip())
            start = place + 1
    return [*parts, shape[start:-1].strip()]


def _group_size(rest: str) -> int:
    """Devices that take part in a collective together."""
    if listed := _first(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed.split(","))
    if mesh := re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}]*)\}", rest):
        sizes = dict(axis.split("=") for axis in mesh.group(1).split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in mesh.group(2).split(","))
    return int(_first(r"replica_groups=\[\d+,(\d+)\]", rest) or 1)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""

"""What devices send each other, read off a compiled program."""

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

_BITS = {"pred": 8, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32}
_BITS |= {"s64": 64, "u64": 64, "f64": 64}

# What one device receives, for a result of so many bytes among n devices.
_RECEIVED = {
    "all-gather": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1),
    "collective-permute": lambda size, n: size,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_RECEIVED)})\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TIMES = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One collective of a program, for one device."""

    kind: str
    """all-gather, all-to-all, all-reduce, reduce-scatter or collective-permute."""
    received: float
    """Bytes that it receives each time."""
    times: int
    """How often it runs."""
    source: str
    """The function of ours that it comes from, as JAX names it."""


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a program compiled for CPU: `compiled.as_text()`.

    Loops count as often as they run, where XLA knows; all branches of a conditional count. For
    accelerators XLA splits collectives in halves, which this does not read.
    """
    lines, entry = _computations(program)
    times = _times_run(lines, entry)
    found = []
    for name, body in lines.items():
        for line in body:
            if times[name] and (match := _COLLECTIVE.search(line)):
                result, kind = match.groups()
                received = _RECEIVED[kind](_bytes(result), _group(line))
                source = _SOURCE.search(line)
                found.append(Collective(kind, received, times[name], source[1] if source else ""))
    return found


def received(found: list[Collective]) -> dict[str, float]:
    """Bytes that one device receives in all, by kind."""
    total: Counter[str] = Counter()
    for each in found:
        total[each.kind] += each.received * each.times
    return dict(total)


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation, and the name of the one that the program begins with."""
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            entry = name if match[1] else entry
            lines[name] = []
        elif name:
            lines[name].append(line)
    return lines, entry


def _times_run(lines: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs. A caller is listed after what it calls."""
    times = Counter({entry: 1})
    for name in reversed(lines):
        for line in lines[name]:
            trips = _TIMES.search(line)
            for called in _called(line):
                times[called] += times[name] * (int(trips[1]) if trips else 1)
    return times


def _called(line: str) -> Iterator[str]:
    yield from _CALLED.findall(line)
    for branches in _BRANCHES.findall(line):
        yield from (name.strip(" %") for name in branches.split(","))


def _bytes(result: str) -> int:
    """Of an array, or of all in a tuple."""
    arrays = _ARRAY.findall(result)
    return sum(_BITS[kind] // 8 * prod(map(int, filter(None, n.split(",")))) for kind, n in arrays)


def _group(line: str) -> int:
    """How many devices take part together."""
    if match := _MESH.search(line):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", match[1]))
        # Of an axis, or of a part of one: 'axis', 'axis':(of so many before it)size.
        named = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", match[2])
        return prod(int(part or sizes[axis]) for axis, part in named)
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(match[1].split(","))
    return 1

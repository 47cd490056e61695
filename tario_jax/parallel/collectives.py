"""The collectives of a compiled program: how often, how many bytes, and along which axes of the mesh.

Read from the text of the optimised HLO. Loops count as often as they run; that of a loop whose trip count the compiler
did not find counts once, and is told. The TPU's compiler spreads a collective over several fusions, to overlap it with
what they compute: of those with one channel and chain, one counts. Between slices it writes a collective as a host's
send and receive: those are on the axis that crosses slices.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from tario_jax.config import MESH_AXES, InputError

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_COLLECTIVE = re.compile(rf"= (.+?) ({_KINDS})(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations|branch_computations|true_computation|"
                     r"false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)")  # fmt: skip
_BETWEEN_SLICES = re.compile(r"= \((.+?), u32\[\].* recv\(.*_xla_megascale_transfer_type=\"(\w+)\"")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"(pred|[suf]\d+|bf16|f8\w*|c64)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16, "c64": 64}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind along the same axes, summed over a run of the program."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, along which devices exchange
    count: int
    bytes: int  # received by one device


def collectives(text: str, mesh_shape: dict[str, int], slices: int = 1) -> tuple[list[Collective], int]:
    """Those of the optimised HLO `text`, most bytes first, and the number of loops with collectives of unknown length.

    mesh_shape: axes in the order in which the devices were assigned; the first one crosses slices. Raises `InputError`
    for groups of devices that a newer compiler writes in another way.
    """
    bodies = _computations(text)
    times = _times(bodies)
    found: dict[tuple[str, tuple[str, ...]], list[int]] = collections.defaultdict(lambda: [0, 0])
    unknown, spread = set(), set()
    for name, lines in bodies.items():
        at = times.get(name, _Times(0, False))
        if not at.count:
            continue
        for line in lines:
            if match := _COLLECTIVE.search(line):
                shape, kind = match.groups()
                part = re.search(r"channel_id=(\d+).*chain_id=\"(\d+)\".*async_collective_fusion", line)
                if part and part.groups() in spread:
                    continue
                spread.update([part.groups()] if part else [])
                group = _groups(line, kind, math.prod(mesh_shape.values()))
                if group is None:
                    continue
                axes, size = _axes(group, mesh_shape), _received(kind, shape, "-start(" in line, len(group[0]))
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind, size = "reduce-scatter", size // 2  # as TPUs run it: each chip keeps its part of the sum
            elif match := _BETWEEN_SLICES.search(line):
                shape, kind = match[1], match[2].lower().replace("_", "-")
                axes, size = (next(iter(mesh_shape)),), _received(kind, shape, False, slices)
            else:
                continue
            if at.unknown:
                unknown.add(name)
            entry = found[kind, axes]
            entry[0] += at.count
            entry[1] += at.count * size
    told = [Collective(kind, axes, count, size) for (kind, axes), (count, size) in found.items()]
    return sorted(told, key=lambda one: -one.bytes), len(unknown)


def received_by_axis(found: list[Collective]) -> dict[str, float]:
    """Bytes that one device receives along each axis of the mesh; what goes along several is shared among them."""
    return {axis: sum(one.bytes / len(one.axes) for one in found if axis in one.axes) for axis in MESH_AXES}


@dataclasses.dataclass(frozen=True)
class _Times:
    count: int
    unknown: bool  # within a loop whose trip count is not known


def _computations(text: str) -> dict[str, list[str]]:
    """Lines of each computation by its name; "ENTRY" is the first that runs."""
    found: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
            name = "ENTRY" if head[1] else head[2]
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def _times(bodies: dict[str, list[str]]) -> dict[str, _Times]:
    """How often each computation runs."""
    found: dict[str, _Times] = {}

    def visit(name: str, count: int, unknown: bool) -> None:
        before = found.get(name, _Times(0, False))
        found[name] = _Times(before.count + count, before.unknown or unknown)
        for line in bodies.get(name, ()):
            is_loop = " while(" in line
            trips = _trips(line, bodies[name], bodies) if is_loop else 1
            for called in _called(line):
                visit(called, count * (trips or 1), unknown or trips is None)

    visit("ENTRY", 1, False)
    return found


def _trips(line: str, around: list[str], bodies: dict[str, list[str]]) -> int | None:
    """How often a loop runs: as the compiler says, or by its condition, a counter below a constant. None: neither."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = bodies.get(re.search(r"condition=%?([\w.\-]+)", line)[1], ())
    constants, elements = {}, {}
    for each in condition:
        if match := re.match(r"\s*%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", each):
            constants[match[1]] = int(match[2])
        elif match := re.match(r"\s*%([\w.\-]+) = .*get-tuple-element\(.*index=(\d+)", each):
            elements[match[1]] = int(match[2])
        elif match := re.match(r"\s*ROOT .*compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", each):
            counter, end = elements.get(match[1]), constants.get(match[2])
            return None if counter is None or end is None else end - _start(line, counter, around)
    return None


def _start(line: str, counter: int, around: list[str]) -> int:
    """What a loop's counter begins with; 0 where it is no plain constant, as in every loop of jax."""
    made = {match[1]: each for each in around if (match := re.match(r"\s*%([\w.\-]+) = ", each))}
    carried = made.get(re.search(r" while\(%([\w.\-]+)\)", line)[1], "")
    operands = re.findall(r"%([\w.\-]+)", carried.partition(" tuple(")[2])
    value = made.get(operands[counter], "") if counter < len(operands) else ""
    while copied := re.search(r" (?:copy|bitcast)\(%([\w.\-]+)\)", value):
        value = made.get(copied[1], "")
    constant = re.search(r" constant\((\d+)\)", value)
    return int(constant[1]) if constant else 0


def _called(line: str) -> Iterator[str]:
    for match in _CALLED.finditer(line):
        yield from (name.strip().lstrip("%") for name in match[1].split(","))


def _groups(line: str, kind: str, devices: int) -> list[list[int]] | None:
    """Devices that exchange with each other; None where nobody does."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", line)
        found = [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs[1])] if pairs else []
        return [pair for pair in found if pair[0] != pair[1]] or None
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        groups = _iota(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    elif named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", line
    ):
        axes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", named[1])}
        among = named[4].split(",")
        if not set(among) <= set(axes):
            raise InputError(f"compile: groups of devices that are not understood: {named[0]}")
        order = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(axes.values()))
        apart = [i for i, name in enumerate(axes) if name not in among]
        order = order.reshape(tuple(axes.values())).transpose(*apart, *(list(axes).index(name) for name in among))
        groups = order.reshape(-1, math.prod(axes[name] for name in among)).tolist()
    elif explicit := re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", line):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    elif re.search(r"replica_groups=(?!\{\})", line):
        raise InputError(f"compile: groups of devices that are not understood: {line.strip()[:200]}")
    else:
        groups = [list(range(devices))]
    return groups if len(groups[0]) > 1 else None


def _iota(shape: str, turned: str | None) -> np.ndarray:
    """Devices in the order of an array of `shape` whose axes are `turned`."""
    order = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return (order.transpose(_numbers(turned)) if turned else order).ravel()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axes(groups: list[list[int]], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Axes along which the devices of a group differ."""
    differs = np.zeros(len(mesh_shape), bool)
    for group in groups:
        places = np.stack(np.unravel_index(group, tuple(mesh_shape.values())), 1)
        differs |= (places != places[0]).any(0)
    return tuple(axis for axis, is_one in zip(mesh_shape, differs, strict=True) if is_one)


def _received(kind: str, shape: str, started: bool, members: int) -> int:
    """Bytes that one device receives, of a ring algorithm; `shape`: of the result, or of operands and results."""
    # what is started has the shape (operands, results, …), but for an all-reduce, which has that of its results
    if started and (kind != "all-reduce" or shape.startswith("((")):
        shape = _members(shape)[1]
    size = sum(_bytes(*match.groups()) for match in _SHAPE.finditer(shape))
    share = (members - 1) / members
    match kind:
        case "collective-permute":
            return size
        case "all-reduce":
            return round(2 * share * size)
        case "reduce-scatter":
            return (members - 1) * size
    return round(share * size)


def _members(shape: str) -> list[str]:
    """Of a tuple's shape; layouts such as {1,0:T(8,128)} hold commas and brackets too."""
    found, depth = [""], 0
    for letter in shape[1:-1]:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [member.strip() for member in found]


def _bytes(kind: str, shape: str) -> int:
    bits = _BITS.get(kind) or int(re.match(r"[a-z]+(\d+)", kind)[1])
    return math.prod(int(n) for n in shape.split(",") if n) * bits // 8

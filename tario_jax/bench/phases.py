"""Where a step's time goes: a profiler's trace, attributed to the parts of the model by the names in the program.

The model names its parts with `jax.named_scope`; XLA keeps the names with each instruction, those of backward passes
as transpose(jvp(…)), and a trace tells the time of each instruction. Of a part within a part the innermost name counts.
"""

import collections
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax

from tario_jax.config import InputError

SCOPES = {
    "attention": "attention",
    "decoder": "MLP & projections",  # and norms and rotary places: all of the decoder but attention
    "gene_head": "gene head & likelihood",  # and reading contents through the gene table
    "encoders": "encoders",
    "optimiser": "optimiser",
}
"""Phase by named scope."""
COLLECTIVES, REST = "collectives", "not attributed"
PHASES = (*SCOPES.values(), COLLECTIVES, REST)

_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")


class Place(NamedTuple):
    """Of an instruction."""

    phase: str
    backward: bool = False


class PhaseSeconds(NamedTuple):
    """Of one phase, summed over the devices' threads or streams."""

    forward: float
    backward: float


def place_of(op_name: str) -> Place:
    """The phase of an instruction by the name that JAX gave it, such as jit(step)/jvp(decoder)/while/body/dot."""
    words = re.findall(r"\w+", op_name)
    found = [word for word in words if word in SCOPES]
    return Place(SCOPES[found[-1]], "transpose(" in op_name) if found else Place(REST)


def places(hlo: str) -> dict[str, Place]:
    """The phase of each instruction of a compiled program by its name.

    What the compiler made up itself (copies, say) has the phase of the loop or call that it stands in.
    """
    of: dict[str, Place] = {}
    inside: dict[str, list[str]] = collections.defaultdict(list)  # instructions by computation
    caller: dict[str, str] = {}
    computation = ""
    for line in hlo.splitlines():
        if begins := _COMPUTATION.match(line):
            computation = begins[1]
        elif instruction := _INSTRUCTION.match(line):
            name, opcode = instruction.groups()
            inside[computation].append(name)
            for called in _CALLED.findall(line):
                caller.setdefault(called, name)
            told = re.search(r'op_name="([^"]*)"', line)
            of[name] = Place(COLLECTIVES) if _COLLECTIVE.match(opcode) else place_of(told[1] if told else "")
    where = {name: computation for computation, names in inside.items() for name in names}

    def settled(name: str) -> Place:
        seen = name
        while of[seen].phase == REST and where[seen] in caller:
            seen = caller[where[seen]]
        return of[seen]

    return {name: settled(name) for name in of}


def trace_phases(run: Callable[[], object], hlo: str, folder: Path | None) -> dict[str, PhaseSeconds]:
    """`run()` under the profiler; the seconds of each phase, over all of the devices' threads or streams.

    folder: where the trace is kept, for TensorBoard or Perfetto; None keeps none. Raises `InputError` where the trace
    holds no instruction of this program.
    """
    with tempfile.TemporaryDirectory() as lost:
        place = Path(folder or lost)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        with jax.profiler.trace(str(place), profiler_options=options):
            jax.block_until_ready(run())
        newest = max(place.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        return _phases(jax.profiler.ProfileData.from_file(str(newest)), places(hlo))


def _phases(trace: jax.profiler.ProfileData, of: dict[str, Place]) -> dict[str, PhaseSeconds]:
    found = collections.Counter()
    for plane in trace.planes:
        if not plane.name.startswith(("/device:GPU", "/device:TPU", "/host:CPU")):
            continue
        for line in plane.lines:
            for name, nanoseconds in _self_times(line.events, of):
                found[of[name]] += nanoseconds * 1e-9
    if not found:
        raise InputError("the profiler's trace holds no instruction of the step; expected a backend that JAX can trace")
    return {
        phase: PhaseSeconds(found[Place(phase)], found[Place(phase, True)]) for phase in PHASES
    }  # fmt: skip


def _self_times(events: Iterable, of: dict[str, Place]) -> list[tuple[str, float]]:
    """Instructions of one thread and the nanoseconds of each, without those of the instructions within it."""
    known = []
    for event in events:
        name = _instruction(event)
        if name in of:
            known.append((event.start_ns, -event.duration_ns, name))
    open_: list[list] = []  # end, name, nanoseconds left
    done = []
    for start, minus, name in sorted(known):
        while open_ and open_[-1][0] <= start:
            done.append(open_.pop())
        if open_:
            open_[-1][2] += minus
        open_.append([start - minus, name, -minus])
    return [(name, max(left, 0.0)) for _, name, left in [*done, *open_]]


def _instruction(event) -> str:
    """GPUs tell it as a statistic beside the kernel's name; CPUs name the event so, TPUs begin it so."""
    for name, value in event.stats:
        if name == "hlo_op":
            return str(value)
    return event.name.partition(" ")[0].lstrip("%")

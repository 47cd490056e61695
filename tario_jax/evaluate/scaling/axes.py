"""Which runs may stand on one axis: those whose configs differ in nothing but that axis, and seeds.

What else differs is named, never passed over: runs that differ in more stand apart, or in sweeps of their own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tario_jax.config_files import to_dict
from tario_jax.evaluate.scaling.records import CORPUS, TRAINED_ON, Record, as_text

_STEPS = ("train.steps", "optim.warmup_steps")
_PATIENTS = ("split.train_patients", "source.train_patients", CORPUS, TRAINED_ON)
_CONTEXT = ("data.window_um", "data.tile_um", "data.rows", "data.windows_per_row")
_NEAR = 0.02  # epochs, and tissue seen, count as equal up to this
_COMPUTE_SPAN = 1.5  # a sweep over which compute grows by less says nothing of compute


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows along it, and which fields of a run may differ for it."""

    name: str
    label: str  # of a figure
    size: Callable[[Record], float | None]  # grows from little to much; None: not known
    free: tuple[str, ...] = ()  # fields; one that ends in "." is all that begin so
    equal: Callable[[Record], float] | None = None  # must be the same along it, to within 2 %
    least: int = 2  # sizes


def _tissue_um2(record: Record) -> float:
    """Seen in a step."""
    data = record.config.data
    return data.rows * data.windows_per_row * data.window_um**2


def _patients(record: Record) -> float | None:
    return None if record.patients is None else float(record.patients)


PATIENTS_STEPS = Axis("patients at equal steps", "training patients", _patients, _PATIENTS)
PATIENTS_EPOCHS = Axis("patients at equal epochs", "training patients", _patients, (*_PATIENTS, *_STEPS),
                       lambda record: record.steps / (record.patients or np.nan))  # fmt: skip
PARAMETERS = Axis("parameters", "parameters of the trunk", lambda record: float(record.sizes.trunk), ("model.",))
CONTEXT = Axis("context at equal tissue seen", "side of a window, µm", lambda record: record.config.data.window_um,
               _CONTEXT, _tissue_um2)  # fmt: skip
CONTEXT_ROWS = Axis("context at equal windows seen", "side of a window, µm",
                    lambda record: record.config.data.window_um, ("data.window_um", "data.tile_um"))  # fmt: skip
STEPS = Axis("compute by steps", "training FLOPs", lambda record: record.flops, _STEPS, least=3)
RESOLUTION = Axis("resolution", "bins read per mm", lambda record: 1000.0 / record.read_um if record.read_um else None)
AXES = (PATIENTS_STEPS, PATIENTS_EPOCHS, PARAMETERS, CONTEXT, CONTEXT_ROWS, STEPS)


@dataclasses.dataclass(frozen=True)
class Point:
    """Replicates: one configuration, and its seeds."""

    size: float
    runs: tuple[Record, ...]

    @property
    def name(self) -> str:
        return self.runs[0].name if len(self.runs) == 1 else f"{self.runs[0].name} and {len(self.runs) - 1} more"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Points along one axis, smallest first. held: what tells it from other sweeps of the same axis."""

    axis: Axis
    points: tuple[Point, ...]
    held: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        if not self.held:
            return self.axis.name
        return f"{self.axis.name}, {', '.join(f'{name} {_number(value)}' for name, value in self.held.items())}"

    @property
    def runs(self) -> list[tuple[float, Record]]:
        return [(point.size, run) for point in self.points for run in point.runs]


@dataclasses.dataclass(frozen=True)
class Plane:
    """Runs over two axes: points by (parameters, patients or window_um)."""

    axes: tuple[Axis, Axis]
    points: tuple[tuple[float, float, tuple[Record, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Apart:
    """A run that is on no axis with another one: the nearest one, and the fields in which it differs."""

    name: str
    nearest: str
    differs: dict[str, tuple[Any, Any]]


def find_sweeps(records: list[Record]) -> list[Sweep]:
    """All sweeps, axis by axis; after each of three sizes over which compute grows, the same along compute."""
    own = [record for record in records if record.own_bins]
    found = []
    for axis in AXES:
        sweeps = [sweep for group in groups(own, axis) if (sweep := _sweep(axis, group)) is not None]
        found += _with_compute(_tell_apart(sweeps))
    by_run = [[record for record in records if record.key == key] for key in dict.fromkeys(one.key for one in records)]
    return found + _tell_apart([sweep for group in by_run if (sweep := _sweep(RESOLUTION, group)) is not None])


def find_planes(records: list[Record], second: tuple[Axis, ...]) -> list[Plane]:
    """Runs that differ in the model and in one of the `second` axes only, where both have at least two sizes."""
    own, found = [record for record in records if record.own_bins], []
    for axis in second:
        both = dataclasses.replace(axis, free=(*axis.free, *PARAMETERS.free))
        for group in groups(own, both):
            points = [(PARAMETERS.size(runs[0]), axis.size(runs[0]), runs) for runs in _replicates(group)]
            if all(len({point[number] for point in points}) > 1 for number in (0, 1)):
                found.append(Plane((PARAMETERS, axis), tuple(sorted(points, key=lambda point: point[:2]))))
    return found


def find_apart(records: list[Record], sweeps: list[Sweep]) -> list[Apart]:
    """The runs that are in no sweep with another one; bins of several sides are readings of one run."""
    placed = {run.name for sweep in sweeps if sweep.axis is not RESOLUTION for _, run in sweep.runs}
    own, found = [record for record in records if record.own_bins], []
    for record in own:
        others = [other for other in own if other.key != record.key]
        if record.name not in placed and others:
            nearest = min(others, key=lambda other: len(differences(record, other)))
            found.append(Apart(record.name, nearest.name, differences(record, nearest)))
    return found


def differences(a: Record, b: Record) -> dict[str, tuple[Any, Any]]:
    """{field: its value in both}, of those that differ, seeds aside."""
    return {name: (a.fields.get(name), b.fields.get(name)) for name in sorted(a.fields | b.fields)
            if a.fields.get(name) != b.fields.get(name)}  # fmt: skip


def groups(records: list[Record], axis: Axis) -> list[list[Record]]:
    """The runs that may stand together: equal in every field that is not free, and in what must be equal."""
    known = [record for record in records if axis.size(record) is not None]
    cohort_of = _cohorts(known) if CORPUS in axis.free else {}
    by_rest: dict[str, list[Record]] = {}
    for record in known:
        held = {name: value for name, value in record.fields.items() if not _is_free(name, axis)}
        held["cohort"] = cohort_of.get(record.fields.get(CORPUS))
        by_rest.setdefault(as_text(held), []).append(record)
    return [part for group in by_rest.values() for part in _clusters(group, axis.equal)]


def _is_free(name: str, axis: Axis) -> bool:
    return any(name == free or free.endswith(".") and name.startswith(free) for free in axis.free)


def _cohorts(records: list[Record]) -> dict[Any, str]:
    """The cohort of each corpus of training. Corpora are one cohort if they are sizes of one virtual cohort, nothing of
    whose source differs but that; any other is one by itself."""
    sources_of: dict[Any, set[tuple[str, int]]] = {}
    for record in records:
        source = to_dict(record.config.source)
        rest = {name: value for name, value in source.items() if name not in ("train_patients", "workers")}
        if source["kind"] == "virtual":
            sources_of.setdefault(record.fields.get(CORPUS), set()).add((as_text(rest), source["train_patients"]))
    of_source: dict[str, list[tuple[Any, int]]] = {}
    for corpus, sources in sources_of.items():
        if len(sources) == 1:
            ((rest, size),) = sources
            of_source.setdefault(rest, []).append((corpus, size))
    return {record.fields.get(CORPUS): str(record.fields.get(CORPUS)) for record in records} | {
        corpus: rest for rest, sized in of_source.items() if len({size for _, size in sized}) == len(sized)
        for corpus, _ in sized
    }  # fmt: skip


def _clusters(group: list[Record], equal: Callable[[Record], float] | None) -> list[list[Record]]:
    """A step more or less is allowed too: steps are whole."""
    if equal is None:
        return [group]
    found: list[list[Record]] = []
    for record in sorted(group, key=lambda one: (-one.steps, equal(one))):
        slack = max(_NEAR, 1.0 / record.steps)
        near = next((one for one in found if abs(equal(record) / equal(one[0]) - 1) <= slack), None)
        found.append([record]) if near is None else near.append(record)
    return found


def _replicates(group: list[Record]) -> list[tuple[Record, ...]]:
    by_key: dict[str, list[Record]] = {}
    for record in group:
        by_key.setdefault(f"{record.key} {record.read_um}", []).append(record)
    return [tuple(runs) for runs in by_key.values()]


def _sweep(axis: Axis, group: list[Record]) -> Sweep | None:
    points = [Point(axis.size(runs[0]), runs) for runs in _replicates(group) if axis.size(runs[0]) is not None]
    if len({point.size for point in points}) < axis.least:
        return None
    return Sweep(axis, tuple(sorted(points, key=lambda point: point.size)))


def _tell_apart(sweeps: list[Sweep]) -> list[Sweep]:
    """Each with what is the same along it, and not the same in the others."""
    along = [functools.reduce(_same, (_held(run) for _, run in sweep.runs)) for sweep in sweeps]
    names = [name for name in functools.reduce(dict.__or__, along, {}) if all(name in one for one in along)]
    names = [name for name in names if len({as_text({name: one[name]}) for one in along}) > 1]
    if "data.window_um" in names:  # these follow it
        names = [name for name in names if name not in ("data.rows", "data.windows_per_row")]
    return [dataclasses.replace(sweep, held={name: one[name] for name in names})
            for sweep, one in zip(sweeps, along, strict=True)]  # fmt: skip


def _held(record: Record) -> dict[str, Any]:
    """Its fields, those of the other axes in one word each: a model of another size differs in many."""
    told = {"parameters": record.sizes.trunk, "patients": record.patients}
    words = dataclasses.replace(PARAMETERS, free=(*PARAMETERS.free, *_PATIENTS, "data.tile_um", "optim.warmup_steps"))
    return told | {name: value for name, value in record.fields.items() if not _is_free(name, words)}


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _same(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in a.items() if name in b and b[name] == value}


def _with_compute(sweeps: list[Sweep]) -> list[Sweep]:
    found = []
    for sweep in sweeps:
        found.append(sweep)
        flops = [point.runs[0].flops for point in sweep.points]
        if (
            sweep.axis is not STEPS
            and len(set(flops)) > 2
            and max(flops) >= _COMPUTE_SPAN * min(flops)
            and len(set(flops)) == len(flops)
        ):
            axis = Axis(f"compute along {sweep.axis.name}", "training FLOPs", STEPS.size, sweep.axis.free)
            points = sorted(
                (Point(point.runs[0].flops, point.runs) for point in sweep.points), key=lambda one: one.size
            )
            found.append(Sweep(axis, tuple(points), sweep.held))
    return found

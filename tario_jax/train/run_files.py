"""What a run writes into its workdir, read back: typed, and tolerant of what a killed or an older run leaves behind.

A file that is absent, or vanishes while it is read, is None or empty; a line of a *.jsonl counts only when it is whole.
Starts neither jax nor numpy: `tario status` looks at a run in a blink. docs/telemetry.md says what each field means.
"""

import dataclasses
import difflib
import functools
import json
import math
import os
import types
import typing
from pathlib import Path
from typing import Any, NamedTuple

from tario_jax.config import InputError
from tario_jax.train.seal import SEAL

_MARKER = {"step": int, "unix": float, "seconds": float}  # of done.json
REQUEST = "trace.request"
VALIDATED = "validation_nats_per_detection"  # what a line of a validation holds


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingLine:
    """A line of metrics.jsonl about training. None: not known, or written by an older run that did not measure it."""

    step: int  # steps done
    loss_nats_per_detection: float  # NaN where it was not finite: JSON has null there
    gene_nats: float | None = None
    total_nats: float | None = None
    first_group_nats: float | None = None
    last_group_nats: float | None = None
    z_nats: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    detections: float | None = None
    tokens_per_second: float | None = None
    step_seconds: float | None = None
    data_wait_seconds: float | None = None  # a step
    host_seconds: float | None = None  # a step
    mfu: float | None = None
    goodput: float | None = None
    memory_gib: float | None = None  # peak of a device
    host_memory_gib: float | None = None
    skipped_steps: int | None = None  # so far
    rollbacks: int | None = None  # so far
    start: int | None = None  # number of this start, from 1
    seconds: float | None = None  # since this start
    slowest_host: str | None = None
    slowest_host_seconds: float | None = None


class ValidationLine(NamedTuple):
    """A line of metrics.jsonl about validation."""

    step: int
    nats_per_detection: float


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    unix: float
    step: int
    event: str
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Heartbeat:
    """hosts/<process>.json, as its process wrote it about a second ago."""

    process: int
    processes: int
    host: str
    unix: float
    step: int
    steps: int
    doing: str
    pid: int | None = None
    since_unix: float | None = None  # when `doing` began
    step_seconds: float | None = None
    data_wait_seconds: float | None = None  # a step
    host_seconds: float | None = None  # own work, a step
    probe_seconds: float | None = None  # a fixed small product on the slowest local device
    memory_gib: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Goodput:
    """Share of wall time that went into steps that count, and seconds lost by reason."""

    goodput: float | None = None
    lost: dict[str, float] = dataclasses.field(default_factory=dict)
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        for start in self.starts:
            if not all(_fits(start.get(name), float) for name in ("began_unix", "last_unix")):
                raise TypeError("starts")

    @property
    def wall_seconds(self) -> float | None:
        """From the first start to the last sign of life."""
        if not self.starts:
            return None
        return self.starts[-1]["last_unix"] - self.starts[0]["began_unix"]


@dataclasses.dataclass(frozen=True, slots=True)
class SavedStep:
    """A folder checkpoints/<step>."""

    step: int
    sealed: bool
    unix: float  # when it was sealed, or last touched
    size_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Lines:
    """The whole lines of a *.jsonl, and where the next one will begin."""

    values: tuple[Any, ...] = ()
    file: int | None = None  # its inode: a run that resumes replaces metrics.jsonl
    offset: int = 0
    unread: int = 0  # lines that are no JSON object with the fields they need


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """All that a workdir tells at one moment. Lines come in the order of the file."""

    workdir: Path
    config: dict[str, Any]  # empty where config.json is absent
    metrics: Lines  # of TrainingLine and ValidationLine
    events_lines: Lines
    hosts: tuple[Heartbeat, ...]  # of the processes of the present start
    goodput: Goodput | None
    done: dict[str, Any] | None
    checkpoints: tuple[SavedStep, ...]  # oldest first
    metrics_unix: float | None  # when metrics.jsonl was last written

    @property
    def training(self) -> list[TrainingLine]:
        return [line for line in self.metrics.values if isinstance(line, TrainingLine)]

    @property
    def validation(self) -> list[ValidationLine]:
        return [line for line in self.metrics.values if isinstance(line, ValidationLine)]

    @property
    def events(self) -> tuple[Event, ...]:
        return self.events_lines.values

    @property
    def name(self) -> str:
        """As the config calls the run."""
        return self.config.get("name") or self.workdir.resolve().name


def read_run(workdir: Path, before: RunFiles | None = None) -> RunFiles:
    """Reads a workdir. `before`, what was read last time, leaves only what has grown since to be read.

    Raises `InputError` where the folder is no workdir.
    """
    refuse_no_workdir(workdir)
    metrics = workdir / "metrics.jsonl"
    known = {saved.step: saved for saved in before.checkpoints} if before else {}
    return RunFiles(
        workdir,
        _config(workdir / "config.json"),
        read_lines(metrics, _metrics_line, before.metrics if before else Lines()),
        read_lines(workdir / "events.jsonl", _event, before.events_lines if before else Lines()),
        heartbeats(workdir),
        _only(Goodput, _object(workdir / "goodput.json")),
        _done(workdir / "done.json"),
        _checkpoints(workdir / "checkpoints", known),
        _changed(metrics),
    )


def refuse_no_workdir(workdir: Path) -> None:
    """Raises `InputError` where a folder is no workdir; it names the one that was probably meant."""
    if not workdir.is_dir():
        others = [path.name for path in workdir.parent.iterdir()] if workdir.parent.is_dir() else []
        near = difflib.get_close_matches(workdir.name, others, 1)
        hint = f"; did you mean {workdir.parent / near[0]}?" if near and near[0] != workdir.name else ""
        found = "is a file; expected a workdir" if workdir.exists() else "no such workdir"
        raise InputError(f"{workdir}: {found}{hint}")
    if _is_workdir(workdir):
        return
    within = sorted(path.name for path in workdir.iterdir() if path.is_dir() and _is_workdir(path))
    hint = f"; it holds workdirs, name one: {', '.join(within[:5])}{' …' if len(within) > 5 else ''}" if within else ""
    raise InputError(
        f"{workdir}: holds no config.json and no metrics.jsonl; expected the workdir of 'tario train' or 'tario run'"
        f"{hint}"
    )


def _is_workdir(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "metrics.jsonl", "events.jsonl"))


def read_lines(path: Path, kind, before: Lines = Lines()) -> Lines:
    """`before` with the lines that were added since; all of them where the file is another one or was cut.

    kind: makes a value of a JSON object, or raises KeyError, TypeError or ValueError where it is not of that kind.
    """
    try:
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            if now.st_ino != before.file or now.st_size < before.offset:
                before = Lines()
            file.seek(before.offset)
            grown = file.read()
    except OSError:  # gone, or replaced meanwhile on a shared disk
        return Lines()
    whole = grown[: grown.rfind(b"\n") + 1]
    values, unread = [], before.unread
    for line in whole.splitlines():
        try:
            values.append(kind(json.loads(line)))
        except (KeyError, TypeError, ValueError):
            unread += 1
    return Lines(before.values + tuple(values), now.st_ino, before.offset + len(whole), unread)


def _metrics_line(values: dict[str, Any]) -> TrainingLine | ValidationLine:
    if VALIDATED in values:
        return ValidationLine(int(values["step"]), _or_nan(values[VALIDATED]))
    loss = _or_nan(values["loss_nats_per_detection"])
    return _fields(TrainingLine, values | {"loss_nats_per_detection": loss})


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _event(values: dict[str, Any]) -> Event:
    return _fields(Event, values)


def _fields(kind: type, values: dict[str, Any]):
    """A dataclass from those of `values` that it knows; raises TypeError where one that it needs is missing, or one is
    of another type."""
    hints = _hints(kind)
    for name, hint in hints.items():
        if name in values and not _fits(values[name], hint):
            raise TypeError(name)
    return kind(**{name: value for name, value in values.items() if name in hints})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of the type that `hint` names (scalars, unions, lists, dicts by text)."""
    origin, within = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in within)
    if origin in (list, tuple):
        return isinstance(value, list) and all(_fits(item, within[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, within[1]) for item in value.values())
    if hint is Any:
        return True
    return type(value) in (int, float) if hint is float else type(value) is hint


def _only(kind: type, values: dict[str, Any] | None):
    """The same, or None where there are no values, or not those that are needed."""
    try:
        return None if values is None else _fields(kind, values)
    except TypeError:
        return None


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file that is replaced as a whole; None where there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _config(path: Path) -> dict[str, Any]:
    """Its groups of fields, and the name."""
    values = _object(path) or {}
    return {name: value for name, value in values.items() if isinstance(value, str if name == "name" else dict)}


def _done(path: Path) -> dict[str, Any] | None:
    """The marker of completion, with the numbers that it must have; None where it is not there, or is none."""
    values = _object(path)
    of_marker = values is not None and all(_fits(values.get(name), hint) for name, hint in _MARKER.items())
    return values if of_marker else None


def heartbeats(workdir: Path) -> tuple[Heartbeat, ...]:
    """By process. An earlier start on more processes left files of processes that are no more: those are not read."""
    beats = [_only(Heartbeat, _object(path)) for path in (workdir / "hosts").glob("*.json")]
    beats = [beat for beat in beats if beat is not None]
    if not beats:
        return ()
    processes = max(beats, key=lambda beat: beat.unix).processes
    return tuple(sorted((beat for beat in beats if beat.process < processes), key=lambda beat: beat.process))


def _checkpoints(folder: Path, known: dict[int, SavedStep]) -> tuple[SavedStep, ...]:
    """A sealed step does not change, so its size is summed once. What Orbax still writes has another name."""
    steps = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal()) if folder.is_dir() else []
    found = []
    for step in steps:
        if step in known and known[step].sealed:
            found.append(known[step])
            continue
        place = folder / str(step)
        sealed = _changed(place / SEAL)
        changed = _changed(place) if sealed is None else sealed
        if changed is not None:
            found.append(SavedStep(step, sealed is not None, changed, _size(place)))
    return tuple(found)


def _size(folder: Path) -> int:
    """Bytes of the files of a folder; what vanishes meanwhile, as the oldest checkpoints do, counts nothing."""
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return sum(_bytes(file) for file in files)


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone, or replaced meanwhile on a shared disk
        return 0


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # gone, or replaced meanwhile on a shared disk
        return None

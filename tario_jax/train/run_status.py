"""A run at a glance, as numbers: what `tario status` shows, writes as JSON, and `tario compare` sets side by side."""

import dataclasses
import math
from typing import Any

from tario_jax.train.run_files import Event, RunFiles, SavedStep
from tario_jax.train.run_state import Hosts, RunState, hosts_of, last_known, run_state, seconds_a_step, steps_done

_EVENTS = 20
_NEWEST = ("first_group_nats", "last_group_nats", "gradient_norm", "learning_rate", "tokens_per_second", "mfu",
           "step_seconds", "data_wait_seconds", "host_seconds", "memory_gib", "host_memory_gib")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Low:
    """A loss along a run: where it is and where it was lowest. In nats per detection, at steps done."""

    last: float
    last_step: int
    best: float
    best_step: int


@dataclasses.dataclass(frozen=True)
class Status:
    """A run at one moment. None: not known, or not measured by the tario that wrote it."""

    name: str
    workdir: str
    unix: float  # the moment
    state: RunState
    step: int  # steps done
    steps: int | None
    seconds_a_step: float | None  # wall time, with what comes between steps
    eta_seconds: float | None  # None where no step is being done
    loss: Low | None
    validation: Low | None
    first_group_nats: float | None
    last_group_nats: float | None
    gradient_norm: float | None
    learning_rate: float | None
    tokens_per_second: float | None
    mfu: float | None
    step_seconds: float | None
    data_wait_seconds: float | None  # a step
    host_seconds: float | None  # a step
    memory_gib: float | None
    host_memory_gib: float | None
    skipped_steps: int
    rollbacks: int
    starts: int
    goodput: float | None
    wall_seconds: float | None  # from the first start
    lost_seconds: dict[str, float]  # by reason, most first
    hosts: Hosts
    checkpoints: tuple[SavedStep, ...]
    events: tuple[Event, ...]  # the newest, oldest first
    unread_lines: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a number that is not finite becomes None."""
        return _finite(dataclasses.asdict(self))


def status_of(files: RunFiles, now: float) -> Status:
    """What the files say at `now`."""
    state, training = run_state(files, now), files.training
    step, steps = steps_done(files)
    pace = seconds_a_step(files)
    going = state.live and None not in (steps, pace)
    goodput = files.goodput
    lost = {} if goodput is None else {name: seconds for name, seconds in goodput.lost.items() if seconds > 0}
    newest = {field: last_known(training, field) for field in _NEWEST}
    return Status(
        files.name, str(files.workdir), now, state, step, steps, pace, (steps - step) * pace if going else None,
        low([(line.step, line.loss_nats_per_detection) for line in training]), low(files.validation),
        **newest,
        skipped_steps=int(last_known(training, "skipped_steps") or 0),
        rollbacks=int(last_known(training, "rollbacks") or 0),
        starts=len(goodput.starts) if goodput else 0,
        goodput=goodput.goodput if goodput else last_known(training, "goodput"),
        wall_seconds=goodput.wall_seconds if goodput else None,
        lost_seconds=dict(sorted(lost.items(), key=lambda one: -one[1])),
        hosts=hosts_of(files, now, live=state.live or state.name == "hung"),
        checkpoints=files.checkpoints, events=files.events[-_EVENTS:],
        unread_lines=files.metrics.unread + files.events_lines.unread,
    )  # fmt: skip


def low(values: list[tuple[int, float]]) -> Low | None:
    """Last and best of (step, loss), over those that are finite."""
    finite = [(step, loss) for step, loss in values if math.isfinite(loss)]
    if not finite:
        return None
    best_step, best = min(finite, key=lambda one: one[1])
    return Low(finite[-1][1], finite[-1][0], best, best_step)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Runs side by side: what they were told to do differently, and how far, how well and how fast they got.

Losses are compared at equal steps (the last that all runs have logged) and after equal time of training. Time of
training adds up a run's starts, without the breaks between them and without the steps that were done again.
"""

import bisect
import dataclasses
import math
import os
import statistics
from pathlib import Path
from typing import Any

from tario_jax.config import InputError
from tario_jax.train.run_files import RunFiles, TrainingLine, ValidationLine
from tario_jax.train.run_state import training_seconds
from tario_jax.train.run_status import Low, status_of

_OF_LOSS = ("model.total_likelihood", "model.rare_gene_weight")
_TAIL = 0.1  # of the common steps: the mean difference of losses is taken over it


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """The figures of one run. None: not known. Losses are in nats per detection."""

    name: str
    workdir: str
    state: str
    step: int  # done
    steps: int | None
    training_hours: float
    wall_hours: float | None  # from the first start, with breaks
    loss: Low | None
    validation: Low | None
    loss_at_step: float | None  # the last step that all runs have logged
    first_group_at_step: float | None
    last_group_at_step: float | None
    validation_at_step: float | None  # the last step at which all were validated
    loss_at_hours: float | None  # the longest time that all have trained
    tail_difference: float | None  # of the loss to the first run's, mean over the last tenth of the common steps
    tokens_per_second: float | None  # median
    mfu: float | None  # median
    goodput: float | None
    skipped_steps: int
    rollbacks: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    runs: tuple[ComparedRun, ...]
    config: dict[str, tuple[Any, ...]]  # field: its value in each run, where they differ; None: has no such field
    has_config: tuple[bool, ...]  # an older run may have no config.json
    step: int | None  # where losses are compared
    validation_step: int | None
    hours: float
    tail_steps: int  # logged steps that the mean difference is over
    other_losses: tuple[str, ...]  # fields that differ and say what training minimises: only validation is of one kind

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare_runs(runs: list[RunFiles], now: float) -> Comparison:
    """Compares two or more runs as they are at `now`; the first is what the others are held against."""
    names = unique_names([files.workdir for files in runs])
    training = [{line.step: line for line in files.training if math.isfinite(line.loss_nats_per_detection)}
                for files in runs]  # fmt: skip
    validation = [{line.step: line for line in files.validation if math.isfinite(line.nats_per_detection)}
                  for files in runs]  # fmt: skip
    common, validated = _common(training), _common(validation)
    step, validation_step = max(common, default=None), max(validated, default=None)
    tail = [at for at in common if at > (1 - _TAIL) * step]
    timed = [_timed(files.training) for files in runs]
    hours = min(line[-1][0] if line else 0.0 for line in timed)
    differs = config_differences([files.config for files in runs])
    compared = [
        _compared(name, files, lines, checks.get(validation_step), step, _loss_at(line, hours),
                  _mean_difference(lines, training[0], tail) if lines is not training[0] else None, now)
        for name, files, lines, checks, line in zip(names, runs, training, validation, timed, strict=True)
    ]  # fmt: skip
    return Comparison(tuple(compared), differs, tuple(bool(files.config) for files in runs), step, validation_step,
                      hours, len(tail), tuple(name for name in _OF_LOSS if name in differs))  # fmt: skip


def _compared(
    name: str, files: RunFiles, lines: dict[int, TrainingLine], check: ValidationLine | None, step: int | None,
    loss_at_hours: float | None, difference: float | None, now: float,
) -> ComparedRun:  # fmt: skip
    status = status_of(files, now)
    up_to = [line for at, line in lines.items() if step is not None and at <= step]
    at_step = lines.get(step)
    return ComparedRun(
        name, str(files.workdir), status.state.name, status.step, status.steps,
        training_hours=max(training_seconds(files.training), default=0.0) / 3600,
        wall_hours=None if status.wall_seconds is None else status.wall_seconds / 3600,
        loss=status.loss, validation=status.validation,
        loss_at_step=at_step.loss_nats_per_detection if at_step else None,
        first_group_at_step=_newest(up_to, "first_group_nats"), last_group_at_step=_newest(up_to, "last_group_nats"),
        validation_at_step=check.nats_per_detection if check else None, loss_at_hours=loss_at_hours,
        tail_difference=difference,
        tokens_per_second=_median(files.training, "tokens_per_second"), mfu=_median(files.training, "mfu"),
        goodput=status.goodput, skipped_steps=status.skipped_steps, rollbacks=status.rollbacks,
    )  # fmt: skip


def unique_names(workdirs: list[Path]) -> list[str]:
    """Of each path the shortest end that no other one has. Raises `InputError` for a path that is given twice."""
    parts = [Path(os.path.abspath(path)).parts for path in workdirs]
    names = []
    for path, own in zip(workdirs, parts, strict=True):
        if parts.count(own) > 1:
            raise InputError(f"{path}: is given twice; a run is compared with another one")
        length = next(n for n in range(1, len(own) + 1) if sum(one[-n:] == own[-n:] for one in parts) == 1)
        names.append("/".join(own[-length:]))
    return names


def config_differences(configs: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """{dotted field: its value in each config}, of the fields that are not the same in all of those that are known."""
    flat = [_flat(config) for config in configs]
    known = [one for one in flat if one]
    names = sorted({name for one in flat for name in one})
    return {name: tuple(one.get(name) for one in flat) for name in names
            if any(one.get(name) != known[0].get(name) for one in known)}  # fmt: skip


def losses_by_hours(files: RunFiles) -> tuple[list[int], list[float], list[float]]:
    """Of each line of training: (steps, hours of training, loss in nats per detection), for figures."""
    training = files.training
    hours = [seconds / 3600 for seconds in training_seconds(training)]
    return [line.step for line in training], hours, [line.loss_nats_per_detection for line in training]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for name, value in values.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def _common(lines: list[dict[int, Any]]) -> list[int]:
    """The steps that all runs have a line of."""
    return sorted(set.intersection(*(set(one) for one in lines)))


def _timed(training: list[TrainingLine]) -> list[tuple[float, float]]:
    """(hours of training, loss) of each line with a finite loss."""
    seconds = training_seconds(training)
    return [(at / 3600, line.loss_nats_per_detection) for at, line in zip(seconds, training, strict=True)
            if math.isfinite(line.loss_nats_per_detection)]  # fmt: skip


def _loss_at(timed: list[tuple[float, float]], hours: float) -> float | None:
    """The loss of the last line that was written by then."""
    at = bisect.bisect_right([one for one, _ in timed], hours + 1e-9)
    return timed[at - 1][1] if at else None


def _mean_difference(lines: dict[int, TrainingLine], others: dict[int, TrainingLine], steps: list[int]) -> float | None:
    differences = [lines[at].loss_nats_per_detection - others[at].loss_nats_per_detection for at in steps]
    return statistics.fmean(differences) if differences else None


def _newest(lines: list[TrainingLine], field: str) -> float | None:
    return next((value for line in reversed(lines) if (value := getattr(line, field)) is not None), None)


def _median(lines: list[TrainingLine], field: str) -> float | None:
    known = [value for line in lines if (value := getattr(line, field)) is not None]
    return statistics.median(known) if known else None

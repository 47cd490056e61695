"""A whole study: the runs, the axes they stand on, laws and what became of them, gains gene by gene, grids.

Everything is plain values (`scaling.json`); figures, page and table are made of these.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.scaling.axes import (
    CONTEXT,
    CONTEXT_ROWS,
    PATIENTS_STEPS,
    Plane,
    Sweep,
    find_apart,
    find_planes,
    find_sweeps,
)
from tario_jax.evaluate.scaling.gene_gains import compare_genes
from tario_jax.evaluate.scaling.grid import grid_cells, measure_grid
from tario_jax.evaluate.scaling.measures import Ranking, measure
from tario_jax.evaluate.scaling.records import Record, gather
from tario_jax.evaluate.scaling.trial import Trial, try_law

LAWS = (
    "nats",
    "gene_nats",
    "r/counts/top",
    "r/composition/top",
    "r/residual/top",
)  # quantities that laws are fitted to
_JOINT_LAWS = LAWS[:3]
_MOST_LAW_SAMPLES = 500
_SEED = 0
Values = dict[tuple[str, float], dict[str, float | None]]  # by run and read_um


@dataclasses.dataclass(frozen=True)
class Options:
    top_genes: int | None = (
        None  # of highest Moran's I; None: as many as the evaluation of the run that ranks them took
    )
    samples: int = 1000  # of patients
    between: tuple[str, str] | None = None  # two runs, compared gene by gene beside the ends of each axis


def study(places: list[Path], options: Options, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Raises `InputError` where runs cannot be compared, or too few are finished and evaluated."""
    records, left_out = gather(places)
    own = [record for record in records if record.own_bins]
    asked_for = None if options.between is None else _points_of(options.between, own)
    say(f"scaling: {len(own)} runs, {len(left_out)} left out")
    most = max(own, key=lambda record: record.patients or 0)
    ranking = Ranking.of(most.name, most.scores, options.top_genes or _top_genes(most))
    values = {(one.name, one.read_um): measure(one.scores, ranking, one.validation_nats) for one in records}
    sweeps = find_sweeps(records)
    told = []
    for number, sweep in enumerate(sweeps, 1):
        told.append(_sweep(sweep, values, options))
        say(f"scaling: {number}/{len(sweeps)} {sweep.name}: {len(sweep.points)} sizes, {len(sweep.runs)} runs")
    joint = [_joint(plane, values, options) for plane in find_planes(records, (PATIENTS_STEPS,))]
    return {
        "ranked_on": f"{most.scores.ranked_on} of {ranking.run}", "top_genes": len(ranking.top),
        "ranked_genes": len(ranking.order), "genes": len(most.scores.symbols), "samples": options.samples,
        "held_out": {"sections": len(most.scores.sections), "patients": len(set(most.scores.patients)),
                     "corpus_seal": most.scores.corpus_seal, "bin_um": most.scores.bin_um},
        "virtual": any(record.trained_on == "virtual" for record in own),
        "split_by": json.loads(most.scores.settings).get("split_by", "patient"),
        "runs": [_run(record, values, records) for record in records],
        "left_out": [dataclasses.asdict(one) for one in left_out],
        "apart": [dataclasses.asdict(one) for one in find_apart(records, sweeps)],
        "sweeps": told, "joint": joint, "grids": _grids(records, values, ranking, options),
        "comparisons": _comparisons(sweeps, asked_for, ranking, options, say),
    }  # fmt: skip


def _top_genes(record: Record) -> int:
    """As many as its evaluation took, whose settings may be newer than those of its training."""
    try:
        return int(json.loads((Path(record.workdir) / "report.json").read_text())["settings"]["top_genes"])
    except (OSError, ValueError, KeyError, TypeError):
        return record.config.evaluate.top_genes


def _run(record: Record, values: Values, records: list[Record]) -> dict[str, Any]:
    keys = list(dict.fromkeys(one.key for one in records))
    return {
        "name": record.name, "workdir": record.workdir, "configuration": keys.index(record.key) + 1,
        "seeds": {"data": record.seeds[0], "train": record.seeds[1]}, "patients": record.patients,
        "parameters": record.sizes.trunk, "gene_table_parameters": record.sizes.gene_tables,
        "window_um": record.config.data.window_um, "read_um": record.read_um, "own_bins": record.own_bins,
        "steps": record.steps, "tokens": record.tokens, "flops": record.flops, "trained_on": record.trained_on,
        "values": values[record.name, record.read_um],
    }  # fmt: skip


def _sweep(sweep: Sweep, values: Values, options: Options) -> dict[str, Any]:
    groups = [number for number, point in enumerate(sweep.points) for _ in point.runs]
    sizes_R = np.array([size for size, _ in sweep.runs])
    return {
        "name": sweep.name, "axis": sweep.axis.name, "label": sweep.axis.label, "held": sweep.held,
        "points": [{
            "size": point.size, "runs": [run.name for run in point.runs], "read_um": point.runs[0].read_um,
            "values": {name: [values[run.name, run.read_um][name] for run in point.runs]
                       for name in values[point.runs[0].name, point.runs[0].read_um]},
        } for point in sweep.points],
        "laws": _laws({sweep.axis.label: sizes_R}, [run for _, run in sweep.runs], groups, values, LAWS, options),
    }  # fmt: skip


def _laws(
    sizes: dict[str, np.ndarray],
    runs: list[Record],
    groups: list[int],
    values: Values,
    quantities: tuple[str, ...],
    options: Options,
) -> dict[str, dict]:
    found = {}
    for name in quantities:
        of_runs = [values[run.name, run.read_um] for run in runs]
        value_R = np.array([np.nan if one[name] is None else one[name] for one in of_runs])
        top, of = _top(name, value_R, of_runs[0])
        loss_R = value_R if top is None else top - value_R
        found[name] = {"of": of, "top": top, **_plain_trial(
            try_law(sizes, loss_R, groups, min(options.samples, _MOST_LAW_SAMPLES), np.random.default_rng(_SEED))
        )}  # fmt: skip
    return found


def _top(name: str, value_R: np.ndarray, values: dict[str, float | None]) -> tuple[float | None, str]:
    """What a value is subtracted from, such that a loss is left; None for what is a loss already."""
    if not name.startswith("r/"):
        return None, name
    _, form, which = name.split("/")
    ceiling = values[f"ceiling/{which}"]
    if form == "counts" and ceiling is not None and np.isfinite(ceiling) and (value_R < ceiling).all():
        return ceiling, "noise ceiling − r"
    return 1.0, "1 − r"


def _plain_trial(trial: Trial) -> dict[str, Any]:
    told = dataclasses.asdict(trial)
    sd = trial.seed_sd
    for one, held in zip(told["held_back"], trial.held_back, strict=True):
        one["error_in_seed_sd"] = held.error(sd) if sd else None
        one["error_without_axis_in_seed_sd"] = held.flatness(sd) if sd else None
    return told | {"text": trial.law.text if trial.law else None}


def _joint(plane: Plane, values: Values, options: Options) -> dict[str, Any]:
    rows = [(size, other, number, run)
            for number, (size, other, runs) in enumerate(plane.points) for run in runs]  # fmt: skip
    first, second, groups, runs = (list(column) for column in zip(*rows, strict=True))
    sizes = {plane.axes[0].label: np.array(first), plane.axes[1].label: np.array(second)}
    return {
        "axes": [axis.label for axis in plane.axes],
        "runs": [{"name": run.name, "sizes": [size, other],
                  "values": {name: values[run.name, run.read_um][name] for name in _JOINT_LAWS}}
                 for size, other, _, run in rows],
        "laws": _laws(sizes, runs, groups, values, _JOINT_LAWS, options),
    }  # fmt: skip


def _grids(records: list[Record], values: Values, ranking: Ranking, options: Options) -> list[dict[str, Any]]:
    measured = {record.name: values[record.name, record.read_um] for record in records if record.own_bins}
    found = []
    for plane in find_planes(records, (CONTEXT, CONTEXT_ROWS)):
        cells = grid_cells(plane)
        if cells is not None:
            grid = measure_grid(*cells, measured, ranking, options.samples, _SEED)
            found.append({"axes": [axis.name for axis in plane.axes], **grid})
    return found


def _comparisons(
    sweeps: list[Sweep],
    asked_for: list[tuple[Record, ...]] | None,
    ranking: Ranking,
    options: Options,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The smallest and the largest of each axis, and the two that were asked for."""
    wanted = []
    for sweep in sweeps:
        first, last = sweep.points[0], sweep.points[-1]
        if not sweep.axis.name.startswith("compute along"):  # of the sweep that it is made of
            wanted.append((sweep.name, sweep.axis.name, first.size, last.size, first.runs, last.runs))
    if asked_for is not None:
        before, after = asked_for
        wanted.insert(0, ("asked for", "", None, None, before, after))
    found = []
    for name, axis, small, large, before, after in wanted:
        forms = compare_genes([run.scores for run in before], [run.scores for run in after], ranking, options.samples,
                              _SEED)  # fmt: skip
        found.append({
            "name": name, "axis": axis,
            "before": {"size": small, "runs": [run.name for run in before], "read_um": before[0].read_um},
            "after": {"size": large, "runs": [run.name for run in after], "read_um": after[0].read_um},
            "forms": forms,
        })  # fmt: skip
        say(f"scaling: genes compared: {name}")
    return found


def _points_of(names: tuple[str, str], own: list[Record]) -> list[tuple[Record, ...]]:
    """The two runs with their replicates; alone where they are replicates of each other."""
    chosen = []
    for name in names:
        fitting = [one for one in own if one.name == name or Path(one.workdir).resolve() == Path(name).resolve()]
        if not fitting:
            raise InputError(f"--between: {name}: is none of the runs that are compared, "
                             f"{', '.join(one.name for one in own)}")  # fmt: skip
        chosen.append(fitting[0])
    if chosen[0].key == chosen[1].key:
        return [(one,) for one in chosen]
    return [tuple(one for one in own if one.key == run.key) for run in chosen]

"""The runs of a sweep, gathered from their workdirs: what each was given, what it cost, what it scored."""

import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from tario_jax.config import Config, DataConfig, InputError, ModelConfig
from tario_jax.config_files import from_dict, to_dict
from tario_jax.evaluate.run_comparison import unique_names
from tario_jax.evaluate.scaling.measures import RunScores
from tario_jax.evaluate.score_file import FILE as SCORES
from tario_jax.evaluate.score_file import ScoreTable, read_scores
from tario_jax.model.build import Sizes, model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.tokens.batch import Layout, make_layout, square_bins_per_tile
from tario_jax.train.provenance import Provenance, deciding_fields
from tario_jax.train.run_files import RunFiles, read_run, refuse_no_workdir
from tario_jax.train.run_state import run_state, steps_done
from tario_jax.train.seal import checkpoint_id

SEEDS = ("data.seed", "train.seed")
CORPUS, TRAINED_ON = "corpus of training", "patients of training"  # beside the fields of the config


@dataclasses.dataclass(frozen=True)
class Record:
    """One run, read at one side of bins."""

    name: str
    workdir: str
    config: Config
    fields: dict[str, Any]  # all that decides its numbers, but the seeds
    seeds: tuple[int, int]  # of the data and of the training
    patients: int | None  # that it was trained on; None: neither a checkpoint nor the config tells
    sizes: Sizes
    steps: int
    tokens: float  # seen in all
    flops: float  # of all steps
    validation_nats: float | None  # the last
    trained_on: str  # virtual or real
    scores: RunScores
    own_bins: bool  # read at those that it was trained on

    @functools.cached_property
    def key(self) -> str:
        """Equal for replicates: runs that differ in their seeds and names only."""
        return as_text(self.fields)

    @property
    def read_um(self) -> float:
        return self.scores.read_um


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A run that is not compared, and why."""

    name: str
    why: str


def as_text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def gather(places: list[Path]) -> tuple[list[Record], list[LeftOut]]:
    """The runs in `places`: workdirs, or folders whose subfolders are workdirs. A record a run and score table.

    A run that is not finished, or not evaluated since, is left out. Raises `InputError` where nothing is left, or where
    runs cannot be compared: other held-out sections, genes, bins, or another corpus.
    """
    workdirs = [workdir for place in places for workdir in _workdirs(place)]
    records, left_out, now = [], [], time.time()
    for name, workdir in zip(unique_names(workdirs), workdirs, strict=True):
        files = read_run(workdir)
        if why := _unready(files, now):
            left_out.append(LeftOut(name, why))
            continue
        table = read_scores(workdir / SCORES)
        if why := _not_of_its_end(files, table.checkpoint):
            left_out.append(LeftOut(name, why))
            continue
        found, stale = _records(name, files, table)
        records += found
        left_out += [LeftOut(f"{name}/{folder}", "is of another checkpoint than the run's scores; read it again")
                     for folder in stale]  # fmt: skip
    refuse_incomparable(records)
    records, again = _once(records)
    left_out += again
    if len({record.name for record in records}) < 2:
        told = "; ".join(f"{one.name}: {one.why}" for one in left_out) or "one run only"
        raise InputError(f"scaling: fewer than two runs can be compared ({told})")
    return records, left_out


def _once(records: list[Record]) -> tuple[list[Record], list[LeftOut]]:
    """Runs that differ at least in a seed: a copy of a run, or the same one trained again, tells nothing of seeds."""
    first: dict[Any, Record] = {}
    again: dict[str, LeftOut] = {}
    for record in records:
        known = first.setdefault((record.key, record.seeds, record.read_um), record)
        if known is not record and record.own_bins:
            again[record.name] = LeftOut(record.name, f"has the config, patients and seeds of {known.name}: "
                                         "no replicate")  # fmt: skip
    return [one for one in first.values() if one.name not in again], list(again.values())


def _workdirs(place: Path) -> list[Path]:
    if (place / "config.json").is_file():
        return [place]
    found = sorted(path.parent for path in place.glob("*/config.json")) if place.is_dir() else []
    if not found:
        refuse_no_workdir(place)
        raise InputError(f"{place}: holds no config.json, and no folder in it does; expected workdirs of 'tario train'")
    return found


def _unready(files: RunFiles, now: float) -> str:
    """Why a run is not compared; empty where it is."""
    if files.done is None:
        done, steps = steps_done(files)
        return f"not finished: {run_state(files, now).name}, step {done:,}" + (f" of {steps:,}" if steps else "")
    if not (files.workdir / SCORES).is_file():
        return f"not evaluated: holds no {SCORES}; run 'tario evaluate --workdir={files.workdir}'"
    return ""


def _not_of_its_end(files: RunFiles, scored: str) -> str:
    """Why scores of this checkpoint are not those of the trained run; empty where they are."""
    step = files.done["step"]
    last = checkpoint_id(files.workdir, step)
    if scored == last or (not files.checkpoints and scored.startswith(f"{step}-")):  # deleted: the step must do
        return ""
    return f"{SCORES} is of checkpoint {scored}, and the last is {last}; run 'tario evaluate --workdir={files.workdir}'"


def _records(name: str, files: RunFiles, table: ScoreTable) -> tuple[list[Record], list[str]]:
    """The run at its own bins, then at each other side that its checkpoint was read at; and folders of other ones."""
    try:
        config = from_dict(files.config)
    except InputError as error:
        raise InputError(f"{files.workdir / 'config.json'}: {error}") from None
    tables, stale = [table], []
    for path in sorted(files.workdir.glob(f"read_*/{SCORES}")):
        other = read_scores(path)
        if other.checkpoint != table.checkpoint:
            stale.append(path.parent.name)
        elif other.read_um not in [one.read_um for one in tables]:
            tables.append(other)
    provenance = _provenance(files)
    layout, genes = _layout(config, provenance, tables[0]), len(tables[0].symbols)
    if provenance is not None:
        genes = len(provenance.panel)
    steps, data = files.done["step"], config.data
    tokens_a_step = data.rows * layout.tiles * (
        layout.patches_per_tile + layout.bins_per_tile * (1 if data.one_shot else 2)
    )  # fmt: skip
    first = Record(
        name, str(files.workdir), config, _fields(config, provenance), (data.seed, config.train.seed),
        _patients(config, provenance), _sizes(config.model, dataclasses.replace(data, seed=0), genes),
        steps, float(tokens_a_step * steps),
        step_flops(config, layout).total * steps,
        files.validation[-1].nats_per_detection if files.validation else None,
        provenance.trained_on if provenance else _trained_on(files.workdir, config), RunScores.of(tables[0]), True,
    )  # fmt: skip
    others = [dataclasses.replace(first, scores=RunScores.of(table), own_bins=False) for table in tables[1:]]
    return [first, *others], stale


def _provenance(files: RunFiles) -> Provenance | None:
    """Of the newest checkpoint; None where there is none any more."""
    for saved in reversed(files.checkpoints):
        path = files.workdir / "checkpoints" / str(saved.step) / "provenance.json"
        if path.is_file():
            return Provenance.from_json(json.loads(path.read_text()), str(path.parent))
    return None


def _layout(config: Config, provenance: Provenance | None, table: ScoreTable) -> Layout:
    if provenance is not None:
        return provenance.layout
    if not table.read_um:
        raise InputError(f"{config.name}: has no checkpoint, and how many spots a window of it held is not known; "
                         "leave this run out")  # fmt: skip
    return make_layout(config.data, len(table.symbols), bins_per_tile=square_bins_per_tile(config.data),
                       largest_bin_um=config.data.largest_bin_um, count_capacity=1)  # fmt: skip


def _fields(config: Config, provenance: Provenance | None) -> dict[str, Any]:
    fields = {name: value for name, value in deciding_fields(config).items() if name not in SEEDS}
    if provenance is None:  # what the config says must stand for what was read
        source = {f"source.{name}": value for name, value in to_dict(config.source).items() if name != "workers"}
        return fields | source
    trained_on = hashlib.sha256("\n".join(sorted(provenance.train)).encode()).hexdigest()[:12]
    return fields | {CORPUS: provenance.corpus_seal, TRAINED_ON: trained_on}


def _patients(config: Config, provenance: Provenance | None) -> int | None:
    split = config.split
    if provenance is not None and provenance.train_patients:
        return len(provenance.train_patients)
    if split.train_patients:
        return split.train_patients
    if split.train:
        return len(split.train) if split.by == "patient" else None
    return config.source.train_patients if config.source.kind == "virtual" else None


def _trained_on(workdir: Path, config: Config) -> str:
    """Of a run without checkpoints: as its evaluation says, else as its config does."""
    try:
        report = json.loads((workdir / "report.json").read_text())
        return report.get("trained_on") or report["corpus_kind"]
    except (OSError, ValueError, KeyError, AttributeError):
        return "virtual" if config.source.kind == "virtual" else "real"


@functools.cache
def _sizes(model: ModelConfig, data: DataConfig, genes: int) -> Sizes:
    """Building a model, even abstractly, takes a second: replicates share it."""
    return model_sizes(Config(model=model, data=data), genes)


def refuse_incomparable(records: list[Record]) -> None:
    """Raises `InputError` naming the first two records whose scores are not of the same held-out bins and genes, or
    were not evaluated alike."""
    for other in records[1:]:
        first = records[0]
        a, b = first.scores, other.scores
        whose = f"scaling: {first.name} and {_told(other)} cannot be compared"
        if a.corpus_seal != b.corpus_seal:
            raise InputError(f"{whose}: they were evaluated on other corpora (seals {a.corpus_seal}, {b.corpus_seal}); "
                             "evaluate both on one ('tario evaluate --corpus')")  # fmt: skip
        if a.sections != b.sections:
            shared = len(set(a.sections) & set(b.sections))
            raise InputError(f"{whose}: other held-out sections ({len(a.sections)} and {len(b.sections)}, {shared} of "
                             "them the same); hold the same patients out in both")  # fmt: skip
        if a.symbols != b.symbols:
            shared = len(set(a.symbols) & set(b.symbols))
            raise InputError(f"{whose}: other genes ({len(a.symbols)} and {len(b.symbols)}, {shared} of them the "
                             "same); train both on one panel")  # fmt: skip
        if a.ranked_on != b.ranked_on:
            raise InputError(f"{whose}: their genes were ranked on {a.ranked_on} and {b.ranked_on}; evaluate both "
                             "alike ('evaluate.ranked_on')")  # fmt: skip
        if a.settings != b.settings:
            raise InputError(f"{whose}: they were evaluated with {a.settings} and {b.settings}; evaluate both alike")
        if a.bin_um != b.bin_um:
            raise InputError(f"{whose}: scored on bins of {a.bin_um:g} and of {b.bin_um:g} µm; compare them on one "
                             "grid ('tario evaluate --bin-um')")  # fmt: skip


def _told(record: Record) -> str:
    return record.name if record.own_bins else f"{record.name} read at {record.read_um:g} µm"

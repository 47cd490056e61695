"""The main job, the whole way: a source, a corpus, a model, gene maps, a report. Each stage resumes."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tario_jax.config import Absent, Config, InputError, SourceConfig
from tario_jax.config_files import expand
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.evaluate.job import evaluate_checkpoint, refuse_sides
from tario_jax.evaluate.kept import key_of
from tario_jax.evaluate.tables import Evaluation
from tario_jax.he_features.encode import encode_missing
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.gene_validation import read_gene_validation
from tario_jax.predict.predictor import Predictor, load
from tario_jax.sources.ingest import ingest
from tario_jax.sources.spots import read_spots
from tario_jax.train.compiled import compiled_kept
from tario_jax.train.loop import train
from tario_jax.train.provenance import Provenance, code_version
from tario_jax.virtual.cohort import simulate_cohort
from tario_jax.whole_file import write_whole


def make_corpus(config: SourceConfig, root: Path | str, say: Callable[[str], None] = print) -> Corpus:
    """The corpus that a config names: simulated or ingested into `root`, or continued there."""
    if config.kind == "corpus":
        return Corpus.open(expand(config.path))
    if config.kind == "virtual":
        corpus = simulate_cohort(config, root, say)
        if corpus is None:  # parts of it are made by others
            raise Absent(f"corpus {root}: another process began sections of it; wait until it has ended, and start "
                         "this again")  # fmt: skip
        return corpus
    # read again even where the corpus is there: what it holds must be what the config asks for
    source = read_spots(
        expand(config.path), patients=config.patients, sections=config.sections, pitch_um=config.pitch_um,
        diameter_um=config.diameter_um, min_spot_total=config.min_spot_total, min_gene_total=config.min_gene_total,
    )  # fmt: skip
    return ingest(source, root, say)


def corpus_of_run(config: SourceConfig, workdir: Path, say: Callable[[str], None] = print) -> Corpus:
    """The corpus that a config names, in `workdir` where it is made. Raises `InputError` as `refuse_other_source`."""
    refuse_other_source(config, workdir)
    return make_corpus(config, workdir / "corpus", say)


_DECIDES = {"virtual": ("train_patients", "validation_patients", "held_out_patients", "cohorts", "regions",
                        "section_um", "panel", "depth", "seed"),
            "spots": ("patients", "sections", "pitch_um", "diameter_um", "min_spot_total", "min_gene_total"),
            "corpus": ()}  # fmt: skip
"""Fields of a source that decide which corpus it makes."""


def refuse_other_source(config: SourceConfig, workdir: Path) -> None:
    """Raises `InputError` where a run in `workdir` learnt from a corpus of another source: made for this one, it would
    no longer be what that run learnt from. Starts no device: several hosts may still have to find each other."""
    learnt_from = _source_of_run(workdir)
    if learnt_from is None or learnt_from.kind != config.kind:
        return
    for name in _DECIDES[config.kind]:
        before, now = getattr(learnt_from, name), getattr(config, name)
        if before != now:
            raise InputError(f"{workdir}: its run learnt from a corpus of source.{name} = {before!r}, which {now!r} "
                             "would make another one; use another --workdir")  # fmt: skip


def _source_of_run(workdir: Path) -> SourceConfig | None:
    """What the newest checkpoint whose account can be read names; None where there is none."""
    steps = [int(path.parent.name) for path in (workdir / "checkpoints").glob("*/provenance.json")
             if path.parent.name.isdecimal()]  # fmt: skip
    for step in sorted(steps, reverse=True):
        found = _account(workdir / "checkpoints" / str(step) / "provenance.json")
        if "config" in found:
            return Provenance.from_json(found, f"{workdir}/checkpoints/{step}").config.source
    return None


def run(config: Config, workdir: Path, say: Callable[[str], None] = print) -> Evaluation:
    """Simulates or ingests, encodes, trains, predicts the held-out sections, evaluates; run again, it continues.

    Writes corpus/, checkpoints/, compiled/, metrics.jsonl, maps/<section>.h5ad, report.html and report.json into
    `workdir`.
    """
    config.refuse_he_alone("tario run")
    workdir.mkdir(parents=True, exist_ok=True)
    clock = _Clock(workdir / "seconds.json")
    corpus = corpus_of_run(config.source, workdir, say)
    clock.note("corpus")
    refuse_sides(corpus, split_corpus(corpus, config.split).held_out, config)
    if config.data.frozen_encoder:
        encode_missing(corpus, config.data.frozen_encoder, say)
        clock.note("encode")
    with compiled_kept(workdir):
        train(config, corpus, workdir, say)
        clock.note("train")
        predictor = load(workdir)
        evaluation = evaluate_checkpoint(
            predictor, corpus, config.evaluate, workdir, title=config.name, say=say,
            began=time.monotonic() - clock.total(),
        )  # fmt: skip
        for read_um in config.evaluate.read_um:
            say(f"read at {read_um:g} µm:")
            evaluate_checkpoint(
                predictor, corpus, config.evaluate, workdir / f"read_{read_um:g}um", read_um=read_um, say=say,
                shared=workdir / "kept", title=f"{config.name}, read at {read_um:g} µm",
            )  # fmt: skip
        clock.note("evaluate")
        predictor.validation = read_gene_validation(workdir / VALIDATION)
        write_maps(predictor, corpus, config.evaluate.overlap, workdir, say)
        clock.note("maps")
        return evaluation


def write_maps(predictor: Predictor, corpus: Corpus, overlap: float, workdir: Path, say: Callable[[str], None]) -> None:
    """Writes workdir/maps/<section>.h5ad of the held-out sections that have an H&E, and says how many have none.

    What kept/maps.json says was written of this very checkpoint and validation is not written again.
    """
    held_out = [corpus.section(name) for name in predictor.provenance.held_out]
    sections = [section for section in held_out if section.holds("he")]
    if len(sections) < len(held_out):
        say(f"maps: {len(held_out) - len(sections)} held-out sections have no H&E, and get no maps")
    known = hashlib.sha256((workdir / VALIDATION).read_bytes()).hexdigest()
    key = key_of(checkpoint=predictor.checkpoint, seal=corpus.seal, overlap=overlap, validation=known,
                 code=code_version())  # fmt: skip
    account = workdir / "kept" / "maps.json"
    account.parent.mkdir(parents=True, exist_ok=True)
    written = _account(account)
    for number, section in enumerate(sections, 1):
        path = workdir / "maps" / f"{section.id}.h5ad"
        if written.get(section.id) != key or not path.exists():
            maps = predictor.predict_section(section, tissue=corpus.kind, overlap=overlap, one_of_many=True)
            maps.write_h5ad(path)
            written[section.id] = key
            write_whole(account, json.dumps(written))
        if number % 10 == 0 or number == len(sections):
            say(f"maps: {number}/{len(sections)} held-out sections")


def _account(path: Path) -> dict[str, Any]:
    """What a former start wrote; a file that is absent or broken is an empty account."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _Clock:
    """Seconds spent in each stage, over all starts of the same job."""

    def __init__(self, path: Path):
        self._path = path
        self._spent: dict[str, float] = _account(path)
        self._last = time.monotonic()

    def note(self, stage: str) -> None:
        now = time.monotonic()
        self._spent[stage] = round(self._spent.get(stage, 0.0) + now - self._last, 1)
        self._last = now
        write_whole(self._path, json.dumps(self._spent))

    def total(self) -> float:
        return sum(self._spent.values())

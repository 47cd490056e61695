"""The jobs of a sweep: what 'tario' is called with for its cohort, its runs and its end, and what of it is done."""

import dataclasses
import json
import os
from pathlib import Path

from launch.sweep_file import Sweep
from tario_jax.config import Config, InputError
from tario_jax.config_files import expand, from_dict, to_dict
from tario_jax.evaluate import score_file
from tario_jax.evaluate.tables import plain
from tario_jax.tokens.hidden import as_trained
from tario_jax.train.provenance import deciding_fields
from tario_jax.train.seal import checkpoint_id

KINDS = ("simulate", "ingest", "train", "evaluate", "scaling")
CORPUS, SCALING = "corpus", "scaling"
"""What is made before the runs, and after them; both lie in the sweep's own folder."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One call of `tario`."""

    run: str  # its name, or CORPUS or SCALING
    words: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.words[0]

    def folder(self, workdir: Path) -> Path:
        """Where its logs are."""
        return workdir if self.run in (CORPUS, SCALING) else workdir / self.run


def jobs_of(sweep: Sweep, workdir: Path, *, to_do: bool = True) -> dict[str, list[Job]]:
    """By run, CORPUS first and SCALING last: their jobs in order. workdir: as the machine that does them sees it.

    to_do: False where nobody will do them, and an environment variable that the corpus is named by need not be set.
    """
    source = sweep.source
    corpus = str(workdir / "corpus") if source.kind != "corpus" else expand(source.path) if to_do else source.path
    first = next(iter(sweep.configs))
    found: dict[str, list[Job]] = {}
    if source.kind != "corpus":
        make = "simulate" if source.kind == "virtual" else "ingest"
        found[CORPUS] = [Job(CORPUS, (make, *sweep.config_words(first, ("source",)), f"--out={corpus}"))]
    for name, config in sweep.configs.items():
        folder = workdir / name
        words = ("train", *sweep.config_words(name), f"--corpus={corpus}", f"--workdir={folder}")
        found[name] = [Job(name, words)]
        if config.train.learns == "counts":  # from H&E alone there is nothing to evaluate
            words = ("evaluate", *sweep.config_words(name, ("evaluate",)), f"--workdir={folder}",
                     f"--corpus={corpus}", f"--shared={workdir / 'kept'}")  # fmt: skip
            found[name].append(Job(name, words))
    if sum(len(jobs) > 1 for jobs in found.values()) > 1:
        found[SCALING] = [Job(SCALING, ("scaling", str(workdir), f"--out={workdir}"))]
    return found


def is_done(job: Job, sweep: Sweep, workdir: Path) -> bool:
    """Whether it need not be done again. A cohort of other patients, or of another simulator, is not done: the job says
    what is amiss with it. What was ingested is, once it is sealed."""
    if job.run == CORPUS:
        corpus = workdir / "corpus"
        if job.kind == "ingest":
            return (corpus / "corpus.json").exists()  # written last
        from tario_jax.virtual.cohort import holds_cohort  # here: a launch of real tissue needs no simulator

        return holds_cohort(corpus, sweep.source)
    if job.run == SCALING:
        return _is_reported(sweep, workdir)
    done = is_trained if job.kind == "train" else is_evaluated
    return done(workdir / job.run, sweep.configs[job.run], _corpus_seal(sweep, workdir))


def _corpus_seal(sweep: Sweep, workdir: Path) -> str | None:
    """Of the corpus that the runs would use now; None where it is not made yet, or not on a disk of this machine."""
    source = sweep.source
    corpus = workdir / "corpus" if source.kind != "corpus" else Path(os.path.expandvars(source.path))
    return (_read(corpus / "corpus.json") or {}).get("seal")


def _is_reported(sweep: Sweep, workdir: Path) -> bool:
    """Whether the scaling report is there, and no run was evaluated since."""
    reports = (workdir / run / of / "report.json" for run, config in sweep.configs.items() for of in _readings(config))
    evaluated = [report.stat().st_mtime_ns for report in reports if report.exists()]
    page = workdir / "scaling.json"  # written last
    return page.exists() and max(evaluated, default=0) <= page.stat().st_mtime_ns


def _readings(config: Config) -> list[str]:
    """Where in a run's folder its reports are."""
    return [".", *(f"read_{read_um:g}um" for read_um in config.evaluate.read_um)]


def is_trained(workdir: Path, config: Config, corpus_seal: str | None = None) -> bool:
    """Whether the run is done, with this config and on this corpus (None: whichever): where one of them was changed it
    is trained, or refused by 'tario train'."""
    found = _read(workdir / "config.json"), _read(workdir / "done.json")
    if None in found or found[1].get("step") != config.train.steps:
        return False
    if not _is_of(corpus_seal, _newest_provenance(workdir)):
        return False
    try:
        return deciding_fields(from_dict(found[0])) == deciding_fields(as_trained(config))
    except InputError:  # of another version: 'tario train' says what is amiss
        return False


def is_evaluated(workdir: Path, config: Config, corpus_seal: str | None = None) -> bool:
    """Whether reports are there of its newest checkpoint, with these settings and on this corpus (None: whichever), at
    every side of bins, and scores that can be read. Where that checkpoint was removed since, one of its step will do:
    nothing else can be evaluated."""
    step = (_read(workdir / "done.json") or {}).get("step")
    checkpoint = checkpoint_id(workdir, step) if (workdir / "checkpoints" / str(step)).is_dir() else f"{step}-"
    settings = json.loads(json.dumps(plain(to_dict(config.evaluate))))  # as a report holds them, to six decimals
    for folder in (workdir / of for of in _readings(config)):
        report = _read(folder / "report.json") or {}
        provenance = report.get("provenance") or {}
        if report.get("settings") != settings or not str(provenance.get("checkpoint")).startswith(checkpoint):
            return False
        if not _is_of(corpus_seal, provenance):
            return False
        if not score_file.is_current(folder / score_file.FILE):
            return False
    return True


def _newest_provenance(workdir: Path) -> dict:
    """Of the run's newest checkpoint; empty where none is left."""
    found = [folder for folder in (workdir / "checkpoints").glob("*") if folder.name.isdecimal()]
    newest = max(found, key=lambda folder: int(folder.name), default=None)
    return (newest and _read(newest / "provenance.json")) or {}


def _is_of(corpus_seal: str | None, provenance: dict) -> bool:
    """Whether it names this corpus. Where either is not known, nothing is held against it."""
    return corpus_seal is None or provenance.get("corpus_seal", corpus_seal) == corpus_seal


def _read(path: Path) -> dict | None:
    """Its JSON object; None where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None

"""Evaluation apart from training: follows a workdir, evaluates its checkpoints as they appear, ends when the run does.

It only reads what the trainer writes. A checkpoint counts when its seal does; one that is damaged, or that the trainer
deletes while it is read (train.keep_checkpoints), is told in a line and passed over.
"""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.evaluations import Evaluations, draw_evaluations
from tario_jax.evaluate.job import evaluate_checkpoint
from tario_jax.evaluate.kept import key_of
from tario_jax.evaluate.scope import refuse_own_folder
from tario_jax.predict.predictor import Predictor, load_step
from tario_jax.train.compiled import compiled_kept
from tario_jax.train.provenance import Provenance
from tario_jax.train.run_files import RunFiles, read_run
from tario_jax.train.run_state import duration
from tario_jax.train.seal import damage, seal_id
from tario_jax.train.stop import Stop, Stopped

_SILENT_S = 300.0  # without a sign of life of the run, after which that is said
_EVERY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """How a checkpoint is read, and evaluated into `folder`/evaluations/<step>."""

    workdir: Path
    folder: Path
    open_corpus: Callable[[], Corpus]  # once: with the first checkpoint
    config_of: Callable[[Provenance], EvaluateConfig]
    bin_um: float | None = None
    allow_virtual_model: bool = False
    shared: Path | None = None  # what does not depend on the checkpoint; `folder`/kept by default
    flags: str = ""  # of how to evaluate, beside what the run's own config says, which may change as it is resumed

    def load(self, step: int, before: Predictor | None) -> Predictor:
        return load_step(self.workdir, step, like=before, allow_virtual_model=self.allow_virtual_model)

    @property
    def key(self) -> str:
        """Of what was asked: figures of other bins, another corpus or other settings belong to another folder."""
        return key_of(bin_um=self.bin_um, corpus=self._corpus.seal, said=self.flags)

    def evaluate(self, step: int, predictor: Predictor) -> dict[str, Any]:
        """The headline of the report. Raises `InputError` where that of another corpus would be the run's own."""
        provenance, corpus = predictor.provenance, self._corpus
        refuse_own_folder(self.folder, self.workdir, corpus, provenance)
        folder = self.folder / "evaluations" / str(step)
        with compiled_kept(self.workdir):
            evaluation = evaluate_checkpoint(
                predictor, corpus, self.config_of(provenance), folder, bin_um=self.bin_um,
                shared=self.shared or self.folder / "kept", say=lambda line: None,
                title=f"{provenance.config.name}, step {step}, on {corpus.root.name}",
            )  # fmt: skip
        shutil.rmtree(folder / "kept", ignore_errors=True)  # of a step that is not evaluated again
        return evaluation.report["headline"]

    @functools.cached_property
    def _corpus(self) -> Corpus:
        return self.open_corpus()


def follow(evaluator: Evaluator, *, every: int = 0, give_up_minutes: float = 0.0, say: Callable[[str], None] = print,
           look_every_s: float = _EVERY_S) -> int:  # fmt: skip
    """Evaluates until the last step of the run is done and evaluated; returns the exit status.

    The newest checkpoint comes first, older ones that are still there while nothing newer waits; every: only multiples
    of so many steps, and the last one, in their order. Appends a line for each to `folder`/evaluations.jsonl, and draws
    evaluations.png anew; what has its line is not evaluated again. Raises `InputError` where lines are of other bins,
    another corpus or other settings. Status 1: the last checkpoint cannot be evaluated, or the run gave no sign of life
    for `give_up_minutes` (0: waits for ever). Told to end, it finishes the evaluation that it is at, and raises
    `Stopped`.
    """
    evaluations, passed, predictor = Evaluations(evaluator.folder), set(), None
    pulse, files = _Pulse(evaluator.workdir, give_up_minutes, say), None
    with Stop() as stop:
        stop.has_work = True
        while True:
            if stop.signal_s is not None:
                raise Stopped(f"{stop.signal.name}: evaluations up to now are kept; the same command continues",
                              128 + stop.signal)  # fmt: skip
            files = _look(evaluator.workdir, files)
            last = files.done["step"] if files is not None and files.done is not None else None
            waiting = _waiting(files, evaluations, passed, every, last)
            is_done = last is not None and evaluations.holds(last, _seal(evaluator.workdir, last))
            if is_done and not (every and waiting):
                evaluations.refuse_others(evaluator.key)
                say(f"the run is done, and its last step, {last}, is evaluated")
                return 0
            if not waiting:
                if last is not None:
                    say(f"the run is done, and the checkpoint of its last step, {last}, cannot be evaluated")
                    return 1
                if not pulse.beats(files):
                    return 1
                time.sleep(look_every_s)
                continue
            step, seal = waiting[0] if every else waiting[-1]
            pulse.heard()
            loaded = _loaded(evaluator, step, predictor, say)
            if loaded is None:
                passed.add((step, seal))
                continue
            predictor = loaded
            evaluations.refuse_others(evaluator.key)
            headline = evaluator.evaluate(step, predictor)
            evaluations.add({"step": step, "unix": time.time(), "checkpoint": seal, "key": evaluator.key, **headline})
            files = _look(evaluator.workdir, files) or files
            draw_evaluations(evaluator.folder / "evaluations.png", evaluations.lines, files.validation, files.name)
            say(f"step {step:>6}  {_told(headline)}")


def _look(workdir: Path, before: RunFiles | None) -> RunFiles | None:
    """None where no run has begun yet."""
    try:
        return read_run(workdir, before)
    except InputError:
        return None


def _waiting(files: RunFiles | None, evaluations: Evaluations, passed: set, every: int,
             last: int | None) -> list[tuple[int, str | None]]:  # fmt: skip
    """(step, seal) of the checkpoints that are to be evaluated, in ascending order."""
    found = [(saved.step, _seal(files.workdir, saved.step)) for saved in (files.checkpoints if files else ())
             if not every or saved.step % every == 0 or saved.step == last]  # fmt: skip
    return [one for one in found if one not in passed and not evaluations.holds(*one)]


def _seal(workdir: Path, step: int) -> str | None:
    return seal_id(workdir / "checkpoints" / str(step))


def _loaded(evaluator: Evaluator, step: int, before: Predictor | None, say: Callable[[str], None]) -> Predictor | None:
    """The model of a step, all of it in memory; None where it is damaged or was deleted meanwhile, which is said."""
    folder = evaluator.workdir / "checkpoints" / str(step)
    gone = f"step {step:>6}  was deleted before it was read (train.keep_checkpoints, train.keep_every); passed over"
    try:
        fault = damage(folder)
    except InputError as error:  # a disk across a network may say so of what is being deleted
        fault = str(error)
    if fault is not None:
        say(f"{folder}: is damaged: {fault}; passed over" if folder.is_dir() else gone)
        return None
    try:
        return evaluator.load(step, before)
    except Exception:  # whatever Orbax or the system raise where a file vanishes
        if folder.is_dir():
            raise
        say(gone)
        return None


class _Pulse:
    """Whether the run gives signs of life. By this machine's clock: that of the trainer's hosts may be another."""

    def __init__(self, workdir: Path, give_up_minutes: float, say: Callable[[str], None]):
        self._workdir, self._give_up_s, self._say = workdir, 60 * give_up_minutes, say
        self._seen, self._heard_s, self._told = None, time.monotonic(), ""

    def heard(self) -> None:
        self._heard_s = time.monotonic()

    def beats(self, files: RunFiles | None) -> bool:
        """To be asked while nothing else is to be done. False: it is time to give up."""
        sign = files and (max((beat.unix for beat in files.hosts), default=None), files.metrics_unix)
        if sign != self._seen:
            self._seen, self._told = sign, ""
            self.heard()
        silent_s = time.monotonic() - self._heard_s
        if self._give_up_s and silent_s > self._give_up_s:
            self._say(
                f"{self._workdir}: no sign of life for {duration(silent_s)}: gives up; the same command continues"
            )
            return False
        if files is None:
            self._tell(f"{self._workdir}: no run there yet; waiting for it")
        elif silent_s > _SILENT_S:
            self._tell(f"{self._workdir}: no sign of life for {duration(silent_s)}; waiting on")
        return True

    def _tell(self, text: str) -> None:
        """Once, until something changes."""
        if not self._told:
            self._say(text)
            self._told = text


def _told(headline: dict[str, Any]) -> str:
    shown = (
        ("r in counts", "spatial_r_top100"), ("ridge", "ridge_r_top100"), ("own density", "own_density_r_top100"),
        ("composition r", "composition_r_top100"), ("bulk r", "bulk_r"),
    )  # fmt: skip
    known = [f"{name} {headline[field]:.3f}" for name, field in shown if headline[field] is not None]
    return f"{'  '.join(known)}  ({headline['genes']} genes, {headline['seconds']:.1f} s)"

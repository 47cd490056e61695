"""An evaluation that follows a run: what it takes, in which order, what it says, when it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from refusals import refused
from tiny_tissue import tiny_section, write_corpus

from tario_jax.cli import main as cli
from tario_jax.config import EvaluateConfig
from tario_jax.evaluate import follow as following
from tario_jax.evaluate.evaluations import Evaluations
from tario_jax.evaluate.follow import Evaluator, follow
from tario_jax.evaluate.job import evaluate_checkpoint
from tario_jax.predict.predictor import load, load_step
from tario_jax.train.seal import seal, seal_id
from tario_jax.train.stop import Stopped

ROOT = Path(__file__).resolve().parents[2]
HEADLINE = {
    "spatial_r_top100": 0.25, "ridge_r_top100": 0.2, "own_density_r_top100": 0.1, "composition_r_top100": None,
    "bulk_r": None, "genes": 12, "seconds": 1.5,
}  # fmt: skip


class Trainer:
    """Writes what a run does, without training."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def begin(self) -> None:
        (self.workdir / "hosts").mkdir(parents=True, exist_ok=True)
        (self.workdir / "config.json").write_text('{"name": "made"}')
        self.beat()

    def beat(self) -> None:
        beat = {"process": 0, "processes": 1, "host": "here", "unix": time.time(), "step": 0, "steps": 9, "doing": "x"}
        (self.workdir / "hosts/0.json").write_text(json.dumps(beat))

    def save(self, step: int, content: str = "weights") -> Path:
        unfinished = self.workdir / f"checkpoints/{step}.orbax-checkpoint-tmp"
        unfinished.mkdir(parents=True)
        (unfinished / "arrays").write_text(f"{content} of {step}")
        seal(unfinished)
        return unfinished.rename(self.workdir / f"checkpoints/{step}")

    def delete(self, step: int) -> None:
        shutil.rmtree(self.workdir / f"checkpoints/{step}")

    def finish(self, step: int) -> None:
        (self.workdir / "done.json").write_text(json.dumps({"step": step, "unix": time.time(), "seconds": 1.0}))


class Fake(Evaluator):
    """Remembers what it was given. meanwhile(step): what the trainer does while a step is read or evaluated."""

    def __init__(self, workdir: Path, *, reading=lambda step: None, evaluating=lambda step: None):
        super().__init__(workdir, workdir, lambda: None, lambda provenance: EvaluateConfig())
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "meanwhile", (reading, evaluating))

    key = "made"

    def load(self, step, before):
        self.meanwhile[0](step)
        return (self.workdir / f"checkpoints/{step}/arrays").read_text()

    def evaluate(self, step, predictor):
        self.meanwhile[1](step)
        self.seen.append(predictor)
        return HEADLINE


@pytest.fixture
def trainer(tmp_path) -> Trainer:
    made = Trainer(tmp_path / "run")
    made.begin()
    return made


def followed(evaluator, **options) -> tuple[int, list[str]]:
    said = []
    return follow(evaluator, say=said.append, look_every_s=0.02, **options), said


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]


def test_each_checkpoint_is_evaluated_as_it_appears_until_the_run_is_done(trainer):
    def evaluating(step: int) -> None:  # the run goes on meanwhile: 3 is deleted before anyone could read it
        if step == 1:
            for saved in (2, 3, 4):
                trainer.save(saved)
            trainer.delete(3)
        if step == 2:
            trainer.save(6)
            trainer.finish(6)

    trainer.save(1)
    fake = Fake(trainer.workdir, evaluating=evaluating)
    status, said = followed(fake)
    assert status == 0
    assert fake.seen == [f"weights of {step}" for step in (1, 4, 2, 6)]  # the newest first, older ones while it waits
    assert [line["step"] for line in lines(trainer.workdir)] == [1, 4, 2, 6]
    assert lines(trainer.workdir)[0].items() >= HEADLINE.items() and lines(trainer.workdir)[0]["unix"] > 1.7e9
    assert said[0] == "step      1  r in counts 0.250  ridge 0.200  own density 0.100  (12 genes, 1.5 s)"
    assert len(said) == 5 and "is done, and its last step, 6" in said[-1]
    assert (trainer.workdir / "evaluations.png").read_bytes().startswith(b"\x89PNG")
    assert followed(Fake(trainer.workdir)) == (0, said[-1:])  # again: nothing is left


def test_every_takes_multiples_in_their_order_and_the_last_one(trainer):
    for step in (10, 15, 20, 30, 33):
        trainer.save(step)
    trainer.finish(33)
    fake = Fake(trainer.workdir)
    assert followed(fake, every=10)[0] == 0
    assert fake.seen == [f"weights of {step}" for step in (10, 20, 30, 33)]


def test_every_takes_what_is_there_of_a_run_that_is_done_and_whose_last_is_evaluated(trainer):
    for step in (1, 2, 3):
        trainer.save(step)
    trainer.finish(3)
    seal = following._seal(trainer.workdir, 3)
    Evaluations(trainer.workdir).add({"step": 3, "unix": 1.0, "checkpoint": seal, **HEADLINE})
    fake = Fake(trainer.workdir)
    assert followed(fake, every=1)[0] == 0
    assert fake.seen == ["weights of 1", "weights of 2"]


def test_what_has_its_line_is_not_done_again_and_what_was_half_done_is(trainer):
    class Killed(BaseException):
        pass

    def evaluating(step: int) -> None:
        (trainer.workdir / f"evaluations/{step}").mkdir(parents=True)
        (trainer.workdir / f"evaluations/{step}/report.json").write_text("{")
        if step == 2:
            raise Killed

    for step in (1, 2):
        trainer.save(step)
    trainer.finish(2)
    with pytest.raises(Killed):
        followed(Fake(trainer.workdir, evaluating=evaluating), every=1)
    with (trainer.workdir / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 2, "checkp')  # a torn line, as of a full disk
    fake = Fake(trainer.workdir)
    assert followed(fake, every=1)[0] == 0
    assert fake.seen == ["weights of 2"] and [line["step"] for line in lines(trainer.workdir)] == [1, 2]


def test_a_step_that_is_saved_anew_after_a_rollback_is_evaluated_anew(trainer):
    def evaluating(step: int) -> None:
        if step == 5 and len(fake.seen) == 1:
            trainer.delete(5)
            trainer.save(5, "other weights")
            trainer.finish(5)

    trainer.save(4)
    trainer.save(5)
    fake = Fake(trainer.workdir, evaluating=evaluating)
    assert followed(fake, every=1)[0] == 0
    assert fake.seen == ["weights of 4", "weights of 5", "other weights of 5"]


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_passed_over(trainer):
    def reading(step: int) -> None:
        if step == 2:
            trainer.delete(2)
            trainer.save(3)
            trainer.finish(3)

    trainer.save(2)
    fake = Fake(trainer.workdir, reading=reading)
    status, said = followed(fake)
    assert status == 0 and fake.seen == ["weights of 3"]
    assert said[0].startswith("step      2  was deleted before it was read (train.keep_checkpoints") and len(said) == 3


def test_an_error_that_is_no_deletion_is_not_hidden(trainer):
    def reading(step: int) -> None:
        raise ValueError("a fault of the program")

    trainer.save(2)
    with pytest.raises(ValueError, match="a fault of the program"):
        followed(Fake(trainer.workdir, reading=reading))


def test_a_damaged_checkpoint_is_told_once_and_passed_over(trainer):
    (trainer.save(1) / "arrays").write_text("something else")
    trainer.save(2)
    trainer.finish(2)
    fake = Fake(trainer.workdir)
    status, said = followed(fake, every=1)
    assert status == 0 and fake.seen == ["weights of 2"]
    assert "checkpoints/1: is damaged: arrays has 14 bytes, 12 were written; passed over" in said[0]
    assert len(said) == 3


def test_where_the_last_checkpoint_is_damaged_or_gone_it_ends_with_status_1(trainer):
    trainer.save(1)
    (trainer.save(2) / "arrays").write_text("something else")
    trainer.finish(2)
    fake = Fake(trainer.workdir)
    status, said = followed(fake)
    assert status == 1 and fake.seen == ["weights of 1"] and "its last step, 2, cannot be evaluated" in said[-1]


def test_it_waits_for_a_run_that_has_not_begun(tmp_path):
    trainer = Trainer(tmp_path / "run")
    threading.Timer(0.3, lambda: (trainer.begin(), trainer.save(1), trainer.finish(1))).start()
    fake = Fake(trainer.workdir)
    status, said = followed(fake)
    assert status == 0 and fake.seen == ["weights of 1"]
    assert said[0] == f"{trainer.workdir}: no run there yet; waiting for it" and len(said) == 3


def test_a_run_without_a_sign_of_life_is_told_and_given_up_in_the_end(trainer, monkeypatch):
    monkeypatch.setattr(following, "_SILENT_S", 0.2)
    beats = threading.Thread(target=lambda: [(time.sleep(0.1), trainer.beat()) for _ in range(10)])
    beats.start()
    began = time.monotonic()
    status, said = followed(Fake(trainer.workdir), give_up_minutes=0.5 / 60)
    assert status == 1 and time.monotonic() - began > 1.4  # it beat for a second
    assert "no sign of life" in said[0] and "waiting on" in said[0] and "gives up" in said[1] and len(said) == 2
    beats.join()


def test_told_to_end_it_finishes_the_checkpoint_that_it_is_at(trainer):
    trainer.save(1)
    fake = Fake(trainer.workdir, evaluating=lambda step: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM: .* the same command continues") as stopped:
        followed(fake)
    assert stopped.value.status == 143 and [line["step"] for line in lines(trainer.workdir)] == [1]


def test_its_options_go_with_follow_only(tiny_run, capsys):
    for flag in ("--every=5", "--give-up-minutes=5"):
        assert cli.main(["evaluate", f"--workdir={tiny_run}", flag]) == 2
        assert "goes with --follow only" in capsys.readouterr().err


def test_other_bins_corpora_or_settings_are_refused_in_a_folder_that_holds_evaluations(tiny_run, tiny_corpus, tmp_path):
    (tmp_path / "other").mkdir()
    other = write_corpus(tmp_path / "other" / "c", [tiny_section("N1", "N", 9)])

    def evaluator(corpus=tiny_corpus, bin_um=None, **settings):
        return Evaluator(tiny_run, tmp_path / "out", lambda: corpus, lambda _: EvaluateConfig(**settings), bin_um,
                         flags=json.dumps(settings))  # fmt: skip

    last = max(int(path.name) for path in (tiny_run / "checkpoints").iterdir())
    key, seal = evaluator().key, seal_id(tiny_run / "checkpoints" / str(last))
    (tmp_path / "out").mkdir()
    Evaluations(tmp_path / "out").add({"step": last, "unix": 1.0, "checkpoint": seal, "key": key, **HEADLINE})
    assert followed(evaluator())[0] == 0
    for another in (evaluator(bin_um=36.0), evaluator(other), evaluator(min_total=7)):
        refused(lambda another=another: followed(another), "evaluations.jsonl", f"step {last}", "another --out")
        refused(lambda another=another: followed(another, every=1), "evaluations.jsonl", "another --out")


@pytest.mark.slow
def test_it_reports_of_each_step_what_an_evaluation_of_it_alone_does(tiny_run, tiny_corpus, tmp_path):
    """Also where the program that was compiled for one checkpoint predicts with the next."""
    config = EvaluateConfig(bootstraps=50)
    evaluator = Evaluator(tiny_run, tmp_path / "out", lambda: tiny_corpus, lambda provenance: config)
    status, said = followed(evaluator, every=15)
    assert status == 0 and [line["step"] for line in lines(tmp_path / "out")] == [15, 30]
    assert load_step(tiny_run, 30, like=(first := load_step(tiny_run, 15)))._compiled is first._compiled
    reports = [json.loads((tmp_path / f"out/evaluations/{step}/report.json").read_text()) for step in (15, 30)]
    alone = evaluate_checkpoint(load(tiny_run), tiny_corpus, config, tmp_path / "alone", title="alone").report
    del reports[1]["headline"]["seconds"], alone["headline"]["seconds"]
    assert reports[1] == json.loads(json.dumps(alone)) and reports[0]["headline"] != reports[1]["headline"]
    of_step_30 = lines(tmp_path / "out")[1]
    assert of_step_30["spatial_r_top100"] == alone["headline"]["spatial_r_top100"]


@pytest.mark.slow
def test_beside_a_training_run_through_the_command_line(tiny_corpus, tmp_path):
    """The evaluation is started first, and sees each step; then both end by themselves."""
    (tmp_path / "config.py").write_text(
        "from tiny_tissue import tiny_config\nfrom tario_jax.config import EvaluateConfig\n\n"
        "def get_config():\n    return tiny_config(evaluate=EvaluateConfig(bootstraps=50))\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))), "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    workdir, corpus = tmp_path / "run", f"--corpus={tiny_corpus.root}"

    def start(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "tario_jax.cli", *arguments, f"--workdir={workdir}", corpus],
                                env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    evaluation = start("evaluate", "--follow", "--every=15", "--give-up-minutes=5", f"--json={tmp_path / 'all.json'}")
    training = start("train", f"--config={tmp_path / 'config.py'}")
    for process in (training, evaluation):
        said, errors = process.communicate(timeout=280)
        assert process.returncode == 0, said + errors
    assert [line["step"] for line in lines(workdir)] == [15, 30]
    assert "no run there yet" in said and "the run is done, and its last step, 30, is evaluated" in said
    assert [line["step"] for line in json.loads((tmp_path / "all.json").read_text())] == [15, 30]
    for step in (15, 30):
        assert {"report.html", "report.json", "genes.tsv"} <= {
            path.name for path in (workdir / f"evaluations/{step}").iterdir()
        }
    assert (workdir / "evaluations.png").is_file()

"""What of a sweep is done: by what lies in its folders, and by when it was written."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from launch.jobs import CORPUS, SCALING, is_done, is_evaluated, is_trained, jobs_of
from launch.progress import progress_of
from launch.sweep_file import Sweep
from tario_jax.config import Config, EvaluateConfig, SourceConfig
from tario_jax.config_files import to_dict
from tario_jax.evaluate import score_file
from tario_jax.evaluate.tables import plain
from tario_jax.tokens.hidden import as_trained
from tario_jax.train.seal import checkpoint_id

CONFIG = Config(source=SourceConfig(kind="virtual"), evaluate=EvaluateConfig(read_um=(18.0,)))
READINGS = (".", "read_18um")


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(score_file, "is_current", lambda path: True)
    runs = ("a", "b")
    changes = {"evaluate.top_genes": "77", "train.steps": "7"}
    arguments = {run: f":{run}" for run in runs}
    return Sweep(tmp_path / "some.py", dict.fromkeys(runs, CONFIG), dict.fromkeys(runs), arguments, changes)


def evaluated(workdir: Path, checkpoint: str) -> None:
    for of in READINGS:
        (workdir / of).mkdir(parents=True, exist_ok=True)
        report = {"settings": to_dict(CONFIG.evaluate), "provenance": {"checkpoint": checkpoint}}
        (workdir / of / "report.json").write_text(json.dumps(report))
    (workdir / "done.json").write_text(json.dumps({"step": 320}))


def sealed(workdir: Path, step: int) -> None:
    folder = workdir / "checkpoints" / str(step)
    folder.mkdir(parents=True)
    (folder / "tario_seal.json").write_text("{}")


def test_an_evaluation_is_told_the_settings_that_the_sweep_has_now(sweep, tmp_path):
    _, evaluation = jobs_of(sweep, tmp_path)["a"]
    assert evaluation.words[:3] == ("evaluate", f"--config={tmp_path}/some.py:a", "--config.evaluate.top_genes=77")
    assert not any("train.steps" in word for word in evaluation.words)  # its checkpoint knows


def test_a_report_is_done_until_a_run_is_evaluated_again(sweep, tmp_path):
    (job,) = jobs_of(sweep, tmp_path)[SCALING]
    evaluated(tmp_path / "a", "320-x")
    assert not is_done(job, sweep, tmp_path)
    page = tmp_path / "scaling.json"
    page.write_text("{}")
    made = page.stat().st_mtime
    for of in READINGS:
        os.utime(tmp_path / "a" / of / "report.json", (made - 5, made - 5))
    assert is_done(job, sweep, tmp_path)
    evaluated(tmp_path / "b", "320-x")  # by another launch, say
    for of in READINGS:
        os.utime(tmp_path / "b" / of / "report.json", (made - 5, made - 5))
    os.utime(tmp_path / "b" / "read_18um" / "report.json", (made + 5, made + 5))
    assert not is_done(job, sweep, tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "scaling_0.jsonl").write_text(
        json.dumps({"event": "began", "attempt": "1.0", "unix": made, "host": "h", "pid": 1}) + "\n"
        + json.dumps({"event": "ended", "attempt": "1.0", "unix": made, "status": 0, "error": ""}) + "\n")  # fmt: skip
    (report,) = (one for one in progress_of(sweep, tmp_path) if one.run == SCALING)
    assert (report.state, report.told) == ("stopped", "scaling ended well, but runs were evaluated since")


def test_a_run_is_evaluated_with_its_last_checkpoint_or_where_that_was_removed(sweep, tmp_path):
    run = tmp_path / "a"
    evaluated(run, "320-0badcafe")
    assert is_evaluated(run, CONFIG)  # no checkpoint is there to evaluate again
    evaluated(run, "160-0badcafe")
    assert not is_evaluated(run, CONFIG)
    evaluated(run, "320-0badcafe")
    sealed(run, 320)
    assert not is_evaluated(run, CONFIG)  # of other weights


def test_a_run_of_another_corpus_is_not_done(sweep, tmp_path, monkeypatch):
    """Its folder may have been filled from a corpus that was made anew since, or that $TISSUE named before."""
    monkeypatch.setenv("TISSUE", str(tmp_path / "elsewhere"))
    named = Config(source=SourceConfig(kind="corpus", path="$TISSUE/corpus"), evaluate=CONFIG.evaluate)
    run = tmp_path / "a"
    sealed(run, 320)
    evaluated(run, checkpoint_id(run, 320))
    done = dataclasses.replace(CONFIG.train, steps=320)
    for config, corpus in ((CONFIG, tmp_path / "corpus"), (named, tmp_path / "elsewhere/corpus")):
        config = dataclasses.replace(config, train=done)
        (run / "config.json").write_text(json.dumps(to_dict(as_trained(config))))
        now = dataclasses.replace(sweep, configs=dict.fromkeys(sweep.configs, config))
        train, evaluate = jobs_of(now, tmp_path)["a"]
        assert is_done(train, now, tmp_path) and is_done(evaluate, now, tmp_path)  # there is no corpus to compare with
        corpus.mkdir(parents=True)
        for trained_on, reported_on in (("one", "one"), ("one", "two"), ("two", "one")):
            (run / "checkpoints/320/provenance.json").write_text(json.dumps({"corpus_seal": trained_on}))
            for of in READINGS:
                report = json.loads((run / of / "report.json").read_text())
                report["provenance"]["corpus_seal"] = reported_on
                (run / of / "report.json").write_text(json.dumps(report))
            (corpus / "corpus.json").write_text(json.dumps({"seal": "one"}))
            assert is_done(train, now, tmp_path) == (trained_on == "one")
            assert is_done(evaluate, now, tmp_path) == (reported_on == "one")
        (run / "checkpoints/320/provenance.json").unlink()


def test_a_cohort_is_done_where_its_patients_and_no_others_lie_as_they_were_asked_for(sweep, cli_corpus, tmp_path):
    def done(**changes) -> bool:
        source = dataclasses.replace(asked, **changes)
        now = dataclasses.replace(sweep, configs=dict.fromkeys(sweep.configs, Config(source=source)))
        (job,) = jobs_of(now, tmp_path)[CORPUS]
        return is_done(job, now, tmp_path)

    asked = SourceConfig(
        kind="virtual",
        train_patients=4,
        validation_patients=0,
        held_out_patients=2,
        section_um=144.0,
        panel="curated",
        regions=("core",),
    )  # as cli_corpus is made
    assert not done()  # nothing is there
    corpus = shutil.copytree(cli_corpus, tmp_path / "corpus")
    assert done()
    for changes in ({"section_um": 180.0}, {"depth": "high"}, {"seed": 1}, {"train_patients": 9},
                    {"held_out_patients": 1}, {"regions": ("core", "border")}):  # fmt: skip
        assert not done(**changes), changes
    (corpus / "corpus.json").unlink()
    assert not done()


def test_a_run_that_learns_from_he_alone_is_done_when_it_is(tmp_path):
    """It keeps its config without what is of counts; the sweep's has all of that."""
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, learns="he", steps=7))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(as_trained(config))))
    (tmp_path / "done.json").write_text(json.dumps({"step": 7}))
    assert is_trained(tmp_path, config)
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, width=256))
    assert not is_trained(tmp_path, wider)


def test_settings_are_compared_as_a_report_holds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(score_file, "is_current", lambda path: True)
    config = dataclasses.replace(CONFIG, evaluate=EvaluateConfig(overlap=1 / 3))
    (tmp_path / "done.json").write_text(json.dumps({"step": 7}))
    report = {"settings": plain(to_dict(config.evaluate)), "provenance": {"checkpoint": "7-x"}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert report["settings"]["overlap"] == 0.333333 and is_evaluated(tmp_path, config)
    assert not is_evaluated(tmp_path, dataclasses.replace(config, evaluate=EvaluateConfig(overlap=0.3)))

"""python -m launch: mistakes, the table, commands, how runs stand, and a small sweep from its cohort to its report."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from measure_launch_sweep import write_sweep
from refusals import refused

from launch import __main__ as launch_main
from launch.__main__ import main
from launch.held import NOTHING, Held
from launch.progress import Progress, progress_of, progress_table
from launch.site import read_site
from launch.sweep_file import read_sweep

STUDY = "configs/sweeps/study.py"


def launch(repository, *words, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "launch", *words], cwd=repository, capture_output=True, text=True,
                          timeout=240, check=False, env=os.environ | environment)  # fmt: skip


@pytest.mark.parametrize(("words", "answer"), [
    ((STUDY, "--only=q*"), "--only=q*: no run of"),
    (("configs/none.py",), "configs/none.py: no such file"),
    (("README.md",), "has neither get_sweep nor get_config"),
    ((STUDY, "--at-once=0"), "expected a whole number of at least 1"),
    ((STUDY, "--jobs=trian"), "expected some of simulate,ingest,train"),
    ((STUDY, "--backend=cloud"), "invalid choice: 'cloud'"),
    ((STUDY, "--config.model.widht=3"), "--config.model.widht: no such field; did you mean --config.model.width?"),
    ((STUDY, "--site.slurm.partion=x", "--backend=slurm"), "did you mean --site.slurm.partition?"),
    ((STUDY, "--site.slurm.partition=x"), "--site: says how a cluster is"),
    ((STUDY, "--topology=v5p-512"), "v5p-512 is v5p:4x8x8"),
    ((STUDY, "--topology=v5e:4x4", "--backend=slurm"), "Slurm lends GPUs or CPUs"),
    ((STUDY, "--backend=gke", "--site.gke.image=x"), "GKE is to lend what?"),
    ((STUDY, "--backend=slurm", "--site.slurm.grace_s=5"), "take train.grace_s = 20 to save"),
    ((STUDY, "--dry-run", "--prices=none.toml"), "--prices=none.toml"),
    ((STUDY, "--wait"), "--wait: does nothing with --backend=local"),
    ((STUDY, "--rewrite"), "--rewrite: does nothing"),
    ((STUDY, "--backend=gke", "--at-once=2"), "say --site.gke.slices_at_once=N"),
    ((STUDY, "--backend=tpu", "--processes=2"), "one for each host"),
    ((STUDY, "--backend=slurm", "--topology=8xH100", "--processes=2"), "one for each node"),
    ((STUDY, "--backend=slurm", "--topology=8xH100", "--devices=2"), "has the GPUs of its nodes"),
    ((STUDY, "--json=x.json"), "goes with --dry-run or --status"),
    ((STUDY, "--commands", "--json=x.json"), "goes with --dry-run or --status"),
    ((STUDY, "--only=p16_*,bb"), "no run of configs/sweeps/study.py is called 'bb'"),
    ((STUDY, "--back-off-s=-1"), "expected seconds, at least 0"),
    ((STUDY, "--retries=-1"), "expected a whole number of at least 0"),
    ((STUDY, "--backend=slurm", "--site.slurm.partition", "--dry-run"), "--site.slurm.partition: has no value"),
    ((STUDY, "--backend=slurm", "--site.slurm.partition=a b"), "expected a word, without spaces"),
    ((STUDY, "--backend=tpu", "--site.tpu.project=p", "--site.tpu.zone=z", "--site.tpu.image=i", "--site.tpu.share=s",
      "--topology=v5e:4x4"), "makes its cohort (virtual)"),
    (("configs/quickstart.py", "--config.data.frozen_encoder=efficientnet-lite0"), "features of a frozen encoder"),
    (("configs",), "configs: is a folder"),
])  # fmt: skip
def test_a_mistake_is_one_line(repository, tmp_path, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(repository)
    try:
        status = main([*words, f"--workdir={tmp_path / 'sweep'}"])
    except SystemExit as stopped:  # argparse's
        status = stopped.code
    told = capsys.readouterr()
    assert status == 2 and told.out == ""
    assert told.err.startswith("launch: ") and told.err.count("\n") == 1 and answer in told.err
    assert not (tmp_path / "sweep").exists()


def test_a_field_without_its_value_is_told(capsys):
    assert main([STUDY, "--config.model.width"]) == 2
    assert "--config.model.width: has no value; write --config.model.width=VALUE" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_fault(repository):
    command = f"set -o pipefail; {sys.executable} -m launch {STUDY} --commands | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=repository, capture_output=True, text=True, check=False)
    assert done.stderr == "" and done.stdout.startswith("tario simulate") and done.returncode in (0, 141)


def test_a_dry_run_starts_nothing_and_commands_can_be_started_by_hand(repository, tmp_path):
    table = launch(repository, STUDY, f"--workdir={tmp_path}", "--dry-run", "--only=p16_*", f"--json={tmp_path / 'x'}")
    assert table.returncode == 0 and "p16_m_w288_seed1" in table.stdout and "2 runs of" in table.stdout
    assert [one["patients"] for one in json.loads((tmp_path / "x").read_text())] == [16, 16]
    done = launch(
        repository, STUDY, f"--workdir={tmp_path / 's'}", "--commands", "--only=p16_*", "--config.train.steps=7"
    )
    jobs = [line.split()[1] for line in done.stdout.splitlines()]
    assert "train.steps" not in done.stdout.splitlines()[0]  # a cohort is made by the source alone
    assert jobs == ["simulate", "train", "evaluate", "train", "evaluate", "scaling"] and not (tmp_path / "s").exists()
    assert done.stdout.splitlines()[1].split()[2:4] == [f"--config={STUDY}:p16_m_w288_seed0", "--config.train.steps=7"]


def test_one_config_is_a_sweep_of_one_run(repository):
    spec = f"{repository / 'configs/tario2_200m.py'}:v5e:16x16"
    sweep = read_sweep(spec, assignments={"train.steps": "7"})
    assert list(sweep.configs) == ["tario2_200m"] and str(sweep.hardware["tario2_200m"]) == "v5e:16x16"
    assert sweep.config_words("tario2_200m") == [f"--config={spec}", "--config.train.steps=7"]
    assert sweep.configs["tario2_200m"].train.steps == 7
    one = read_sweep(f"{repository / STUDY}:p16_m_w288_seed0")
    assert list(one.configs) == ["p16_m_w288_seed0"] and one.hardware == {"p16_m_w288_seed0": None}


@pytest.mark.slow
def test_the_articles_study_is_told_within_a_minute(repository, tmp_path):
    began = time.monotonic()
    done = launch(repository, "configs/sweeps/article_pods.py", "--dry_run", "--no-verdicts", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("p") for line in lines) == 90 and time.monotonic() - began < 60
    by_run = {line.split()[0]: line.split() for line in lines if line.startswith("p")}
    assert by_run["p93_4b_9um"][8:10] == ["v5p:8x8x8", "512"] and by_run["p2545_10m_36um"][1] == "2545"


def test_a_site_file_says_what_it_knows(repository, tmp_path):
    file = tmp_path / "site.toml"
    file.write_text('[slurm]\npartition = "gpu"\ntime_minutes = 90\n[gke]\nspot = true\n')
    site = read_site(file, {"slurm.partition": "other"})
    assert (site.slurm.partition, site.slurm.time_minutes, site.gke.spot) == ("other", 90, True)
    for text, words in (('[slurm]\npartion = "x"', "did you mean"), ("slurm = 3", "a group of fields"),
                        ("[slurm", "expected TOML"), ("[slurm]\ntime_minutes = 0", "time_minutes is 0"),
                        ("[gke]\nspot = 1", "expected bool")):  # fmt: skip
        file.write_text(text)
        refused(lambda: read_site(file, {}), words)
    read_site(repository / "launch/site.toml", {})


def test_how_runs_stand_is_read_from_their_folders(repository, tmp_path):
    sweep = read_sweep(str(write_sweep(tmp_path / "small.py", seeds=(1, 2, 3, 4), steps=40)))
    workdir, now = tmp_path / "sweep", time.time()

    def journal(run: str, *lines: dict) -> None:
        (workdir / run / "logs").mkdir(parents=True)
        text = "".join(
            json.dumps({"attempt": "a", "host": "far", "pid": 1, "unix": now} | line) + "\n" for line in lines
        )
        (workdir / run / "logs" / "train_0.jsonl").write_text(text)

    began = {"event": "began"}
    journal("seed1", began, {"event": "ended", "status": 2, "error": "a.py: no such file"})
    journal("seed2", began)
    journal("seed3", began, {"event": "ended", "status": 143, "error": "SIGTERM: step 7 is saved"})
    found = {one.run: one for one in progress_of(sweep, workdir, Held({"seed4": "pending in Slurm"}))}
    states = {run: one.state for run, one in found.items()}
    assert states == {"corpus": "not begun", "seed1": "failed", "seed2": "running", "seed3": "stopped",
                      "seed4": "waiting", "scaling": "not begun"}  # fmt: skip
    text = progress_table(list(found.values()), "python -m launch small.py")
    assert "a.py: no such file" in text and "pending in Slurm" in text and "logs/train_0.txt" in text
    assert "4 runs: 1 running, 1 waiting, 1 stopped, 1 failed" in text
    assert text.splitlines()[-1] == "to retry seed1, seed3, and begin what is missing: python -m launch small.py"


class Backend:
    """Stands in for a cluster: what was submitted, and how its runs stand, look after look."""

    def __init__(self, started: list[list[str]], looks: list[dict[str, str]]):
        self._started, self._looks, self.submitted = started, looks, []
        self._at = -1

    def write(self, kinds, held, *, rewrite, say):
        return self._started.pop(0) if self._started else []

    def submit(self, say):
        self.submitted.append(True)

    def held(self):
        return NOTHING

    def progress(self, *_):
        self._at = min(self._at + 1, len(self._looks) - 1)
        return [Progress(run, state, "", 0, None, 0, "why", "") for run, state in self._looks[self._at].items()]


@pytest.mark.parametrize(("looks", "status", "submitted", "reports"), [
    ([{"corpus": "running", "a": "not begun"}, {"corpus": "done", "a": "running"}, {"corpus": "done", "a": "done"}],
     0, 2, 0),
    ([{"corpus": "failed", "a": "not begun"}], 1, 1, 0),
    ([{"corpus": "done", "a": "failed", "b": "done", "scaling": "not begun"}], 1, 1, 1),
    ([{"corpus": "done", "a": "done", "b": "done", "scaling": "not begun"}], 0, 1, 1),
    ([{"corpus": "done", "a": "done", "b": "not begun", "scaling": "not begun"}], 1, 1, 0),  # it was cancelled
    ([{"a": "done", "b": "done", "scaling": "waiting"}, {"a": "done", "b": "done", "scaling": "running"},
      {"a": "done", "b": "done", "scaling": "failed"}], 1, 1, 0),
    ([{"a": "done", "b": "failed", "scaling": "waiting"}, {"a": "done", "b": "failed", "scaling": "done"}], 1, 1, 0),
])  # fmt: skip
def test_waiting_ends_when_nothing_more_can_be_done(monkeypatch, tmp_path, looks, status, submitted, reports):
    report = ["scaling"] if looks[0].get("scaling") == "waiting" else []  # by the backend, behind its runs
    backend = Backend([["corpus"] if looks[0].get("corpus") == "running" else ["a", "b", *report], ["a"]], looks)
    reported = []
    monkeypatch.setattr(launch_main, "_WAIT_S", 0.0)
    monkeypatch.setattr(launch_main, "progress_of", backend.progress)
    monkeypatch.setattr(launch_main, "run_here", lambda *words: reported.append(words[3]) or 0)
    options = argparse.Namespace(jobs=("simulate", "train", "evaluate", "scaling"), rewrite=False, wait=True)
    if len(looks) == 1 or report:
        backend._started = backend._started[:1]
    sweep = read_sweep(str(write_sweep(tmp_path / "small.py", seeds=(1, 2), steps=4)))
    assert launch_main._on(backend, options, sweep, tmp_path) == status
    assert len(backend.submitted) == submitted and reported == [("scaling",)] * reports


def test_a_report_that_failed_before_is_made_here_where_the_backend_makes_none(monkeypatch, tmp_path):
    backend = Backend([["a", "b"]], [{"a": "done", "b": "done", "scaling": "failed"}])
    monkeypatch.setattr(launch_main, "_WAIT_S", 0.0)
    monkeypatch.setattr(launch_main, "progress_of", backend.progress)
    monkeypatch.setattr(launch_main, "run_here", lambda *words: 1)  # and fails again
    options = argparse.Namespace(jobs=("train", "evaluate", "scaling"), rewrite=False, wait=True)
    sweep = read_sweep(str(write_sweep(tmp_path / "small.py", seeds=(1, 2), steps=4)))
    assert launch_main._on(backend, options, sweep, tmp_path) == 1


def test_flags_of_runs_without_topologies_are_refused_where_all_have_one(tmp_path, capsys):
    file, text = tmp_path / "small.py", write_sweep(tmp_path / "small.py", seeds=(1, 2), steps=4).read_text()
    words = [str(file), "--backend=slurm", f"--workdir={tmp_path / 'sweep'}", "--dry-run", "--no-verdicts"]
    for flag, why in (("--processes=2", "one for each node"), ("--devices=2", "the GPUs of its nodes")):
        file.write_text(text + "\n\ndef get_topologies():\n    return dict.fromkeys(get_sweep(), '8xH100')\n")
        assert main([*words, flag]) == 2 and why in capsys.readouterr().err
        file.write_text(text + "\n\ndef get_topologies():\n    return {'seed1': '8xH100'}\n")
        assert main([*words, "--rewrite", flag]) == 0  # of the other run it says something
        capsys.readouterr()


@pytest.mark.parametrize(("backend", "topology"), [("slurm", "8xH100"), ("gke", "v5e:4x4"), ("tpu", "v5e:4x4")])
def test_status_needs_no_corpus(repository, tmp_path, monkeypatch, capsys, backend, topology):
    """It may be asked where the variable that names the corpus is not set."""
    monkeypatch.chdir(repository)
    monkeypatch.delenv("TISSUE_HERE", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no scheduler here
    site = [f"--site.{field}" for field in ("gke.image=i", "tpu.image=i", "tpu.project=p", "tpu.zone=z", "tpu.share=s")]
    words = [STUDY, f"--backend={backend}", f"--topology={topology}", f"--workdir={tmp_path / 'sweep'}", *site,
             "--config.source.kind=corpus", "--config.source.path=$TISSUE_HERE/corpus"]  # fmt: skip
    assert main([*words, "--status"]) == 0 and "not begun" in capsys.readouterr().out
    assert main(words) == 2 and "$TISSUE_HERE/corpus: the environment variable is not set" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "words"), [
    ("def get_sweep(): return [1]", "get_sweep returned a list"), ("def get_sweep(): return {}", "returned no run"),
    ("def get_sweep(): return {'a': 3}", "returned other values"),
    ("def get_sweep(): return 1 / 0", "ZeroDivisionError"),
    ("import sys\nsys.exit(0)", "SystemExit"),
    ("from tario_jax.config import Config\ndef get_sweep(): return {'Queues': Config()}", "called 'Queues', as a"),
    ("from tario_jax.config import Config\ndef get_sweep(): return {'a': Config()}\ndef get_topologies(): return 5",
     "get_topologies returned something else"),
    ("from tario_jax.config import Config\ndef get_sweep(): return {'a': Config()}", "no get_config"),
])  # fmt: skip
def test_a_sweep_that_is_none_is_told(tmp_path, text, words):
    (tmp_path / "sweep.py").write_text(text)
    refused(lambda: read_sweep(str(tmp_path / "sweep.py")), f"{tmp_path}/sweep.py: ", words)


def test_places_that_cannot_be_written_are_told(repository, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    (tmp_path / "file").write_text("")
    for words in ((f"--workdir={tmp_path / 'file'}",),
                  (f"--workdir={tmp_path / 'file'}", "--backend=slurm", "--dry-run"),
                  (f"--json={tmp_path}/none/x.json", f"--workdir={tmp_path / 'w'}", "--dry-run")):  # fmt: skip
        assert main([STUDY, "--only=p16_m_w288_seed0", *words]) == 2
        assert capsys.readouterr().err.startswith(f"launch: {tmp_path}")


def test_what_a_damaged_run_left_stops_nobody(repository, tmp_path):
    sweep = read_sweep(str(write_sweep(tmp_path / "small.py", seeds=(1, 2), steps=40)))
    for run, (name, text) in {"seed1": ("done.json", "[]"), "seed2": ("config.json", '{"nofield": 1}')}.items():
        (tmp_path / "sweep" / run).mkdir(parents=True)
        (tmp_path / "sweep" / run / name).write_text(text)
    (tmp_path / "sweep" / "seed2" / "done.json").write_text('{"step": 40}')
    assert "done" not in {one.state for one in progress_of(sweep, tmp_path / "sweep")}


def test_status_says_how_to_go_on(repository, tmp_path, capsys):
    file = write_sweep(tmp_path / "small.py", seeds=(1,), steps=40)
    (tmp_path / "sweep/seed1/logs").mkdir(parents=True)
    events = ({"event": "began", "host": "far", "pid": 1}, {"event": "ended", "status": 1, "error": "odd"})
    lines = [json.dumps({"attempt": "a", "unix": 1.0} | event) for event in events]
    (tmp_path / "sweep/seed1/logs/train_0.jsonl").write_text("\n".join(lines) + "\n")
    words = [str(file), f"--workdir={tmp_path / 'sweep'}"]
    assert main([*words, "--status", "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"python -m launch {' '.join(words)}")
    assert main([*words, "--jobs=simulate", "--status"]) == 0 and "seed1" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_is_made_one_bad_run_stops_no_other_and_it_goes_on(repository, tmp_path):
    file = write_sweep(tmp_path / "small.py", seeds=(1, 2), bad=(1,), steps=20)
    command = (str(file), f"--workdir={tmp_path / 'sweep'}", "--config.evaluate.read_um=(18.0,)")
    done = launch(repository, *command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "bad1" in done.stdout and "capacity" in done.stdout
    status = launch(repository, *command, "--status").stdout
    states = {line.split()[0]: line.split()[1] for line in status.splitlines() if line and not line.startswith(" ")}
    assert (states["seed1"], states["seed2"], states["bad1"], states["scaling"]) == (
        "done",
        "done",
        "failed",
        "done",
    )
    assert "capacity" in status
    for run in ("seed1", "seed2"):
        assert (tmp_path / "sweep" / run / "read_18um/scores.npz").exists()
    assert (tmp_path / "sweep/scaling.html").exists()
    again = launch(repository, *command, "--only=seed*")
    assert again.returncode == 0 and [line.split()[2] for line in again.stdout.splitlines()] == ["simulate"]
    assert Path(tmp_path / "sweep/seed1/logs/train_0.txt").read_text().count("$ tario train") == 1

"""Runs that share this machine: order, retries, failures, other launches, and being told to end. Jobs are stand-ins."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from refusals import refused

from launch import attempts, local
from launch.local import Local, Stopped, run_here
from launch.sweep_file import Sweep
from tario_jax.config import Config, SourceConfig

RUNS = ("a", "b", "c", "d")


@pytest.fixture
def sweep(tmp_path):
    config = Config(source=SourceConfig(kind="virtual"))
    return Sweep(
        tmp_path / "some.py", dict.fromkeys(RUNS, config), dict.fromkeys(RUNS), {run: f":{run}" for run in RUNS}
    )


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Jobs end as `statuses` says, attempt by attempt; those that it does not name end well. What began is listed."""
    machine = Machine(tmp_path / "work")
    monkeypatch.setattr(local, "_ASK_AGAIN_S", 0.3)
    monkeypatch.setattr(local, "is_done", lambda job, sweep, workdir: (workdir / f"{job.run}.{job.kind}").exists())
    monkeypatch.setattr(local._Launch, "_start", lambda launch, job: machine.start(launch, job))
    return machine


class Machine:
    def __init__(self, workdir: Path):
        self.workdir, self.statuses, self.seconds = workdir, {}, 0.15
        self.began: list[tuple[str, str]] = []
        self.most_at_once = 0

    def start(self, launch, job):
        self.began.append((job.run, job.kind))
        self.most_at_once = max(self.most_at_once, len(launch._groups) + 1)
        left = self.statuses.get((job.run, job.kind), [])
        status = left.pop(0) if left else 0
        done = self.workdir / f"{job.run}.{job.kind}"
        program = (f"import pathlib, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
                   f"time.sleep({self.seconds})\n"
                   f"{status} or pathlib.Path({str(done)!r}).touch()\nsys.exit({status})")  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", program])
        return local._Group(job, 0, time.monotonic(), "x", [process])


QUICK = Local(at_once=2, back_off_s=0.1)


def test_it_ends_in_a_report_and_does_nothing_twice(sweep, machine):
    said = []
    assert run_here(sweep, machine.workdir, QUICK, say=said.append) == 0
    assert machine.began[0] == ("corpus", "simulate") and machine.began[-1] == ("scaling", "scaling")
    assert {run for run, kind in machine.began if kind == "evaluate"} == set(RUNS)
    assert machine.began.index(("a", "train")) < machine.began.index(("a", "evaluate"))
    assert machine.most_at_once == 2 and len(machine.began) == 10
    machine.began.clear()
    assert run_here(sweep, machine.workdir, QUICK, say=said.append) == 0
    assert machine.began == [("corpus", "simulate")]  # which looks at what is there


def test_a_bad_run_is_retried_and_leaves_the_others_alone(sweep, machine):
    machine.statuses = {("a", "train"): [1, -9], ("b", "train"): [2], ("c", "evaluate"): [1] * 9}
    said = []
    assert run_here(sweep, machine.workdir, Local(at_once=2, back_off_s=0.05, retries=2), say=said.append) == 2
    starts = {run: [kind for name, kind in machine.began if name == run] for run in RUNS}
    assert starts["a"] == ["train", "train", "train", "evaluate"]  # failed, was killed, came through
    assert starts["b"] == ["train"]  # a mistake: it would fail again
    assert starts["c"] == ["train", "evaluate", "evaluate", "evaluate"]
    assert starts["d"] == ["train", "evaluate"]
    assert any("2 of 4 runs are missing" in line for line in said) and machine.began[-1][0] == "scaling"
    machine.statuses.clear()
    machine.began.clear()
    assert run_here(sweep, machine.workdir, QUICK, say=said.append) == 0
    assert sorted(machine.began[1:-1]) == [("b", "evaluate"), ("b", "train"), ("c", "evaluate")]


def test_a_retry_waits_and_others_use_the_time(sweep, machine):
    machine.statuses = {("a", "train"): [1]}
    run_here(sweep, machine.workdir, Local(at_once=1, back_off_s=0.6), ("simulate", "train"), say=lambda line: None)
    order = [run for run, _ in machine.began[1:]]
    assert order[:2] == ["a", "b"] and sorted(order) == ["a", "a", "b", "c", "d"]


def test_pauses_grow_up_to_ten_minutes(sweep, tmp_path):
    for back_off_s, pauses in ((10.0, [10, 20, 600, 600]), (3600.0, [3600] * 4)):
        launch = local._Launch(sweep, tmp_path, Local(retries=2000, back_off_s=back_off_s), print)
        assert [launch._retry(1, retried) for retried in (0, 1, 8, 1999)] == pauses


def test_without_its_cohort_nothing_is_begun(sweep, machine):
    machine.statuses = {("corpus", "simulate"): [1, 1, 1]}
    assert run_here(sweep, machine.workdir, QUICK, say=lambda line: None) == 1
    assert {run for run, _ in machine.began} == {"corpus"}


def test_told_to_end_it_ends_its_jobs(sweep, machine):
    machine.seconds = 30
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        run_here(sweep, machine.workdir, QUICK, say=lambda line: None)
    assert stopped.value.args == (143,) and signal.getsignal(signal.SIGTERM) == before
    assert machine.began == [("corpus", "simulate")]


def test_a_run_that_another_launch_holds_is_waited_for(sweep, machine):
    (machine.workdir / "a").mkdir(parents=True)
    held = (machine.workdir / "a" / ".launch").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def done_elsewhere() -> None:
        for kind in ("train", "evaluate"):
            (machine.workdir / f"a.{kind}").touch()
        held.close()

    threading.Timer(1.5, done_elsewhere).start()
    said = []
    assert run_here(sweep, machine.workdir, QUICK, say=said.append) == 0
    assert "a" not in {run for run, _ in machine.began} and any("another launch is at it" in line for line in said)


def test_a_run_that_was_done_elsewhere_is_let_go_at_once(sweep, machine, monkeypatch):
    """Not when the launch ends: a third one may have more to do with it."""
    (machine.workdir / "a").mkdir(parents=True)
    held = (machine.workdir / "a" / ".launch").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    free = []

    def done_elsewhere() -> None:
        for kind in ("train", "evaluate"):
            (machine.workdir / f"a.{kind}").touch()
        held.close()

    def start(launch, job):
        free.append((job.run, "a" not in launch._locks))
        return machine.start(launch, job)

    monkeypatch.setattr(local._Launch, "_start", start)
    threading.Timer(0.3, done_elsewhere).start()
    machine.seconds = 0.6
    assert run_here(sweep, machine.workdir, QUICK, say=lambda line: None) == 0
    assert ("scaling", True) in free and all(is_free for _, is_free in free)


def test_one_cohort_is_made_by_one_launch(sweep, machine):
    machine.workdir.mkdir()
    held = (machine.workdir / ".launch_corpus").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def done_elsewhere() -> None:
        (machine.workdir / "corpus.simulate").touch()
        held.close()

    threading.Timer(1.0, done_elsewhere).start()
    said = []
    assert run_here(sweep, machine.workdir, QUICK, say=said.append) == 0
    assert "corpus" not in {run for run, _ in machine.began}
    assert any(line.split()[0] == "corpus" and "another launch is at it" in line for line in said)


def test_an_evaluation_whose_launch_was_killed_is_waited_for(sweep, machine, monkeypatch):
    """It goes on without its launch; what it is at is not begun a second time."""
    lives = {(machine.workdir / "b", "evaluate")}

    def newest(folder, kind):
        return attempts.Attempt(1, (folder, kind) in lives, None, "", 0.0, folder / "log", 0.0)

    monkeypatch.setattr(local.attempts, "newest", newest)
    (machine.workdir / "b").mkdir(parents=True)
    (machine.workdir / "b.train").touch()

    def ends() -> None:
        (machine.workdir / "b.evaluate").touch()
        lives.clear()

    threading.Timer(1.0, ends).start()
    assert run_here(sweep, machine.workdir, QUICK, say=lambda line: None) == 0
    assert "b" not in {run for run, _ in machine.began}


def test_processes_and_devices_of_a_run(sweep, tmp_path, monkeypatch):
    """What each process of a training is called with, and which devices it sees."""
    launched = []

    class Process:
        def __init__(self, command, env, **more):
            launched.append((command, env))

        def poll(self):
            return 2

        def wait(self):
            return 2

    monkeypatch.setattr(local.subprocess, "Popen", Process)
    monkeypatch.setattr(local, "_gpus", lambda how: [])
    how = Local(at_once=1, processes=2, devices=3, retries=0)
    run_here(sweep, tmp_path / "work", how, ("train",), say=lambda line: None)
    of_a = [command for command, _ in launched if f"--workdir={tmp_path}/work/a" in command]
    assert [command[-1] for command in of_a] == ["--process=0", "--process=1"]
    ports = {re.search(r"--coordinator=127.0.0.1:(\d+) --processes=2", " ".join(command))[1] for command in of_a}
    assert len(ports) == 1 and all(env["JAX_NUM_CPU_DEVICES"] == "3" for _, env in launched)
    assert len({word for command in of_a for word in command if word.startswith("--attempt=")}) == 1

    launched.clear()
    monkeypatch.setattr(local, "_gpus", lambda how: [str(n) for n in range(8)])
    run_here(sweep, tmp_path / "work2", Local(at_once=2, processes=2, retries=0), ("train",), say=lambda line: None)
    seen = {env["CUDA_VISIBLE_DEVICES"] for _, env in launched}
    assert seen <= {"0,1", "2,3", "4,5", "6,7"} and {"0,1", "2,3"} <= seen


def test_too_few_gpus_are_told(monkeypatch, tmp_path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 0\necho 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert local._gpus(Local()) == [] and local._gpus(Local(at_once=2)) == ["0", "1"]
    refused(lambda: local._gpus(Local(at_once=2, processes=2)), "this machine has 2 GPUs")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,8")  # of more: the others are somebody else's
    assert local._gpus(Local(at_once=3)) == ["6", "7", "8"]
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert local._gpus(Local(at_once=2, processes=2)) == []

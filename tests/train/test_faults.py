"""Faults planted into real runs, through the command line: each ends as it is said to, and the next start goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_CONFIG = """
import planted
from tiny_tissue import tiny_config

def get_config(fault):
    planted.plant(fault)
    return tiny_config(train={"steps": 30, "log_every": 1, "validate_every": 15, "checkpoint_every": 5})
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_corpus):
    """`run(workdir, fault, *flags)` starts `tario train` with a fault of planted.py ("": none)."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "config.py").write_text(_CONFIG)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "train"))),
        "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1",
        "PLANTED_MARKER": str(folder / "marker"),
        # of their own: a program that was compiled with a full disk is not kept
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }  # fmt: skip

    def start(workdir: Path, fault: str = "", *flags: str, before: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [
            *before, sys.executable, "-m", "tario_jax.cli", "train", f"--config={folder / 'config.py'}:{fault}",
            f"--corpus={tiny_corpus.root}", f"--workdir={workdir}", *flags,
        ]  # fmt: skip
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


def ended(started: subprocess.Popen, status: int) -> tuple[str, str]:
    said, errors = started.communicate(timeout=200)
    assert started.returncode == status, f"{started.returncode}\n{said}\n{errors}"
    return said, errors


def until(started: subprocess.Popen, line: str) -> None:
    """Reads what a run says up to a line that begins so."""
    for said in started.stdout:
        if said.startswith(line):
            return


@pytest.fixture(scope="module")
def unbroken(run, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    ended(run(workdir), 0)
    return workdir


def numbers(workdir: Path) -> list[tuple]:
    """What of metrics.jsonl does not depend on the clock."""
    kept = ("step", "loss_nats_per_detection", "gradient_norm", "validation_nats_per_detection")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [tuple(line.get(name) for name in kept) for line in lines]


def events(workdir: Path, *wanted: str) -> list[dict]:
    lines = map(json.loads, (workdir / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] in wanted]


def checkpoints(workdir: Path) -> list[str]:
    return sorted((path.name for path in (workdir / "checkpoints").iterdir()), key=lambda name: (len(name), name))


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken, workdir)
    largest = max((workdir / "checkpoints" / "30").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    largest.write_bytes(content)
    said, _ = ended(run(workdir), 0)
    (line,) = (line for line in said.splitlines() if "is damaged" in line)
    assert f"{workdir}/checkpoints/30: is damaged" in line and str(largest.name) in line and "step 25 is used" in line
    assert "resumed at step 25 of 30" in said
    assert checkpoints(workdir) == ["25", "30", "30.damaged"]
    assert numbers(workdir) == numbers(unbroken)
    assert [event["text"] for event in events(workdir, "damaged")] == [line]


def test_sigterm_saves_within_the_grace_and_the_same_command_goes_on(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    started = run(workdir, "", "--config.train.grace_s=20")
    until(started, "step     11/30")
    began = time.monotonic()
    started.send_signal(signal.SIGTERM)
    _, errors = ended(started, 128 + signal.SIGTERM)
    assert time.monotonic() - began < 20
    (stopped,) = events(workdir, "stopped")
    step = stopped["step"]
    assert 11 <= step < 30 and errors == f"tario: SIGTERM: step {step} of 30 is saved; the same command continues\n"
    assert checkpoints(workdir)[-1] == str(step)
    said, _ = ended(run(workdir), 0)
    assert f"resumed at step {step} of 30" in said
    assert numbers(workdir) == numbers(unbroken)


@pytest.mark.slow
def test_sigterm_in_a_validation_that_outlasts_the_grace_saves_first(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    started = run(workdir, "SlowValidation", "--config.train.grace_s=4")
    beat = workdir / "hosts" / "0.json"
    until(started, "step     15/30")
    while json.loads(beat.read_text())["doing"] != "validate":
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    ended(started, 128 + signal.SIGTERM)
    assert checkpoints(workdir)[-1] == "15" and [event["step"] for event in events(workdir, "stopping")] == [15]
    assert "resumed at step 15 of 30" in ended(run(workdir), 0)[0]
    assert numbers(workdir) == numbers(unbroken)  # the validation that there was no time for is made up for


@pytest.mark.slow
def test_a_second_start_in_a_workdir_is_refused_and_disturbs_nothing(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    first = run(workdir, "SlowValidation", "--config.train.validation_rows=4")
    until(first, "step      5/30")
    first.send_signal(signal.SIGSTOP)  # or it might be through before the second has begun
    _, errors = ended(run(workdir), 2)
    first.send_signal(signal.SIGCONT)
    assert errors.startswith(f"tario: {workdir}: process {first.pid} on ") and "trains there now" in errors
    assert errors.count("\n") == 1
    ended(first, 0)
    assert [line[:3] for line in numbers(workdir)] == [line[:3] for line in numbers(unbroken)]


@pytest.mark.slow
def test_a_save_that_outlasts_the_grace_is_no_checkpoint(run, tmp_path):
    workdir = tmp_path / "run"
    started = run(workdir, "SlowDisk", "--config.train.grace_s=1.5")
    until(started, "step      3/30")
    started.send_signal(signal.SIGTERM)
    _, errors = ended(started, 128 + signal.SIGTERM)
    assert errors.startswith("tario: told to end, 1.5 s of grace (train.grace_s) are over in 'save': the newest")
    assert not [name for name in checkpoints(workdir) if name.isdecimal()]
    said, _ = ended(run(workdir, "", "--config.train.steps=30"), 0)
    assert checkpoints(workdir) == ["25", "30"]  # what was half-written is gone


@pytest.mark.slow
def test_a_second_signal_ends_a_run_that_is_saving(run, tmp_path):
    workdir = tmp_path / "run"
    started = run(workdir, "SlowDisk", "--config.train.grace_s=600")
    until(started, "step      3/30")
    started.send_signal(signal.SIGTERM)
    while not events(workdir, "stopping"):
        time.sleep(0.05)
    time.sleep(1)
    began = time.monotonic()
    started.send_signal(signal.SIGTERM)
    _, errors = ended(started, 128 + signal.SIGTERM)
    assert time.monotonic() - began < 10
    assert errors == ("tario: SIGTERM again: ended at once; the same command continues from the newest checkpoint\n")


@pytest.mark.slow
def test_batches_that_are_not_numbers_are_skipped_and_too_many_end_the_run(run, unbroken, tmp_path):
    said, _ = ended(run(tmp_path / "once", "NotNumbers"), 0)
    assert "step 8: loss or gradients are not finite; the step is skipped, 1 in a row" in said
    lines = [json.loads(line) for line in (tmp_path / "once" / "metrics.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line for line in lines if "loss_nats_per_detection" in line}
    assert by_step[8]["loss_nats_per_detection"] is None and by_step[8]["skipped_steps"] == 1
    assert by_step[30]["loss_nats_per_detection"] < 2.6 and by_step[30]["skipped_steps"] == 1
    assert numbers(tmp_path / "once")[:7] == numbers(unbroken)[:7]
    _, errors = ended(run(tmp_path / "all", "AllNotNumbers", "--config.train.skip_limit=3"), 2)
    assert errors.startswith("tario: step 11: the loss is not finite for 4 steps in a row") and errors.count("\n") == 1
    assert "optim.learning_rate" in errors and events(tmp_path / "all", "failed")


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_with_all_stacks(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    flags = "--config.data.workers=1", "--config.train.hang_minutes=0.05"
    _, errors = ended(run(workdir, "Hangs", *flags), 3)
    (last,) = (line for line in errors.splitlines() if line.startswith("tario: "))
    assert "process 0 on " in last and "hangs" in last and "in 'data' after step 6" in last
    assert "in spoil" in errors  # where the worker is
    stacks = (workdir / "stacks" / "process_0.txt").read_text()
    assert "batches_of_processes" in stacks and "thread MainThread" in stacks and "thread tario watch" in stacks
    assert events(workdir, "hung") and checkpoints(workdir) == ["5"]
    ended(run(workdir), 0)
    assert numbers(workdir) == numbers(unbroken)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_ends_the_run(run, unbroken, tmp_path):
    said, _ = ended(run(tmp_path / "once", "DiesOnce", "--config.data.workers=1"), 0)
    assert "one of them was killed while batch 7 was made" in said and "started again (1 of 3 times)" in said
    assert numbers(tmp_path / "once") == numbers(unbroken)
    _, errors = ended(run(tmp_path / "always", "DiesAlways", "--config.data.workers=1"), 2)
    assert errors.startswith("tario: data.workers = 1: one of them was killed while batch 7 was made")
    assert "4 times now" in errors and errors.count("\n") == 1


_SMALL_FILES = ("bash", "-c", 'ulimit -f 58 && exec "$0" "$@"')  # KiB


@pytest.mark.slow
def test_saves_that_fail_are_no_checkpoints_and_three_in_a_row_end_the_run(run, unbroken, tmp_path):
    workdir = tmp_path / "run"
    said, errors = ended(run(workdir, before=_SMALL_FILES), 2)
    assert (
        "checkpoint of step 5 could not be written (File too large); the newest one is none; training goes on" in said
    )
    assert errors.startswith(
        f"tario: {workdir}/checkpoints: checkpoint of step 15 could not be written (File too large)"
    )
    assert errors.count("\n") == 1 and checkpoints(workdir) == []
    ended(run(workdir), 0)
    assert numbers(workdir) == numbers(unbroken)


_MOUNTED = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1250k none "$0" && shift 0 && exec "$@"')


@pytest.mark.slow
def test_a_disk_that_fills_up_in_a_save_leaves_the_newest_whole_one(run, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    can = subprocess.run([*_MOUNTED, str(disk), "true"], capture_output=True, text=True, check=False)
    if can.returncode:
        pytest.skip(f"no small disk can be mounted here: {can.stderr.strip()}")
    # what it left is looked at while the disk is there
    look = f'"$@"; status=$?; cp -r {disk}/run {tmp_path}/left; exit $status'
    said, errors = ended(run(disk / "run", before=(*_MOUNTED, str(disk), "sh", "-c", look, "sh")), 2)
    assert "(No space left on device); the newest one is step 5; training goes on" in said
    assert errors.startswith("tario: ") and "make room there" in errors and errors.count("\n") == 1
    assert [name for name in checkpoints(tmp_path / "left") if name.isdecimal()] == ["5"]
    assert "resumed at step 5 of 30" in ended(run(tmp_path / "left"), 0)[0]


@pytest.mark.slow
def test_a_spike_sends_the_run_back_and_past_its_batches_also_when_it_is_killed(run, tmp_path):
    flags = "--config.train.spike_deviations=6", "--config.train.steps=60"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    said, _ = ended(run(whole, "Spikes", *flags), 0)
    assert (
        "step 43: the loss stood above the usual" in said
        and "back to the checkpoint of step 40, past 3 batches" in said
    )
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    loss = {line["step"]: line["loss_nats_per_detection"] for line in lines if "loss_nats_per_detection" in line}
    assert list(loss) == list(range(1, 61)) and max(list(loss.values())[20:]) < 2.7
    assert lines[-1 if "rollbacks" in lines[-1] else -2]["rollbacks"] == 1
    started = run(broken, "Spikes", *flags)
    for line in started.stdout:
        if line.startswith("step     43/60") and events(broken, "rolled_back"):
            break
    started.kill()
    started.communicate()
    said, _ = ended(run(broken, "Spikes", *flags), 0)
    assert "resumed at step 40 of 60" in said
    assert numbers(broken) == numbers(whole)


@pytest.mark.slow
def test_a_torn_line_in_the_middle_does_not_fail_a_run_that_is_done(run, tmp_path):
    workdir = tmp_path / "run"
    started = run(workdir)
    for line in started.stdout:
        if line.startswith("step      9/30"):
            with (workdir / "metrics.jsonl").open("a") as file:  # as a disk that was full leaves it
                file.write('{"step": 9, "loss_na\n')
            break
    ended(started, 0)
    (workdir / "metrics.jsonl").unlink()
    ended(run(workdir), 0)

"""One process of one attempt: what it leaves behind, and what signals do. `tario` is a stand-in here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import attempts
from launch.attempt import last_error


def begin(repository: Path, folder: Path, program: str, *words: str, environment: dict | None = None):
    """launch.attempt, with `python -c program` in place of tario."""
    wrapper = f"import sys, launch.attempt as a; a.TARIO = [sys.executable, '-c', {program!r}]; sys.exit(a.main())"
    arguments = [str(folder), *words, "--", "train", "--config=x"]
    return subprocess.Popen([sys.executable, "-c", wrapper, *arguments], cwd=repository, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=os.environ | (environment or {}))  # fmt: skip


def run(*arguments, **more) -> tuple[int, str]:
    process = begin(*arguments, **more)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out


def test_what_a_job_prints_and_how_it_ends_is_kept(repository, tmp_path):
    status, out = run(repository, tmp_path, "print('one'); print('tario: a: no such file'); raise SystemExit(2)",
                      "--attempt=first", "--process=0")  # fmt: skip
    assert status == 2 and out == "one\ntario: a: no such file\n"
    log = (tmp_path / "logs/train_0.txt").read_text()
    assert "$ tario train --config=x" in log and log.endswith(out)
    found = attempts.newest(tmp_path, "train")
    assert (found.number, found.lives, found.status, found.error) == (1, False, 2, "a: no such file")
    assert found.failed and found.mistaken and not found.told_to_end and found.log == tmp_path / "logs/train_0.txt"
    status, _ = run(repository, tmp_path, "print('fine')", "--attempt=second", "--process=0")
    found = attempts.newest(tmp_path, "train")
    assert status == 0 and found.number == 2 and not found.failed and found.error == ""
    assert attempts.newest(tmp_path, "evaluate") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_job_once(repository, tmp_path, number):
    """A second one would end it without a save: a scheduler's are not passed on."""
    program = ("import signal, sys, time\nheard = []\nsignal.signal(signal.SIGTERM, lambda *_: heard.append(1))\n"
               "print('ready', flush=True)\n"
               "end = time.time() + 20\nwhile not heard and time.time() < end: time.sleep(0.05)\n"
               "time.sleep(1)\nprint('heard', len(heard))\nsys.exit(143)")  # fmt: skip
    process = begin(repository, tmp_path, program, "--attempt=a", "--process=0")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert out == "heard 1\n" and process.returncode == 143
    found = attempts.newest(tmp_path, "train")
    assert found.told_to_end and not found.failed and attempts.failures(tmp_path, "train", "b") == 0


def test_a_killed_process_is_told_from_a_living_one(repository, tmp_path):
    process = begin(repository, tmp_path, "import time; print('ready', flush=True); time.sleep(60)",
                    "--attempt=a", "--process=1")  # fmt: skip
    process.stdout.readline()
    found = attempts.newest(tmp_path, "train")
    assert found.lives and found.status is None and not found.failed
    process.kill()
    process.communicate(timeout=30)
    found = attempts.newest(tmp_path, "train")
    assert not found.lives and found.failed and "wrote no end" in found.error
    # of another machine nothing is known but the journal's age
    journal = tmp_path / "logs/train_1.jsonl"
    journal.write_text(journal.read_text().replace('"host": "', '"host": "far-'))
    assert attempts.newest(tmp_path, "train").lives
    old = time.time() - 2 * attempts.GONE_S
    os.utime(journal, (old, old))
    assert attempts.newest(tmp_path, "train").failed


def test_the_first_process_that_failed_says_why(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()

    def journal(process: int, *lines: dict) -> None:
        text = "".join(json.dumps({"attempt": "a", "host": "far", "pid": 1} | line) + "\n" for line in lines)
        (logs / f"train_{process}.jsonl").write_text(text)

    began = {"event": "began", "unix": 100.0}
    journal(0, began, {"event": "ended", "unix": 120.0, "status": 1, "error": "connection reset by peer"})
    journal(1, began, {"event": "ended", "unix": 119.0, "status": 1, "error": "out of memory"})
    journal(2, began, {"event": "ended", "unix": 118.0, "status": 143, "error": ""})
    found = attempts.newest(tmp_path, "train")
    assert found.error == "out of memory" and found.log.name == "train_1.txt" and found.status == 1
    with (logs / "train_1.jsonl").open("a") as file:
        file.write('{"event": "began", "att')  # cut short by a kill
    assert attempts.newest(tmp_path, "train").error == "out of memory"


def test_it_pauses_after_failures_and_gives_up(repository, tmp_path):
    words = ("--process=0", "--retries=2", "--back-off-s=0.5")
    statuses, told = [], []
    for number in range(4):
        status, out = run(repository, tmp_path, "raise SystemExit(1)", f"--attempt={number}", *words)
        statuses.append(status)
        told.append(out)
    assert statuses == [1, 1, 2, 2]  # two retries, then the scheduler is told to stop
    assert not told[0] and "given up" not in told[1] and "given up" in told[2]
    assert [f"{pause} s until" in out for pause, out in zip(("0.5", "1"), told[1:3], strict=True)] == [True] * 2
    assert told[3] == "launch: failed 3 times in a row, and is given up\n"  # it was not begun: 3 attempts are noted
    assert attempts.failures(tmp_path, "train", "4") == 3 and attempts.failures(tmp_path, "train", "2") == 2
    assert attempts.failures(tmp_path, "train", "another-job.0") == 0  # another launch
    run(repository, tmp_path, "pass", "--attempt=5", "--process=0")
    assert attempts.failures(tmp_path, "train", "6") == 0  # what went before a success does not count


def test_a_mistake_of_any_process_ends_the_row(repository, tmp_path):
    """Of several hosts one ends with 2 and the others, for want of it, with 134: the scheduler may hear of these."""
    words = ("--retries=2", "--back-off-s=0.1")
    run(repository, tmp_path, "raise SystemExit(2)", "--attempt=7.0", "--process=0", *words)
    run(repository, tmp_path, "raise SystemExit(134)", "--attempt=7.0", "--process=1", *words)
    status, out = run(repository, tmp_path, "print('begun')", "--attempt=7.1", "--process=1", *words)
    assert status == 2 and "ended by a mistake" in out and "begun" not in out
    assert run(repository, tmp_path, "print('begun')", "--attempt=8.0", "--process=0", *words) == (0, "begun\n")
    # a process that is late is of the same attempt as one that was mistaken already: it says so itself
    run(repository, tmp_path, "raise SystemExit(2)", "--attempt=9.0", "--process=0", *words)
    assert run(repository, tmp_path, "print('begun')", "--attempt=9.0", "--process=1", *words) == (0, "begun\n")


def test_a_row_of_failures_is_of_one_launch_and_short(tmp_path):
    def journal(*ends: tuple[str, float, int | None]) -> None:
        lines = []
        for name, seconds, status in ends:
            if not name:  # nothing runs
                journal.at += seconds
                continue
            lines.append({"event": "began", "attempt": name, "unix": journal.at, "host": "far", "pid": 1})
            journal.at += seconds
            if status is not None:
                lines.append({"event": "ended", "attempt": name, "unix": journal.at, "status": status, "error": ""})
        (tmp_path / "logs").mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "logs" / "train_0.jsonl").write_text(text + '{"event": "ended", "attempt": 7}\n[]\n')

    journal.at = 1e9
    for ends, count in (
        ([("7.0", 9, 1), ("7.1", 9, 1)], 2),
        ([("7.0", 9, 1), ("7.1", 9, None)], 2),  # killed with its watcher
        ([("7.0", 9, 1), ("7.1", 9, 143), ("7.2", 9, 1)], 2),  # a preemption is none, and ends no row
        ([("7.0", 9, 1), ("7.1", 9, 75), ("7.2", 9, 1)], 2),  # so is a host that did not come
        ([("6.0", 9, 1), ("7.0", 9, 1)], 1), ([("7.0", 9, 1), ("7.1", 9, 2)], 0),
        ([("7.0", 9, 1), ("7.1", 4000, 1), ("7.2", 9, 1)], 2),  # the second had got on
        ([("7.0", 9, 1), ("", 4000, 0), ("7.1", 9, 1), ("", 4000, 0)], 2),  # none had: they waited in a queue
        ([("7.0", 9, 1), ("7.1", 4000, None)], 1),  # one that was killed: until the next began
    ):  # fmt: skip
        journal(*ends)
        with (tmp_path / "logs" / "train_0.jsonl").open("a") as file:
            began = {"event": "began", "attempt": "7.9", "unix": journal.at, "host": "far", "pid": 1}
            file.write(json.dumps(began) + "\n")
        assert attempts.failures(tmp_path, "train", "7.9") == count, ends


def test_processes_are_called_as_schedulers_number_them(repository, tmp_path):
    for environment, name in (({"SLURM_PROCID": "3"}, "3"), ({"TPU_WORKER_ID": "5", "MEGASCALE_SLICE_ID": "1"}, "1_5"),
                              ({"JOB_COMPLETION_INDEX": "2"}, "2")):  # fmt: skip
        run(repository, tmp_path / name, "pass", environment=environment)
        assert (tmp_path / name / f"logs/train_{name}.txt").exists()


@pytest.mark.parametrize(("lines", "status", "error"), [
    (["step 1", "tario: a.py: no such file"], 2, "a.py: no such file"),
    (["Traceback", '  File "x"', "ValueError: odd", "tario: this process ends, and the run with it; where a"], 1,
     "ValueError: odd"),
    (["step 1"], 137, "killed by SIGKILL"), (["step 1"], 1, "step 1"), ([], 1, "ended with status 1, and said nothing"),
    (["step 1"], 0, ""), (["tario: SIGTERM: step 7 of 9 is saved; the same command continues"], 143,
                          "SIGTERM: step 7 of 9 is saved; the same command continues"),
])  # fmt: skip
def test_the_line_that_says_why(lines, status, error):
    assert last_error(lines, status) == error

"""One process of one attempt at a job: python -m launch.attempt FOLDER --attempt=NAME -- train --config=… --workdir=…

Runs `tario` with what follows --, on every host alike. What it prints goes on to where this prints, and to
FOLDER/logs/<job>_<process>.txt; that it began, how it ended and its last error go to the .jsonl beside it, which is
touched while the job lives. SIGTERM, SIGINT and SIGUSR1 reach the job as SIGTERM, which makes it save and end. The exit
status is the job's; 128 + N where signal N killed it.

Where a scheduler starts it again and again (--retries): it pauses before the attempt that follows a failure, twice as
long after each, up to ten minutes, and when it failed more often in a row than that, it ends with status 2, as for a
mistake: start it no more. So it does where a process of the attempt before, be it another one, ended by a mistake. A
row is of attempts called alike up to their last point (of one job of the scheduler), and begins anew after one that ran
for half an hour.
An attempt that was told to end (a preemption), or for which other hosts did not come (75), is no failure.
"""

import argparse
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from launch.attempts import failures, was_mistaken
from launch.statuses import ABSENT, MISTAKE, TOLD

TARIO = (sys.executable, "-m", "tario_jax.cli")
_TOUCH_S = 5.0
LONGEST_PAUSE_S = 600.0
"""Between attempts, where the first pause is not longer."""
_PROCESS = ("SLURM_PROCID", "TPU_WORKER_ID", "JOB_COMPLETION_INDEX")
_SLICE = "MEGASCALE_SLICE_ID"
_ADVICE = "tario: this process ends, and the run with it"
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")


def main(arguments: list[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    own, words = (given, []) if "--" not in given else (given[: given.index("--")], given[given.index("--") + 1 :])
    parser = argparse.ArgumentParser(prog="python -m launch.attempt", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path, help="of the run; logs/ is made in it")
    parser.add_argument("--attempt", default=None, help="a name that all processes of this attempt share")
    parser.add_argument("--process", default=None, help="of the names of its files; found on Slurm, GKE and Cloud TPU")
    parser.add_argument("--retries", type=int, default=None, metavar="N", help="failures in a row that are tried again")
    parser.add_argument("--back-off-s", type=float, default=10.0, metavar="S", help="of the first pause (10)")
    options = parser.parse_args(own)
    if not words:
        parser.error("expected -- and what 'tario' is to do, as in -- train --config=…")
    attempt = options.attempt or f"{time.time():.0f}"
    before = 0
    if options.retries is not None:
        if was_mistaken(options.folder, words[0], attempt):
            _print("launch: a process of the attempt before ended by a mistake: not tried again\n")
            return MISTAKE
        before = failures(options.folder, words[0], attempt)
        if before > options.retries:  # killed with its watcher, which could not say so
            return _given_up(before)
        if before:
            seconds = pause_s(options.back_off_s, before)
            _print(f"launch: failed {before} times in a row; {seconds:g} s until the next attempt\n")
            time.sleep(seconds)  # a signal ends it, and this
    status = run_attempt(options.folder, words, attempt, options.process or _process())
    if options.retries is not None and status not in (0, MISTAKE, ABSENT, *TOLD) and before + 1 > options.retries:
        return _given_up(before + 1)
    return status


def pause_s(back_off_s: float, failures: int) -> float:
    """Before the attempt that follows so many failures in a row."""
    return min(back_off_s * 2 ** min(failures - 1, 30), max(back_off_s, LONGEST_PAUSE_S))


def _given_up(failures: int) -> int:
    _print(f"launch: failed {failures} times in a row, and is given up\n")
    return MISTAKE


def _process() -> str:
    """Which process of the job this is, as files are called; on a host that tells nothing, the host's name."""
    number = next((os.environ[name] for name in _PROCESS if name in os.environ), None)
    if number is None:
        return socket.gethostname()
    return f"{os.environ[_SLICE]}_{number}" if _SLICE in os.environ else number


def run_attempt(folder: Path, words: list[str], attempt: str, process: str) -> int:
    """Returns the exit status."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log, journal = (logs / f"{words[0]}_{process}.{kind}" for kind in ("txt", "jsonl"))
    began = time.time()
    told: list[int] = []
    child: list[subprocess.Popen] = []

    def pass_on(number: int, frame: Any) -> None:
        again = bool(told)
        told.append(number)
        # a second one ends a job at once, without a save: schedulers send several, only a person means it
        if child and child[0].poll() is None and (not again or number == signal.SIGINT):
            child[0].terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    _note(journal, {"event": "began", "attempt": attempt, "unix": began, "host": socket.gethostname(),
                    "pid": os.getpid(), "words": words})  # fmt: skip
    over = threading.Event()
    with log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"\n$ tario {' '.join(words)}\n")
        file.flush()
        child.append(subprocess.Popen([*TARIO, *words], stdout=subprocess.PIPE,
                                      stderr=subprocess.STDOUT, text=True, errors="replace", bufsize=1,
                                      start_new_session=True, preexec_fn=_end_with_parent,
                                      env=os.environ | {"PYTHONUNBUFFERED": "1"}))  # fmt: skip
        threading.Thread(target=_touch, args=(journal, over), daemon=True).start()
        if told:  # it came before there was anyone to tell
            child[0].terminate()
        lines: list[str] = []
        for line in child[0].stdout:
            file.write(line)
            file.flush()
            _print(line)
            lines = [*lines[-49:], line.rstrip()]
    status = child[0].wait()
    status = 128 - status if status < 0 else status
    over.set()
    _note(journal, {"event": "ended", "attempt": attempt, "unix": time.time(), "status": status,
                    "seconds": time.time() - began, "told": bool(told),
                    "error": last_error(lines, status)})  # fmt: skip
    return status


def _end_with_parent() -> None:
    """A job whose watcher is killed is told to end: nobody would know of it. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def last_error(lines: list[str], status: int) -> str:
    """The line that says why a job ended, of the last ones that it printed; empty where it did what it should."""
    if status == 0:
        return ""
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(_ADVICE)]
    said = [line for line in lines if line.startswith("tario: ") or _RAISED.match(line)]
    if status > 128 and status not in TOLD and not said:
        return f"killed by {_signal_name(status - 128)}"
    return (said or lines or [f"ended with status {status}, and said nothing"])[-1].removeprefix("tario: ")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(journal: Path, values: dict[str, Any]) -> None:
    """One write of a whole line; a line that a killed process left without its end is closed first."""
    text = journal.read_bytes() if journal.exists() else b""
    with journal.open("ab", buffering=0) as file:
        file.write((b"\n" if text and not text.endswith(b"\n") else b"") + json.dumps(values).encode() + b"\n")


def _touch(journal: Path, over: threading.Event) -> None:
    while not over.wait(_TOUCH_S):
        try:
            os.utime(journal)
        except OSError:  # the folder is gone, or its disk: the job will say so
            return


def _print(line: str) -> None:
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except OSError:  # nobody reads it any more; the log has it
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    sys.exit(main())

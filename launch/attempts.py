"""What attempts at a job left in its folder (launch/attempt.py): whether one lives, and how the last one ended."""

import dataclasses
import itertools
import json
import socket
import time
from pathlib import Path
from typing import Any

from launch.statuses import ABSENT, MISTAKE, TOLD

LONG_S = 1800.0
"""An attempt that ran for so long got on: a new row of failures begins."""
GONE_S = 60.0
"""A journal that was not touched for so long, and says no end, is of a process that was killed."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The newest one at a job: of all its processes together."""

    number: int  # attempts so far
    lives: bool
    status: int | None  # None while it lives
    error: str
    unix: float  # when it ended, or was last alive
    log: Path  # of the process whose error it is
    began: float  # seconds since 1970

    @property
    def failed(self) -> bool:
        return not self.lives and self.status != 0 and not self.told_to_end

    @property
    def told_to_end(self) -> bool:
        """Whether it was told to end, and goes on when it is started again."""
        return self.status in TOLD

    @property
    def mistaken(self) -> bool:
        """Whether it would fail again."""
        return self.status == MISTAKE


def newest(folder: Path, job: str, now: float | None = None) -> Attempt | None:
    """Of the job `train` or so in a run's folder; None where there was none."""
    now = time.time() if now is None else now
    journals = _journals(folder, job)
    begun = [(one["unix"], one["attempt"]) for _, lines in journals for one in lines if one["event"] == "began"]
    if not begun:
        return None
    attempt, ends, alive, gone = max(begun)[1], [], [], []
    began = min(unix for unix, name in begun if name == attempt)
    for path, lines in journals:
        last = next((one for one in reversed(lines) if one["attempt"] == attempt), None)
        if last is None:
            continue
        touched = path.stat().st_mtime
        if last["event"] == "ended":
            ends.append((last["unix"], last["status"], last["error"], path))
        elif now - touched > GONE_S or not _is_here(last):
            gone.append((touched, 137, "killed, or its machine is gone: it wrote no end", path))
        else:
            alive.append((touched, None, "", path))
    number = len({name for _, name in begun})
    # of processes that ended, the first that failed: the others fail for want of it
    bad = [one for one in ends if one[1] not in (0, *TOLD)] or gone or [one for one in ends if one[1]]
    unix, status, error, path = min(bad) if bad else (alive or ends)[0]
    if alive:
        return Attempt(number, True, None, "", max(one[0] for one in alive), alive[0][3].with_suffix(".txt"), began)
    return Attempt(number, False, status, error, unix, path.with_suffix(".txt"), began)


def failures(folder: Path, job: str, attempt: str) -> int:
    """Attempts in a row that failed before this one, by the journals of all processes.

    Of those that are called as this one up to the last point: another launch begins at 0. One that ran for long got on.
    """
    count, next_began = 0, time.time()
    for name, began, ended, statuses in _before(folder, job, attempt):
        if name == attempt:
            next_began = began
            continue
        if MISTAKE in statuses or all(status == 0 for status in statuses):
            break
        count += any(status not in (0, ABSENT, *TOLD) for status in statuses)
        if (next_began if ended is None else ended) - began > LONG_S:
            break
        next_began = began
    return count


def was_mistaken(folder: Path, job: str, attempt: str) -> bool:
    """Whether a process of the attempt before this one, in the same row, ended by a mistake of the user.

    A scheduler may have heard of another of its processes alone, which ended for want of that one.
    """
    before = [statuses for name, _, _, statuses in _before(folder, job, attempt) if name != attempt]
    return bool(before) and MISTAKE in before[0]


def _before(folder: Path, job: str, attempt: str) -> list[tuple[str, float, float | None, list[int]]]:
    """This attempt, where it has begun, and those before it in its row: name, begin, last end that was written,
    statuses; the newest first. What comes after its end, in a queue or a pause, it did not run; of one that wrote no
    end, only the next begin is known."""
    row, _, _ = attempt.rpartition(".")
    ends: dict[str, list[int]] = {}
    began: dict[str, float] = {}
    ended: dict[str, float] = {}
    for _, lines in _journals(folder, job):
        for one in lines:
            if one["event"] == "began":
                began.setdefault(one["attempt"], one["unix"])
            else:
                ends.setdefault(one["attempt"], []).append(one["status"])
                ended[one["attempt"]] = max(one["unix"], ended.get(one["attempt"], 0.0))
    names = sorted(began, key=began.get, reverse=True)
    of_row = itertools.takewhile(lambda name: name == attempt or name.rpartition(".")[0] == row, names)
    return [(name, began[name], ended.get(name), ends.get(name, [137])) for name in of_row]


def _is_here(begun: dict[str, Any]) -> bool:
    """Whether a process that is to be on this machine is; of other machines, that is not known."""
    if begun.get("host") != socket.gethostname() or not Path("/proc/self").exists():
        return True
    try:
        return b"launch.attempt" in Path(f"/proc/{begun['pid']}/cmdline").read_bytes()
    except OSError:
        return False


def _journals(folder: Path, job: str) -> list[tuple[Path, list[dict[str, Any]]]]:
    found = []
    for path in sorted((folder / "logs").glob(f"{job}_*.jsonl")):
        lines = []
        for text in path.read_text(errors="replace").splitlines():
            try:
                one = json.loads(text)
            except ValueError:  # a line that was cut short
                continue
            if isinstance(one, dict) and _is_event(one):
                lines.append(one)
        found.append((path, lines))
    return found


_OF_EVENT = {"began": {"attempt": str, "unix": (int, float), "host": str, "pid": int},
             "ended": {"attempt": str, "unix": (int, float), "status": int, "error": str}}  # fmt: skip


def _is_event(one: dict[str, Any]) -> bool:
    """Whether a line is one that launch/attempt.py writes, whole."""
    fields = _OF_EVENT.get(one.get("event")) if isinstance(one.get("event"), str) else None
    return fields is not None and all(isinstance(one.get(name), kind) for name, kind in fields.items())

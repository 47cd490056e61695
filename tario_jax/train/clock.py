"""Where the wall time of a run goes: by what it was doing, and over all of its starts."""

import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tario_jax.whole_file import write_whole

STEP = ("place", "dispatch", "wait")
"""What a step is made of: a batch laid on devices, the program started, the numbers of the step before awaited."""
WATCHED = (*STEP, "data", "validate", "log", "save", "rollback", "trace")
"""Doings that have an end: in these a run can hang."""

_SAVES_KNOWN = 64  # of a start, the last ones: a run goes back to one of these


class Clock:
    """One thing is done at any time; its seconds are counted under its name. Other threads may read.

    Waiting for a batch costs nothing while the device still computes the step before: so much of it counts as waiting
    for that step.
    """

    def __init__(self):
        # when the device ended the last step that it was given: infinite while it computes (monotonic seconds)
        self.device_idle_since: Callable[[], float] = lambda: -math.inf
        self._seconds: dict[str, float] = defaultdict(float)
        self.doing, self._since = "start", time.monotonic()
        self.beaten = self._since  # when it was last known to get on

    def enter(self, doing: str) -> None:
        now = time.monotonic()
        spent = now - self._since
        if self.doing == "data":
            computing = min(max(self.device_idle_since() - self._since, 0.0), spent)
            self._seconds["wait"] += computing
            spent -= computing
        self._seconds[self.doing] += spent
        self.doing, self._since = doing, now
        self.beaten = now

    def beat(self) -> None:
        """It gets on with what it does."""
        self.beaten = time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Of each doing up to now, the present one included."""
        found = dict(self._seconds)
        found[self.doing] = found.get(self.doing, 0.0) + time.monotonic() - self._since
        return found

    def since_s(self) -> float:
        """How long it has been doing what it does."""
        return time.monotonic() - self._since


def of_steps(seconds: dict[str, float]) -> float:
    """Seconds of a clock that went into steps."""
    return sum(seconds.get(doing, 0.0) for doing in STEP)


class Ledger:
    """goodput.json: each start of the run, what its time went into, and which of its steps a later start did again.

    A start that was killed is known up to its last `write`.
    """

    def __init__(self, path: Path, first_step: int, clock: Clock):
        self._path, self._clock, self._lock = path, clock, threading.Lock()
        self._before: list[dict[str, Any]] = _read(path)
        for start in self._before:
            _do_again(start, first_step)
        began = time.time() - sum(clock.seconds().values())
        self._start = {"began_unix": began, "last_unix": began, "first_step": first_step, "last_step": first_step,
                       "seconds": {}, "saved": {}, "repeated_seconds": 0.0}  # fmt: skip

    @property
    def starts(self) -> int:
        """How many there were, with this one."""
        return len(self._before) + 1

    def lost_at_last_stop(self) -> tuple[int, float, float] | None:
        """(steps, their seconds, seconds between) that the stop before this start cost; None at the first start."""
        if not self._before:
            return None
        last = self._before[-1]
        between = max(self._start["began_unix"] - last["last_unix"], 0.0)
        return last["lost_steps"], last["lost_seconds"], between

    def saved(self, step: int) -> None:
        """The state after `step` is in a checkpoint."""
        with self._lock:
            saved = self._start["saved"]
            saved[str(step)] = of_steps(self._clock.seconds()) - self._start["repeated_seconds"]
            for old in list(saved)[:-_SAVES_KNOWN]:
                del saved[old]

    def rolled_back(self, step: int) -> None:
        """The run went back to the checkpoint of `step`."""
        with self._lock:
            self._start["seconds"] = self._clock.seconds()
            for start in (*self._before, self._start):  # it may lie before what this start began with
                _do_again(start, step)
            self._start["first_step"] = min(self._start["first_step"], step)

    def note(self, step: int) -> None:
        """`step` steps are done."""
        self._start["last_step"] = step

    def account(self) -> dict[str, Any]:
        """goodput (share of the wall time since the first start that went into steps which count), and what was lost to
        what, in seconds."""
        self._start |= {"last_unix": time.time(), "seconds": self._clock.seconds()}
        starts = [*self._before, self._start]
        wall = max(starts[-1]["last_unix"] - starts[0]["began_unix"], 1e-9)
        lost: dict[str, float] = defaultdict(float)
        for start in starts:
            for doing, seconds in start["seconds"].items():
                if doing not in STEP:
                    lost[doing] += seconds
            lost["repeated"] += start["repeated_seconds"]
        lost["between starts"] = sum(
            max(after["began_unix"] - before["last_unix"], 0.0)
            for before, after in zip(starts, starts[1:], strict=False)
        )
        useful = sum(of_steps(start["seconds"]) - start["repeated_seconds"] for start in starts)
        return {"starts": starts, "goodput": min(max(useful / wall, 0.0), 1.0), "wall_seconds": wall,
                "lost": {name: seconds for name, seconds in lost.items() if seconds}}  # fmt: skip

    def write(self) -> None:
        with self._lock:  # a thread writes while the loop notes
            text = json.dumps(self.account())
        write_whole(self._path, text)


def _do_again(start: dict[str, Any], step: int) -> None:
    """Counts the seconds of a start's steps after `step` as repeated."""
    start["lost_steps"], start["lost_seconds"] = max(start["last_step"] - step, 0), 0.0
    if not start["lost_steps"]:
        return
    useful = of_steps(start["seconds"]) - start["repeated_seconds"]
    if step <= start["first_step"]:
        kept = 0.0
    elif (at := start["saved"].get(str(step))) is not None:
        kept = at
    else:  # no time is known of it: as if all steps took as long
        kept = useful * (step - start["first_step"]) / (start["last_step"] - start["first_step"])
    start["lost_seconds"] = max(useful - kept, 0.0)
    start["repeated_seconds"] += start["lost_seconds"]
    start["last_step"] = step


def _read(path: Path) -> list[dict[str, Any]]:
    """The starts before this one; none where the file is absent or cannot be read: it is an account, not a state."""
    try:
        starts = json.loads(path.read_text())["starts"]
        for start in starts:
            _do_again(dict(start), start["first_step"])
            start["last_unix"] - start["began_unix"]
        return starts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []

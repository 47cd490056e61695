"""A thread beside the loop: the heartbeat that others read, and the end of a run that does not get on."""

import contextlib
import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tario_jax.tokens.workers import STACKS_SIGNAL
from tario_jax.train.clock import WATCHED, Clock
from tario_jax.train.stop import end_within, leave
from tario_jax.whole_file import write_whole

HUNG = 3
"""Exit status of a run that hung."""
_EVERY_S, _TELL_S = 1.0, 5.0


class Watch:
    """Writes hosts/<process>.json about once a second, and ends the process where it hangs or its grace is over.

    beat(): what else is to be done each time; its errors of the disk are let go. signal_s(): when the run was told to
    end, None if it was not.
    """

    def __init__(self, workdir: Path, clock: Clock, progress: Callable[[], dict[str, Any]], *, hang_minutes: float,
                 grace_s: float, signal_s: Callable[[], float | None], beat: Callable[[], None],
                 ending: Callable[[str, str], None]):  # fmt: skip
        self._workdir, self._clock, self._progress = workdir, clock, progress
        self._hang_s, self._grace_s, self._signal_s = 60 * hang_minutes, grace_s, signal_s
        self._beat, self._ending = beat, ending
        self._path = workdir / "hosts" / f"{jax.process_index()}.json"
        self._over, self._told = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="tario watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._path.parent.mkdir(exist_ok=True)
        self._clock.beat()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._write()

    def _run(self) -> None:
        while not self._over.wait(min(_EVERY_S, self._hang_s / 4)):
            try:
                self._write()
                self._beat()
            except Exception as error:  # neither a full disk nor somebody's odd file stops training, or this watch
                if not isinstance(error, OSError) and not self._told:
                    traceback.print_exc()
                    self._told = True
            still_s = time.monotonic() - self._clock.beaten
            if self._clock.doing in WATCHED and still_s > self._hang_s:
                self._end_hung(still_s)
            if (signal_s := self._signal_s()) is not None and time.monotonic() - signal_s > self._grace_s:
                self._end_late()

    def _write(self) -> None:
        now = time.time()
        beat = {
            "process": jax.process_index(), "processes": jax.process_count(), "host": socket.gethostname(),
            "pid": os.getpid(), "unix": now, "doing": self._clock.doing, "since_unix": now - self._clock.since_s(),
            **self._progress(),
        }  # fmt: skip
        write_whole(self._path, json.dumps(beat))

    def _end_hung(self, still_s: float) -> None:
        folder = self._workdir / "stacks"
        text = (
            f"process {jax.process_index()} on {socket.gethostname()} hangs: for {still_s:.0f} s in "
            f"'{self._clock.doing}' after step {self._progress()['step']}; all stacks are above and in {folder}; the "
            "same command continues from the newest checkpoint"
        )
        for worker in multiprocessing.active_children():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, STACKS_SIGNAL)  # it writes them itself
        with contextlib.suppress(OSError):
            folder.mkdir(exist_ok=True)
            with (folder / f"process_{jax.process_index()}.txt").open("w") as file:
                file.write(f"{text}\n\n{stacks()}")
        self._ending("hung", text)
        end_within(_TELL_S, HUNG)
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        time.sleep(0.5)  # the workers' stacks, before they lose their parent
        leave(f"tario: {text}", HUNG)

    def _end_late(self) -> None:
        text = (
            f"told to end, {self._grace_s:g} s of grace (train.grace_s) are over in '{self._clock.doing}': the newest "
            "whole checkpoint counts, the same command continues from it"
        )
        self._ending("stopped", text)
        leave(f"tario: {text}", 128 + signal.SIGTERM)


def stacks() -> str:
    """What every thread of this process is doing, by its name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(number, number)}\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    )

"""A run that is told to end: SIGTERM, as schedulers send it before they take a machine away, or Ctrl-C."""

import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run ended because it was told to, its state saved. Holds what is to be said, and the exit status."""

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Stop:
    """Whether the run was told to end; all processes of it are told so at the same step.

    One process: the first signal is kept until a step is done, a second one ends it at once. Several: jax hears of
    SIGTERM on any of them and names the step to all; what comes before the first step is heard after it.
    """

    def __init__(self):
        self.told_s: float | None = None  # monotonic, when the first signal came
        self.signal = signal.SIGTERM
        self.has_work = False  # of this start, that would be lost: before, a signal ends it at once
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame) -> None:
        if self.told_s is not None:  # again: whoever sends it does not want to wait
            raise KeyboardInterrupt
        self.told_s, self.signal = time.monotonic(), signal.Signals(number)
        if not self.has_work:
            raise Stopped(f"{self.signal.name}: before a step of this start; the same command continues", 128 + number)

    def asked(self, step: int) -> bool:
        """Whether to end after `step`. Every process is to ask after each step."""
        if jax.process_count() > 1 and self.told_s is None and multihost_utils.reached_preemption_sync_point(step):
            self.told_s = time.monotonic()
        return self.told_s is not None

"""A run that is told to end: SIGTERM, as schedulers send it before they take a machine away, or Ctrl-C."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_TELL_S = 2.0


class Stopped(BaseException):
    """The run ended because it was told to, its state saved. Holds what is to be said, and the exit status.

    A handler of signals raises it wherever the process is: no `except Exception` there is to take it for a fault.
    """

    def __init__(self, text: str, status: int):
        super().__init__(text)
        self.status = status


class Stop:
    """Whether the run was told to end; all processes of it are told so at the same step.

    One process: the first signal is kept until a step is done, a second one ends it at once, whatever it is at.
    Several: jax hears of SIGTERM on any of them and names the step to all; what comes before the first step is heard
    after it, and Ctrl-C is passed on as SIGTERM.
    """

    def __init__(self):
        self.signal_s: float | None = None  # monotonic, when the first signal came
        self.signal = signal.SIGTERM
        self.has_work = False  # of this start, that would be lost: before, a signal ends it at once
        self._before: dict[int, object] = {}
        self._handled, self._times = False, 0  # the signals that the pipe told
        self._heard: int | None = None  # the pipe's end

    def __enter__(self) -> "Stop":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() > 1:
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
            return self
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        # the system writes each signal there, also while the thread that is to handle it waits for a device
        self._heard, self._told = os.pipe()
        for end in (self._heard, self._told):
            os.set_blocking(end, False)
        self._wakeup_before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._heard is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            for end in (self._heard, self._told):
                os.close(end)
            self._heard = None

    def listen(self) -> float | None:
        """When the run was told to end, None if it was not; to be asked by another thread, from time to time."""
        if self._heard is not None:
            with contextlib.suppress(OSError):  # nothing was written, or it is closed
                heard = [number for number in os.read(self._heard, 64) if number in SIGNALS]
                self._times += len(heard)
                if heard:
                    self.signal = self.signal if self.signal_s else signal.Signals(heard[0])
                    self.signal_s = self.signal_s or time.monotonic()
        if self._times > 1:
            self._leave()
        return self.signal_s

    def _leave(self) -> None:
        """Whoever sends a second signal does not want to wait, not for a save either."""
        leave(f"tario: {self.signal.name} again: ended at once; the same command continues from the newest checkpoint",
              128 + self.signal)  # fmt: skip

    def _pass_on(self, number: int, frame) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # again: at once
        os.kill(os.getpid(), signal.SIGTERM)

    def _hear(self, number: int, frame) -> None:
        if self._handled:
            self._leave()
        self._handled, self.signal = True, signal.Signals(number)
        self.signal_s = self.signal_s or time.monotonic()
        if not self.has_work:
            raise Stopped(f"{self.signal.name}: before a step of this start; the same command continues", 128 + number)

    def asked(self, step: int) -> bool:
        """Whether to end after `step`. Every process is to ask after each step."""
        if jax.process_count() > 1 and self.signal_s is None and multihost_utils.reached_preemption_sync_point(step):
            self.signal_s = time.monotonic()
        return self.signal_s is not None


def leave(line: str, status: int) -> None:
    """Ends the process and its workers now, whatever any of its threads waits for."""
    end_within(_TELL_S, status)
    for worker in multiprocessing.active_children():
        worker.kill()
    print(line, file=sys.stderr, flush=True)
    os._exit(status)


def end_within(seconds: float, status: int) -> None:
    """Ends the process by then, also where it waits for somebody to take what it prints."""
    late = threading.Timer(seconds, os._exit, (status,))
    late.daemon = True
    late.start()

"""When the device ends a step: a thread waits for it, while the loop does something else."""

import math
import queue
import threading
import time
from typing import Any

import jax

_END_S = 5.0  # of a step that still runs when the run ends


class InFlight:
    """The step that was dispatched last, and when the device had done it."""

    def __init__(self):
        self._steps: queue.SimpleQueue = queue.SimpleQueue()
        self._begun, self._ended = 0, (0, -math.inf)  # (how many, when the last of them)
        self._thread = threading.Thread(target=self._wait, name="tario in flight", daemon=True)
        self._thread.start()

    def begin(self, result: Any) -> None:
        """A step was dispatched, and this array comes of it."""
        self._begun += 1
        self._steps.put((self._begun, result))

    def idle_since(self) -> float:
        """When the device ended the last step (monotonic seconds): infinite while it computes, −infinite before any."""
        ended, when = self._ended
        return when if ended == self._begun else math.inf

    def end(self) -> None:
        self._steps.put(None)
        self._thread.join(_END_S)

    def _wait(self) -> None:
        while (step := self._steps.get()) is not None:
            number, result = step
            try:
                jax.block_until_ready(result)
            except Exception:  # the loop meets it too, and tells
                return
            finally:
                self._ended = number, time.monotonic()

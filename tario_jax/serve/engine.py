"""Windows of many requests in common batches, of few fixed sizes, on every device.

Windows wait in one queue. A device that is free takes as many of the oldest as a batch holds, all of one number of
squares, and pads to the next fixed size: so nothing is compiled after the start, a lone window does not wait for
others, and under load batches are full.

Axes: W windows of a request, N squares of a window, B rows of a batch, G genes.
"""

import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import NamedTuple

import jax
import numpy as np

from tario_jax.export.loader import Bundle
from tario_jax.serve.refusal import Refusal

ROWS = (1, 2, 4, 8)


class Windows(NamedTuple):
    """What one request asks. Squares beyond those that are asked are padding."""

    he_WxYxXx3: np.ndarray
    xy_um_WxNx2: np.ndarray
    side_um_WxN: np.ndarray


class BatchRun(NamedTuple):
    """What became of a batch, for whoever counts."""

    rows: int
    seconds: float


class _Request:
    def __init__(self, windows: Windows, genes: np.ndarray | None):
        self.windows, self.genes = windows, genes
        self.found: list[np.ndarray | None] = [None] * len(windows.he_WxYxXx3)
        self.left, self.done, self._lock = len(self.found), Future(), threading.Lock()

    def add(self, window: int, rates_NxG: np.ndarray) -> None:
        """Keeps a copy of what was asked: the batch that it lies in is let go."""
        squares = self.windows.side_um_WxN.shape[1]
        self.found[window] = np.array(rates_NxG[:squares] if self.genes is None else rates_NxG[:squares, self.genes])
        with self._lock:  # windows of one request may be of several devices
            self.left -= 1
            if self.left:
                return
        if self.done.set_running_or_notify_cancel():  # from here on nobody can give it up
            try:
                self.done.set_result(np.stack(self.found))
            except Exception as error:
                self.done.set_exception(error)

    def fail(self, error: Exception) -> None:
        with contextlib.suppress(InvalidStateError):  # given up, or failed in another batch
            self.done.set_exception(error)


def batch_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 and so on, and `most`: at most a third of a batch is padding."""
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({size for power in powers for size in (power, power * 3 // 2) if size < most} | {most})


class Engine:
    """Runs a bundle on all of `devices`. `close` answers what was accepted."""

    def __init__(
        self, bundle: Bundle, *, squares: Sequence[int], rows: Sequence[int] = ROWS, most_waiting: int = 64,
        devices: Sequence[jax.Device] | None = None, on_batch: Callable[[BatchRun], None] = lambda run: None,
    ):  # fmt: skip
        """squares, rows: the fixed sizes of batches; most_waiting: windows in the queue, more are refused; on_batch: is
        called after each batch, by the thread of its device."""
        self.bundle, self.most_waiting = bundle, most_waiting
        self.squares, self.rows = tuple(sorted(squares)), tuple(sorted(rows))
        self._on_batch, self._closing = on_batch, False
        self._waiting: collections.deque[tuple[_Request, int]] = collections.deque()
        self._changed = threading.Condition()
        self._seconds_a_window = 0.1
        self._devices = list(devices or jax.local_devices())
        self._parameters = [jax.device_put(bundle.parameters, device) for device in self._devices]
        self._threads = [threading.Thread(target=self._work, args=(number,), name=f"device-{number}", daemon=True)
                         for number in range(len(self._devices))]  # fmt: skip

    def warm_up(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Compiles every size of batch on every device, then begins to answer."""
        side = self.bundle.signature["window"]["side_px"]
        sizes = [(rows, squares) for squares in self.squares for rows in self.rows]
        for number in range(len(self._devices)):
            for done, (rows, squares) in enumerate(sizes, 1):
                began = time.monotonic()
                self._run(number, np.zeros((rows, side, side, 3), np.uint8), np.zeros((rows, squares, 2), np.float32),
                          np.ones((rows, squares), np.float32))  # fmt: skip
                say(f"serve: {rows} windows of {squares} squares compiled in {time.monotonic() - began:.1f} s "
                    f"({done} of {len(sizes)}, device {number + 1} of {len(self._devices)})")  # fmt: skip
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not self._closing and self.alive

    @property
    def alive(self) -> bool:
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, windows: Windows, genes: np.ndarray | None = None) -> Future:
        """Rates float32 [W, N, G] later, of some genes (positions) or all. Raises `Refusal` where the queue is full."""
        request, number = _Request(windows, genes), len(windows.he_WxYxXx3)
        if number > self.most_waiting:
            raise Refusal(413, f"the image takes {number} windows, and at most {self.most_waiting} are taken at once; "
                               "send it in parts")  # fmt: skip
        with self._changed:
            if self._closing:
                raise Refusal(503, "the server is ending; ask another one", retry_after_s=1)
            if len(self._waiting) + number > self.most_waiting:
                seconds = (len(self._waiting) + number) * self._seconds_a_window / len(self._devices)
                raise Refusal(429, f"{len(self._waiting)} windows are waiting; ask again later",
                              retry_after_s=max(1.0, seconds))  # fmt: skip
            self._waiting.extend((request, window) for window in range(number))
            self._changed.notify_all()  # one request may be work for every device
        return request.done

    def close(self) -> None:
        """Answers what waits, and ends."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _work(self, device: int) -> None:
        while (batch := self._take()) is not None:
            began = time.monotonic()
            try:
                rates = self._of_batch(device, batch)
                seconds = time.monotonic() - began
                self._seconds_a_window = 0.9 * self._seconds_a_window + 0.1 * seconds / len(batch)
                self._on_batch(BatchRun(len(batch), seconds))  # before who waits goes on
                for (request, window), of_window in zip(batch, rates, strict=True):
                    request.add(window, of_window)
            except Exception as error:  # those of this batch are told; the others go on
                for request, _ in batch:
                    request.fail(error)

    def _take(self) -> list[tuple[_Request, int]] | None:
        """The oldest windows of one number of squares; None where there are none and will be none."""
        with self._changed:
            while True:
                while self._waiting and self._waiting[0][0].done.done():  # given up, or failed in another batch
                    self._waiting.popleft()
                if self._waiting:
                    break
                if self._closing:
                    return None
                self._changed.wait()
            wanted = self._squares_of(self._waiting[0][0])
            batch, others = [], []
            while self._waiting and len(batch) < self.rows[-1]:
                entry = self._waiting.popleft()
                if not entry[0].done.done():
                    (batch if self._squares_of(entry[0]) == wanted else others).append(entry)
            self._waiting.extendleft(reversed(others))
            return batch

    def _of_batch(self, device: int, batch: list[tuple[_Request, int]]) -> np.ndarray:
        rows = self._fixed(len(batch), self.rows)
        squares = self._squares_of(batch[0][0])
        he = np.full((rows, *batch[0][0].windows.he_WxYxXx3.shape[1:]), 255, np.uint8)
        xy_um, side_um = np.zeros((rows, squares, 2), np.float32), np.ones((rows, squares), np.float32)
        for row, (request, window) in enumerate(batch):
            asked = request.windows.side_um_WxN.shape[1]
            he[row] = request.windows.he_WxYxXx3[window]
            xy_um[row, :asked], side_um[row, :asked] = (of[window] for of in request.windows[1:])
        return self._run(device, he, xy_um, side_um)[: len(batch)]

    def _run(self, device: int, *given: np.ndarray) -> np.ndarray:
        placed = jax.device_put(given, self._devices[device])
        return np.asarray(self.bundle.call(self._parameters[device], *placed))

    def _squares_of(self, request: _Request) -> int:
        return self._fixed(request.windows.side_um_WxN.shape[1], self.squares)

    @staticmethod
    def _fixed(number: int, sizes: tuple[int, ...]) -> int:
        return next(size for size in sizes if size >= number)

"""What is predicted of a section's bins in a memory that does not grow with the section: which bins are tissue is known
when all of them are predicted, and until then those that no further window holds lie on disk.

Axes: N bins of a section, n some of them, Q bin slots of a window, G genes, r width of the gene table.
"""

import tempfile
from pathlib import Path

import numpy as np

from tario_jax.predict.cover import Cover, Placed


class StoredBins:
    """Rates and the decoder's states, as `Blend` gives them, to the bit, of windows that come in the order of their
    cover. A context, after which it is gone."""

    def __init__(self, cover: Cover, genes: int, width: int, folder: Path):
        """width: r; folder: on whose disk a file of N · (G + r) float32 lies meanwhile, without a name."""
        self._folder, self._genes, self._columns = folder, genes, genes + width
        self.total_N = np.full(len(cover), np.nan)  # expected detections; NaN: no window has told of it
        self._last_N = _last_windows(cover)
        self._summed: dict[int, np.ndarray] = {}  # by bin that further windows may hold
        self._weight: dict[int, float] = {}
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        self._file.truncate(4 * len(cover) * self._columns)

    def __enter__(self) -> "StoredBins":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, window: int, placed: Placed, rates_QxG: np.ndarray, state_Qxr: np.ndarray) -> None:
        """Of the bin slots of the window; further genes are padding. Raises `OSError` that names the folder."""
        for slot, number, weight in zip(*placed, strict=True):
            weighed = weight * np.concatenate([rates_QxG[slot, : self._genes], state_Qxr[slot]])
            if number in self._summed:
                self._summed[number] += weighed
                self._weight[number] += weight
            else:
                self._summed[number], self._weight[number] = weighed.astype(np.float32), weight
        for number in np.flatnonzero(self._last_N == window).tolist():
            if number in self._summed:
                self._store(number, self._summed.pop(number) / np.float32(self._weight.pop(number)))

    def _store(self, number: int, means: np.ndarray) -> None:
        self.total_N[number] = means[: self._genes].sum(dtype=np.float64)
        left = memoryview(means).cast("B")
        try:
            self._file.seek(4 * number * self._columns)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from None

    def rows(self, number_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rates [n, G] and states [n, r] of some bins, float32."""
        both = np.memmap(self._file, np.float32, "r", shape=(len(self.total_N), self._columns))[number_n]
        return both[:, : self._genes], both[:, self._genes :]


def _last_windows(cover: Cover) -> np.ndarray:
    """Of each place the last window that its centre lies in: none after it holds the place."""
    half_um, last_N = cover.data.window_um / 2, np.full(len(cover), -1)
    for window, (x_um, y_um) in enumerate(cover.corners):
        inside_N = np.abs(cover.places.x_um_N - x_um - half_um) <= half_um
        inside_N &= np.abs(cover.places.y_um_N - y_um - half_um) <= half_um
        last_N[inside_N] = window
    return last_N

"""The tissue of a slide as bins, windows and runs: what is predicted, in which order, and what waits for what."""

import dataclasses
import functools

import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.predict.cover import BinPlaces, Cover, Placed
from tario_jax.predict.map_store import Slots
from tario_jax.predict.tissue_mask import TissueMask
from tario_jax.tokens.batch import Batch

IN_TISSUE = 0.5  # of a bin, at least


class TissuePlaces(BinPlaces):
    """The bins of a slide that lie in tissue, row by row."""

    def __init__(self, section, data: DataConfig, mask: TissueMask | None):
        """mask: None for all of the slide. Raises `InputError` where no bin is left."""
        super().__init__(section, data)
        if mask is None:
            return
        kept_N = mask.share(self.x_um_N, self.y_um_N, data.bin_um) >= IN_TISSUE
        if not kept_N.any():
            raise InputError(f"{section.id}: no bin of {data.bin_um:g} µm lies half in tissue ({mask.area_mm2:.3f} mm² "
                             "of it); take smaller bins, or --everywhere")  # fmt: skip
        row, column = np.nonzero(self.number_YxX >= 0)
        self.number_YxX[row[~kept_N], column[~kept_N]] = -1
        self.number_YxX[row[kept_N], column[kept_N]] = np.arange(kept_N.sum())
        self.x_um_N, self.y_um_N = self.x_um_N[kept_N], self.y_um_N[kept_N]

    @property
    def row_N(self) -> np.ndarray:
        return (self.y_um_N // self.size_um).astype(int)

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of the windows on the bins' grid that hold tissue, row by row."""
        held = int(self._data.window_um / self.size_um + 1e-6)
        count_YxX = np.zeros(np.array(self.number_YxX.shape) + 1, np.int64)
        count_YxX[1:, 1:] = (self.number_YxX >= 0).cumsum(0).cumsum(1)

        def has_tissue(x_um: float, y_um: float) -> bool:
            row, column = round(y_um / self.size_um), round(x_um / self.size_um)
            top, bottom = (np.clip(at, 0, self.number_YxX.shape[0]) for at in (row, row + held))
            left, right = (np.clip(at, 0, self.number_YxX.shape[1]) for at in (column, column + held))
            inside = count_YxX[bottom, right] - count_YxX[top, right] - count_YxX[bottom, left] + count_YxX[top, left]
            return bool(inside)

        return [corner for corner in super().corners(overlap) if has_tissue(*corner)]


class TissueCover(Cover):
    """Windows of which the bins in tissue are kept."""

    def placed(self, batch: Batch, row: int, window: int) -> Placed:
        placed = super().placed(batch, row, window)
        return Placed(*(part[placed.number_n >= 0] for part in placed))


@dataclasses.dataclass(frozen=True)
class SlidePlan:
    """Batches of windows, always of the same ones, and the runs of bins that they are for."""

    cover: TissueCover
    slots: Slots
    batches: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, cover: TissueCover, rows: int) -> "SlidePlan":
        """rows: of a batch."""
        windows = range(len(cover.corners))
        batches = tuple(tuple(windows[first : first + rows]) for first in range(0, len(windows), rows))
        return cls(cover, Slots.of_rows(cover.places.row_N), batches)

    @functools.cached_property
    def runs_of_window(self) -> list[range]:
        """The runs whose rows a window reaches, by window."""
        places, first = self.cover.places, self.slots.first
        held = int(self.cover.data.window_um / places.size_um + 1e-6)
        first_row_R, last_row_R = places.row_N[first[:-1]], places.row_N[first[1:] - 1]
        found = []
        for _, y_um in self.cover.corners:
            top = round(y_um / places.size_um)
            low, high = np.searchsorted(last_row_R, top), np.searchsorted(first_row_R, top + held)
            found.append(range(int(low), int(high)))
        return found

    @functools.cached_property
    def windows_of_run(self) -> list[list[int]]:
        """The windows that reach a run, in ascending order, by run."""
        found: list[list[int]] = [[] for _ in range(len(self.slots))]
        for window, runs in enumerate(self.runs_of_window):
            for run in runs:
                found[run].append(window)
        return found

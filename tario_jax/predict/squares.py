"""Squares of any side around any places, as cells are read: a query carries its place and its size."""

import dataclasses

import numpy as np
import scipy.ndimage
import scipy.spatial

from tario_jax.config import DataConfig, InputError
from tario_jax.predict.cover import Cover, covering
from tario_jax.tokens.window import Bins, Window, turn_places


class SquareCover(Cover):
    """Windows whose bins are the squares that lie in them whole."""

    def window(self, corner: tuple[float, float], quarter_turns: int = 0) -> Window:
        return dataclasses.replace(super().window(corner, quarter_turns),
                                   bins=self.places.bins(*corner, quarter_turns))  # fmt: skip


class SquarePlaces:
    """Squares around given places, each of a side of its own."""

    turn = True

    def __init__(self, section, x_um_N: np.ndarray, y_um_N: np.ndarray, side_um_N: np.ndarray, data: DataConfig):
        self.x_um_N, self.y_um_N, self._side_um_N = x_um_N, y_um_N, side_um_N
        self._data, self._px_um = data, section.he_um_per_px or 1.0  # without an H&E there is no grid to keep to
        self.size_um = float(side_um_N.max())
        # half of the largest square beyond the place, on both sides
        self._reach_um = data.window_um - self.size_um - self._px_um - 1e-3
        if self._reach_um <= 0:
            raise InputError(f"{section.id}: a square of {self.size_um:.0f} µm does not fit windows of "
                             f"{data.window_um:g} µm")  # fmt: skip
        self.per_tile = most_in_a_tile(x_um_N, y_um_N, data.tile_um)
        self.pitch_um = 1.0  # of no grid: nothing is written in their order
        self.per_window = self.per_tile * round(data.window_um / data.tile_um) ** 2
        self._tree = scipy.spatial.cKDTree(np.stack([x_um_N, y_um_N], 1))

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows that hold every square whole; windows without one are left out."""
        side_um = self._data.window_um
        covered = covering(self.x_um_N, self.y_um_N, self.size_um / 2, side_um, self._px_um,
                            min(side_um * (1 - overlap), self._reach_um))  # fmt: skip
        return [corner for corner in covered if len(self._inside(*corner))]

    def _inside(self, x_um: float, y_um: float) -> np.ndarray:
        half_N, side_um = self._side_um_N / 2, self._data.window_um
        inside_N = (self.x_um_N >= x_um + half_N) & (self.x_um_N <= x_um + side_um - half_N)
        inside_N &= (self.y_um_N >= y_um + half_N) & (self.y_um_N <= y_um + side_um - half_N)
        return np.flatnonzero(inside_N)

    def bins(self, x_um: float, y_um: float, quarter_turns: int) -> Bins:
        """Those that lie whole in the window whose corner this is, where its turn takes them."""
        mine = self._inside(x_um, y_um)
        none = (np.zeros(0, np.int32),) * 3
        x_um_n, y_um_n = turn_places(self.x_um_N[mine] - x_um, self.y_um_N[mine] - y_um, self._data.window_um,
                                     quarter_turns, False)  # fmt: skip
        return Bins(x_um_n, y_um_n, self._side_um_N[mine],
                    np.ones(len(mine), np.float32), *none, 1.0, False)  # fmt: skip

    def number(self, x_um: np.ndarray, y_um: np.ndarray, size_um: np.ndarray) -> np.ndarray:
        """Numbers of the squares with these centres."""
        del size_um
        return self._tree.query(np.stack([x_um, y_um], 1))[1]


def most_in_a_tile(x_um_N: np.ndarray, y_um_N: np.ndarray, tile_um: float) -> int:
    """No tile, wherever it lies, holds more of these places: a quarter above the most, and quickly found."""
    step_um, low = tile_um / 8, (x_um_N.min(), y_um_N.min())
    column_N, row_N = (
        ((place - start) / step_um).astype(int) for place, start in zip((x_um_N, y_um_N), low, strict=True)
    )
    held = np.zeros((row_N.max() + 1, column_N.max() + 1), int)
    np.add.at(held, (row_N, column_N), 1)
    for axis in (0, 1):  # sums of the nine steps that a tile may touch
        held = scipy.ndimage.convolve1d(held, np.ones(9, int), axis, mode="constant")
    return int(held.max())

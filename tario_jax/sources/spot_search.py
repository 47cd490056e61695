"""Registration of spots: the log of their totals against the haematoxylin under them, at every shift."""

import numpy as np
from scipy import ndimage, signal

from tario_jax.sources.density_search import NULL_PLACES, haematoxylin, turned

_BLOCK_DIAMETERS = 6.0  # side of a block of spots that is resampled as one: three spots of an ST array


class SpotSearch:
    """Search for spots: log total against the haematoxylin of the disc, at shifts of a quarter of the diameter."""

    def __init__(self, he, he_um_per_px, x_um, y_um, total, diameter_um, max_shift_um):
        self.max_shift_um, self.step_um = max_shift_um, diameter_um / 4
        self.width_um, self.height_um = he.shape[1] * he_um_per_px, he.shape[0] * he_um_per_px
        self.diameter_um, self.tolerance_um = diameter_um, diameter_um / 2
        self.problem = "" if len(x_um) >= 30 else f"{len(x_um)} spots; at least 30 are needed"
        # nearly empty spots are one value: their logs would outweigh all others
        self.log_total_N = np.log(np.maximum(total, np.quantile(total, 0.05) + 1)) if len(total) else total
        if not self.problem and self.log_total_N.std() < 1e-6:
            self.problem = "all spots have the same total"
        if self.problem:
            return
        self.x_um, self.y_um = x_um - self.width_um / 2, y_um - self.height_um / 2
        stain_YxX, self.um = haematoxylin(he, he_um_per_px, diameter_um / 12)
        radius = diameter_um / 2 / self.um
        y, x = np.mgrid[-int(radius) : int(radius) + 1, -int(radius) : int(radius) + 1]
        disc = ((x**2 + y**2) <= radius**2).astype(np.float32)
        self.disc_YxX = signal.fftconvolve(stain_YxX, disc / disc.sum(), mode="same")

    def _stain(self, x_um: np.ndarray, y_um: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Haematoxylin under each spot at each shift (dy, dx), [S, N], places about the middle; NaN off the H&E."""
        dy, dx = (part.ravel()[:, None] for part in np.meshgrid(shifts, shifts, indexing="ij"))
        row_SxN = (y_um + dy + self.height_um / 2) / self.um - 0.5
        column_SxN = (x_um + dx + self.width_um / 2) / self.um - 0.5
        return ndimage.map_coordinates(self.disc_YxX, [row_SxN, column_SxN], order=1, cval=np.nan)

    def _scores(self, stain_SxN: np.ndarray, weight_N: np.ndarray | None = None) -> np.ndarray:
        """Weighted r with log total at each shift; −1 where fewer than three quarters of the spots are on the H&E."""
        on_SxN = np.isfinite(stain_SxN)
        weight_SxN = on_SxN * (np.ones(len(self.log_total_N)) if weight_N is None else weight_N)
        sum_S = np.maximum(weight_SxN.sum(1, keepdims=True), 1e-12)
        stain_SxN = np.where(on_SxN, stain_SxN, 0.0)
        stain_SxN = stain_SxN - (weight_SxN * stain_SxN).sum(1, keepdims=True) / sum_S
        total_SxN = self.log_total_N - (weight_SxN * self.log_total_N).sum(1, keepdims=True) / sum_S
        norm_S = np.sqrt((weight_SxN * total_SxN**2).sum(1) * (weight_SxN * stain_SxN**2).sum(1))
        score_S = (weight_SxN * total_SxN * stain_SxN).sum(1) / np.maximum(norm_S, 1e-12)
        return np.where(on_SxN.mean(1) >= 0.75, score_S, -1)

    def _grid(self) -> np.ndarray:
        reach = max(1, round(self.max_shift_um / self.step_um))
        return np.arange(-reach, reach + 1) * self.step_um

    def score_at_zero(self) -> float:
        return float(self._scores(self._stain(self.x_um, self.y_um, np.zeros(1)))[0])

    def best(self, orientation: int) -> tuple[float, tuple[float, float], bool]:
        shifts = self._grid()
        score = self._scores(self._stain(*turned(orientation, self.x_um, self.y_um), shifts))
        row, column = np.unravel_index(score.argmax(), (len(shifts), len(shifts)))
        at_edge = row in (0, len(shifts) - 1) or column in (0, len(shifts) - 1)
        # + 0.0: no negative zero in a report
        return float(score.max()), (float(-shifts[column]) + 0.0, float(-shifts[row]) + 0.0), bool(at_edge)

    def null(self, rng: np.random.Generator) -> np.ndarray:
        """Highest score of searches after turns by 45° to 315°, half of them mirrored.

        Turns keep the pattern of totals, neighbours included, which a shuffle of spots would not.
        """
        highest = []
        for place in range(NULL_PLACES):
            angle = rng.uniform(np.pi / 4, 7 * np.pi / 4)
            x_um = -self.x_um if place % 2 else self.x_um
            x = np.cos(angle) * x_um - np.sin(angle) * self.y_um
            y = np.sin(angle) * x_um + np.cos(angle) * self.y_um
            highest.append(self._scores(self._stain(x, y, self._grid()[::2])).max())
        return np.array(highest)

    def settle(self, rng: np.random.Generator, shift_um: tuple[float, float]) -> tuple[tuple[float, float], float]:
        """The shift, and how far the best shift strays over resampled blocks of spots (95 %)."""
        shifts = self._grid()
        stain_SxN = self._stain(self.x_um, self.y_um, shifts)
        block_um = _BLOCK_DIAMETERS * self.diameter_um
        key_Nx2 = np.floor(np.stack([self.x_um, self.y_um], 1) / block_um)
        blocks, block_N = np.unique(key_Nx2, axis=0, return_inverse=True)
        stray = []
        for _ in range(NULL_PLACES):
            weight = np.bincount(rng.integers(0, len(blocks), len(blocks)), minlength=len(blocks))
            score = self._scores(stain_SxN, weight[block_N.ravel()])
            row, column = np.unravel_index(score.argmax(), (len(shifts), len(shifts)))
            stray.append(np.hypot(-shifts[column] - shift_um[0], -shifts[row] - shift_um[1]))
        return shift_um, max(self.tolerance_um, float(np.quantile(stray, 0.95)))

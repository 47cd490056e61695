"""Registration of detections: haematoxylin and detections as maps, correlated at every shift."""

import numpy as np
from scipy import fft, ndimage
from skimage.color import rgb2hed
from skimage.transform import downscale_local_mean

from tario_jax.corpus.section import BlockImage

_TOLERANCE_UM = 5.0
_ERROR_UM = 0.5  # of a shift of detections as it is found: one of 5 µm, as virtual tissue has, is no fault at 5.02
_COARSE_PX = 1024  # longest side of the maps
_FINE_UM = 1.0
_LEAST_REACH_PX = 4  # of a search: on the coarse map of a whole slide 30 µm are one px or two, all of them its edge
_BLUR_UM, _BACKGROUND_UM = 1.5, 15.0  # a nucleus is between them: finer is noise, coarser is tissue and its edge
NULL_PLACES = 99
_MIN_OVERLAP = 0.5
_LEAST_DETECTIONS = 200
_STRIP_PX = 16 << 20  # of H&E that is averaged at once


class DensitySearch:
    """Search for detections: haematoxylin and detections as maps, correlated at every shift."""

    def __init__(self, he, he_um_per_px, places, max_shift_um):
        self.max_shift_um = max_shift_um
        self.width_um, self.height_um = he.shape[1] * he_um_per_px, he.shape[0] * he_um_per_px
        coarse_um = max(_FINE_UM, self.width_um / _COARSE_PX, self.height_um / _COARSE_PX)
        self.problem, self.tolerance_um = "", _TOLERANCE_UM
        if min(self.width_um, self.height_um) < 4 * max_shift_um:
            self.problem = (
                f"the section is {self.width_um:.0f} x {self.height_um:.0f} µm; at least {4 * max_shift_um:.0f} µm "
                "each way are needed"
            )
        if self.problem:
            return
        stain_YxX, self.um = haematoxylin(he, he_um_per_px, coarse_um)
        self.max_shift_um = max(max_shift_um, _LEAST_REACH_PX * self.um)
        # on a coarse map no nucleus is seen alone; then the band of sizes moves up with the px
        self.stain_YxX = _band(stain_YxX, self.um)
        if max(self.stain_YxX.shape) // 2 < 2 * self._reach:
            self.problem = f"the section is {self.width_um:.0f} x {self.height_um:.0f} µm: too small to search"
            return
        if self.stain_YxX.std() < 1e-6:
            self.problem = "the H&E has no contrast in haematoxylin"
            return
        number = self._count(places)
        if number < _LEAST_DETECTIONS:
            self.problem = f"{number} detections; at least {_LEAST_DETECTIONS} are needed"

    def _count(self, places) -> int:
        """Maps of the detections in every orientation, in one pass over them; returns how many there are."""
        rows, columns = self.stain_YxX.shape
        counts_8xM, number = np.zeros((8, rows * columns), np.int32), 0
        for x_um, y_um in places:
            number += len(x_um)
            for orientation in range(8):
                x, y = turned(orientation, x_um - self.width_um / 2, y_um - self.height_um / 2)
                column, row = (np.floor((at + side / 2) / self.um) for at, side in
                               ((x, self.width_um), (y, self.height_um)))  # fmt: skip
                inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
                cell = (row[inside] * columns + column[inside]).astype(np.int64)
                counts_8xM[orientation] += np.bincount(cell, minlength=rows * columns).astype(np.int32)
        self._counts_8xYxX = counts_8xM.reshape(8, rows, columns)
        return number

    def _density(self, orientation: int) -> np.ndarray:
        return self._counts_8xYxX[orientation].astype(np.float32)

    @property
    def _reach(self) -> int:
        """Of the search, in px of its map."""
        return max(1, round(self.max_shift_um / self.um))

    def score_at_zero(self) -> float:
        density_YxX = _band(self._density(0), self.um)
        return float(np.corrcoef(density_YxX.ravel(), self.stain_YxX.ravel())[0, 1])

    def best(self, orientation: int) -> tuple[float, tuple[float, float], bool]:
        density_YxX, mask_YxX = self._density(orientation), None
        if orientation % 2 and density_YxX.shape[0] != density_YxX.shape[1]:
            mask_YxX = self._turned_mask()  # a quarter turn leaves strips of the H&E without detections
        return _peak(self.stain_YxX, _band(density_YxX, self.um), mask_YxX, self.um, self.max_shift_um)

    def best_about(self, right_um: float, down_um: float) -> tuple[float, tuple[float, float]]:
        """Highest score of detections that lie about so far off, and how far they do."""
        score, shift_um, _ = _peak(self.stain_YxX, _band(self._density(0), self.um), None, self.um, self.max_shift_um,
                                   (right_um, down_um))  # fmt: skip
        return score, shift_um

    def _turned_mask(self) -> np.ndarray:
        rows, columns = self.stain_YxX.shape
        y, x = np.abs(np.arange(rows) + 0.5 - rows / 2), np.abs(np.arange(columns) + 0.5 - columns / 2)
        return (y[:, None] < columns / 2) & (x[None, :] < rows / 2)

    def null(self, rng: np.random.Generator) -> np.ndarray:
        """Highest score of searches of the same size about places more than two searches away, edges joined."""
        rows, columns = self.stain_YxX.shape
        stain = (self.stain_YxX - self.stain_YxX.mean()) / self.stain_YxX.std()
        density = _band(self._density(0), self.um)
        density = (density - density.mean()) / max(density.std(), 1e-12)
        score_YxX = fft.irfft2(fft.rfft2(stain) * np.conj(fft.rfft2(density)), s=stain.shape) / stain.size
        reach = self._reach
        highest_YxX = ndimage.maximum_filter(score_YxX, size=2 * reach + 1, mode="wrap")
        y = np.minimum(np.arange(rows), rows - np.arange(rows))
        x = np.minimum(np.arange(columns), columns - np.arange(columns))
        far = np.argwhere(np.maximum(y[:, None], x[None, :]) >= 2 * reach)
        pick = far[rng.integers(0, len(far), NULL_PLACES)]
        return highest_YxX[pick[:, 0], pick[:, 1]]

    def settle(self, rng: np.random.Generator, shift_um: tuple[float, float]) -> tuple[tuple[float, float], float]:
        """The shift as found: the summit between px errs by less than half a µm even on px of 10 µm."""
        return shift_um, self.tolerance_um + _ERROR_UM


def _band(map_YxX: np.ndarray, um: float) -> np.ndarray:
    """The map between nucleus and tissue scale."""
    fine, coarse = max(_BLUR_UM / um, 1.0), max(_BACKGROUND_UM / um, 4.0)
    return ndimage.gaussian_filter(map_YxX, fine) - ndimage.gaussian_filter(map_YxX, coarse)


def _peak(
    stain_YxX: np.ndarray, density_YxX: np.ndarray, mask_YxX: np.ndarray | None, um: float, max_shift_um: float,
    about_um: tuple[float, float] = (0.0, 0.0),
) -> tuple[float, tuple[float, float], bool]:  # fmt: skip
    """(score, how far the detections lie off, whether at the edge of the search) at the highest score near about_um."""
    mask_YxX = np.ones(stain_YxX.shape, bool) if mask_YxX is None else mask_YxX
    score = correlate_over_overlap(stain_YxX, density_YxX, mask_YxX)
    reach = min(max(1, round(max_shift_um / um)), stain_YxX.shape[0] - 1, stain_YxX.shape[1] - 1)
    # the score's shift moves the detections onto the H&E, so they lie off by its opposite
    middle = [-round(off_um / um) for off_um in (about_um[1], about_um[0])]
    window = np.roll(score, (reach - middle[0], reach - middle[1]), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    row, column = np.unravel_index(window.argmax(), window.shape)
    at_edge = row in (0, 2 * reach) or column in (0, 2 * reach)
    dy, dx = row - reach + middle[0], column - reach + middle[1]
    if not at_edge:  # the summit of a parabola through the neighbours, by axis
        dy += _summit(window[row - 1 : row + 2, column])
        dx += _summit(window[row, column - 1 : column + 2])
    return float(window[row, column]), (float(-dx * um), float(-dy * um)), bool(at_edge)


def _summit(three: np.ndarray) -> float:
    bend = three[0] - 2 * three[1] + three[2]
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (three[0] - three[2]) / bend, -0.5, 0.5))


def correlate_over_overlap(fixed_YxX: np.ndarray, moving_YxX: np.ndarray, moving_mask_YxX: np.ndarray) -> np.ndarray:
    """Pearson r of `fixed` with `moving` moved by (dy, dx), over the px where both are; [dy mod 2Y, dx mod 2X].

    Shifts that leave less than half of the mask in overlap are −1. Padfield 2012, equation 8.
    """
    rows, columns = fixed_YxX.shape
    shape = [fft.next_fast_len(2 * rows, True), fft.next_fast_len(2 * columns, True)]

    def spectrum(map_YxX):
        return fft.rfft2(map_YxX, s=shape)

    def moved(fixed_spectrum, moving_spectrum):
        return fft.irfft2(fixed_spectrum * np.conj(moving_spectrum), s=shape)

    # means are taken off first, so that the variances below are no small differences of large numbers
    fixed = fixed_YxX.astype(np.float64) - fixed_YxX.mean()
    mask = moving_mask_YxX.astype(np.float64)
    moving = (moving_YxX - moving_YxX[moving_mask_YxX].mean()) * mask
    one_F, fixed_F, square_F = spectrum(np.ones_like(fixed)), spectrum(fixed), spectrum(fixed**2)
    mask_F, moving_F, moving_square_F = spectrum(mask), spectrum(moving), spectrum(moving**2)
    number = np.maximum(moved(one_F, mask_F), 1.0)
    fixed_sum, moving_sum = moved(fixed_F, mask_F), moved(one_F, moving_F)
    covariance = moved(fixed_F, moving_F) - fixed_sum * moving_sum / number
    variance = (moved(square_F, mask_F) - fixed_sum**2 / number) * (
        moved(one_F, moving_square_F) - moving_sum**2 / number
    )
    score = np.full(shape, -1.0)
    enough = (number >= _MIN_OVERLAP * mask.sum()) & (variance > 1e-12 * variance.max())
    score[enough] = covariance[enough] / np.sqrt(variance[enough])
    return score


def turned(orientation: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places about the middle, first mirrored left to right (4 to 7), then turned by quarters (clockwise, y down)."""
    if orientation >= 4:
        x = -x
    for _ in range(orientation % 4):
        x, y = -y, x
    return x, y


def haematoxylin(he: np.ndarray | BlockImage, he_um_per_px: float, um_per_px: float) -> tuple[np.ndarray, float]:
    """Haematoxylin (Ruifrok and Johnston) [rows, columns] at about `um_per_px`, and the µm per px that came of it."""
    factor = max(1, round(um_per_px / he_um_per_px))
    if factor > 1:  # whole blocks only: padding would draw a dark border
        height, width = (size // factor * factor for size in he.shape[:2])
        if not height or not width:
            return np.zeros((0, 0), np.float32), factor * he_um_per_px
        step = factor * max(1, _STRIP_PX // (factor * width))
        he = np.concatenate(  # in strips: the mean is taken in double precision
            [downscale_local_mean(he[top : min(top + step, height), :width], (factor, factor, 1))
             for top in range(0, height, step)]
        )  # fmt: skip
    else:
        he = he[:, :].astype(np.float64)
    return rgb2hed(he / 255.0)[..., 0].astype(np.float32), factor * he_um_per_px

"""Does the H&E lie where the detections say? Haematoxylin against detections, over shifts, flips and quarter turns.

Nuclei are blue and hold many transcripts, so the two maps rise and fall together where they are registered. Lymphocytes
are dark and poor in RNA, so the score is never near 1: what counts is where its maximum lies, and whether that maximum
stands out from scores of places that cannot be right.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal

import numpy as np
from scipy import fft, ndimage, signal
from skimage.color import rgb2hed
from skimage.transform import downscale_local_mean

from tario_jax.corpus.section import BlockImage

Verdict = Literal["registered", "shifted", "turned", "mirrored", "not checkable"]

# What would have to be done to the detections, about the middle of the section, to fit the H&E.
_ORIENTATIONS = (
    "as stored",
    "turned by 90°",
    "turned by 180°",
    "turned by 270°",
    "mirrored left to right",
    "mirrored along a diagonal",
    "mirrored top to bottom",
    "mirrored along the other diagonal",
)
_TOLERANCE_UM = 5.0
_ERROR_UM = 0.5  # of a shift of detections as it is found: one of 5 µm, as virtual tissue has, is no fault at 5.02
_COARSE_PX = 1024  # longest side of the maps
_FINE_UM = 1.0
_BLUR_UM, _BACKGROUND_UM = 1.5, 15.0  # a nucleus is between them: finer is noise, coarser is tissue and its edge
_NULL_PLACES = 99
_MIN_OVERLAP = 0.5
_LEAST_DETECTIONS = 200
_STRIP_PX = 16 << 20  # of H&E that is averaged at once
_BLOCK_DIAMETERS = 6.0  # side of a block of spots that is resampled as one: three spots of an ST array


@dataclasses.dataclass(frozen=True)
class RegistrationReport:
    """shift_um = (dx, dy): how far the detections lie right of and below their place on the H&E.

    Scores are correlations: as stored, at the best shift as stored, and at the best shift of any orientation.
    null_score is the highest of `null_places` searches at places that are wrong on purpose.
    """

    verdict: Verdict
    shift_um: tuple[float, float]
    orientation: str
    score_at_zero: float
    score_as_stored: float
    best_score: float
    null_score: float
    null_places: int
    tolerance_um: float
    reason: str = ""

    @property
    def ok(self) -> bool:
        return self.verdict == "registered"

    def line(self) -> str:
        """One line for people."""
        dx, dy = self.shift_um
        what = {
            "registered": f"registered: best shift ({dx:+.1f}, {dy:+.1f}) µm, within {self.tolerance_um:.3g} of zero",
            "shifted": f"shifted: detections lie {np.hypot(dx, dy):.1f} µm off, ({dx:+.1f} right, {dy:+.1f} down) µm"
            + (f": {self.reason}" if self.reason else ""),
            "turned": f"turned: detections fit the H&E when {self.orientation}",
            "mirrored": f"mirrored: detections fit the H&E when {self.orientation}",
            "not checkable": f"not checkable: {self.reason}",
        }[self.verdict]
        scores = f"r = {self.score_at_zero:.2f} at zero, {self.best_score:.2f} at best, null {self.null_score:.2f}"
        return what if np.isnan(self.best_score) else f"{what} ({scores})"

    def to_dict(self) -> dict:
        """The same as plain JSON values; a score that could not be had is null."""
        values = dataclasses.asdict(self)
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in values.items()}


def check_registration(
    he: np.ndarray | BlockImage,
    he_um_per_px: float,
    x_um: np.ndarray,
    y_um: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    diameter_um: float | None = None,
    max_shift_um: float | None = None,
    seed: int = 0,
) -> RegistrationReport:
    """Checks the places against the H&E in the section's frame.

    Args:
        he: uint8 [H, W, 3]; one that is read block by block is never held whole.
        x_um, y_um: [D] detections (pass those inside nuclei where that is known), or [N] centres of spots.
        weights, diameter_um: for spots: total counts [N] and the diameter. Both or neither.
        max_shift_um: of the search; 30 for detections, two diameters for spots.

    Detections are compared as densities at about 1 µm, blurred by 1.5 µm and freed of what varies over more than
    15 µm, by the correlation over the overlap at every shift (Padfield 2012, doi:10.1109/TIP.2011.2181402). Spots are
    compared by the correlation of log total with the mean haematoxylin of their disc; they are registered within half
    a diameter, or within the 95 % interval of the best shift over resampled blocks of spots where that is wider; an
    interval wider than a diameter is said to be not checkable. Raises `ValueError` where only one of weights and
    diameter_um is given.
    """
    if (weights is None) != (diameter_um is None):
        raise ValueError("check_registration: weights and diameter_um describe spots and belong together")
    x_um, y_um = np.asarray(x_um, np.float64), np.asarray(y_um, np.float64)
    if weights is None:
        return check_detections(he, he_um_per_px, [(x_um, y_um)], max_shift_um=max_shift_um, seed=seed)
    return _report(_Spots(he, he_um_per_px, x_um, y_um, np.asarray(weights, np.float64), diameter_um,
                          max_shift_um or 2 * diameter_um), seed)  # fmt: skip


def check_detections(
    he: np.ndarray | BlockImage,
    he_um_per_px: float,
    places: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    max_shift_um: float | None = None,
    field_um: tuple[float, float] | None = None,
    seed: int = 0,
) -> RegistrationReport:
    """`check_registration` of detections that come in blocks (x_um, y_um), read once and never held together.

    field_um: width and height of an imaging field: detections are sought one field off, too.
    """
    return _report(_Density(he, he_um_per_px, places, max_shift_um or 30.0), seed, field_um)


def _report(
    search: "_Density | _Spots", seed: int, field_um: tuple[float, float] | None = None
) -> RegistrationReport:  # fmt: skip
    rng = np.random.Generator(np.random.Philox(seed))
    if search.problem:
        return RegistrationReport(
            "not checkable", (0.0, 0.0), _ORIENTATIONS[0], np.nan, np.nan, np.nan, np.nan, 0,
            search.tolerance_um, search.problem,
        )  # fmt: skip
    zero = search.score_at_zero()
    found = [search.best(orientation) for orientation in range(8)]
    scores = np.array([score for score, _, _ in found])
    null = search.null(rng)
    winner = int(scores.argmax())
    best, shift_um, at_edge = found[winner]
    reason, tolerance_um = "", search.tolerance_um
    if field_um is not None:
        by_field, field_shift_um = max(search.best_about(*at_um) for at_um in _one_off(field_um))
        # by chance one of the wrong places may be the right one: their median is not moved by it
        if by_field > 3 * max(best, np.median(null)):
            return RegistrationReport(
                "shifted", field_shift_um, _ORIENTATIONS[0], zero, float(scores[0]), by_field, float(np.median(null)),
                len(null), tolerance_um, "about one field of view",
            )  # fmt: skip
    if best <= null.max():
        verdict: Verdict = "not checkable"
        reason = "no shift, flip or quarter turn agrees better than wrong places do"
        if null.max() > 3 * max(best, np.median(null)):
            reason = f"a place more than {search.max_shift_um:g} µm away fits far better; is it another field?"
    elif at_edge:
        verdict = "not checkable"
        reason = f"the score still rises at the edge of the search ({search.max_shift_um:g} µm)"
    elif winner:
        verdict = "turned" if winner < 4 else "mirrored"
    else:
        shift_um, tolerance_um = search.settle(rng, shift_um)
        verdict = "registered" if np.hypot(*shift_um) <= tolerance_um else "shifted"
        if tolerance_um > 2 * search.tolerance_um:
            verdict = "not checkable"
            reason = f"it fits better than flipped or turned, but its best shift is uncertain by {tolerance_um:.0f} µm"
    return RegistrationReport(
        verdict, shift_um, _ORIENTATIONS[winner], zero, float(scores[0]), float(best), float(null.max()), len(null),
        tolerance_um, reason,
    )  # fmt: skip


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


def _one_off(field_um: tuple[float, float]) -> list[tuple[float, float]]:
    """(right, down) of the four neighbouring fields."""
    width_um, height_um = field_um
    return [(width_um, 0.0), (-width_um, 0.0), (0.0, height_um), (0.0, -height_um)]


def _turn(orientation: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places about the middle, first mirrored left to right (4 to 7), then turned by quarters (clockwise, y down)."""
    if orientation >= 4:
        x = -x
    for _ in range(orientation % 4):
        x, y = -y, x
    return x, y


class _Density:
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
        # on a coarse map no nucleus is seen alone; then the band of sizes moves up with the px
        self.stain_YxX = _band(stain_YxX, self.um)
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
                x, y = _turn(orientation, x_um - self.width_um / 2, y_um - self.height_um / 2)
                column, row = (np.floor((at + side / 2) / self.um) for at, side in
                               ((x, self.width_um), (y, self.height_um)))  # fmt: skip
                inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
                cell = (row[inside] * columns + column[inside]).astype(np.int64)
                counts_8xM[orientation] += np.bincount(cell, minlength=rows * columns).astype(np.int32)
        self._counts_8xYxX = counts_8xM.reshape(8, rows, columns)
        return number

    def _density(self, orientation: int) -> np.ndarray:
        return self._counts_8xYxX[orientation].astype(np.float32)

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
        reach = max(1, round(self.max_shift_um / self.um))
        highest_YxX = ndimage.maximum_filter(score_YxX, size=2 * reach + 1, mode="wrap")
        y = np.minimum(np.arange(rows), rows - np.arange(rows))
        x = np.minimum(np.arange(columns), columns - np.arange(columns))
        far = np.argwhere(np.maximum(y[:, None], x[None, :]) >= 2 * reach)
        pick = far[rng.integers(0, len(far), _NULL_PLACES)]
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


class _Spots:
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
        score = self._scores(self._stain(*_turn(orientation, self.x_um, self.y_um), shifts))
        row, column = np.unravel_index(score.argmax(), (len(shifts), len(shifts)))
        at_edge = row in (0, len(shifts) - 1) or column in (0, len(shifts) - 1)
        # + 0.0: no negative zero in a report
        return float(score.max()), (float(-shifts[column]) + 0.0, float(-shifts[row]) + 0.0), bool(at_edge)

    def null(self, rng: np.random.Generator) -> np.ndarray:
        """Highest score of searches after turns by 45° to 315°, half of them mirrored.

        Turns keep the pattern of totals, neighbours included, which a shuffle of spots would not.
        """
        highest = []
        for place in range(_NULL_PLACES):
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
        for _ in range(_NULL_PLACES):
            weight = np.bincount(rng.integers(0, len(blocks), len(blocks)), minlength=len(blocks))
            score = self._scores(stain_SxN, weight[block_N.ravel()])
            row, column = np.unravel_index(score.argmax(), (len(shifts), len(shifts)))
            stray.append(np.hypot(-shifts[column] - shift_um[0], -shifts[row] - shift_um[1]))
        return shift_um, max(self.tolerance_um, float(np.quantile(stray, 0.95)))

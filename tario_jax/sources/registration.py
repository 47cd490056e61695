"""Does the H&E lie where the detections say? Haematoxylin against detections, over shifts, flips and quarter turns.

Nuclei are blue and hold many transcripts, so the two maps rise and fall together where they are registered. Lymphocytes
are dark and poor in RNA, so the score is never near 1: what counts is where its maximum lies, and whether that maximum
stands out from scores of places that cannot be right.
"""

import dataclasses
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np

from tario_jax.corpus.section import BlockImage
from tario_jax.sources.density_search import DensitySearch
from tario_jax.sources.spot_search import SpotSearch

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


class Search(Protocol):
    """A way to score how well detections or spots fit the H&E, at shifts of up to `max_shift_um` and 8 orientations.

    `problem` says why nothing can be searched, and is "" otherwise; then a shift within `tolerance_um` is none.
    """

    max_shift_um: float
    tolerance_um: float
    problem: str

    def score_at_zero(self) -> float:
        """r as stored, unshifted."""

    def best(self, orientation: int) -> tuple[float, tuple[float, float], bool]:
        """Highest r in an orientation; how far the detections then lie (right, down) of the H&E, in µm; whether that
        is at the edge of the search."""

    def null(self, rng: np.random.Generator) -> np.ndarray:
        """Highest r of each of some searches at places that are wrong on purpose."""

    def settle(self, rng: np.random.Generator, shift_um: tuple[float, float]) -> tuple[tuple[float, float], float]:
        """The best shift as stored, and by how much it may be off zero and still be none, in µm."""


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
    return _report(SpotSearch(he, he_um_per_px, x_um, y_um, np.asarray(weights, np.float64), diameter_um,
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
    return _report(DensitySearch(he, he_um_per_px, places, max_shift_um or 30.0), seed, field_um)


def _report(
    search: Search, seed: int, field_um: tuple[float, float] | None = None
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


def _one_off(field_um: tuple[float, float]) -> list[tuple[float, float]]:
    """(right, down) of the four neighbouring fields."""
    width_um, height_um = field_um
    return [(width_um, 0.0), (-width_um, 0.0), (0.0, height_um), (0.0, -height_um)]

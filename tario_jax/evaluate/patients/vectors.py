"""Tissue as vectors: of a section, or of squares of it, from predicted rates or from measured detections.

expression       log1p of detections per million, of all bins together: predicted and measured tissue lie in one space
log_expression   mean over bins of log1p of detections per 10,000: predicted alone, counts of a bin are too few
state            mean over bins of what the decoder hands to the gene table: predicted alone
spread           standard deviation over bins of the same; of a patient, the mean of that of the sections
texture          stain and texture of the H&E of a whole section, without any model: `looks`
acquisition      what lens, camera and file format left in it: `looks`

Axes: N bins, n some of them, G genes, r width of the gene table, F, A figures of a look, P patients, R rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.bulk import log_cpm
from tario_jax.evaluate.patients.looks import Look, no_look
from tario_jax.evaluate.ridge import Spread
from tario_jax.predict.writing import holds_tissue

PREDICTED, MEASURED = "predicted", "measured"
WHOLE = ""  # the region of a row that is of a whole section
_PER = 1e4
_BINS = 256  # whose rates are read at once


class Embedded(NamedTuple):
    """A row: a section or a region of it. NaN: not known."""

    patient: str
    cohort: str
    section: str
    seal: str  # of the section: tells it from another that is called so
    region: str
    kind: str
    seen: bool  # the model saw the patient in training or validation
    bins: int
    detections: float
    um_per_px: float  # of the H&E
    expression_G: np.ndarray
    log_expression_G: np.ndarray
    state_r: np.ndarray
    spread_r: np.ndarray
    texture_F: np.ndarray
    acquisition_A: np.ndarray


class Who(NamedTuple):
    """Whose a row is."""

    patient: str
    cohort: str
    section: str
    seal: str
    seen: bool


class Patients(NamedTuple):
    """Sections pooled by patient, in the order of their names."""

    name_P: np.ndarray
    cohort_P: np.ndarray
    seen_P: np.ndarray
    expression_PxG: np.ndarray
    log_expression_PxG: np.ndarray
    state_Pxr: np.ndarray
    spread_Pxr: np.ndarray
    texture_PxF: np.ndarray
    acquisition_PxA: np.ndarray

    def take(self, some: np.ndarray) -> "Patients":
        """Those at some positions, or where a mask is true."""
        return Patients(*(of_P[some] for of_P in self))


def of_rates(who: Who, region: str, read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], total_N: np.ndarray,
             look: Look) -> Embedded | None:  # fmt: skip
    """read(some) gives rates [n, G] and states [n, r] of some of the N bins, a few at a time; total: expected
    detections of each bin. None where no bin is tissue."""
    tissue_n = np.flatnonzero(holds_tissue(total_N))
    if not len(tissue_n):
        return None
    sum_G = log_sum_G = 0.0
    state_spread: list[Spread] = []
    for first in range(0, len(tissue_n), _BINS):
        some = tissue_n[first : first + _BINS]
        rates_nxG, state_nxr = read(some)
        sum_G = sum_G + rates_nxG.sum(0, dtype=np.float64)
        log_nxG = np.log1p(_PER * rates_nxG / total_N[some, None].astype(np.float32))
        log_sum_G = log_sum_G + log_nxG.sum(0, dtype=np.float64)
        state_spread.append(Spread.of(state_nxr))
    total, state = total_N[tissue_n].sum(), Spread.merged(state_spread)
    expression_G = log_cpm(sum_G[None], total[None])[0]
    vectors = log_sum_G / len(tissue_n), state.mean_F, state.sd_F
    return Embedded(who.patient, who.cohort, who.section, who.seal, region, PREDICTED, who.seen, len(tissue_n),
                    float(total), look.um_per_px, *(of.astype(np.float32) for of in (expression_G, *vectors)),
                    look.texture_F, look.acquisition_A)  # fmt: skip


def of_counts(who: Who, region: str, count_G: np.ndarray, known_G: np.ndarray, width: int) -> Embedded | None:
    """count: detections of all of it; known: genes that were measured. width: r. None where nothing was detected."""
    total = float(count_G[known_G].sum())
    if not total:
        return None
    expression_G = log_cpm(count_G[None].astype(np.float64), np.array([total]))[0]
    return _nothing(who, region, MEASURED, len(count_G), width)._replace(
        detections=total, expression_G=np.where(known_G, expression_G, np.nan).astype(np.float32))  # fmt: skip


def without_tissue(who: Who, kind: str, genes: int, width: int) -> Embedded:
    """Says that a section was looked at, and holds nothing: it is not looked at again."""
    return _nothing(who, WHOLE, kind, genes, width)


def _nothing(who: Who, region: str, kind: str, genes: int, width: int) -> Embedded:
    look, vectors = no_look(), (np.full(size, np.nan, np.float32) for size in (genes, genes, width, width))
    return Embedded(who.patient, who.cohort, who.section, who.seal, region, kind, who.seen, 0, 0.0, look.um_per_px,
                    *vectors, look.texture_F, look.acquisition_A)  # fmt: skip


def pooled(rows: Sequence[Embedded]) -> Patients:
    """Whole sections of one kind by patient: expression as of all their detections together, the others by bins.

    A gene that a section did not measure is pooled over the patient's other sections. Raises `InputError` for no rows.
    """
    if not rows:
        raise InputError("no patient is embedded here; 'tario embed' adds them")
    by_patient: dict[str, list[Embedded]] = {}
    for row in rows:
        by_patient.setdefault(row.patient, []).append(row)
    names = sorted(by_patient)
    pooled_P = [_pooled(by_patient[name]) for name in names]
    parts = (np.stack(of_P) for of_P in zip(*pooled_P, strict=True))
    return Patients(np.array(names), np.array([by_patient[name][0].cohort for name in names]),
                    np.array([any(row.seen for row in by_patient[name]) for name in names]), *parts)  # fmt: skip


def _pooled(rows: list[Embedded]) -> tuple[np.ndarray, ...]:
    expression_RxG = np.stack([row.expression_G for row in rows]).astype(np.float64)
    detections_R = np.array([row.detections for row in rows])
    known_RxG = np.isfinite(expression_RxG)
    weight_RxG = known_RxG * detections_R[:, None]
    per_million_RxG = np.expm1(np.where(known_RxG, expression_RxG, 0.0))
    weight_G = weight_RxG.sum(0)
    mean_G = (weight_RxG * per_million_RxG).sum(0) / np.where(weight_G > 0, weight_G, np.nan)
    others = (_by_bins(rows, name) for name in ("log_expression_G", "state_r", "spread_r", "texture_F",
                                                "acquisition_A"))  # fmt: skip
    return tuple(of.astype(np.float32) for of in (np.log1p(mean_G), *others))


def _by_bins(rows: list[Embedded], name: str) -> np.ndarray:
    """Mean over bins, of sections of which it is known (a tiny H&E has no look); NaN where there is none."""
    value_RxF = np.stack([getattr(row, name) for row in rows]).astype(np.float64)
    known_R = np.isfinite(value_RxF).all(1)
    bins_R = known_R * np.array([row.bins for row in rows], float)
    share_R = bins_R / bins_R.sum() if bins_R.any() else np.full(len(rows), np.nan)
    return share_R @ np.where(known_R[:, None], value_RxF, 0.0)

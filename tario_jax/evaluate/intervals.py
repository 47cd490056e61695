"""Intervals: patients are the unit; within one patient, blocks of tissue.

Every quantity of a report is resampled with the same draws, so that differences are paired.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.special

from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moments import Sums

INTERVAL = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Draws with replacement, shared by all quantities.

    by "patient": weights_BxS[b, s] is how often section s (that is: its patient) is drawn in sample b.
    by "block": weights_S[s] [B, blocks] is how often each block of section s is drawn;
    every section is resampled within itself.
    """

    by: Literal["patient", "block"]
    patients: int
    weights_BxS: np.ndarray | None = None
    weights_S: tuple[np.ndarray, ...] = ()

    @property
    def name(self) -> str:
        return "patient bootstrap" if self.by == "patient" else "block interval"


@dataclasses.dataclass(frozen=True)
class Scores:
    """r of one method in one form: r_SxG by section and gene.

    Where blocks are resampled their sums are kept, of the genes `columns` (ascending): a tuple of sums a section, whose
    r are averaged (displacement has one a direction).
    """

    r_SxG: np.ndarray
    sums_S: tuple[tuple[Sums, ...], ...] | None = None
    columns: np.ndarray | None = None

    @property
    def by_gene(self) -> np.ndarray:
        """Mean over sections, undefined left out, [G]."""
        return mean_defined(self.r_SxG)


def patient_resampling(patient_S: list[str], samples: int, rng: np.random.Generator) -> Resampling:
    """Bootstrap over patients: all sections of a drawn patient come along.

    Of one patient there is nothing to draw: weights are NaN, and so is whatever is made of them.
    """
    names, index_S = np.unique(np.asarray(patient_S), return_inverse=True)
    if len(names) < 2:
        return Resampling("patient", len(names), weights_BxS=np.full((samples, len(index_S)), np.nan))
    drawn_BxP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return Resampling("patient", len(names), weights_BxS=drawn_BxP[:, index_S].astype(np.float64))


def blocks(x_um_N: np.ndarray, y_um_N: np.ndarray, block_um: float) -> np.ndarray:
    """Number of the square block of side `block_um` that each place (centre, µm) lies in, int [N]: 0 … blocks − 1."""
    column_N = np.floor((x_um_N - x_um_N.min()) / block_um + 1e-6).astype(np.int64)
    row_N = np.floor((y_um_N - y_um_N.min()) / block_um + 1e-6).astype(np.int64)
    return np.unique(row_N * (column_N.max() + 1) + column_N, return_inverse=True)[1]


def block_resampling(block_S: list[np.ndarray], samples: int, rng: np.random.Generator) -> Resampling:
    """Bootstrap over blocks of tissue within each section."""
    weights_S = []
    for block_N in block_S:
        number = int(block_N.max()) + 1
        weights_S.append(rng.multinomial(number, np.full(number, 1 / number), size=samples).astype(np.float64))
    return Resampling("block", 1, weights_S=tuple(weights_S))


def resample(scores: Scores, genes: np.ndarray, resampling: Resampling) -> np.ndarray:
    """r by gene in every sample, float64 [B, len(genes)]; NaN where a gene is undefined in all that was drawn."""
    if resampling.by == "patient":
        return weighted_mean(scores.r_SxG[:, genes], resampling.weights_BxS)
    at = np.searchsorted(scores.columns, genes)
    r_SxBxG = [
        mean_defined(np.stack([sums.of(at).r(weights_BxK) for sums in several]))
        for several, weights_BxK in zip(scores.sums_S, resampling.weights_S, strict=True)
    ]
    return mean_defined(np.stack(r_SxBxG))


def weighted_mean(r_SxG: np.ndarray, weights_BxS: np.ndarray) -> np.ndarray:
    """Mean over sections with weights, undefined left out, [B, G]; NaN where nothing is defined."""
    defined_SxG = np.isfinite(r_SxG)
    weight_BxG = weights_BxS @ defined_SxG.astype(np.float64)
    total_BxG = weights_BxS @ np.where(defined_SxG, r_SxG, 0.0)
    return np.where(weight_BxG > 0, total_BxG / np.maximum(weight_BxG, 1e-300), np.nan)


def block_correlation(x_NxG: np.ndarray, p_NxG: np.ndarray, block_N: np.ndarray, weights_BxK: np.ndarray) -> np.ndarray:
    """Pearson r by gene with every bin weighted by how often its block is drawn, [B, G].

    Works from block sums, so its cost does not grow with bins × samples.
    """
    member_KxN = (np.arange(weights_BxK.shape[1])[:, None] == block_N).astype(np.float64)
    x, p, xx, pp, xp = (member_KxN @ values for values in (x_NxG, p_NxG, x_NxG**2, p_NxG**2, x_NxG * p_NxG))
    return Sums(member_KxN.sum(1), x, p, xx, pp, xp, xx, pp).r(weights_BxK)


def lower_ends(samples_BxG: np.ndarray) -> np.ndarray:
    """2.5th percentile of each column, [G]; NaN where nothing is defined."""
    low_G = np.full(samples_BxG.shape[1], np.nan)
    seen_G = np.isfinite(samples_BxG).any(0)
    if seen_G.any():
        low_G[seen_G] = np.nanpercentile(samples_BxG[:, seen_G], INTERVAL[0], axis=0)
    return low_G


def lower_t(values_PxG: np.ndarray) -> np.ndarray:
    """Low end of the 95 % t interval of each column's mean over patients, [G]; NaN where fewer than two are defined.

    Of few patients a bootstrap's percentiles lie too near: of two, a quarter of genes without skill would pass.
    """
    defined_PxG = np.isfinite(values_PxG)
    number_G = defined_PxG.sum(0)
    mean_G = mean_defined(values_PxG)
    square_G = np.where(defined_PxG, (values_PxG - mean_G) ** 2, 0.0).sum(0)
    enough_G = np.maximum(number_G, 2)
    error_G = np.sqrt(square_G / (enough_G - 1) / enough_G)
    low_G = mean_G - scipy.special.stdtrit(enough_G - 1, INTERVAL[1] / 100) * error_G
    return np.where(number_G >= 2, low_G, np.nan)


def lower_by_patient(values_SxG: np.ndarray, patients: Sequence[str]) -> np.ndarray:
    """`lower_t` of the patients' means over their sections, [G]; patients: of each section."""
    patient_S = np.asarray(patients)
    return lower_t(np.stack([mean_defined(values_SxG[patient_S == name]) for name in np.unique(patient_S)]))


def interval(samples_B: np.ndarray) -> tuple[float, float]:
    """2.5th and 97.5th percentile of what is defined; NaN where nothing is."""
    defined = samples_B[np.isfinite(samples_B)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)


def ends(samples_B: np.ndarray) -> dict[str, float]:
    """`interval` as a report holds it: {"low": …, "high": …}."""
    low, high = interval(samples_B)
    return {"low": low, "high": high}

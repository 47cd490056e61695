"""Intervals: patients are the unit; within one patient, blocks of tissue.

Every quantity of a report is resampled with the same draws, so that differences are paired.
"""

import dataclasses
from typing import Literal

import numpy as np

from tario_jax.evaluate.metrics import correlation, mean_defined

INTERVAL = (2.5, 97.5)


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Draws with replacement, shared by all quantities.

    by "patient": weights_BxS[b, s] is how often section s (that is: its patient) is drawn in sample b.
    by "block": block_S[s] gives each bin's block in section s, weights_S[s] [B, blocks] how often each is drawn;
    every section is resampled within itself.
    """

    by: Literal["patient", "block"]
    patients: int
    weights_BxS: np.ndarray | None = None
    block_S: tuple[np.ndarray, ...] = ()
    weights_S: tuple[np.ndarray, ...] = ()

    @property
    def name(self) -> str:
        return "patient bootstrap" if self.by == "patient" else "block interval"


@dataclasses.dataclass(frozen=True)
class Pair:
    """Measured and predicted values of one section on the same bins; `bin_N` are their positions in the section."""

    x_NxG: np.ndarray
    p_NxG: np.ndarray
    bin_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scores:
    """r of one method in one form: r_SxG by section and gene.

    Where blocks are resampled the values themselves are kept: a tuple of pairs a section, whose r are averaged
    (displacement has one pair a direction).
    """

    r_SxG: np.ndarray
    pairs_S: tuple[tuple[Pair, ...], ...] | None = None

    @property
    def by_gene(self) -> np.ndarray:
        """Mean over sections, undefined left out, [G]."""
        return mean_defined(self.r_SxG)


def patient_resampling(patient_S: list[str], samples: int, rng: np.random.Generator) -> Resampling:
    """Bootstrap over patients: all sections of a drawn patient come along."""
    names, index_S = np.unique(np.asarray(patient_S), return_inverse=True)
    drawn_BxP = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return Resampling("patient", len(names), weights_BxS=drawn_BxP[:, index_S].astype(np.float64))


def blocks(x_um_N: np.ndarray, y_um_N: np.ndarray, block_um: float) -> np.ndarray:
    """Number of the square block of side `block_um` that each place lies in, 0 … blocks − 1."""
    column_N = np.floor((x_um_N - x_um_N.min()) / block_um + 1e-6).astype(np.int64)
    row_N = np.floor((y_um_N - y_um_N.min()) / block_um + 1e-6).astype(np.int64)
    return np.unique(row_N * (column_N.max() + 1) + column_N, return_inverse=True)[1]


def block_resampling(block_S: list[np.ndarray], samples: int, rng: np.random.Generator) -> Resampling:
    """Bootstrap over blocks of tissue within each section."""
    weights_S = []
    for block_N in block_S:
        number = int(block_N.max()) + 1
        weights_S.append(rng.multinomial(number, np.full(number, 1 / number), size=samples).astype(np.float64))
    return Resampling("block", 1, block_S=tuple(block_S), weights_S=tuple(weights_S))


def resample(scores: Scores, genes: np.ndarray, resampling: Resampling) -> np.ndarray:
    """r by gene in every sample, float64 [B, len(genes)]; NaN where a gene is undefined in all that was drawn."""
    if resampling.by == "patient":
        return weighted_mean(scores.r_SxG[:, genes], resampling.weights_BxS)
    r_SxBxG = [
        mean_defined(np.stack([
            block_correlation(pair.x_NxG[:, genes], pair.p_NxG[:, genes], block_N[pair.bin_N], weights_BxK)
            for pair in pairs
        ]))
        for pairs, block_N, weights_BxK in zip(scores.pairs_S, resampling.block_S, resampling.weights_S, strict=True)
    ]  # fmt: skip
    return mean_defined(np.stack(r_SxBxG))


def weighted_mean(r_SxG: np.ndarray, weights_BxS: np.ndarray) -> np.ndarray:
    """Mean over sections with weights, undefined left out, [B, G]; NaN where nothing is defined."""
    defined_SxG = np.isfinite(r_SxG)
    weight_BxG = weights_BxS @ defined_SxG.astype(np.float64)
    total_BxG = weights_BxS @ np.where(defined_SxG, r_SxG, 0.0)
    return np.where(weight_BxG > 0, total_BxG / np.maximum(weight_BxG, 1e-300), np.nan)


def block_sums(values_NxG: np.ndarray, block_N: np.ndarray, number: int) -> np.ndarray:
    """Sums over the bins of each block, [blocks, G]."""
    member_KxN = (np.arange(number)[:, None] == block_N).astype(np.float64)
    return member_KxN @ values_NxG


def block_correlation(x_NxG: np.ndarray, p_NxG: np.ndarray, block_N: np.ndarray, weights_BxK: np.ndarray) -> np.ndarray:
    """Pearson r by gene with every bin weighted by how often its block is drawn, [B, G].

    Works from block sums, so its cost does not grow with bins × samples.
    """
    genes, number = x_NxG.shape[1], weights_BxK.shape[1]
    shift_x_G, shift_p_G = x_NxG.mean(0), p_NxG.mean(0)
    x_NxG, p_NxG = x_NxG - shift_x_G, p_NxG - shift_p_G  # against cancellation in the sums of squares
    # All five sums in one product: sums over x, p, x², p², x·p side by side.
    values_Nx5G = np.concatenate([x_NxG, p_NxG, x_NxG * x_NxG, p_NxG * p_NxG, x_NxG * p_NxG], 1)
    totals_Bx5xG = (weights_BxK @ block_sums(values_Nx5G, block_N, number)).reshape(len(weights_BxK), 5, genes)
    sum_x_BxG, sum_p_BxG, square_x_BxG, square_p_BxG, product_BxG = totals_Bx5xG.transpose(1, 0, 2)
    bins_Bx1 = np.maximum(weights_BxK @ np.bincount(block_N, minlength=number).astype(np.float64), 1.0)[:, None]
    # The uncentred squares belong to the scale: where a gene is constant in what was drawn, the difference of two
    # equal sums is rounding noise of their size.
    return correlation(
        square_x_BxG - sum_x_BxG**2 / bins_Bx1,
        square_p_BxG - sum_p_BxG**2 / bins_Bx1,
        product_BxG - sum_x_BxG * sum_p_BxG / bins_Bx1,
        square_x_BxG + bins_Bx1 * (shift_x_G + sum_x_BxG / bins_Bx1) ** 2,
        square_p_BxG + bins_Bx1 * (shift_p_G + sum_p_BxG / bins_Bx1) ** 2,
    )


def lower_ends(samples_BxG: np.ndarray) -> np.ndarray:
    """2.5th percentile of each column, [G]; NaN where nothing is defined."""
    low_G = np.full(samples_BxG.shape[1], np.nan)
    seen_G = np.isfinite(samples_BxG).any(0)
    if seen_G.any():
        low_G[seen_G] = np.nanpercentile(samples_BxG[:, seen_G], INTERVAL[0], axis=0)
    return low_G


def interval(samples_B: np.ndarray) -> tuple[float, float]:
    """2.5th and 97.5th percentile of what is defined; NaN where nothing is."""
    defined = samples_B[np.isfinite(samples_B)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, INTERVAL)
    return float(low), float(high)

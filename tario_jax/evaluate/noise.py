"""What the noise of the measurement allows: ceilings, their nulls, and who is nearer to the truth than the counts."""

import numpy as np
import scipy.sparse

from tario_jax.evaluate.metrics import reliability, reliability_of_sums, spearman_brown
from tario_jax.evaluate.moments import FORMS, FromRates, Measured, Sums, section_sums

SPLITS = 3  # thinnings averaged
_VALUES_AT_ONCE = 1 << 22  # of drawn nulls


def section_reliability(measured: Measured) -> np.ndarray:
    """rho of a section's genes, unclipped, [G]; NaN where constant or not measured."""
    return np.where(measured.measured_G, reliability_of_sums(len(measured), *measured.sums()), np.nan)


def resampled_reliability(sums: Sums, weights_BxK: np.ndarray) -> np.ndarray:
    """rho of a section's genes in every sample of its blocks, unclipped, [B, G]."""
    blocks = len(sums.n_K)
    bins_Bx1 = (weights_BxK @ sums.n_K)[:, None]
    mean_BxG = weights_BxK @ sums.x / bins_Bx1
    square_BxG = weights_BxK @ sums.xx / bins_Bx1
    # Bins are drawn in blocks, so the sample's variance has (blocks − 1)/blocks of the section's in expectation.
    variance_BxG = (square_BxG - mean_BxG**2) * blocks / max(blocks - 1, 1)
    varies_BxG = variance_BxG > 1e-10 * square_BxG  # False for NaN: not measured
    return np.where(varies_BxG, 1 - mean_BxG / np.where(varies_BxG, variance_BxG, 1.0), np.nan)


def root(rho: np.ndarray) -> np.ndarray:
    """sqrt of a reliability clipped to 0 … 1; NaN stays."""
    return np.sqrt(np.clip(rho, 0.0, 1.0))


def thinned(measured: Measured, rng: np.random.Generator, block_N: np.ndarray | None) -> dict[str, tuple[Sums, ...]]:
    """Sums between halves of a section's counts by form, one of each splitting.

    The check of rho for counts; for composition and residual it is the only estimate there is.
    """
    # of the genes that are not looked at
    rest_N = measured.total_N - measured.counts @ np.ones(len(measured.measured_G))
    rest_N = np.maximum(rest_N, 0).round().astype(np.int64)
    found: dict[str, list[Sums]] = {form: [] for form in FORMS}
    for _ in range(SPLITS):
        counts = measured.counts
        half_E = rng.binomial(counts.data.round().astype(np.int64), 0.5).astype(np.float64)
        half, other = (scipy.sparse.csr_array((values_E, counts.indices, counts.indptr), shape=counts.shape)
                       for values_E in (half_E, counts.data - half_E))  # fmt: skip
        half_rest_N = rng.binomial(rest_N, 0.5)
        totals = [np.asarray(part.sum(1)).ravel() + more_N
                  for part, more_N in ((half, half_rest_N), (other, rest_N - half_rest_N))]  # fmt: skip
        halved = Measured(half, totals[0], measured.kept_N, measured.measured_G)
        other_half = FromRates(lambda rows, other=other: other[rows].toarray(), totals[1], counted=True)
        for (_, form), sums in section_sums(halved, {"": other_half}, block_N).items():
            found[form].append(sums)
    return {form: tuple(several) for form, several in found.items()}


def ceiling_from_halves(r12: np.ndarray) -> np.ndarray:
    """sqrt of the Spearman–Brown reliability. r12 is averaged over sections and splits before."""
    return root(spearman_brown(r12))


def null_reliabilities(measured: Measured, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """rho that a section without structure would show: flat rates, and rates that follow the bin's total only; [G].

    Where the ceiling of a null is as high as the ceiling itself, the ceiling says nothing about the gene.
    """
    mean_G = measured.sums()[0] / max(len(measured), 1)
    level_N = measured.total_N / max(measured.total_N.mean(), 1e-300) if len(measured) else measured.total_N
    found = {}
    for name, along_N in (("flat", np.ones(len(measured))), ("depth_only", level_N)):
        step = max(1, _VALUES_AT_ONCE // max(len(measured), 1))
        parts = [reliability(rng.poisson(along_N[:, None] * mean_G[first : first + step]))
                 for first in range(0, len(mean_G), step)]  # fmt: skip
        found[name] = np.concatenate([np.zeros(0), *parts])
    return found


def nearer_than_measurement(excess_G: np.ndarray, low_G: np.ndarray) -> dict[str, float]:
    """Share of genes whose prediction is nearer to the true rate than the counts are: r(P, X) > rho.

    excess_G: r(P, X) − rho; low_G: the low end of its interval. `share`: the point estimate; `share_certain`: its
    interval lies above 0. Holds for counts with independent (shot) noise only. A gene without a defined rho is no pass.
    """
    if not len(excess_G):
        return {"share": float("nan"), "share_certain": float("nan")}
    return {"share": float(np.mean(excess_G > 0)), "share_certain": float(np.mean(low_G > 0))}

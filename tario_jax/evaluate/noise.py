"""What the noise of the measurement allows: ceilings, their nulls, and who is nearer to the truth than the counts."""

import numpy as np

from tario_jax.evaluate.controls import FORMS, Measured
from tario_jax.evaluate.intervals import Pair, Resampling, Scores, block_sums, lower_ends, weighted_mean
from tario_jax.evaluate.metrics import (
    composition,
    mean_defined,
    pearson_by_gene,
    pearson_residuals,
    reliability,
    spearman_brown,
    thin,
)

SPLITS = 3  # thinnings averaged


def reliabilities(measured_S: list[Measured]) -> np.ndarray:
    """rho by section and gene, unclipped, NaN where constant or not measured, [S, G]."""
    return np.stack([np.where(m.measured_G, reliability(m.counts_NxG), np.nan) for m in measured_S])


def resample_reliability(
    rho_SxG: np.ndarray, measured_S: list[Measured], genes: np.ndarray, resampling: Resampling
) -> np.ndarray:
    """Section mean of rho in every sample, unclipped, [B, len(genes)]."""
    if resampling.by == "patient":
        return weighted_mean(rho_SxG[:, genes], resampling.weights_BxS)
    rho_SxBxG = []
    for m, block_N, weights_BxK in zip(measured_S, resampling.block_S, resampling.weights_S, strict=True):
        x_NxG, blocks = m.counts_NxG[:, genes], weights_BxK.shape[1]
        bins_Bx1 = (weights_BxK @ np.bincount(block_N, minlength=blocks))[:, None]
        mean_BxG = weights_BxK @ block_sums(x_NxG, block_N, blocks) / bins_Bx1
        square_BxG = weights_BxK @ block_sums(x_NxG * x_NxG, block_N, blocks) / bins_Bx1
        # Bins are drawn in blocks, so the sample's variance has (blocks − 1)/blocks of the section's in expectation.
        variance_BxG = (square_BxG - mean_BxG**2) * blocks / max(blocks - 1, 1)
        varies_BxG = (variance_BxG > 1e-10 * square_BxG) & m.measured_G[genes]
        rho_SxBxG.append(np.where(varies_BxG, 1 - mean_BxG / np.where(varies_BxG, variance_BxG, 1.0), np.nan))
    return mean_defined(np.stack(rho_SxBxG))


def root(rho: np.ndarray) -> np.ndarray:
    """sqrt of a reliability clipped to 0 … 1; NaN stays."""
    return np.sqrt(np.clip(rho, 0.0, 1.0))


def thinned(
    measured_S: list[Measured], genes: np.ndarray, resampling: Resampling, rng: np.random.Generator
) -> dict[str, Scores]:
    """r12 between halves of the counts by form, averaged over splits; columns are `genes`.

    The check of rho for counts; for composition and residual it is the only estimate there is.
    """
    r_S, pairs_S = {form: [] for form in FORMS}, {form: [] for form in FORMS}
    for m in measured_S:
        counts_NxK = m.counts_NxG[:, genes]
        rest_N = np.maximum(m.total_N - counts_NxK.sum(1), 0).round()  # of the genes that are not looked at
        pairs = {form: [] for form in FORMS}
        for _ in range(SPLITS):
            half_NxK, other_NxK = thin(counts_NxK, rng)
            half_rest_N, other_rest_N = thin(rest_N, rng)
            halves = [
                _half(values_NxK, values_NxK.sum(1) + others_N, m.kept_N, m.measured_G[genes])
                for values_NxK, others_N in ((half_NxK, half_rest_N), (other_NxK, other_rest_N))
            ]
            for form in FORMS:
                pairs[form].append(Pair(halves[0][form], halves[1][form], m.bins(form)))
        for form in FORMS:
            r_S[form].append(mean_defined(np.stack([pearson_by_gene(p.x_NxG, p.p_NxG) for p in pairs[form]])))
            pairs_S[form].append(tuple(pairs[form]))
    return {
        form: Scores(np.stack(r_S[form]), tuple(pairs_S[form]) if resampling.by == "block" else None) for form in FORMS
    }


def _half(values_NxK: np.ndarray, total_N: np.ndarray, kept_N: np.ndarray, measured_K: np.ndarray) -> dict:
    kept_NxK, kept_total_N = values_NxK[kept_N], total_N[kept_N]
    forms = (values_NxK, composition(kept_NxK, kept_total_N), pearson_residuals(kept_NxK, kept_total_N))
    return {form: np.where(measured_K, values, np.nan) for form, values in zip(FORMS, forms, strict=True)}


def ceiling_from_halves(r12: np.ndarray) -> np.ndarray:
    """sqrt of the Spearman–Brown reliability. r12 is averaged over sections and splits before."""
    return root(spearman_brown(r12))


def null_ceilings(measured_S: list[Measured], genes: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """The ceiling that tissue without structure would show: flat rates, and rates that follow the bin's total only.

    Where a null is as high as the ceiling itself, the ceiling says nothing about the gene.
    """
    rho = {"flat": [], "depth_only": []}
    for m in measured_S:
        counts_NxK = m.counts_NxG[:, genes]
        mean_K = counts_NxK.mean(0)
        rates = {
            "flat": np.tile(mean_K, (len(counts_NxK), 1)),
            "depth_only": m.total_N[:, None] / max(m.total_N.mean(), 1e-300) * mean_K,
        }
        for name, rate_NxK in rates.items():
            rho[name].append(reliability(rng.poisson(rate_NxK)))
    return {name: float(mean_defined(root(mean_defined(np.stack(values))))) for name, values in rho.items()}


def nearer_than_measurement(r_BxG: np.ndarray, rho_BxG: np.ndarray, r_G: np.ndarray, rho_G: np.ndarray) -> dict:
    """Share of genes whose prediction is nearer to the true rate than the counts are: r(P, X) > rho.

    `share`: the point estimate; `share_certain`: its interval lies above 0. Holds for counts with independent
    (shot) noise only. A gene without a defined rho is no pass.
    """
    excess_BxG, excess_G = r_BxG - rho_BxG, r_G - rho_G
    return {"share": float(np.mean(excess_G > 0)), "share_certain": float(np.mean(lower_ends(excess_BxG) > 0))}

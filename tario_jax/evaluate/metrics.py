"""Spatial correlation in its three forms, and the noise ceiling. Plain functions on arrays.

Values of a section are [bins, genes]; nothing here knows of a model or a corpus.
"""

import numpy as np

FORMS = ("counts", "composition")
COMPOSITION_SCALE = 1e4  # counts a bin after scaling, as is usual for spots
_GENES_AT_ONCE = 2048


def pearson_by_gene(x_NxG: np.ndarray, p_NxG: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column of x (measured) with the same column of p (predicted), float64 [G].

    NaN where x is constant or not finite (undefined: left out of means); 0 where p is constant or not finite (a
    missing prediction has no skill). Fewer than two bins: all NaN.
    """
    if len(x_NxG) < 2:
        return np.full(x_NxG.shape[1], np.nan)
    x_NxG, p_NxG = np.asarray(x_NxG, np.float64), np.asarray(p_NxG, np.float64)
    mean_x_G, mean_p_G = x_NxG.mean(0), p_NxG.mean(0)
    dx_NxG, dp_NxG = x_NxG - mean_x_G, p_NxG - mean_p_G
    return correlation(
        np.einsum("ng,ng->g", dx_NxG, dx_NxG),
        np.einsum("ng,ng->g", dp_NxG, dp_NxG),
        np.einsum("ng,ng->g", dx_NxG, dp_NxG),
        len(x_NxG) * mean_x_G**2,
        len(x_NxG) * mean_p_G**2,
    )


def correlation(xx: np.ndarray, pp: np.ndarray, xp: np.ndarray, scale_xx: np.ndarray,
                scale_pp: np.ndarray) -> np.ndarray:  # fmt: skip
    """r of truth x with prediction p from centred sums of squares and products, with the rules for constants. Shapes
    broadcast.

    `scale_xx` and `scale_pp` are n·mean² before centring: a column whose spread is below 1e-5 of its mean is rounding
    noise of float32, not signal, and counts as constant.
    """
    flat_x = ~(xx > 1e-10 * scale_xx + 1e-20)  # also true for NaN
    flat_p = ~(np.isfinite(pp) & (pp > 1e-10 * scale_pp + 1e-20))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip(xp / np.sqrt(xx * pp), -1.0, 1.0)
    return np.where(flat_x, np.nan, np.where(flat_p, 0.0, r))


def composition(values_NxG: np.ndarray, total_N: np.ndarray) -> np.ndarray:
    """log1p of values scaled to 1e4 a bin, [N, G]. `total_N` is over the whole measured panel; total 0 gives 0."""
    scale_N = np.where(total_N > 0, COMPOSITION_SCALE / np.where(total_N > 0, total_N, 1.0), 0.0)
    return np.log1p(np.maximum(values_NxG, 0.0) * scale_N[:, None])


_SERIES = ((0.1, 4), (0.5, 6), (2.0, 12))
"""(highest rate, degree) of the series in the rate; what is left out of it is below 4e-6 where a bin holds 200 counts,
8e-6 at 20 of them, 2e-5 at one."""
_IN_CACHE = 1 << 14  # float64: 128 KiB of rates, and as much of their means, through all terms of a series
_SUMMED = 16.0
"""Up to this rate the sum over n has 40 terms, which leave 1e-6 of a Poisson."""


def expected_composition(rates_NxG: np.ndarray, total_N: np.ndarray) -> np.ndarray:
    """E[log1p(1e4 n / total)] for n ~ Poisson(rate), with the predicted total held fixed, [N, G].

    What a model of counts says of the composition of the counts that will be measured: log1p is far from straight
    between no detection and one, so the composition of the rates is another quantity.

    With g(n) = log1p(1e4 n / total), E[g(n)] = Σ_k rate^k / k! · Δ^k g(0), with Newton's forward differences of g: of
    genes whose rates stay low a few terms do. The others are summed over n up to 40; rates above 16 use the
    second-order expansion around the mean (their sums would be cut, and there it is good to about 1e-3).
    """
    rates_NxG = np.maximum(np.asarray(rates_NxG, np.float64), 0.0)
    scale_N = np.where(total_N > 0, COMPOSITION_SCALE / np.where(total_N > 0, total_N, 1.0), 0.0)
    highest_G = rates_NxG.max(0, initial=0.0)
    (above, degree), *further = *_SERIES, (np.inf, 0)
    mean_NxG = _series(rates_NxG, scale_N, degree)  # of all genes, which lie side by side
    for highest, degree in further:
        genes = np.flatnonzero((highest_G > above) & (highest_G <= highest))
        if len(genes):
            some_NxG = rates_NxG[:, genes]
            mean_NxG[:, genes] = _series(some_NxG, scale_N, degree) if degree else _summed(some_NxG, scale_N)
        above = highest
    mean_NxG[:, np.isnan(highest_G)] = np.nan  # a gene with a rate that is no number has none
    return mean_NxG


def _series(rates_NxG: np.ndarray, scale_N: np.ndarray, degree: int) -> np.ndarray:
    difference_NxK = np.log1p(np.arange(degree + 1) * scale_N[:, None])
    of_degree = []
    for k in range(1, degree + 1):
        difference_NxK = np.diff(difference_NxK, axis=1) / k
        of_degree.append(difference_NxK[:, :1])
    mean_NxG, step = np.empty_like(rates_NxG), max(1, _IN_CACHE // max(rates_NxG.shape[1], 1))
    for first in range(0, len(rates_NxG), step):
        some = slice(first, first + step)
        rates_nxG, mean_nxG = rates_NxG[some], mean_NxG[some]
        np.multiply(rates_nxG, of_degree[-1][some], out=mean_nxG)
        for term_Nx1 in of_degree[-2::-1]:
            mean_nxG += term_Nx1[some]
            mean_nxG *= rates_nxG
    return mean_NxG


def _summed(rates_NxG: np.ndarray, scale_N: np.ndarray) -> np.ndarray:
    small_NxG = np.minimum(rates_NxG, _SUMMED)
    pmf_NxG = np.exp(-small_NxG)
    mean_NxG = np.zeros_like(rates_NxG)
    for n in range(1, 41):
        pmf_NxG *= small_NxG / n
        mean_NxG += pmf_NxG * np.log1p(n * scale_N)[:, None]
    scaled_NxG = rates_NxG * scale_N[:, None]
    spread_NxG = 0.5 * scaled_NxG * scale_N[:, None] / (1.0 + scaled_NxG) ** 2
    return np.where(rates_NxG > _SUMMED, np.log1p(scaled_NxG) - spread_NxG, mean_NxG)


def correlations(measured_NxG: np.ndarray, total_N: np.ndarray, rates_NxG: np.ndarray, rates_total_N: np.ndarray,
                 enough_N: np.ndarray, *, of_rates: bool = False) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """r by gene of predicted rates with what was measured, in counts and in composition, float64 [G] each.

    Totals are over all genes, of which these may be some. enough_N: bool, the places that have counts enough for a
    composition. of_rates: what was measured are rates themselves, as the truth of virtual tissue, whose composition is
    that of rates too; what rates say of the composition of counts is `expected_composition`.
    """
    in_counts_G, in_composition_G = np.empty((2, measured_NxG.shape[1]))
    composed = composition if of_rates else expected_composition
    for first in range(0, len(in_counts_G), _GENES_AT_ONCE):
        some = slice(first, first + _GENES_AT_ONCE)
        measured_Nxg, rates_Nxg = measured_NxG[:, some], rates_NxG[:, some]
        in_counts_G[some] = pearson_by_gene(measured_Nxg, rates_Nxg)
        in_composition_G[some] = pearson_by_gene(composition(measured_Nxg[enough_N], total_N[enough_N]),
                                                 composed(rates_Nxg[enough_N], rates_total_N[enough_N]))  # fmt: skip
    return in_counts_G, in_composition_G


def pearson_residuals(values_NxG: np.ndarray, total_N: np.ndarray) -> np.ndarray:
    """(value − expected) / sqrt(expected) with expected = bin's total × the section's share of the gene, [N, G].

    A gene that is zero in the whole section is zero throughout (constant). Differences below 1e-5 of the expected
    value are float32 rounding and are set to 0, so that a pure density prediction is exactly constant.
    """
    values_NxG = np.asarray(values_NxG, np.float64)
    return residuals(values_NxG, total_N, values_NxG.sum(0) / max(float(total_N.sum()), 1e-300))


def residuals(values_NxG: np.ndarray, total_N: np.ndarray, share_G: np.ndarray) -> np.ndarray:
    """`pearson_residuals` with a section's shares of the genes known already, of some of its bins: [N, G]."""
    expected_NxG = np.maximum(total_N, 0.0)[:, None] * np.maximum(share_G, 0.0)
    difference_NxG = values_NxG - expected_NxG
    difference_NxG[np.abs(difference_NxG) <= 1e-5 * expected_NxG] = 0.0
    return np.divide(
        difference_NxG, np.sqrt(expected_NxG), out=np.zeros_like(difference_NxG), where=expected_NxG > 1e-12
    )


def reliability(counts_NxG: np.ndarray) -> np.ndarray:
    """rho = 1 − mean/variance of each gene's counts in one section, unclipped, [G]; NaN for constant genes.

    Under Poisson noise this is the share of the variance that is signal, and equals infinite binomial thinning.
    Average over sections first, clip afterwards: clipping noise at zero is a bias upward.
    """
    counts_NxG = np.asarray(counts_NxG, np.float64)
    return reliability_of_sums(len(counts_NxG), counts_NxG.sum(0), np.einsum("ng,ng->g", counts_NxG, counts_NxG))


def reliability_of_sums(bins: int, sum_G: np.ndarray, square_G: np.ndarray) -> np.ndarray:
    """`reliability`, [G], from the sums of a section's counts and of their squares."""
    if bins < 2:
        return np.full(len(sum_G), np.nan)
    mean_G = sum_G / bins
    spread_G = square_G - bins * mean_G**2
    varies_G = spread_G > 1e-12 * square_G  # what is left of equal counts is rounding
    return np.where(varies_G, 1.0 - mean_G * (bins - 1) / np.where(varies_G, spread_G, 1.0), np.nan)


def ceiling(rho_SxG: np.ndarray) -> np.ndarray:
    """The largest r that any prediction can reach against the counts: sqrt of the section mean of rho, [G]."""
    return np.sqrt(np.clip(mean_defined(rho_SxG), 0.0, 1.0))


def thin(counts_NxG: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of integer counts by binomial thinning at 1/2, [N, G] each; independent where they are Poisson."""
    half_NxG = rng.binomial(counts_NxG.astype(np.int64), 0.5).astype(np.float64)
    return half_NxG, counts_NxG - half_NxG


def spearman_brown(r12: np.ndarray) -> np.ndarray:
    """Reliability of the whole from the correlation of its halves: 2 r12 / (1 + r12)."""
    r12 = np.asarray(r12, np.float64)
    return np.where(r12 > -1.0, 2.0 * r12 / np.where(r12 > -1.0, 1.0 + r12, 1.0), -np.inf)


def mean_defined(r_SxG: np.ndarray) -> np.ndarray:
    """Mean over the first axis with NaN left out; NaN where nothing is defined. (No warning, unlike nanmean.)"""
    defined = np.isfinite(r_SxG)
    number = defined.sum(0)
    total = np.where(defined, r_SxG, 0.0).sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)

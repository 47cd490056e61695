"""The null genes of virtual tissue: a fixed share of every cell's RNA times a field of their own. Their composition can
be predicted from nothing, so whoever predicts it has found a leak.

log1p of scaled counts follows a bin's total a little even where a gene's share is constant, and the H&E tells of
totals. What counts is therefore the correlation beyond the total: of what is left of composition and prediction when a
smooth function of the bin's total is taken out of both. Of a gene that nothing tells of, its expectation is 0.
"""

from typing import Any

import numpy as np

from tario_jax.evaluate.metrics import composition, mean_defined, pearson_by_gene

MIN_TOTAL = 200  # counts of a bin that counts here
LEAST_BINS = 40  # of a section
DEGREE = 5  # of the polynomial in the log of the total
SHUFFLES = 20
SEED = 0
FOUND_SE, FOUND_R = 3.0, 0.005  # more than chance, and more than a trace


def null_report(counts_S: list[np.ndarray], total_S: list[np.ndarray],
                predicted_S: list[np.ndarray]) -> dict[str, Any]:  # fmt: skip
    """Composition r of the null genes, and their r beyond a bin's total, means over sections and genes.

    counts_S: counts of the null genes, [N, K] a section; total_S: of all genes, [N]; predicted_S: the composition that
    is predicted of them, [N, K]. `se` is the standard error of `beyond_total` over genes, whose fields are independent;
    `shuffled_mean` and `shuffled_sd` are of the same with bins shuffled; `plain_shuffle` is of r with bins shuffled.
    `not_judged` alone, which says why, where no section has LEAST_BINS bins that count, or fewer than two genes vary
    there: fine bins and low depth hold too few counts for shares of genes as rare as these.
    """
    rng = np.random.default_rng(SEED)
    counts, totals, predicted = [], [], []
    for counts_NxK, total_N, predicted_NxK in zip(counts_S, total_S, predicted_S, strict=True):
        kept_N = total_N >= MIN_TOTAL
        if kept_N.sum() >= LEAST_BINS:
            counts.append(counts_NxK[kept_N])
            totals.append(total_N[kept_N])
            predicted.append(predicted_NxK[kept_N])
    if not counts:
        return {"not_judged": f"no section has {LEAST_BINS} bins of {MIN_TOTAL} counts"}
    orders = [[rng.permutation(len(total_N)) for total_N in totals] for _ in range(SHUFFLES)]

    def mean_r(measured: list[np.ndarray], predicted: list[np.ndarray]) -> np.ndarray:
        return mean_defined(np.stack([pearson_by_gene(x, p) for x, p in zip(measured, predicted, strict=True)]))

    measured = [composition(counts_NxK, total_N) for counts_NxK, total_N in zip(counts, totals, strict=True)]
    left = [without_total(x, total_N) for x, total_N in zip(measured, totals, strict=True)]
    left_predicted = [without_total(p, total_N) for p, total_N in zip(predicted, totals, strict=True)]
    beyond_K = mean_r(left, left_predicted)
    beyond_K = beyond_K[np.isfinite(beyond_K)]
    if len(beyond_K) < 2:
        return {"not_judged": f"fewer than two vary in bins of {MIN_TOTAL} counts"}
    shuffled = [np.nanmean(mean_r([x[order] for x, order in zip(left, some, strict=True)], left_predicted))
                for some in orders]  # fmt: skip
    plain = [
        np.nanmean(mean_r([composition(c[at], t) for c, t, at in zip(counts, totals, some, strict=True)], predicted))
        for some in orders
    ]
    beyond, se = float(beyond_K.mean()), float(beyond_K.std(ddof=1) / np.sqrt(len(beyond_K)))
    bins = sum(map(len, totals))
    return {
        "r": float(np.nanmean(mean_r(measured, predicted))), "beyond_total": beyond, "se": se,
        "shuffled_mean": float(np.mean(shuffled)), "shuffled_sd": float(np.std(shuffled, ddof=1)),
        "plain_shuffle": float(np.mean(plain)), "found": beyond > max(FOUND_SE * se, FOUND_R),
        "genes": len(beyond_K), "bins": bins, "bins_left_out": sum(map(len, total_S)) - bins,
    }  # fmt: skip


def without_total(values_NxK: np.ndarray, total_N: np.ndarray) -> np.ndarray:
    """Residuals of each column after a polynomial of DEGREE in the log of the bin's total, float64 [N, K]."""
    level_N = np.log(total_N)
    spread = max(level_N.max() - level_N.min(), 1e-9)
    terms_NxD = np.polynomial.chebyshev.chebvander(2 * (level_N - level_N.min()) / spread - 1, DEGREE)
    return values_NxK - terms_NxD @ np.linalg.lstsq(terms_NxD, values_NxK, rcond=None)[0]

"""The null genes of virtual tissue: a fixed share of every cell's RNA times a field of their own. Their composition can
be predicted from nothing, so whoever predicts it has found a leak.

log1p of scaled counts follows a bin's total a little even where a gene's share is constant, and the H&E tells of
totals. What is found is therefore held against the same with the counts exchanged among bins of like total.
"""

from typing import Any

import numpy as np

from tario_jax.evaluate.metrics import composition, mean_defined, pearson_by_gene

MIN_TOTAL = 200  # counts of a bin that counts here
LEAST_BINS = 40
LIKE = 4  # bins next to each other in total
SHUFFLES = 20
SEED = 0


def null_report(counts_S: list[np.ndarray], total_S: list[np.ndarray],
                told_S: list[np.ndarray]) -> dict[str, Any] | None:  # fmt: skip
    """Composition r of the null genes, and what depth alone gives, over sections.

    counts_S: counts of the null genes, [N, K] a section; total_S: of all genes, [N]; told_S: the composition that is
    predicted of them, [N, K]. `like_total` is the mean of SHUFFLES exchanges among bins of like total, `plain` among
    all bins; `excess` is r less `like_total`, `excess_se` its standard error over genes, whose fields are independent.
    `found`: the excess is more than chance (three standard errors) and more than what blocks of like total leave of
    totals (0.005). None where fewer than LEAST_BINS bins count.
    """
    kept_S = [total_N >= MIN_TOTAL for total_N in total_S]
    if sum(map(np.sum, kept_S)) < LEAST_BINS:
        return None
    rng = np.random.default_rng(SEED)
    told_S = [told_NxK[kept_N] for told_NxK, kept_N in zip(told_S, kept_S, strict=True)]

    def r(like: int | None) -> np.ndarray:
        by_section = []
        for counts_NxK, total_N, kept_N, told_NxK in zip(counts_S, total_S, kept_S, told_S, strict=True):
            some_NxK, some_N = counts_NxK[kept_N], total_N[kept_N]
            if like is not None:
                some_NxK = exchanged(some_NxK, some_N, like, rng)
            by_section.append(pearson_by_gene(composition(some_NxK, some_N), told_NxK))
        return mean_defined(np.stack(by_section))

    measured_K = r(None)
    like_K = np.mean([r(LIKE) for _ in range(SHUFFLES)], 0)
    plain_K = np.mean([r(max(map(len, total_S))) for _ in range(SHUFFLES)], 0)
    excess_K = (measured_K - like_K)[np.isfinite(measured_K - like_K)]
    excess, se = float(excess_K.mean()), float(excess_K.std(ddof=1) / np.sqrt(len(excess_K)))
    kept = int(sum(map(np.sum, kept_S)))
    return {
        "r": float(np.nanmean(measured_K)), "like_total": float(np.nanmean(like_K)),
        "plain": float(np.nanmean(plain_K)), "excess": excess, "excess_se": se, "found": excess > max(3 * se, 0.005),
        "genes": len(excess_K), "bins": kept, "bins_left_out": sum(map(len, kept_S)) - kept,
    }  # fmt: skip


def exchanged(counts_NxK: np.ndarray, total_N: np.ndarray, like: int, rng: np.random.Generator) -> np.ndarray:
    """The counts with each block of `like` bins, taken in the order of their totals, exchanged among each other."""
    counts_NxK, order = counts_NxK.copy(), np.argsort(total_N, kind="stable")
    for first in range(0, len(order), like):
        block = order[first : first + like]
        counts_NxK[block] = counts_NxK[rng.permutation(block)]
    return counts_NxK

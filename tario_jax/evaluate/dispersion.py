"""How counts of genes scatter over the bins of a section: share of zeros, overdispersion, Moran's I.

All three follow the mean count, which differs between assays by their depth: genes are compared at equal means.
"""

import dataclasses

import numpy as np
import scipy.sparse

from tario_jax.evaluate.moran import morans_i

LEAST_MEAN, MOST_MEAN = 0.2, 50.0  # counts a bin: rarer genes show little but noise in a hundred bins
MEAN_STEP = 0.2  # genes whose log mean counts fall into one such step count as equal

FIGURES = ("share of zero bins", "overdispersion", "Moran's I")


@dataclasses.dataclass(frozen=True)
class GeneFigures:
    """K genes, each of one section: mean counts a bin, and the values in the order of FIGURES."""

    mean_K: np.ndarray
    values_Kx3: np.ndarray

    def __len__(self) -> int:
        return len(self.mean_K)


def gene_figures(counts_NxG: np.ndarray, weights_NxN: scipy.sparse.csr_array) -> GeneFigures:
    """Figures of the genes whose mean count in these N bins lies between 0.2 and 50.

    Overdispersion is that of the negative binomial by moments, (variance − mean) / mean²: 0 for Poisson counts of an
    even rate, and the same however many detections an assay loses at random.
    """
    mean_G = counts_NxG.mean(0, dtype=np.float64)
    kept = np.flatnonzero((mean_G >= LEAST_MEAN) & (mean_G <= MOST_MEAN))
    some_NxK, mean_K = counts_NxG[:, kept], mean_G[kept]
    over_K = (some_NxK.var(0, ddof=1, dtype=np.float64) - mean_K) / mean_K**2
    values_Kx3 = np.stack([(some_NxK == 0).mean(0), over_K, morans_i(some_NxK, weights_NxN)], 1)
    defined = np.isfinite(values_Kx3).all(1)
    return GeneFigures(mean_K[defined], values_Kx3[defined])


def joined(parts: list[GeneFigures]) -> GeneFigures:
    return GeneFigures(
        np.concatenate([part.mean_K for part in parts]), np.concatenate([part.values_Kx3 for part in parts])
    )


def matched(virtual: GeneFigures, real: GeneFigures) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the virtual genes that give them the real genes' means, and which real genes have a counterpart.

    Means are matched in steps of 0.2 on their logarithm. Returns float64 [K of virtual] and bool [K of real].
    """
    step_V, step_R = (np.floor(np.log(figures.mean_K) / MEAN_STEP).astype(int) for figures in (virtual, real))
    lowest = min(step_V.min(initial=0), step_R.min(initial=0))
    step_V, step_R = step_V - lowest, step_R - lowest
    size = max(step_V.max(initial=0), step_R.max(initial=0)) + 1
    number_V, number_R = np.bincount(step_V, minlength=size), np.bincount(step_R, minlength=size)
    return (number_R / np.maximum(number_V, 1))[step_V], number_V[step_R] > 0

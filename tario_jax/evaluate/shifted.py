"""Counts of detections that were moved, and how the same prediction correlates with them.

Counts of fine bins are nearly all zeros: sums of products run over the entries (bin, gene, count) that are not, so that
a shift costs as much as it has detections, whatever the number of bins times genes.
"""

from typing import NamedTuple

import numpy as np

from tario_jax.corpus.section import Detections
from tario_jax.evaluate.metrics import COMPOSITION_SCALE, composition, correlation


class Counted(NamedTuple):
    """Entries of N bins by G genes that are not zero, and the total of each bin."""

    bin_E: np.ndarray
    gene_E: np.ndarray
    count_E: np.ndarray  # float64
    total_N: np.ndarray  # over all genes

    def of(self, genes: np.ndarray) -> "Counted":
        """Those of some genes, numbered by their place in `genes`; the totals stay those of all."""
        number_G = np.full(max(self.gene_E.max(initial=-1), genes.max()) + 1, -1)
        number_G[genes] = np.arange(len(genes))
        kept = number_G[self.gene_E] >= 0
        return Counted(self.bin_E[kept], number_G[self.gene_E[kept]], self.count_E[kept], self.total_N)


def directions(number: int) -> np.ndarray:
    """Unit vectors, evenly around, float64 [number, 2]."""
    turn = 2 * np.pi * np.arange(number) / number
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def count_shifted(found: Detections, shift_um: np.ndarray, bin_um: float, columns: int, rows: int, kept: np.ndarray,
                  genes: int) -> Counted:  # fmt: skip
    """Counts of the kept bins of a grid after all detections have moved by shift_um = (right, down).

    kept: positions of bins in the grid, row by row, in rising order.
    """
    number = np.full(rows * columns, -1)
    number[kept] = np.arange(len(kept))
    column_D, row_D = (np.floor((place + shift) / bin_um).astype(np.int64)
                       for place, shift in zip((found.x_um_D, found.y_um_D), shift_um, strict=True))  # fmt: skip
    inside_D = (column_D >= 0) & (column_D < columns) & (row_D >= 0) & (row_D < rows)
    bin_D = number[(row_D[inside_D] * columns + column_D[inside_D])]
    key_D = bin_D[bin_D >= 0] * genes + found.gene_D[inside_D][bin_D >= 0]
    key_E, count_E = np.unique(key_D, return_counts=True)
    bin_E, gene_E = np.divmod(key_E, genes)
    count_E = count_E.astype(np.float64)
    return Counted(bin_E, gene_E, count_E, np.bincount(bin_E, count_E, len(kept)))


class Said:
    """A prediction of N bins by G genes, ready to be held against many counts of the same bins."""

    def __init__(self, rates_NxG: np.ndarray):
        self._rates_NxG = rates_NxG
        self._composed_NxG = composition(rates_NxG, rates_NxG.sum(1, dtype=np.float64)).astype(np.float32)

    def correlations(self, counted: Counted, least_total: float) -> tuple[np.ndarray, np.ndarray]:
        """r by gene in counts and in composition, float64 [G] each; as `pearson_by_gene` on whole arrays.

        In the composition form bins with fewer than `least_total` counts are left out.
        """
        counts_G = _correlate(counted.bin_E, counted.gene_E, counted.count_E, self._rates_NxG)
        kept_N = counted.total_N >= least_total
        number_N = np.cumsum(kept_N) - 1
        among = kept_N[counted.bin_E]
        bin_E, gene_E = counted.bin_E[among], counted.gene_E[among]
        value_E = np.log1p(counted.count_E[among] * COMPOSITION_SCALE / counted.total_N[bin_E])
        return counts_G, _correlate(number_N[bin_E], gene_E, value_E, self._composed_NxG[kept_N])


def _correlate(bin_E: np.ndarray, gene_E: np.ndarray, value_E: np.ndarray, said_NxG: np.ndarray) -> np.ndarray:
    """Pearson r by gene of sparse values with dense ones."""
    bins, genes = said_NxG.shape
    if bins < 2:
        return np.full(genes, np.nan)
    mean_G = said_NxG.mean(0, dtype=np.float64)
    centred_NxG = said_NxG - mean_G.astype(said_NxG.dtype)
    rest_G = centred_NxG.mean(0, dtype=np.float64)  # what float32 left of the mean
    square_G = np.einsum("ng,ng->g", centred_NxG, centred_NxG, dtype=np.float64) - bins * rest_G**2
    sum_G = np.bincount(gene_E, value_E, genes)
    values_G = np.bincount(gene_E, value_E**2, genes) - sum_G**2 / bins
    product_G = np.bincount(gene_E, value_E * centred_NxG[bin_E, gene_E], genes) - sum_G * rest_G
    return correlation(values_G, square_G, product_G, sum_G**2 / bins, bins * mean_G**2)

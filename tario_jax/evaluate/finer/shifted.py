"""Counts of detections that were moved, and how the same prediction correlates with them.

Counts of fine bins are nearly all zeros: sums of products run over the entries (bin, gene, count) that are not, so that
a shift costs as much as it has detections, whatever the number of bins times genes.
"""

from typing import NamedTuple

import numpy as np

from tario_jax.corpus.section import Detections
from tario_jax.evaluate.metrics import COMPOSITION_SCALE, correlation, expected_composition


class Counted(NamedTuple):
    """Entries of N bins by G genes that are not zero, and the total of each bin."""

    bin_E: np.ndarray
    gene_E: np.ndarray
    count_E: np.ndarray  # float64
    total_N: np.ndarray  # over all these genes

    def of(self, genes: np.ndarray) -> "Counted":
        """Those of some genes, numbered by their place in `genes`, and their totals."""
        number_G = np.full(max(self.gene_E.max(initial=-1), genes.max()) + 1, -1)
        number_G[genes] = np.arange(len(genes))
        kept = number_G[self.gene_E] >= 0
        bin_E, count_E = self.bin_E[kept], self.count_E[kept]
        return Counted(bin_E, number_G[self.gene_E[kept]], count_E, np.bincount(bin_E, count_E, len(self.total_N)))


def directions(number: int) -> np.ndarray:
    """Unit vectors, evenly around, float64 [number, 2]."""
    turn = 2 * np.pi * np.arange(number) / number
    return np.stack([np.cos(turn), np.sin(turn)], 1)


def count_shifted(found: Detections, shift_um: np.ndarray, bin_um: float, columns: int, rows: int, kept: np.ndarray,
                  genes: int) -> Counted:  # fmt: skip
    """Counts of the kept bins of a grid after all detections have moved by shift_um = (right, down), [2].

    kept: positions of N bins in the grid, row by row, in rising order; genes: length of the panel.
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


class Prediction:
    """Rates of N bins by G genes, ready to be held against many counts of the same bins."""

    def __init__(self, rates_NxG: np.ndarray, measured_G: np.ndarray | None = None):
        """measured_G: bool, the genes that counts can be of, over which totals are taken; all of them by default."""
        of_total_NxG = rates_NxG if measured_G is None else rates_NxG[:, measured_G]
        self._counts = _Values(rates_NxG)
        self._composition = _Values(expected_composition(rates_NxG, of_total_NxG.sum(1, dtype=np.float64)))

    def correlations(self, counted: Counted, least_total: float) -> tuple[np.ndarray, np.ndarray]:
        """r by gene in counts and in composition, float64 [G] each; `metrics.correlations` of whole arrays.

        In the composition form bins with fewer than `least_total` counts are left out.
        """
        everywhere_N = np.ones(len(counted.total_N), bool)
        counts_G = self._counts.correlate(counted.bin_E, counted.gene_E, counted.count_E, everywhere_N)
        kept_N = counted.total_N >= least_total
        among = kept_N[counted.bin_E]
        bin_E, gene_E = counted.bin_E[among], counted.gene_E[among]
        value_E = np.log1p(counted.count_E[among] * COMPOSITION_SCALE / counted.total_N[bin_E])
        return counts_G, self._composition.correlate(bin_E, gene_E, value_E, kept_N)


class _Values:
    """Dense values about their mean, and their sums, from which those of any bins follow by the bins left out."""

    def __init__(self, values_NxG: np.ndarray):
        self._mean_G = values_NxG.mean(0, dtype=np.float64)
        self._about_NxG = (values_NxG - self._mean_G).astype(np.float32)
        self._sums_2xG = _sums(self._about_NxG)

    def correlate(self, bin_E: np.ndarray, gene_E: np.ndarray, value_E: np.ndarray, kept_N: np.ndarray) -> np.ndarray:
        """Pearson r by gene, float64 [G], over the kept bins, of sparse values (0 where there is no entry) with these.

        bin_E, gene_E, value_E: the entries, of kept bins only; kept_N: bool.
        """
        genes, bins = len(self._mean_G), int(kept_N.sum())
        if bins < 2:
            return np.full(genes, np.nan)
        predicted_G, predicted_square_G = self._sums_2xG - _sums(self._about_NxG[~kept_N])
        sum_G = np.bincount(gene_E, value_E, genes)
        square_G = np.bincount(gene_E, value_E**2, genes)
        product_G = np.bincount(gene_E, value_E * self._about_NxG[bin_E, gene_E], genes)
        return correlation(
            square_G - sum_G**2 / bins, predicted_square_G - predicted_G**2 / bins,
            product_G - sum_G * predicted_G / bins, sum_G**2 / bins, bins * self._mean_G**2,
        )  # fmt: skip


def _sums(about_NxG: np.ndarray) -> np.ndarray:
    """Sums of the values and of their squares, float64 [2, G]."""
    return np.stack([about_NxG.sum(0, dtype=np.float64),
                     np.einsum("ng,ng->g", about_NxG, about_NxG, dtype=np.float64)])  # fmt: skip

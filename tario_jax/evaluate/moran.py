"""Moran's I of all genes at once, from rows of counts that stay sparse."""

import concurrent.futures
import os
from typing import Literal

import numpy as np
import scipy.sparse
import scipy.spatial

Layout = Literal["square", "spots"]

# The 8 nearest spots of a full square array lie within sqrt(5) pitches even at its corners;
# what is further is on the other side of a gap.
SPOT_REACH_PITCHES = 2.5
HEXAGONAL_PITCHES = 1.2

ENTRIES_AT_ONCE = 1 << 19  # of rows whose neighbours are gathered: some 50 MB a thread


def neighbour_weights(
    x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, layout: Layout
) -> scipy.sparse.csr_array:
    """Row-normalised neighbour weights, sparse [N, N].

    Square bins: the up to 8 neighbours (queen) at one pitch on the grid; a gap is not bridged. Spots: of a square array
    the 8 nearest, of a hexagonal one (six neighbours at one pitch) the 6 nearest, within 2.5 pitches. A place without
    neighbours has an empty row.
    """
    places_Nx2 = np.stack([x_um_N, y_um_N], 1).astype(np.float64)
    number = len(places_Nx2)
    if number < 2:
        return scipy.sparse.csr_array((number, number))
    tree = scipy.spatial.cKDTree(places_Nx2)
    if layout == "square":
        # A queen's neighbour is at most sqrt(2) pitches away, the next bin at 2; 1.7 stands between.
        pairs_Ex2 = tree.query_pairs(1.7 * pitch_um, output_type="ndarray")
        row_E = np.concatenate([pairs_Ex2[:, 0], pairs_Ex2[:, 1]])
        column_E = np.concatenate([pairs_Ex2[:, 1], pairs_Ex2[:, 0]])
    else:
        distance_NxK, index_NxK = tree.query(places_Nx2, min(9, number))
        # in a square array the sixth nearest is sqrt(2) pitches away; the lower quartile looks past the edges
        if number > 6 and np.quantile(distance_NxK[:, 6], 0.25) < HEXAGONAL_PITCHES * pitch_um:
            distance_NxK, index_NxK = distance_NxK[:, :7], index_NxK[:, :7]
        near_NxK = (distance_NxK <= SPOT_REACH_PITCHES * pitch_um) & (index_NxK != np.arange(number)[:, None])
        row_E, slot_E = np.nonzero(near_NxK)
        column_E = index_NxK[row_E, slot_E]
    degree_N = np.bincount(row_E, minlength=number)
    return scipy.sparse.csr_array((1.0 / degree_N[row_E], (row_E, column_E)), shape=(number, number))


def morans_i(values_NxG: np.ndarray | scipy.sparse.csr_array, weights_NxN: scipy.sparse.csr_array) -> np.ndarray:
    """Moran's I of each column, float64 [G]: (n / sum W) · sum(Z · WZ) / sum(Z · Z), Z = values − mean.

    With row-normalised weights and no isolated place the first factor is 1. NaN for constant columns, never inf. No
    place is a neighbour of its own.
    Sparse values stay sparse: with x the values, m their mean, r and c the sums of W's rows and columns,
    sum(Z · WZ) = sum(x · Wx) − m·(sum(r·x) + sum(c·x)) + m²·sum W.
    Source: Moran, Biometrika 37 (1950) 17–23.
    """
    number, genes = values_NxG.shape
    total_weight = float(weights_NxN.sum()) if number else 0.0
    if number < 2 or total_weight == 0:
        return np.full(genes, np.nan)
    if not scipy.sparse.issparse(values_NxG):
        z_NxG = np.asarray(values_NxG, np.float64)
        mean_G = z_NxG.mean(0)
        z_NxG = z_NxG - mean_G
        square_G = np.einsum("ng,ng->g", z_NxG, z_NxG)
        product_G = np.einsum("ng,ng->g", z_NxG, weights_NxN @ z_NxG)
    else:
        values = scipy.sparse.csr_array(values_NxG)
        pulled_G = (weights_NxN.sum(0) + weights_NxN.sum(1)) @ values
        sum_G, squares_G = (np.bincount(values.indices, power_E, minlength=genes)
                            for power_E in (values.data, values.data.astype(np.float64) ** 2))  # fmt: skip
        mean_G = sum_G / number
        square_G = squares_G - number * mean_G**2
        product_G = _neighbour_products(values, weights_NxN) - mean_G * pulled_G + mean_G**2 * total_weight
    varies_G = square_G > 1e-10 * number * mean_G**2 + 1e-20
    return np.where(varies_G, number / total_weight * product_G / np.where(varies_G, square_G, 1.0), np.nan)


def _neighbour_products(values_NxG: scipy.sparse.csr_array, weights_NxN: scipy.sparse.csr_array) -> np.ndarray:
    """sum over places of x · Wx by column, [G].

    A pair of neighbours is looked at once, with both its weights. Its product is of the genes that both have: rows of
    a sparse array are merged, and Wx, whose entries are several times as many, is never made.
    """
    number, genes = values_NxG.shape
    neighbour_NxK, weight_NxK = _padded(scipy.sparse.triu(weights_NxN + weights_NxN.T, 1, "csr"))

    def of(rows: slice) -> np.ndarray:
        own, total_G = values_NxG[rows].astype(np.float64), np.zeros(genes)
        for neighbour_n, weight_n in zip(neighbour_NxK[rows].T, weight_NxK[rows].T, strict=True):
            both = own.multiply(values_NxG[neighbour_n])
            weight_E = np.repeat(weight_n, np.diff(both.indptr))
            total_G += np.bincount(both.indices, both.data * weight_E, minlength=genes)
        return total_G

    step = max(1, ENTRIES_AT_ONCE * number // max(values_NxG.nnz, 1))
    strips = [slice(first, min(first + step, number)) for first in range(0, number, step)]
    total_G = np.zeros(genes)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part_G in pool.map(of, strips):  # added in their order: the same bits on any number of cores
            total_G += part_G
    return total_G


def _padded(weights_NxN: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours and weights of each place, [N, K]; where it has fewer than K, itself with weight 0."""
    number, degree_N = weights_NxN.shape[0], np.diff(weights_NxN.indptr)
    largest = int(degree_N.max(initial=0))
    row_E = np.repeat(np.arange(number), degree_N)
    slot_E = np.arange(len(row_E)) - np.repeat(weights_NxN.indptr[:-1], degree_N)
    neighbour_NxK = np.tile(np.arange(number)[:, None], (1, largest))
    weight_NxK = np.zeros((number, largest))
    neighbour_NxK[row_E, slot_E], weight_NxK[row_E, slot_E] = weights_NxN.indices, weights_NxN.data
    return neighbour_NxK, weight_NxK

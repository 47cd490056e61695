"""The order in which bins are written, and their groups."""

import numpy as np


def writing_ranks(
    order: str, x_um: np.ndarray, y_um: np.ndarray, pitch_um: float, rng: np.random.Generator
) -> np.ndarray:
    """Rank (0 first) of each bin in the order of writing.

    order: raster (row by row), hilbert (along a Hilbert curve), random, or coarse_to_fine (a coarse sub-grid first,
    then ever finer ones, in random order within a level). x_um, y_um: centres [N]; pitch_um: between neighbours.
    """
    number = len(x_um)
    if order == "random":
        return rng.permutation(number)
    column = np.rint((x_um - x_um.min(initial=np.inf)) / pitch_um).astype(np.int64) if number else np.zeros(0, np.int64)
    row = np.rint((y_um - y_um.min(initial=np.inf)) / pitch_um).astype(np.int64) if number else np.zeros(0, np.int64)
    if order == "raster":
        keys = (column, row)
    elif order == "hilbert":
        keys = (hilbert_index(column, row),)
    else:
        keys = (rng.permutation(number), -np.minimum(_trailing_zeros(column), _trailing_zeros(row)))
    ranks = np.empty(number, np.int64)
    ranks[np.lexsort(keys)] = np.arange(number)
    return ranks


def write_steps(ranks: np.ndarray, groups: int) -> np.ndarray:
    """Group of each bin, 1 … K, in nearly equal shares of the order; K = 0 stands for one bin a group. int32 [N]."""
    groups = len(ranks) if groups == 0 else min(groups, max(len(ranks), 1))
    return (1 + ranks * groups // max(len(ranks), 1)).astype(np.int32)


def hilbert_index(column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Position along the Hilbert curve through the smallest 2^k × 2^k grid that holds all cells (int64 [N])."""
    x, y = column.copy(), row.copy()
    side = 1
    while side <= max(x.max(initial=0), y.max(initial=0)):
        side *= 2
    index = np.zeros_like(x)
    half = side // 2
    while half:
        right, low = (x & half) > 0, (y & half) > 0
        index += half * half * ((3 * right) ^ low)
        # turn the quadrant so that its own curve begins where the last one ended
        flip = ~low & right
        x[flip], y[flip] = side - 1 - x[flip], side - 1 - y[flip]
        swap = ~low
        x[swap], y[swap] = y[swap].copy(), x[swap].copy()
        half //= 2
    return index


def _trailing_zeros(values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, 62, np.log2(np.maximum(values & -values, 1))).astype(np.int64)

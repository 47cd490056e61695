"""Coarse to fine: a window's bins summed up to larger ones, which are written before them.

The counts of a coarse bin are those of the bins in it that count, and its measured area is theirs. It is a bin like any
other: it has a place and a size, a query that the H&E alone answers, and a content that all finer bins may read. So the
finest bins are predicted from what the larger ones hold, scale by scale (VAR: Tian et al. 2024, arXiv:2404.02905).

Axes: N bins of a window, M of them one scale coarser, E entries (bin, gene, count).
"""

import dataclasses

import numpy as np

from tario_jax.config import DataConfig
from tario_jax.tokens.window import Bins, Window, grid_centres


def coarsened(bins: Bins, side_um: float, window_um: float, min_measured: float) -> Bins:
    """The square bins of a window as larger ones; those of which less than `min_measured` counts do not count."""
    x_um_M, y_um_M = grid_centres(window_um, side_um)
    columns = round(window_um / side_um)
    parent_N = (bins.y_um_N // side_um).astype(int) * columns + (bins.x_um_N // side_um).astype(int)
    area_M = np.bincount(parent_N, bins.measured_N * bins.size_um**2, minlength=len(x_um_M))
    share_M = area_M / side_um**2
    share_M = np.where(share_M >= min_measured - 1e-6, np.minimum(share_M, 1.0), 0.0).astype(np.float32)
    parent_E = parent_N[bins.bin_E]
    kept_E = share_M[parent_E] > 0
    key_E, which_E = np.unique(parent_E[kept_E].astype(np.int64) << 16 | bins.gene_E[kept_E], return_inverse=True)
    count_E = np.bincount(which_E, bins.count_E[kept_E], minlength=len(key_E)).astype(np.int32)
    bin_E, gene_E = (part.astype(np.int32) for part in (key_E >> 16, key_E & 0xFFFF))
    return Bins(x_um_M, y_um_M, side_um, share_M, bin_E, gene_E, count_E, side_um, True)


def with_coarse(window: Window, bins: Bins, data: DataConfig) -> Window:
    """The window with the coarse bins of `data` too, their counts and areas those of `bins`."""
    coarse = tuple(coarsened(bins, side_um, window.side_um, data.min_measured) for side_um in data.coarse_um)
    return dataclasses.replace(window, coarse=coarse)


def together(scales: list[Bins]) -> Bins:
    """Bins of several scales as bins of sizes of their own, those of the first scale first; its pitch is theirs."""
    first = np.cumsum([0, *(len(bins.x_um_N) for bins in scales)])
    joined = {name: np.concatenate([getattr(bins, name) for bins in scales])
              for name in ("x_um_N", "y_um_N", "measured_N", "gene_E", "count_E")}  # fmt: skip
    size_um_N = np.concatenate([np.full(len(bins.x_um_N), float(bins.size_um)) for bins in scales])
    bin_E = np.concatenate([bins.bin_E + start for bins, start in zip(scales, first, strict=False)]).astype(np.int32)
    return dataclasses.replace(scales[0], **joined, size_um=size_um_N, bin_E=bin_E, square=False)

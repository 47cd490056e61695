"""Where the table of genes starts: the axes along which the compositions of training bins differ most.

Of a bin b with counts c[b, g] of total n_b, and the mean share s_g of each gene among those that its window measured,
correspondence analysis (Benzécri 1973; Greenacre 1984) takes the singular vectors of

    R[b, g] = (c[b, g] − n_b s_g) / sqrt(n_b s_g) = Σ_k u[b, k] σ_k v[g, k]

and a bin's log rates differ from the mean by about Σ_k score[b, k] · v[g, k] / sqrt(s_g). That is the form of the head,
logits = h · table, so the table starts at v / sqrt(s): the first steps are spent on what the H&E tells of these axes
and not on finding them, and contents, which are read through the same table, tell of them from the start.

A gene of few detections has an axis that is mostly noise: its entries are shrunk by N s_g / (N s_g + 30), where N s_g
are the detections that it has in these bins. An axis is given the deviation that it has above the last one, which is
noise; the sum over as many axes as the base of muP has columns is what a random table would have. Columns beyond the
axes that these bins can tell of are random. Of more than 65,536 bins as many are drawn: finer ones take no longer.
"""

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import LinearOperator, svds

from tario_jax.tokens.batch import Batch
from tario_jax.train.composition import composition

MOST_AXES = 128
MOST_BINS = 1 << 16
_BINS_OF_AXIS = 8
_LEAST_TOTAL = 20  # detections of a bin: below, its composition says nothing
_PRIOR = 30.0  # detections
_SPREAD = 0.5  # root of Σ_g s_g Σ_k table², as of a random table


def principal_table(batches: list[Batch], genes: int, width: int, base: float, seed: int) -> np.ndarray:
    """Float32 [genes, width]; base: columns of the base of muP, `width` without it; seed: of what is random."""
    random = np.random.Generator(np.random.Philox(key=seed))
    table_Gxw = random.standard_normal((genes, width)) * (_SPREAD / base**0.5)
    counts, mask_N, masks_MxG = _bins(batches, genes)
    total_N = np.asarray(counts.sum(1)).ravel()
    kept_N = np.flatnonzero(total_N >= _LEAST_TOTAL)
    if len(kept_N) > MOST_BINS:
        kept_N = np.sort(random.choice(kept_N, MOST_BINS, replace=False))
    counts, mask_N, total_N = counts[kept_N], mask_N[kept_N], total_N[kept_N]
    axes = min(width, MOST_AXES, min(counts.shape) // _BINS_OF_AXIS)
    if not axes:
        return table_Gxw.astype(np.float32)
    found_G = np.asarray(counts.sum(0)).ravel()
    shrunk_G = found_G / (found_G + _PRIOR)
    share_MxG = _shares(found_G, np.bincount(mask_N, total_N, minlength=len(masks_MxG)), masks_MxG)
    share_G = np.where(found_G > 0, found_G, 0.5) / found_G.sum()
    deviation_A, axis_AxG = _singular(counts, total_N, mask_N, share_MxG, shrunk_G / np.sqrt(share_G), axes)
    above_A = np.sqrt(np.maximum(deviation_A**2 - 0.9 * deviation_A[-1] ** 2, 0.0))
    above_A *= _SPREAD / np.sqrt((above_A[: int(base)] ** 2).sum())
    table_Gxw[:, :axes] = axis_AxG.T * above_A * (shrunk_G / np.sqrt(share_G))[:, None]
    return table_Gxw.astype(np.float32)


def _shares(found_G: np.ndarray, total_M: np.ndarray, masks_MxG: np.ndarray) -> np.ndarray:
    """Share of each gene among those of each mask, [M, G], of the one composition that explains what all found."""
    share_MxG = masks_MxG * composition(found_G, total_M, masks_MxG)
    return share_MxG / np.maximum(share_MxG.sum(1, keepdims=True), 1e-12)


def _bins(batches: list[Batch], genes: int) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray]:
    """Counts of all bins [N, G] and which mask of measured genes each has, and those masks, bool [M, G]."""
    masks: dict[bytes, int] = {}
    parts, mask_parts = [], []
    for batch in batches:
        bins_of_tile = batch.bin_step_BxTxN.shape[2]
        for row in range(len(batch.count_bin_BxC)):
            of_window = [masks.setdefault(np.packbits(mask_G[:genes]).tobytes(), len(masks))
                         for mask_G in batch.measured_gene_BxWxG[row]]  # fmt: skip
            real_C = batch.count_bin_BxC[row] >= 0
            at = batch.count_bin_BxC[row][real_C], batch.count_gene_BxC[row][real_C]
            shape = (batch.bin_step_BxTxN[row].size, genes)
            parts.append(scipy.sparse.csr_array((batch.count_BxC[row][real_C].astype(np.float64), at), shape=shape))
            mask_parts.append(np.asarray(of_window)[np.repeat(batch.window_BxT[row], bins_of_tile)])
    unpacked = [np.unpackbits(np.frombuffer(mask, np.uint8), count=genes).astype(bool) for mask in masks]
    return scipy.sparse.vstack(parts, format="csr"), np.concatenate(mask_parts), np.stack(unpacked)


def _singular(counts: scipy.sparse.csr_array, total_N: np.ndarray, mask_N: np.ndarray, share_MxG: np.ndarray,
              weight_G: np.ndarray, axes: int) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Largest singular values [A] and right vectors [A, G] of (counts − total · share) / sqrt(total) · weight."""
    scaled = counts.multiply(1 / np.sqrt(total_N)[:, None]).multiply(weight_G[None]).tocsr()
    turned = scaled.T.tocsr()
    mean_MxG, root_N = share_MxG * weight_G, np.sqrt(total_N)
    is_of_MxN = (mask_N == np.arange(len(share_MxG))[:, None]) * root_N

    def times(x_G):
        return scaled @ x_G.ravel() - (mean_MxG @ x_G.ravel())[mask_N] * root_N

    def back(y_N):
        return turned @ y_N.ravel() - (is_of_MxN @ y_N.ravel()) @ mean_MxG

    residual = LinearOperator(scaled.shape, matvec=times, rmatvec=back, dtype=np.float64)
    _, value_A, axis_AxG = svds(residual, k=axes, v0=np.ones(min(scaled.shape)))
    order = np.argsort(-value_A)
    axis_AxG = axis_AxG[order]
    # the sign of an axis is anyone's: its largest entry is made positive, on every machine
    largest_A = axis_AxG[np.arange(axes), np.abs(axis_AxG).argmax(1)]
    return value_A[order], axis_AxG * np.sign(largest_A)[:, None]

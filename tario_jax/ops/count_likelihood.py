"""The likelihood of counts: a Poisson of each bin's total, and a multinomial over genes.

A bin b has rates mu[b, g] = exp(log_total[b]) · softmax_g(logits[b]). The Poisson negative log-likelihood of its counts
c splits, up to a constant of the counts alone (the multinomial coefficient), into

    total:  mu_b − n_b log mu_b + log n_b!      mu_b = exp(log_total[b]),  n_b = Σ_g c[b, g]
    gene:   −Σ_g c[b, g] log softmax_g(logits[b])

and the second is next-token cross-entropy of the bin's detections over a vocabulary of genes.

Axes: B rows, N bins of a row, d width, G padded gene axis, C entries of counts, W gene masks of a row (one a window),
T chunks, n bins of a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tario_jax.config import InputError

# Finite, so that a bin without a measured gene gives 0 and not −inf − −inf.
_LOWEST = -1e30
_ENTRIES_AT_ONCE = 512


class SparseCounts(NamedTuple):
    """Counts of the bins of a row, entries in ascending order of bin; padding stands at the end, with bin −1."""

    bin_BxC: jax.Array  # int32, slot of the bin in the row
    gene_BxC: jax.Array  # int32, position on the gene axis
    count_BxC: jax.Array  # int32 or uint16


class CountNLL(NamedTuple):
    """Sums over the valid bins, float32 scalars. Loss in nats per detection: (total + gene) / detections."""

    total_nats: jax.Array
    gene_nats: jax.Array
    detections: jax.Array


def count_nll(
    h_BxNxd: jax.Array,
    table_Gxd: jax.Array,
    bias_G: jax.Array,
    log_total_BxN: jax.Array,
    counts: SparseCounts,
    bin_valid_BxN: jax.Array,
    gene_mask_BxWxG: jax.Array,
    mask_of_bin_BxN: jax.Array,
    *,
    chunk: int,
) -> CountNLL:
    """The negative log-likelihood of `counts` under logits = h tableᵀ + bias and expected totals exp(log_total).

    Bin b of a row has the gene mask `gene_mask_BxWxG[row, mask_of_bin_BxN[row, b]]` (bool, int32). A gene outside it
    (not measured in the section, or padding of the gene axis) is outside the softmax: its logit is −inf.
    `log_total` holds the log of the expected detections of the whole bin, its measured share included. Bins that are
    not valid give no loss and no gradient, whatever they hold. h and table may be bfloat16; products are summed in
    float32. Logits and dense counts exist for `chunk` bins of each row at a time. If a derivative is asked for, the
    gradients of gene_nats are computed in the forward pass and kept instead of the logits.

    Wrong counts cannot be refused under jit; `check_counts` does before. Here, a count on a gene outside its bin's
    mask drives the loss to the order of 1e30, and entries out of order are lost.

    Raises `InputError` for a chunk below 1.
    """
    if chunk < 1:
        raise InputError(f"model.loss_chunk is {chunk}; expected at least 1")
    bins = h_BxNxd.shape[1]
    n_BxN = jnp.where(bin_valid_BxN, _bin_totals(counts, bins), 0)
    log_total_BxN = jnp.where(bin_valid_BxN, log_total_BxN.astype(jnp.float32), 0)
    nats_BxN = jnp.exp(log_total_BxN) - n_BxN * log_total_BxN + lax.lgamma(n_BxN + 1)
    total_nats = jnp.sum(nats_BxN, where=bin_valid_BxN)
    h_BxNxd = jnp.where(bin_valid_BxN[:, :, None], h_BxNxd, 0)
    gene_nats = _gene_nats(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk)
    return CountNLL(total_nats, gene_nats, n_BxN.sum())


def log_rates(
    h_BxNxd: jax.Array,
    table_Gxd: jax.Array,
    bias_G: jax.Array,
    log_total_BxN: jax.Array,
    gene_mask_BxWxG: jax.Array,
    mask_of_bin_BxN: jax.Array,
) -> jax.Array:
    """Log of the expected detections of each bin and gene, float32 [B, N, G]; −inf for genes outside the bin's mask."""
    allowed_BxNxG = _mask_of_bins(gene_mask_BxWxG, mask_of_bin_BxN)
    logits_BxNxG = jnp.where(allowed_BxNxG, _logits(h_BxNxd, table_Gxd, bias_G), _LOWEST)
    rates = log_total_BxN.astype(jnp.float32)[:, :, None] + jax.nn.log_softmax(logits_BxNxG, axis=-1)
    return jnp.where(allowed_BxNxG, rates, -jnp.inf)


def check_counts(
    counts: SparseCounts,
    bin_valid_BxN: np.ndarray,
    gene_mask_BxWxG: np.ndarray,
    mask_of_bin_BxN: np.ndarray,
    where: str,
) -> None:
    """Refuses counts that `count_nll` would read wrongly. numpy arrays, before they go to the device.

    Raises `InputError`, with `where` in front, for entries out of order, bins or genes that do not exist, negative
    counts, and counts on genes that the bin's section did not measure. Bins that are not valid are not looked at.
    """
    bin_BxC, gene_BxC, count_BxC = (np.asarray(field) for field in counts)
    bins, genes = mask_of_bin_BxN.shape[1], gene_mask_BxWxG.shape[2]
    order_BxC = np.where(bin_BxC == -1, bins, bin_BxC)

    def refuse(wrong_BxC: np.ndarray, found: str, expected: str) -> None:
        if wrong_BxC.any():
            row, entry = np.argwhere(wrong_BxC)[0]
            bin_, gene, count = (field[row, entry] for field in (bin_BxC, gene_BxC, count_BxC))
            raise InputError(f"{where}: row {row}, entry {entry} (bin {bin_}, gene {gene}, count {count}) {found}; "
                             f"expected {expected}")  # fmt: skip

    real_BxC = bin_BxC != -1
    no_bin_BxC, no_gene_BxC = (bin_BxC < -1) | (bin_BxC >= bins), (gene_BxC < 0) | (gene_BxC >= genes)
    refuse(no_bin_BxC, "is of a bin that does not exist", f"0 <= bin < {bins}, or −1 as padding")
    refuse(np.diff(order_BxC, axis=1, prepend=0) < 0, "is out of order", "ascending bins, padding at the end")
    refuse(real_BxC & no_gene_BxC, "is of a gene that does not exist", f"0 <= gene < {genes}")
    refuse(real_BxC & (count_BxC.astype(np.int64) < 0), "is negative", "a count of at least 0")
    row_Bx1 = np.arange(len(bin_BxC))[:, None]
    slot_BxC, gene_BxC = np.where(real_BxC, bin_BxC, 0), np.where(real_BxC, gene_BxC, 0)
    measured_BxC = gene_mask_BxWxG[row_Bx1, mask_of_bin_BxN[row_Bx1, slot_BxC], gene_BxC]
    counted_BxC = real_BxC & (count_BxC > 0) & np.asarray(bin_valid_BxN)[row_Bx1, slot_BxC]
    refuse(counted_BxC & ~measured_BxC, "is on a gene outside the bin's mask", "counts on measured genes only")


def _bin_totals(counts: SparseCounts, bins: int) -> jax.Array:
    """Counts of each bin, float32 [B, N]; summed as integers."""

    def of_row(bin_C, count_C):
        # A negative index would wrap around: padding goes past the end, and is dropped there.
        slot_C = jnp.where(bin_C < 0, bins, bin_C)
        return jnp.zeros(bins, jnp.int32).at[slot_C].add(count_C.astype(jnp.int32), mode="drop")

    return jax.vmap(of_row)(counts.bin_BxC, counts.count_BxC).astype(jnp.float32)


def _logits(h_Bxnxd: jax.Array, table_Gxd: jax.Array, bias_G: jax.Array) -> jax.Array:
    logits_BxnxG = jnp.einsum("bnd,gd->bng", h_Bxnxd, table_Gxd, preferred_element_type=jnp.float32)
    return logits_BxnxG + bias_G.astype(jnp.float32)


def _mask_of_bins(gene_mask_BxWxG: jax.Array, mask_of_bin_Bxn: jax.Array) -> jax.Array:
    return jax.vmap(lambda mask_WxG, row_n: mask_WxG[row_n])(gene_mask_BxWxG, mask_of_bin_Bxn)


class _Entries(NamedTuple):
    """Where the entries of each chunk lie: they are together, since bins ascend.

    trips_T pieces cover the longest of the rows. They are counted before the loop over chunks: with the batch sharded
    that is a reduction over devices, one then and not one a chunk.
    """

    start_TxB: jax.Array
    end_TxB: jax.Array
    trips_T: jax.Array


def _entries(bin_BxC: jax.Array, first_T: jax.Array, chunk: int) -> _Entries:
    order_BxC = jnp.where(bin_BxC < 0, jnp.iinfo(jnp.int32).max, bin_BxC)
    start_TxB, end_TxB = (
        jax.vmap(jnp.searchsorted, (0, None), 1)(order_BxC, edge_T) for edge_T in (first_T, first_T + chunk)
    )
    longest_T = (end_TxB - start_TxB).max(-1)
    return _Entries(start_TxB, end_TxB, -(-longest_T // _ENTRIES_AT_ONCE))


def _dense_counts(counts: SparseCounts, entries: _Entries, first: jax.Array, chunk: int, genes: int) -> jax.Array:
    """Counts of bins first … first + chunk − 1, float32 [B, chunk, G]; `entries` are those of this chunk.

    Only they are scattered, a piece at a time. All entries for every chunk would cost (chunks) times as much.
    """
    batch, capacity = counts.bin_BxC.shape

    def scatter(n, dense_BxnxG):
        def of_row(dense_nxG, bin_C, gene_C, count_C, start, end):
            entry = start + n * _ENTRIES_AT_ONCE + jnp.arange(_ENTRIES_AT_ONCE)
            at = jnp.minimum(entry, capacity - 1)
            slot = jnp.where(entry < end, bin_C[at] - first, chunk)  # past the end: dropped
            return dense_nxG.at[slot, gene_C[at]].add(count_C[at].astype(jnp.float32), mode="drop")

        return jax.vmap(of_row)(dense_BxnxG, *counts, entries.start_TxB, entries.end_TxB)

    return lax.fori_loop(0, entries.trips_T, scatter, jnp.zeros((batch, chunk, genes), jnp.float32))


def _walk(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, gradients):
    """gene_nats, and if wanted its gradients with respect to h, table and bias, chunk by chunk of N."""
    batch, bins, width = h_BxNxd.shape
    genes = table_Gxd.shape[0]
    steps = -(-bins // chunk)
    chunk = -(-bins // steps)  # the even share, so that padding stays below one bin a step

    def chunked(x_BxN___):
        padding = [(0, 0), (0, steps * chunk - bins)] + [(0, 0)] * (x_BxN___.ndim - 2)
        return jnp.moveaxis(jnp.pad(x_BxN___, padding).reshape(batch, steps, chunk, *x_BxN___.shape[2:]), 1, 0)

    def one_chunk(carry, of_chunk):
        nats, d_table_Gxd, d_bias_G = carry
        first, entries, h_Bxnxd, n_Bxn, mask_of_bin_Bxn = of_chunk
        allowed = _mask_of_bins(gene_mask_BxWxG, mask_of_bin_Bxn)
        logits = jnp.where(allowed, _logits(h_Bxnxd, table_Gxd, bias_G), _LOWEST)
        top = logits.max(-1, keepdims=True)
        weight = jnp.exp(logits - top)  # 0 outside the mask
        sum_Bxnx1 = weight.sum(-1, keepdims=True)
        dense = _dense_counts(counts, entries, first, chunk, genes)
        dense = jnp.where(n_Bxn[:, :, None] > 0, dense, 0)  # n is 0 in bins that are not valid
        nats = nats + jnp.sum(dense * (top + jnp.log(sum_Bxnx1) - logits))
        if not gradients:
            return (nats, None, None), None
        d_logits = weight * (n_Bxn[:, :, None] / sum_Bxnx1) - dense
        d_bias_G = d_bias_G + d_logits.sum((0, 1))
        d_logits = d_logits.astype(jnp.promote_types(h_Bxnxd.dtype, table_Gxd.dtype))
        d_h_Bxnxd = jnp.einsum("bng,gd->bnd", d_logits, table_Gxd, preferred_element_type=jnp.float32)
        part_Gxd = jnp.einsum("bng,bnd->gd", d_logits, h_Bxnxd, preferred_element_type=jnp.float32)
        return (nats, d_table_Gxd + part_Gxd, d_bias_G), d_h_Bxnxd.astype(h_Bxnxd.dtype)

    zeros = (jnp.zeros((genes, width), jnp.float32), jnp.zeros(genes, jnp.float32)) if gradients else (None, None)
    carry = (jnp.zeros((), jnp.float32), *zeros)
    first_T = jnp.arange(steps, dtype=jnp.int32) * chunk
    entries = _entries(counts.bin_BxC, first_T, chunk)
    xs = (first_T, entries, chunked(h_BxNxd), chunked(n_BxN), chunked(mask_of_bin_BxN))
    (nats, d_table_Gxd, d_bias_G), d_h = lax.scan(one_chunk, carry, xs)
    if not gradients:
        return nats
    d_h_BxNxd = jnp.moveaxis(d_h, 0, 1).reshape(batch, steps * chunk, width)[:, :bins]
    return nats, (d_h_BxNxd, d_table_Gxd, d_bias_G)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _gene_nats(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk):
    return _walk(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, gradients=False)


def _gene_nats_forward(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk):
    nats, (d_h_BxNxd, d_table_Gxd, d_bias_G) = _walk(
        h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, gradients=True
    )
    return nats, (d_h_BxNxd, d_table_Gxd.astype(table_Gxd.dtype), d_bias_G.astype(bias_G.dtype))


def _gene_nats_backward(chunk, gradients, d_nats):
    d_h, d_table, d_bias = ((d_nats * x.astype(jnp.float32)).astype(x.dtype) for x in gradients)
    return d_h, d_table, d_bias, None, None, None, None


_gene_nats.defvjp(_gene_nats_forward, _gene_nats_backward)

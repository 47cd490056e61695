"""What bins hold, read through a table of genes: variance-stabilised residuals from the mean composition.

A bin b with counts c[b, g] of total n_b holds, over the genes g that its window measured,

    held[b] = Σ_g (sqrt(c[b, g] + 3/8) − sqrt(n_b · share[g] + 3/8)) · table[g]

where share is the mean composition among those genes. The square root makes the noise of counts alike at every rate
(Anscombe, Biometrika 35, 1948).

The second root is dense: every bin has one for every gene. So dense counts are made of a chunk of bins, and the
residual is one product with the table, a third of the likelihood's arithmetic. Instead, the first root alone could be a
sum of table rows over the entries, and the second one be interpolated between a few totals of each window. Measured on
2 CPU cores, milliseconds forward and backward for 256 bins × 19,456 genes and tables of width 64 and 512: at 150
detections a bin 11 and 65 as here, 3 and 48 instead; at 1,500 detections 21 and 171 as here, 36 and 414 instead. At
width 512 nine tenths of it are the products, which accelerators do best; the gradient of summed rows is a scatter.

`held` is linear in the table: its gradient is the residual, made again chunk by chunk, times that of `held`.

On a mesh: rows lie over replica × fsdp, bins over context, genes over tensor, the table's width over fsdp. Each device
walks its bins over its genes; what the devices of `tensor` hold is added up once, after the walk.

Axes: B rows, N bins of a row, r width of the table, G padded gene axis, C entries of counts, W gene masks of a row (one
a window), n bins of a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import BATCH_AXES
from tario_jax.ops.products import dot
from tario_jax.ops.ranks import Ranks
from tario_jax.ops.sparse_counts import ALL_GENES, Entries, SparseCounts, bin_totals, chunk_sizes, of_window, slots_from

_ADDED = 0.375


def count_content(
    table_Gxr: jax.Array,
    frequency_G: jax.Array,
    counts: SparseCounts,
    gene_mask_BxWxG: jax.Array,
    mask_of_bin_BxN: jax.Array,
    *,
    dtype: jnp.dtype,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """What each bin holds, [B, N, r] in `dtype`, and its total counts, float32 [B, N].

    frequency_G: mean composition, float32, at least 0; of each window it is taken among the genes that it measured.
    Bin b of a row has the gene mask `gene_mask_BxWxG[row, mask_of_bin_BxN[row, b]]` (bool, int32); genes outside it add
    nothing. Entries of one bin and gene are added up. The gradient is that of the table; the frequency has none.

    Table and residuals are rounded to `dtype`, products are summed in float32; the table's gradient is of the table's
    own type, in which devices add it up. Never more dense counts exist than [rows, chunk, G] of one device: `chunk`
    bins of each row; 0 takes what a budget of memory holds (`chunk_sizes`). Under `jax.set_mesh` the work is split as
    that of `count_nll`.

    Raises `InputError` for a negative chunk, and where rows, bins, genes or the width of the table do not divide over
    the mesh.
    """
    rows, bins = mask_of_bin_BxN.shape
    genes, width = table_Gxr.shape
    size = chunk_sizes(rows, bins, genes, chunk=chunk, gene_chunk=genes).bins
    Ranks.ambient().part(width, "columns of the gene table", "fsdp")
    total_BxN = bin_totals(counts, bins)
    frequency_G = lax.stop_gradient(frequency_G.astype(jnp.float32))
    return _held(table_Gxr, frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN, size,
                 jnp.dtype(dtype)), total_BxN  # fmt: skip


def dense_content(
    table_Gxr: jax.Array, frequency_G: jax.Array, counts_BxnxG: jax.Array, gene_mask_BxG: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """The same of a few bins whose counts are dense, [B, n, r] and [B, n]; one gene mask a row. No custom gradient."""
    counts_BxnxG = jnp.where(gene_mask_BxG[:, None], counts_BxnxG, 0).astype(jnp.float32)
    share_BxG = jnp.where(gene_mask_BxG, frequency_G.astype(jnp.float32), 0)
    share_BxG /= jnp.maximum(share_BxG.sum(-1, keepdims=True), 1e-9)
    total_Bxn = counts_BxnxG.sum(-1)
    mean_BxnxG = total_Bxn[:, :, None] * share_BxG[:, None]
    residual_BxnxG = jnp.sqrt(counts_BxnxG + _ADDED) - jnp.sqrt(mean_BxnxG + _ADDED)
    residual_BxnxG = jnp.where(gene_mask_BxG[:, None], residual_BxnxG, 0).astype(dtype)
    held_Bxnxr = dot("bng,gr->bnr", residual_BxnxG, table_Gxr.astype(dtype))
    return held_Bxnxr.astype(dtype), total_Bxn


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _held(table_Gxr, frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, dtype):
    def local(ranks, residuals, table_Gxr):
        def one(step, held_BxNxr):
            first, new_n, residual_BxnxG = residuals.of_chunk(step, dtype)
            held_Bxnxr = dot("bng,gr->bnr", residual_BxnxG, table_Gxr)
            before_Bxnxr = lax.dynamic_slice_in_dim(held_BxNxr, first, chunk, 1)
            held_Bxnxr = jnp.where(new_n[:, None], held_Bxnxr.astype(held_BxNxr.dtype), before_Bxnxr)
            return lax.dynamic_update_slice_in_dim(held_BxNxr, held_Bxnxr, first, 1)

        # what devices add up stays float32 until they have
        summed = jnp.float32 if ranks.present("tensor") else dtype
        held_BxNxr = jnp.zeros((*residuals.total_BxN.shape, table_Gxr.shape[1]), summed)
        return ranks.sum(lax.fori_loop(0, residuals.steps, one, held_BxNxr), "tensor").astype(dtype)

    data = frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN
    return _on_mesh(local, data, chunk, dtype, table_Gxr)


def _forward(table_Gxr, frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, dtype):
    given = table_Gxr, frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN
    return _held(*given, chunk, dtype), given


def _backward(chunk, dtype, given, d_held_BxNxr):
    table_Gxr, *data = given

    def local(ranks, residuals, table_Gxr, d_held_BxNxr):
        def one(step, d_table_Gxr):
            first, new_n, residual_BxnxG = residuals.of_chunk(step, dtype)
            d_held_Bxnxr = lax.dynamic_slice_in_dim(d_held_BxNxr, first, chunk, 1)
            d_held_Bxnxr = jnp.where(new_n[:, None], d_held_Bxnxr, 0)
            return d_table_Gxr + dot("bng,bnr->gr", residual_BxnxG, d_held_Bxnxr)

        d_table_Gxr = lax.fori_loop(0, residuals.steps, one, jnp.zeros(table_Gxr.shape, jnp.float32))
        d_table_Gxr = ranks.sum_scattered(d_table_Gxr, "fsdp", 1)  # first: the other sums then move a part of it
        return ranks.sum(d_table_Gxr, "replica", "context")

    d_table_Gxr = _on_mesh(local, data, chunk, dtype, table_Gxr, d_held_BxNxr)
    return d_table_Gxr.astype(table_Gxr.dtype), None, None, None, None, None


_held.defvjp(_forward, _backward)


def _on_mesh(local, data, chunk: int, dtype: jnp.dtype, table_Gxr, d_held_BxNxr=None):
    """`local(ranks, residuals, table, d_held)` on each device's bins and genes; the table in `dtype`, its whole width.

    Gives what is placed as the table where d_held is given, as d_held where not.
    """
    ranks = Ranks.ambient()
    of_bins, of_table = ranks.spec(BATCH_AXES, "context"), ranks.spec("tensor", "fsdp")
    rows, of_masks = ranks.spec(BATCH_AXES), ranks.spec(BATCH_AXES, None, "tensor")
    backward = d_held_BxNxr is not None

    def on_device(data, table_Gxr, *d_held):
        table_Gxr = ranks.gather(table_Gxr.astype(dtype), "fsdp", 1)
        return local(ranks, _Residuals.of(ranks, *data, chunk), table_Gxr, *d_held)

    specs = ((ranks.spec("tensor"), SparseCounts(rows, rows, rows), of_bins, of_masks, of_bins), of_table)
    run = ranks.run(on_device, (*specs, of_bins) if backward else specs, of_table if backward else of_bins)
    return run(tuple(data), table_Gxr, *([d_held_BxNxr] if backward else []))


class _Residuals(NamedTuple):
    """What the residuals of this device's bins and genes are made of, chunk by chunk."""

    entries: Entries
    total_BxN: jax.Array
    share_BxWxG: jax.Array  # of the genes that the window measured
    gene_mask_BxWxG: jax.Array
    mask_of_bin_BxN: jax.Array
    chunk: int

    @classmethod
    def of(cls, ranks: Ranks, frequency_G, counts, total_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk) -> "_Residuals":
        bins, genes = total_BxN.shape[1], len(frequency_G)
        share_BxWxG = jnp.where(gene_mask_BxWxG, frequency_G, 0)
        share_BxWxG /= jnp.maximum(ranks.sum(share_BxWxG.sum(-1, keepdims=True), "tensor"), 1e-9)
        slot_BxC = slots_from(counts.bin_BxC, bins * ranks.index("context"))
        counts = SparseCounts(slot_BxC, counts.gene_BxC - genes * ranks.index("tensor"), counts.count_BxC)
        entries = Entries.of(counts, bins, chunk)
        return cls(entries, total_BxN, share_BxWxG, gene_mask_BxWxG, mask_of_bin_BxN, chunk)

    @property
    def steps(self) -> int:
        return -(-self.total_BxN.shape[1] // self.chunk)

    def of_chunk(self, step, dtype) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The first bin of a chunk, which of its bins n no earlier one had, and the residuals of those [B, n, G].

        The last chunk begins early, so that all are of one size.
        """
        new = step * self.chunk
        first = jnp.minimum(new, self.total_BxN.shape[1] - self.chunk)
        total_Bxn, window_Bxn = (
            lax.dynamic_slice_in_dim(x, first, self.chunk, 1) for x in (self.total_BxN, self.mask_of_bin_BxN)
        )
        none_BxnxG = jnp.zeros((*total_Bxn.shape, self.share_BxWxG.shape[2]), jnp.float32)
        counts_BxnxG = self.entries.added_to(none_BxnxG, step, first, ALL_GENES)
        mean_BxnxG = total_Bxn[:, :, None] * of_window(self.share_BxWxG, window_Bxn)
        residual_BxnxG = jnp.sqrt(counts_BxnxG + _ADDED) - jnp.sqrt(mean_BxnxG + _ADDED)
        residual_BxnxG = jnp.where(of_window(self.gene_mask_BxWxG, window_Bxn), residual_BxnxG, 0)
        return first, first + jnp.arange(self.chunk) >= new, residual_BxnxG.astype(dtype)

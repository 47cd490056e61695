"""The multinomial part of the count likelihood: cross-entropy over genes, walked in chunks of bins and of genes.

Of a chunk of bins are made: the logits, their log-sum-exp over genes, the logits at the entries, and from them
d_logits = n · softmax − counts, whose two products are the gradients of h and of the table. Counts enter at their
entries only; no dense array is made of them.

z-loss (PaLM, Chowdhery et al. 2022, section 5): z_loss · Σ n log²Z, where Z of a bin is its softmax's denominator and
each detection is a token. It keeps Z near 1. Its gradient is n · 2 z_loss log Z · softmax: another factor of the same
product.

One pass or two. Where all genes of a device fit a chunk, its logits are made once. Otherwise a first pass over chunks
of genes takes the log-sum-exp online, and a second one makes the logits again for the gradients: a third more
arithmetic, and never more than [rows, chunk, gene_chunk] of them.

On a mesh: rows lie over replica × fsdp, bins over context, genes over tensor, the table's width over fsdp. A device
gathers the width of its genes, walks its bins, and of each bin exchanges two numbers with the devices that hold the
other genes. The gradients are summed over devices once, after the walk.

Axes: B rows, N bins of a row, d width, G gene axis, C entries of counts, W gene masks of a row, n bins and g
genes of a chunk.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from tario_jax.config import BATCH_AXES, MESH_AXES
from tario_jax.ops.products import dot
from tario_jax.ops.ranks import Ranks
from tario_jax.ops.sparse_counts import ALL_GENES, Chunk, Entries, Part, SparseCounts, add_at, of_window, slots_from
from tario_jax.ops.tally import Tally

LOWEST = -1e30
"""Logit of a gene outside the mask. Finite, so that a bin without a measured gene gives 0 and not −inf − −inf."""


def masked_logits(h_Bxnxd, table_gxd, bias_g, gene_mask_BxWxg, mask_of_bin_Bxn) -> jax.Array:
    """h tableᵀ + bias, float32 [B, n, g]; `LOWEST` for genes outside the bin's mask."""
    logits_Bxnxg = dot("bnd,gd->bng", h_Bxnxd, table_gxd)
    return jnp.where(of_window(gene_mask_BxWxg, mask_of_bin_Bxn), logits_Bxnxg + bias_g.astype(jnp.float32), LOWEST)


class Partition(NamedTuple):
    """The softmax's denominator of each bin: total_Bxn · exp(top_Bxn) = Σ_g exp(logit), and the largest logit."""

    top_Bxn: jax.Array
    total_Bxn: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "Partition":
        return cls(jnp.full(shape, LOWEST, jnp.float32), jnp.zeros(shape, jnp.float32))

    def with_genes(self, logits_Bxnxg: jax.Array) -> "Partition":
        top_Bxn = jnp.maximum(self.top_Bxn, logits_Bxnxg.max(-1))
        total_Bxn = jnp.exp(logits_Bxnxg - top_Bxn[:, :, None]).sum(-1)
        return Partition(top_Bxn, self.total_Bxn * jnp.exp(self.top_Bxn - top_Bxn) + total_Bxn)

    def of_all(self, ranks: Ranks) -> "Partition":
        """Over the genes of all devices, in one exchange."""
        if not ranks.present("tensor"):
            return self
        top_RxBxn, total_RxBxn = jnp.moveaxis(lax.all_gather(jnp.stack(self), "tensor"), 1, 0)
        top_Bxn = top_RxBxn.max(0)
        return Partition(top_Bxn, (total_RxBxn * jnp.exp(top_RxBxn - top_Bxn)).sum(0))

    def log(self) -> jax.Array:
        return self.top_Bxn + jnp.log(self.total_Bxn)


class Bins(NamedTuple):
    """What is known of each bin beside its h and its counts."""

    n_BxN: jax.Array  # total of its counts, float32
    mask_BxN: jax.Array  # which of the row's gene masks it has
    group_BxN: jax.Array | None  # which group it is told with, 0 … groups − 1; any other number: none

    def cut(self, first, bins: int) -> "Bins":
        return jax.tree.map(lambda x_BxN: lax.dynamic_slice_in_dim(x_BxN, first, bins, 1), self)


class Asked(NamedTuple):
    """What is asked for, and how to walk: known when the program is made."""

    chunk: Chunk  # what `chunk_sizes` gives
    z_loss: float = 0.0
    groups: int = 0


class GeneSums(NamedTuple):
    """Of the whole batch, float32."""

    nats: Tally
    z_nats: jax.Array | None  # None: no z-loss


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def gene_nats(h_BxNxd, table_Gxd, bias_G, counts, bins: Bins, gene_mask_BxWxG, asked: Asked) -> GeneSums:
    """−Σ c log softmax over the genes of each bin's mask, and z_loss · Σ n log²Z.

    A bin of total 0 is left out with its entries, whatever its h holds. The other arguments are those of `count_nll`.

    The gradient that the forward pass makes is of nats and z_nats together. Where a derivative weighs one of them other
    than the other, it is NaN. Groups give none.
    """
    return _on_mesh(h_BxNxd, table_Gxd, bias_G, counts, bins, gene_mask_BxWxG, asked, False)[0]


def _forward(h_BxNxd, table_Gxd, bias_G, counts, bins, gene_mask_BxWxG, asked):
    moving = (h_BxNxd, table_Gxd, bias_G)
    sums, gradients = _on_mesh(*moving, counts, bins, gene_mask_BxWxG, asked, True)
    return sums, tuple(x.astype(like.dtype) for x, like in zip(gradients, moving, strict=True))


def _backward(asked, gradients, d_sums):
    d_nats = d_sums.nats.whole
    if asked.z_loss:
        d_nats = jnp.where(d_sums.z_nats == d_nats, d_nats, jnp.nan)
    d_h, d_table, d_bias = ((d_nats * x.astype(jnp.float32)).astype(x.dtype) for x in gradients)
    return d_h, d_table, d_bias, None, None, None


gene_nats.defvjp(_forward, _backward)


def _on_mesh(h_BxNxd, table_Gxd, bias_G, counts, bins, gene_mask_BxWxG, asked, gradients):
    """`_walk` on each device's rows, bins and genes: (sums, gradients or ()) of the whole, placed as the arguments."""
    ranks = Ranks.ambient()
    ranks.part(table_Gxd.shape[1], "columns of the gene table", "fsdp")

    def local(h, table, bias, counts, bins, gene_mask):
        # its gradient stays in the table's own type, as which it is summed over devices
        table = ranks.gather(table.astype(h.dtype), "fsdp", 1)
        slot_BxC = slots_from(counts.bin_BxC, h.shape[1] * ranks.index("context"))
        gene_BxC = counts.gene_BxC - table.shape[0] * ranks.index("tensor")
        counts = SparseCounts(slot_BxC, gene_BxC, counts.count_BxC)
        sums, found = _walk(h, table, bias, counts, bins, gene_mask, asked, ranks, gradients)
        sums = ranks.sum(sums, *MESH_AXES)
        if not gradients:
            return sums, ()
        d_h, d_table, d_bias = found
        d_table = ranks.sum_scattered(d_table, "fsdp", 1)  # first: the sums over other axes move a part of it then
        return sums, (ranks.sum(d_h, "tensor"), ranks.sum(d_table, "replica", "context"),
                      ranks.sum(d_bias, *BATCH_AXES, "context"))  # fmt: skip

    rows, of_bins = ranks.spec(BATCH_AXES), ranks.spec(BATCH_AXES, "context")
    moving = (of_bins, ranks.spec("tensor", "fsdp"), ranks.spec("tensor"))
    in_specs = (*moving, SparseCounts(rows, rows, rows), of_bins, ranks.spec(BATCH_AXES, None, "tensor"))
    return ranks.run(local, in_specs, (PartitionSpec(), moving if gradients else ()))(
        h_BxNxd, table_Gxd, bias_G, counts, bins, gene_mask_BxWxG
    )


class _Genes(NamedTuple):
    """A chunk of genes; those that an earlier chunk had are masked."""

    part: Part
    table_gxd: jax.Array
    bias_g: jax.Array
    mask_BxWxg: jax.Array


def _walk(h_BxNxd, table_Gxd, bias_G, counts, of_bins, gene_mask_BxWxG, asked, ranks, gradients):
    """This device's addends of the sums and of d_h, d_table and d_bias (None if not wanted).

    counts: bins and genes counted from the device's first ones; those of other devices lie outside 0 … N − 1 and
    0 … G − 1. The last chunk begins early, so that all are of one size: bins that it repeats count as empty.
    """
    bins, genes = h_BxNxd.shape[1], table_Gxd.shape[0]
    chunk, z_loss, groups = asked
    gene_steps = -(-genes // chunk.genes)
    slot_BxC = jnp.clip(counts.bin_BxC, 0, bins - 1)
    n_BxC = jnp.take_along_axis(of_bins.n_BxN, slot_BxC, 1)
    counts = counts._replace(count_BxC=jnp.where(n_BxC > 0, counts.count_BxC, 0))
    group_BxC = jnp.take_along_axis(of_bins.group_BxN, slot_BxC, 1) if groups else None
    entries = Entries.of(counts, bins, chunk.bins, group_BxC)
    adds_partition = ranks.index("tensor") == 0  # one of the devices that share a bin

    def genes_of(gene_step) -> _Genes:
        if gene_steps == 1:
            return _Genes(ALL_GENES, table_Gxd, bias_G, gene_mask_BxWxG)
        new = gene_step * chunk.genes
        first = jnp.minimum(new, genes - chunk.genes)
        table_gxd, bias_g = (lax.dynamic_slice_in_dim(x, first, chunk.genes, 0) for x in (table_Gxd, bias_G))
        mask_BxWxg = lax.dynamic_slice_in_dim(gene_mask_BxWxG, first, chunk.genes, 2)
        mask_BxWxg &= first + jnp.arange(chunk.genes) >= new
        return _Genes(Part(first, new), table_gxd, bias_g, mask_BxWxg)

    def with_chunk(sums, log_z_Bxn, picked, n_Bxn, group_Bxn) -> tuple[GeneSums, jax.Array]:
        """The sums with a chunk's, and the factor of softmax in the gradient of its logits."""
        of_partition = Tally.of(n_Bxn * log_z_Bxn, group_Bxn, groups)
        nats = jax.tree.map(lambda held, once, here: held + jnp.where(adds_partition, once, 0) - here,
                            sums.nats, of_partition, picked)  # fmt: skip
        if not z_loss:
            return GeneSums(nats, None), n_Bxn
        log_z_Bxn = jnp.where(n_Bxn > 0, log_z_Bxn, 0)  # the square of `LOWEST`, where no gene is measured, is infinite
        z_nats = z_loss * jnp.sum(n_Bxn * log_z_Bxn**2)
        return (GeneSums(nats, sums.z_nats + jnp.where(adds_partition, z_nats, 0)),
                n_Bxn * (1 + 2 * z_loss * log_z_Bxn))  # fmt: skip

    def one_chunk(step, carry):
        sums, grads = carry
        new = step * chunk.bins
        first = jnp.minimum(new, bins - chunk.bins)
        h_Bxnxd = lax.dynamic_slice_in_dim(h_BxNxd, first, chunk.bins, 1)
        n_Bxn, window_Bxn, group_Bxn = of_bins.cut(first, chunk.bins)
        n_Bxn = jnp.where(first + jnp.arange(chunk.bins) >= new, n_Bxn, 0)
        h_Bxnxd = jnp.where(n_Bxn[:, :, None] > 0, h_Bxnxd, 0)

        def over_genes(visit, found):
            """visit(found, some, logits) for each chunk of genes; of a single one the logits are made once."""

            def at(gene_step, found):
                some = genes_of(gene_step)
                return visit(found, some, logits_of(some))

            return visit(found, whole, logits) if gene_steps == 1 else lax.fori_loop(0, gene_steps, at, found)

        def logits_of(some):
            return masked_logits(h_Bxnxd, some.table_gxd, some.bias_g, some.mask_BxWxg, window_Bxn)

        def measure(found, some, logits_Bxnxg):
            partition, picked = found
            more = entries.picked(logits_Bxnxg, step, first, some.part, groups)
            return partition.with_genes(logits_Bxnxg), picked + more

        def differentiate(grads, some, logits_Bxnxg):
            d_h_Bxnxd, d_table_Gxd, d_bias_G = grads
            weight_Bxnxg = jnp.exp(logits_Bxnxg - partition.top_Bxn[:, :, None])  # 0 outside the mask
            d_logits = weight_Bxnxg * (factor_Bxn / partition.total_Bxn)[:, :, None]
            d_logits = entries.added_to(d_logits, step, first, some.part, times=-1)
            d_bias_G = add_at(d_bias_G, d_logits.sum((0, 1)), some.part.first, 0)
            d_logits = d_logits.astype(h_BxNxd.dtype)
            part_Bxnxd = dot("bng,gd->bnd", d_logits, some.table_gxd)
            part_gxd = dot("bng,bnd->gd", d_logits, h_Bxnxd)
            return d_h_Bxnxd + part_Bxnxd, add_at(d_table_Gxd, part_gxd, some.part.first, 0), d_bias_G

        if gene_steps == 1:
            whole = genes_of(0)
            logits = logits_of(whole)
        partition, picked = over_genes(measure, (Partition.empty(n_Bxn.shape), Tally.zero(groups)))
        partition = partition.of_all(ranks)
        sums, factor_Bxn = with_chunk(sums, partition.log(), picked, n_Bxn, group_Bxn)
        if gradients:
            d_h_BxNxd, d_table_Gxd, d_bias_G = grads
            begun = (jnp.zeros(h_Bxnxd.shape, jnp.float32), d_table_Gxd, d_bias_G)
            d_h_Bxnxd, d_table_Gxd, d_bias_G = over_genes(differentiate, begun)
            grads = add_at(d_h_BxNxd, d_h_Bxnxd, first, 1), d_table_Gxd, d_bias_G
        return sums, grads

    # what devices add up stays float32 until they have
    d_h_dtype = jnp.float32 if ranks.present("tensor") else h_BxNxd.dtype
    grads = (jnp.zeros(h_BxNxd.shape, d_h_dtype), jnp.zeros(table_Gxd.shape, jnp.float32),
             jnp.zeros(bias_G.shape, jnp.float32)) if gradients else None  # fmt: skip
    none = GeneSums(Tally.zero(groups), jnp.zeros((), jnp.float32) if z_loss else None)
    return lax.fori_loop(0, -(-bins // chunk.bins), one_chunk, (none, grads))

"""The multinomial part of the count likelihood: cross-entropy over genes, walked in chunks of bins and of genes.

Of a chunk of bins are made: the logits, their log-sum-exp over genes, the logits at the entries, and from them
d_logits = n · softmax − counts, whose two products are the gradients of h and of the table. Counts enter at their
entries only; no dense array is made of them.

One pass or two. Where all genes of a device fit a chunk, its logits are made once. Otherwise a first pass over chunks
of genes takes the log-sum-exp online, and a second one makes the logits again for the gradients: a third more
arithmetic, and never more than [rows, chunk, gene_chunk] of them.

How large a chunk is. With bfloat16 inputs n bins move the table twice and its float32 gradient in and out, 12 · G · d
bytes, and about 26 · n · G bytes of logits and their gradient, for 6 · n · G · d FLOPs. More bins amortise the first
only: at n = 2d it is a quarter of the second, and there is little left to gain. So the budget of float32 logits is
64 MiB on an accelerator, 856 bins of 19,456 genes, and 16 MiB on a CPU, where larger chunks were measured to bring
nothing. Genes split over `tensor` leave room for as many times more bins, and so for as many times fewer exchanges.

On a mesh: rows lie over replica × fsdp, bins over context, genes over tensor, the table's width over fsdp. A device
gathers the width of its genes, walks its bins, and of each bin exchanges two numbers with the devices that hold the
other genes. The gradients are summed over devices once, after the walk.

Axes: B rows, N bins of a row, d width, G gene axis, C entries of counts, W gene masks of a row, T chunks, n bins and
g genes of a chunk, E entries that are looked up together.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from tario_jax.config import BATCH_AXES, MESH_AXES, InputError
from tario_jax.ops.ranks import Ranks

LOWEST = -1e30
"""Logit of a gene outside the mask. Finite, so that a bin without a measured gene gives 0 and not −inf − −inf."""
_BUDGET_BYTES = {"cpu": 16 << 20}
_BUDGET_BYTES_ELSEWHERE = 64 << 20
_FEWEST_BINS = 128  # of all rows: genes are split before a product has fewer
_FEWEST_ENTRIES = 512


class SparseCounts(NamedTuple):
    """Counts of the bins of a row, entries in ascending order of bin; padding stands at the end, with bin −1."""

    bin_BxC: jax.Array  # int32, slot of the bin in the row
    gene_BxC: jax.Array  # int32, position on the gene axis
    count_BxC: jax.Array  # int32 or uint16


class Chunk(NamedTuple):
    """What exists at once on a device: so many bins of each of its rows, and so many genes."""

    bins: int
    genes: int


def chunk_sizes(rows: int, bins: int, genes: int, *, chunk: int = 0, gene_chunk: int = 0) -> Chunk:
    """The chunk that `count_nll` walks by on each device of the ambient mesh; rows, bins, genes are of the whole batch.

    chunk, gene_chunk: at most so many bins of each row and genes; 0 takes what the budget of logits holds, all genes
    if it holds 128 bins of them. The result is the even share of that, so that no last chunk is nearly empty.

    Raises `InputError` for a negative chunk, and where rows, bins or genes do not divide over the mesh.
    """
    for name, size in (("loss_chunk", chunk), ("loss_gene_chunk", gene_chunk)):
        if size < 0:
            raise InputError(f"model.{name} is {size}; expected at least 1, or 0 for what the budget of memory holds")
    ranks = Ranks.ambient()
    rows = ranks.part(rows, "rows", *BATCH_AXES)
    bins = ranks.part(bins, "bins of a row", "context")
    genes = ranks.part(genes, "genes", "tensor")
    device = jax.sharding.get_abstract_mesh().abstract_device  # a program for a pod is compiled on a laptop
    platform = jax.default_backend() if device is None else device.platform
    logits = _BUDGET_BYTES.get(platform, _BUDGET_BYTES_ELSEWHERE) // 4
    gene_share = _even_share(genes, gene_chunk or logits // _FEWEST_BINS, 128)
    return Chunk(_even_share(bins, chunk or max(logits // (gene_share * rows), 1), 8), gene_share)


def _even_share(size: int, most: int, aligned: int) -> int:
    """The smallest part that needs no more parts than `most` does, in whole registers (`aligned`) if `most` is."""
    if most >= size:
        return size
    if most < aligned:
        aligned = 1
    most -= most % aligned
    share = -(-size // -(-size // most))
    return -(-share // aligned) * aligned


def bin_totals(counts: SparseCounts, bins: int) -> jax.Array:
    """Counts of each bin, float32 [B, N]; summed as integers. On a mesh, each device has those of its bins."""
    ranks = Ranks.ambient()
    here = ranks.part(bins, "bins of a row", "context")

    def of_row(slot_C, count_C):
        # A negative index would wrap around: what is not here goes past the end, and is dropped there.
        slot_C = jnp.where(slot_C < 0, here, slot_C)
        return jnp.zeros(here, jnp.int32).at[slot_C].add(count_C.astype(jnp.int32), mode="drop")

    def local(bin_BxC, count_BxC):
        return jax.vmap(of_row)(_slots(bin_BxC, here * ranks.index("context")), count_BxC).astype(jnp.float32)

    rows = ranks.spec(BATCH_AXES)
    return ranks.run(local, (rows, rows), ranks.spec(BATCH_AXES, "context"))(counts.bin_BxC, counts.count_BxC)


def _slots(bin_BxC: jax.Array, first: jax.Array | int) -> jax.Array:
    """Bins counted from `first`, ascending to the end: padding becomes the largest of all."""
    return jnp.where(bin_BxC < 0, jnp.iinfo(jnp.int32).max, bin_BxC) - first


def masked_logits(h_Bxnxd, table_gxd, bias_g, gene_mask_BxWxg, mask_of_bin_Bxn) -> jax.Array:
    """h tableᵀ + bias, float32 [B, n, g]; `LOWEST` for genes outside the bin's mask."""
    logits_Bxnxg = jnp.einsum("bnd,gd->bng", h_Bxnxd, table_gxd, preferred_element_type=jnp.float32)
    if gene_mask_BxWxg.shape[1] == 1:  # nothing to look up: the mask is broadcast as it is
        allowed_Bxnxg = gene_mask_BxWxg
    else:
        allowed_Bxnxg = jax.vmap(lambda mask_Wxg, window_n: mask_Wxg[window_n])(gene_mask_BxWxg, mask_of_bin_Bxn)
    return jnp.where(allowed_Bxnxg, logits_Bxnxg + bias_g.astype(jnp.float32), LOWEST)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def gene_nats(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk):
    """−Σ c log softmax over the genes of each bin's mask: a float32 scalar, of the whole batch.

    n_BxN: totals of the counts by bin. A bin of total 0 is left out with its entries, whatever its h holds. chunk:
    what `chunk_sizes` gives. The other arguments are those of `count_nll`.
    """
    return _on_mesh(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, False)[0]


def _forward(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk):
    moving = (h_BxNxd, table_Gxd, bias_G)
    nats, gradients = _on_mesh(*moving, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, True)
    return nats, tuple(x.astype(like.dtype) for x, like in zip(gradients, moving, strict=True))


def _backward(chunk, gradients, d_nats):
    d_h, d_table, d_bias = ((d_nats * x.astype(jnp.float32)).astype(x.dtype) for x in gradients)
    return d_h, d_table, d_bias, None, None, None, None


gene_nats.defvjp(_forward, _backward)


def _on_mesh(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, gradients):
    """`_walk` on each device's rows, bins and genes: (nats, gradients or ()) of the whole, placed as the arguments."""
    ranks = Ranks.ambient()
    ranks.part(table_Gxd.shape[1], "columns of the gene table", "fsdp")

    def local(h, table, bias, counts, *of_bins):
        table = ranks.gather(table, "fsdp", 1)
        slot_BxC = _slots(counts.bin_BxC, h.shape[1] * ranks.index("context"))
        gene_BxC = counts.gene_BxC - table.shape[0] * ranks.index("tensor")
        counts = SparseCounts(slot_BxC, gene_BxC, counts.count_BxC)
        nats, found = _walk(h, table, bias, counts, *of_bins, chunk, ranks, gradients)
        nats = ranks.sum(nats, *MESH_AXES)
        if not gradients:
            return nats, ()
        d_h, d_table, d_bias = found
        d_table = ranks.sum_scattered(d_table, "fsdp", 1)  # first: the sums over other axes move a part of it then
        return nats, (ranks.sum(d_h, "tensor"), ranks.sum(d_table, "replica", "context"),
                      ranks.sum(d_bias, *BATCH_AXES, "context"))  # fmt: skip

    rows, bins = ranks.spec(BATCH_AXES), ranks.spec(BATCH_AXES, "context")
    moving = (bins, ranks.spec("tensor", "fsdp"), ranks.spec("tensor"))
    in_specs = (*moving, SparseCounts(rows, rows, rows), bins, ranks.spec(BATCH_AXES, None, "tensor"), bins)
    return ranks.run(local, in_specs, (PartitionSpec(), moving if gradients else ()))(
        h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN
    )


class _Genes(NamedTuple):
    """A chunk of genes: g from `first` on, of which those before `new` belong to an earlier chunk and are masked."""

    first: jax.Array | int
    new: jax.Array | int
    table_gxd: jax.Array
    bias_g: jax.Array
    mask_BxWxg: jax.Array


def _walk(h_BxNxd, table_Gxd, bias_G, counts, n_BxN, gene_mask_BxWxG, mask_of_bin_BxN, chunk, ranks, gradients):
    """This device's addends of the nats and of d_h, d_table and d_bias (None if not wanted).

    counts: bins and genes counted from the device's first ones; those of other devices lie outside 0 … N − 1 and
    0 … G − 1. The last chunk begins early, so that all are of one size: bins that it repeats count as empty.
    """
    bins, genes = h_BxNxd.shape[1], table_Gxd.shape[0]
    gene_steps = -(-genes // chunk.genes)
    entries = _Entries.of(counts, n_BxN, chunk.bins)
    dtype = jnp.promote_types(h_BxNxd.dtype, table_Gxd.dtype)
    adds_partition = ranks.index("tensor") == 0  # one of the devices that share a bin

    def genes_of(gene_step) -> _Genes:
        if gene_steps == 1:
            return _Genes(0, 0, table_Gxd, bias_G, gene_mask_BxWxG)
        new = gene_step * chunk.genes
        first = jnp.minimum(new, genes - chunk.genes)
        table_gxd, bias_g = (lax.dynamic_slice_in_dim(x, first, chunk.genes, 0) for x in (table_Gxd, bias_G))
        mask_BxWxg = lax.dynamic_slice_in_dim(gene_mask_BxWxG, first, chunk.genes, 2)
        return _Genes(first, new, table_gxd, bias_g, mask_BxWxg & (first + jnp.arange(chunk.genes) >= new))

    def one_chunk(step, carry):
        nats, grads = carry
        new = step * chunk.bins
        first = jnp.minimum(new, bins - chunk.bins)
        h_Bxnxd, n_Bxn, window_Bxn = (
            lax.dynamic_slice_in_dim(x, first, chunk.bins, 1) for x in (h_BxNxd, n_BxN, mask_of_bin_BxN)
        )
        n_Bxn = jnp.where(first + jnp.arange(chunk.bins) >= new, n_Bxn, 0)
        h_Bxnxd = jnp.where(n_Bxn[:, :, None] > 0, h_Bxnxd, 0)

        def over_genes(visit, found):
            """visit(found, part, logits) for each chunk of genes; of a single one the logits are made once."""

            def at(gene_step, found):
                part = genes_of(gene_step)
                return visit(found, part, logits_of(part))

            return visit(found, whole, logits) if gene_steps == 1 else lax.fori_loop(0, gene_steps, at, found)

        def logits_of(part):
            return masked_logits(h_Bxnxd, part.table_gxd, part.bias_g, part.mask_BxWxg, window_Bxn)

        def measure(found, part, logits_Bxnxg):
            partition, picked = found
            return partition.with_genes(logits_Bxnxg), picked + entries.picked(logits_Bxnxg, step, first, part)

        def differentiate(grads, part, logits_Bxnxg):
            d_h_Bxnxd, d_table_Gxd, d_bias_G = grads
            weight_Bxnxg = jnp.exp(logits_Bxnxg - partition.top_Bxn[:, :, None])  # 0 outside the mask
            d_logits = weight_Bxnxg * (n_Bxn / partition.total_Bxn)[:, :, None]
            d_logits = entries.subtracted_from(d_logits, step, first, part)
            d_bias_G = _add_at(d_bias_G, d_logits.sum((0, 1)), part.first, 0)
            d_logits = d_logits.astype(dtype)
            part_Bxnxd = jnp.einsum("bng,gd->bnd", d_logits, part.table_gxd, preferred_element_type=jnp.float32)
            part_gxd = jnp.einsum("bng,bnd->gd", d_logits, h_Bxnxd, preferred_element_type=jnp.float32)
            return d_h_Bxnxd + part_Bxnxd, _add_at(d_table_Gxd, part_gxd, part.first, 0), d_bias_G

        if gene_steps == 1:
            whole = genes_of(0)
            logits = logits_of(whole)
        partition, picked = over_genes(measure, (Partition.empty(n_Bxn.shape), jnp.zeros((), jnp.float32)))
        partition = partition.of_all(ranks)
        nats = nats + jnp.where(adds_partition, jnp.sum(n_Bxn * partition.log()), 0) - picked
        if gradients:
            d_h_BxNxd, d_table_Gxd, d_bias_G = grads
            begun = (jnp.zeros(h_Bxnxd.shape, jnp.float32), d_table_Gxd, d_bias_G)
            d_h_Bxnxd, d_table_Gxd, d_bias_G = over_genes(differentiate, begun)
            grads = _add_at(d_h_BxNxd, d_h_Bxnxd, first, 1), d_table_Gxd, d_bias_G
        return nats, grads

    # what devices add up stays float32 until they have
    d_h_dtype = jnp.float32 if ranks.present("tensor") else h_BxNxd.dtype
    grads = (jnp.zeros(h_BxNxd.shape, d_h_dtype), jnp.zeros(table_Gxd.shape, jnp.float32),
             jnp.zeros(bias_G.shape, jnp.float32)) if gradients else None  # fmt: skip
    return lax.fori_loop(0, -(-bins // chunk.bins), one_chunk, (jnp.zeros((), jnp.float32), grads))


def _add_at(x: jax.Array, part: jax.Array, first: jax.Array | int, axis: int) -> jax.Array:
    """x with `part` added from `first` on along `axis`."""
    if part.shape == x.shape:
        return x + part.astype(x.dtype)
    held = lax.dynamic_slice_in_dim(x, first, part.shape[axis], axis)
    return lax.dynamic_update_slice_in_dim(x, held + part.astype(x.dtype), first, axis)


class _Entries(NamedTuple):
    """The entries of counts, and where those of each chunk of bins lie: they are together, since bins ascend.

    They are visited `piece` a row at a time, as many times as the longest of the rows needs: so each is visited once,
    not once a chunk. The times are counted before the loop over chunks: where XLA has split the rows over devices that
    is one exchange, and not one a chunk.
    """

    slot_BxC: jax.Array  # these three with a piece more at the end, so that every piece is whole
    gene_BxC: jax.Array
    count_BxC: jax.Array  # float32; 0 in bins of total 0, as those are that are not valid
    start_TxB: jax.Array
    end_TxB: jax.Array
    pieces_T: jax.Array
    piece: int

    @classmethod
    def of(cls, counts: SparseCounts, n_BxN: jax.Array, chunk: int) -> "_Entries":
        capacity, bins = counts.bin_BxC.shape[1], n_BxN.shape[1]
        steps = -(-bins // chunk)
        edge_T = jnp.minimum(jnp.arange(steps + 1, dtype=jnp.int32) * chunk, bins)
        edge_TxB = jax.vmap(jnp.searchsorted, (0, None), 1)(counts.bin_BxC, edge_T)
        # twice the mean of a chunk: one piece nearly always
        piece = min(capacity, max(_FEWEST_ENTRIES, 2 * -(-capacity // steps)))
        pieces_T = -(-(edge_TxB[1:] - edge_TxB[:-1]).max(-1) // piece)
        n_BxC = jnp.take_along_axis(n_BxN, jnp.clip(counts.bin_BxC, 0, bins - 1), 1)
        count_BxC = jnp.where(n_BxC > 0, counts.count_BxC.astype(jnp.float32), 0)
        whole = (jnp.pad(x_BxC, ((0, 0), (0, piece))) for x_BxC in (counts.bin_BxC, counts.gene_BxC, count_BxC))
        return cls(*whole, edge_TxB[:-1], edge_TxB[1:], pieces_T, piece)

    def picked(self, logits_Bxnxg: jax.Array, step, first, part: _Genes) -> jax.Array:
        """Σ count · logit over the entries of a chunk of bins and of genes, float32 scalar."""

        def add(number, picked):
            slot_BxE, gene_BxE, count_BxE = self._piece(number, logits_Bxnxg.shape, step, first, part)
            at_BxE = jax.vmap(lambda x_nxg, slot_E, gene_E: x_nxg.at[slot_E, gene_E].get(mode="fill", fill_value=0))(
                logits_Bxnxg, slot_BxE, gene_BxE
            )
            return picked + jnp.sum(count_BxE * at_BxE)

        return lax.fori_loop(0, self.pieces_T[step], add, jnp.zeros((), jnp.float32))

    def subtracted_from(self, x_Bxnxg: jax.Array, step, first, part: _Genes) -> jax.Array:
        """x less the counts of a chunk of bins and of genes."""

        def subtract(number, x_Bxnxg):
            piece = self._piece(number, x_Bxnxg.shape, step, first, part)
            return jax.vmap(lambda x_nxg, slot_E, gene_E, count_E: x_nxg.at[slot_E, gene_E].add(-count_E, mode="drop"))(
                x_Bxnxg, *piece
            )

        return lax.fori_loop(0, self.pieces_T[step], subtract, x_Bxnxg)

    def _piece(self, number, shape, step, first, part: _Genes) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Slot and gene within the chunk, and count, each [B, E]; an entry of another chunk lies past its end."""
        _, chunk, genes = shape
        first_B = self.start_TxB[step] + number * self.piece
        # slices, and so contiguous reads: an accelerator looks single elements up much more slowly
        cut = jax.vmap(lambda x_C, first: lax.dynamic_slice_in_dim(x_C, first, self.piece))
        slot_BxE, gene_BxE, count_BxE = (
            cut(x_BxC, first_B) for x_BxC in (self.slot_BxC, self.gene_BxC, self.count_BxC)
        )
        entry_BxE = first_B[:, None] + jnp.arange(self.piece)
        ours = (entry_BxE < self.end_TxB[step][:, None]) & (gene_BxE >= part.new) & (gene_BxE < part.first + genes)
        return (jnp.where(ours, slot_BxE - first, chunk), jnp.where(ours, gene_BxE - part.first, genes),
                jnp.where(ours, count_BxE, 0))  # fmt: skip

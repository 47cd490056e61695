"""Counts of bins as sparse entries, and walking them in chunks of bins and of genes.

What needs a row's counts beside an array over genes never makes one for all bins: it walks chunks of bins, and finds
the entries of each chunk where they lie together.

How large a chunk is. Of the likelihood, with bfloat16 inputs, n bins move the table twice and its float32 gradient in
and out, 12 · G · d bytes, and about 26 · n · G bytes of logits and their gradient, for 6 · n · G · d FLOPs. More bins
amortise the first only: at n = 2d it is a quarter of the second, and there is little left to gain. So the budget of a
chunk's float32 array is 64 MiB on an accelerator, 856 bins of 19,456 genes, and 16 MiB on a CPU, where larger chunks
were measured to bring nothing. Genes split over `tensor` leave room for as many times more bins, and so for as many
times fewer exchanges.

Axes: B rows, N bins of a row, G gene axis, C entries of counts, W gene masks of a row, T chunks, n bins and g genes of
a chunk, E entries that are looked up together.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import BATCH_AXES, InputError
from tario_jax.ops.ranks import Ranks, ambient_platform
from tario_jax.ops.tally import Tally

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
    logits = _BUDGET_BYTES.get(ambient_platform(), _BUDGET_BYTES_ELSEWHERE) // 4
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
    return _sums(counts, bins, jnp.int32)


def entry_sums(counts: SparseCounts, bins: int) -> jax.Array:
    """The same of entries that are no whole numbers."""
    return _sums(counts, bins, jnp.float32)


def _sums(counts: SparseCounts, bins: int, dtype: jnp.dtype) -> jax.Array:
    ranks = Ranks.ambient()
    here = ranks.part(bins, "bins of a row", "context")

    def of_row(slot_C, count_C):
        # A negative index would wrap around: what is not here goes past the end, and is dropped there.
        slot_C = jnp.where(slot_C < 0, here, slot_C)
        return jnp.zeros(here, dtype).at[slot_C].add(count_C.astype(dtype), mode="drop")

    def local(bin_BxC, count_BxC):
        return jax.vmap(of_row)(slots_from(bin_BxC, here * ranks.index("context")), count_BxC).astype(jnp.float32)

    rows = ranks.spec(BATCH_AXES)
    return ranks.run(local, (rows, rows), ranks.spec(BATCH_AXES, "context"))(counts.bin_BxC, counts.count_BxC)


def slots_from(bin_BxC: jax.Array, first: jax.Array | int) -> jax.Array:
    """Bins counted from `first`, ascending to the end: padding becomes the largest of all."""
    return jnp.where(bin_BxC < 0, jnp.iinfo(jnp.int32).max, bin_BxC) - first


def of_window(x_BxWxg: jax.Array, window_Bxn: jax.Array) -> jax.Array:
    """What each bin's window holds, [B, n, g]; [B, 1, g] where a row has one window."""
    if x_BxWxg.shape[1] == 1:  # nothing to look up: it is broadcast as it is
        return x_BxWxg
    return jax.vmap(lambda x_Wxg, window_n: x_Wxg[window_n])(x_BxWxg, window_Bxn)


def add_at(x: jax.Array, part: jax.Array, first: jax.Array | int, axis: int) -> jax.Array:
    """x with `part` added from `first` on along `axis`."""
    if part.shape == x.shape:
        return x + part.astype(x.dtype)
    held = lax.dynamic_slice_in_dim(x, first, part.shape[axis], axis)
    return lax.dynamic_update_slice_in_dim(x, held + part.astype(x.dtype), first, axis)


class Part(NamedTuple):
    """A chunk of genes: those from `first` on, of which those before `new` belong to an earlier chunk."""

    first: jax.Array | int
    new: jax.Array | int


ALL_GENES = Part(0, 0)


class Entries(NamedTuple):
    """The entries of counts, and where those of each chunk of bins lie: they are together, since bins ascend.

    They are visited `piece` a row at a time, as many times as the longest of the rows needs: so each is visited once,
    not once a chunk. The times are counted before the loop over chunks: where XLA has split the rows over devices that
    is one exchange, and not one a chunk.
    """

    slot_BxC: jax.Array  # these four with a piece more at the end, so that every piece is whole
    gene_BxC: jax.Array
    count_BxC: jax.Array  # float32
    group_BxC: jax.Array | None  # of the entry's bin; None where nobody asks
    start_TxB: jax.Array
    end_TxB: jax.Array
    pieces_T: jax.Array
    piece: int

    @classmethod
    def of(cls, counts: SparseCounts, bins: int, chunk: int, group_BxC: jax.Array | None = None) -> "Entries":
        """counts: bins and genes counted from the device's first ones, so that those of other devices lie outside."""
        capacity = counts.bin_BxC.shape[1]
        steps = -(-bins // chunk)
        edge_T = jnp.minimum(jnp.arange(steps + 1, dtype=jnp.int32) * chunk, bins)
        edge_TxB = jax.vmap(jnp.searchsorted, (0, None), 1)(counts.bin_BxC, edge_T)
        # twice the mean of a chunk: one piece nearly always
        piece = min(capacity, max(_FEWEST_ENTRIES, 2 * -(-capacity // steps)))
        pieces_T = -(-(edge_TxB[1:] - edge_TxB[:-1]).max(-1) // piece)
        counts = counts._replace(count_BxC=counts.count_BxC.astype(jnp.float32))
        whole = jax.tree.map(lambda x_BxC: jnp.pad(x_BxC, ((0, 0), (0, piece))), (*counts, group_BxC))
        return cls(*whole, edge_TxB[:-1], edge_TxB[1:], pieces_T, piece)

    def picked(self, logits_Bxnxg: jax.Array, step, first, part: Part, groups: int = 0) -> Tally:
        """Σ count · logit over the entries of a chunk of bins and of genes."""

        def add(number, picked):
            slot_BxE, gene_BxE, count_BxE = self._piece(number, logits_Bxnxg.shape, step, first, part)
            at_BxE = jax.vmap(lambda x_nxg, slot_E, gene_E: x_nxg.at[slot_E, gene_E].get(mode="fill", fill_value=0))(
                logits_Bxnxg, slot_BxE, gene_BxE
            )
            group_BxE = self._cut(self.group_BxC, self._begin(number, step)) if groups else None
            return picked + Tally.of(count_BxE * at_BxE, group_BxE, groups)

        return lax.fori_loop(0, self.pieces_T[step], add, Tally.zero(groups))

    def added_to(self, x_Bxnxg: jax.Array, step, first, part: Part, times: int = 1) -> jax.Array:
        """x and `times` the counts of a chunk of bins and of genes."""

        def add(number, x_Bxnxg):
            slot_BxE, gene_BxE, count_BxE = self._piece(number, x_Bxnxg.shape, step, first, part)
            return jax.vmap(lambda x_nxg, slot_E, gene_E, count_E: x_nxg.at[slot_E, gene_E].add(count_E, mode="drop"))(
                x_Bxnxg, slot_BxE, gene_BxE, times * count_BxE
            )

        return lax.fori_loop(0, self.pieces_T[step], add, x_Bxnxg)

    def _piece(self, number, shape, step, first, part: Part) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Slot and gene within the chunk, and count, each [B, E]; an entry of another chunk lies past its end."""
        _, chunk, genes = shape
        first_B = self._begin(number, step)
        slot_BxE, gene_BxE, count_BxE = (
            self._cut(x_BxC, first_B) for x_BxC in (self.slot_BxC, self.gene_BxC, self.count_BxC)
        )
        entry_BxE = first_B[:, None] + jnp.arange(self.piece)
        ours = (entry_BxE < self.end_TxB[step][:, None]) & (gene_BxE >= part.new) & (gene_BxE < part.first + genes)
        return (jnp.where(ours, slot_BxE - first, chunk), jnp.where(ours, gene_BxE - part.first, genes),
                jnp.where(ours, count_BxE, 0))  # fmt: skip

    def _begin(self, number, step) -> jax.Array:
        """Where this piece of a chunk begins in each row."""
        return self.start_TxB[step] + number * self.piece

    def _cut(self, x_BxC: jax.Array, first_B: jax.Array) -> jax.Array:
        # slices, and so contiguous reads: an accelerator looks single elements up much more slowly
        return jax.vmap(lambda x_C, first: lax.dynamic_slice_in_dim(x_C, first, self.piece))(x_BxC, first_B)

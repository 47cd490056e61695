"""The likelihood of counts: a Poisson of each bin's total, and a multinomial over genes.

A bin b has rates mu[b, g] = exp(log_total[b]) · softmax_g(logits[b]). The Poisson negative log-likelihood of its counts
c splits, up to a constant of the counts alone (the multinomial coefficient), into

    total:  mu_b − n_b log mu_b + log n_b!      mu_b = exp(log_total[b]),  n_b = Σ_g c[b, g]
    gene:   −Σ_g c[b, g] log softmax_g(logits[b])

and the second is next-token cross-entropy of the bin's detections over a vocabulary of genes (gene_likelihood.py, with
the z-loss that may be added). The total may be negative binomial instead (negative_binomial.py), of mean mu and
variance mu + mu² / r:

    total:  (n_b + r) log(mu_b + r) − n_b log mu_b − r log r − log Γ(n_b + r) + log Γ(r) + log n_b!

With weights w_g of genes the gene part is −Σ_g w_g c[b, g] log softmax_g(logits[b] + log w): what it is least at is the
same composition, softmax of the logits, whatever the weights.

Axes: B rows, N bins of a row, d width, G padded gene axis, C entries of counts, W gene masks of a row (one a window).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tario_jax.config import BATCH_AXES, InputError
from tario_jax.ops.gene_likelihood import LOWEST, Asked, Bins, Partition, gene_nats, masked_logits
from tario_jax.ops.negative_binomial import negative_binomial_nats
from tario_jax.ops.ranks import Ranks
from tario_jax.ops.sparse_counts import SparseCounts, bin_totals, chunk_sizes, entry_sums
from tario_jax.ops.tally import group_sums

__all__ = ("CountNLL", "SparseCounts", "check_counts", "chunk_sizes", "count_nll", "log_rates")


class CountNLL(NamedTuple):
    """Sums over the valid bins, float32. Loss in nats per detection: (total + gene) / detections.

    What is differentiated is total + gene + z: with a z-loss, the derivative of a function that does not weigh gene and
    z equally is NaN. What is told by group has no derivative.
    """

    total_nats: jax.Array
    gene_nats: jax.Array
    z_nats: jax.Array  # z_loss · Σ n_b log²Z_b, with the gene weights in n and Z where there are some
    detections: jax.Array
    group_nats_K: jax.Array  # total + gene
    group_detections_K: jax.Array


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
    chunk: int = 0,
    gene_chunk: int = 0,
    z_loss: float = 0.0,
    group_of_bin_BxN: jax.Array | None = None,
    groups: int = 0,
    log_size: jax.Array | None = None,
    gene_weight_G: jax.Array | None = None,
) -> CountNLL:
    """The negative log-likelihood of `counts` under logits = h tableᵀ + bias and expected totals exp(log_total).

    Bin b of a row has the gene mask `gene_mask_BxWxG[row, mask_of_bin_BxN[row, b]]` (bool, int32). A gene outside it
    (not measured in the section, or padding of the gene axis) is outside the softmax: its logit is −inf.
    `log_total` holds the log of the expected detections of the whole bin, its measured share included. Bins that are
    not valid give no loss and no gradient, whatever they hold. Products are of h's type (bfloat16 or float32), summed
    in float32; the table's gradient is of the table's own, in which devices add it up.

    Never more logits exist than [rows, chunk, gene_chunk] of one device: `chunk` bins of each row, `gene_chunk` genes;
    0 takes what a budget of memory holds (`chunk_sizes`). If a derivative is asked for, the gradients of gene_nats are
    computed in the forward pass and kept in place of the logits.

    z_loss: weight of log²Z of each detection, Z being the denominator of its bin's softmax (where genes have weights,
    a detection counts as its gene's, and Z is that of the weighed softmax). groups: the sums are told
    by group of bins too, where `group_of_bin` (int32) is 0 … groups − 1; a bin of any other number is in no group.
    log_size: log r, a scalar, for negative binomial totals, else they are Poisson. gene_weight: float32, above 0; with
    weights `gene_nats` are those of weighted counts, and `detections` are still counted once each.

    Under `jax.set_mesh` the work is split, rows over replica × fsdp, bins over context (in order: rank r has the slots
    r N / ranks to (r + 1) N / ranks), genes over tensor; the entries of a row are whole on each of its devices, and the
    sums are those of the whole batch.

    Wrong counts cannot be refused under jit: a count on a gene outside its bin's mask drives the loss to the order of
    1e30, and entries out of order are lost. A corpus refuses the first when it is written, and its batches are in
    order; nobody looks again. For counts from elsewhere there is `check_counts`.

    Raises `InputError` for a negative chunk, and where rows, bins, genes or the width of the table do not divide over
    the mesh.
    """
    rows, bins, _ = h_BxNxd.shape
    sizes = chunk_sizes(rows, bins, table_Gxd.shape[0], chunk=chunk, gene_chunk=gene_chunk)
    n_BxN = jnp.where(bin_valid_BxN, bin_totals(counts, bins), 0)
    log_total_BxN = jnp.where(bin_valid_BxN, log_total_BxN.astype(jnp.float32), 0)
    nats_BxN = _total_nats(n_BxN, log_total_BxN, log_size)
    total_nats = jnp.sum(nats_BxN, where=bin_valid_BxN)
    weighed_BxN = n_BxN
    if gene_weight_G is not None:
        gene_weight_G = lax.stop_gradient(gene_weight_G)
        bias_G = bias_G + jnp.log(gene_weight_G)
        counts = counts._replace(count_BxC=counts.count_BxC * gene_weight_G[counts.gene_BxC])
        weighed_BxN = jnp.where(bin_valid_BxN, entry_sums(counts, bins), 0)
    of_bins, asked = Bins(weighed_BxN, mask_of_bin_BxN, group_of_bin_BxN), Asked(sizes, z_loss, groups)
    gene, z_nats = gene_nats(h_BxNxd, table_Gxd, bias_G, counts, of_bins, gene_mask_BxWxG, asked)
    group_nats_K = group_detections_K = jnp.zeros(0)
    if groups:
        total_K = group_sums(jnp.where(bin_valid_BxN, nats_BxN, 0), group_of_bin_BxN, groups)
        group_nats_K = lax.stop_gradient(total_K + gene.group_K)
        group_detections_K = group_sums(n_BxN, group_of_bin_BxN, groups)
    z_nats = jnp.zeros(()) if z_nats is None else z_nats
    return CountNLL(total_nats, gene.whole, z_nats, n_BxN.sum(), group_nats_K, group_detections_K)


def _total_nats(n_BxN: jax.Array, log_total_BxN: jax.Array, log_size: jax.Array | None) -> jax.Array:
    if log_size is None:
        return jnp.exp(log_total_BxN) - n_BxN * log_total_BxN + lax.lgamma(n_BxN + 1)
    return negative_binomial_nats(n_BxN, log_total_BxN, log_size)


def log_rates(
    h_BxNxd: jax.Array,
    table_Gxd: jax.Array,
    bias_G: jax.Array,
    log_total_BxN: jax.Array,
    gene_mask_BxWxG: jax.Array,
    mask_of_bin_BxN: jax.Array,
) -> jax.Array:
    """Log of the expected detections of each bin and gene, float32 [B, N, G]; −inf for genes outside the bin's mask.

    Under `jax.set_mesh` each device makes and keeps the rates of its rows, bins and genes, split as in `count_nll`.

    Raises `InputError` where they do not divide over the mesh.
    """
    ranks = Ranks.ambient()
    rows, bins, width = h_BxNxd.shape
    ranks.part(rows, "rows", *BATCH_AXES)
    ranks.part(bins, "bins of a row", "context")
    ranks.part(table_Gxd.shape[0], "genes", "tensor")
    ranks.part(width, "columns of the gene table", "fsdp")

    def local(h, table, bias, log_total_BxN, gene_mask, mask_of_bin):
        table = ranks.gather(table.astype(h.dtype), "fsdp", 1)
        logits_BxNxG = masked_logits(h, table, bias, gene_mask, mask_of_bin)
        lse_BxN = Partition.empty(log_total_BxN.shape).with_genes(logits_BxNxG).of_all(ranks).log()
        rates_BxNxG = logits_BxNxG + (log_total_BxN.astype(jnp.float32) - lse_BxN)[:, :, None]
        return jnp.where(logits_BxNxG == LOWEST, -jnp.inf, rates_BxNxG)

    of_bins = ranks.spec(BATCH_AXES, "context")
    in_specs = (of_bins, ranks.spec("tensor", "fsdp"), ranks.spec("tensor"), of_bins,
                ranks.spec(BATCH_AXES, None, "tensor"), of_bins)  # fmt: skip
    return ranks.run(local, in_specs, ranks.spec(BATCH_AXES, "context", "tensor"))(
        h_BxNxd, table_Gxd, bias_G, log_total_BxN, gene_mask_BxWxG, mask_of_bin_BxN
    )


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

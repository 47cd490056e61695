"""A batch of counts for the likelihood, and the same likelihood dense in float64."""

import functools

import jax
import numpy as np
from scipy import special

from tario_jax.ops.count_likelihood import CountNLL, SparseCounts, count_nll

DIFFERENTIABLE = ("h_BxNxd", "table_Gxd", "bias_G", "log_total_BxN")
WIDTH, G, CAPACITY = 12, 128, 1600
GENES = 100  # the rest of the axis is padding
GROUPS = 3  # of bins, and bins of none


def case(B=3, N=22, seed=0):
    """Inputs of count_nll by name, and dense counts [B, N, G]."""
    rng = np.random.default_rng(seed)
    gene_mask = np.zeros((B, 2, G), bool)
    gene_mask[:, :, :GENES] = rng.random((B, 2, GENES)) < 0.8  # two windows of sections with other panels
    mask_of_bin = rng.integers(0, 2, (B, N))
    bin_valid = rng.random((B, N)) < 0.8
    bin_valid[:, 0], bin_valid[:, -1] = True, False
    allowed = gene_mask[np.arange(B)[:, None], mask_of_bin]
    dense = rng.poisson(1.5, (B, N, G)) * allowed * (rng.random((B, N, 1)) < 0.9)  # some bins are empty
    dense[0, 0, np.flatnonzero(allowed[0, 0])[0]] = 40000  # uint16 holds it; bfloat16 sums would not
    dense[~bin_valid] = 0
    inputs = {
        "h_BxNxd": rng.normal(size=(B, N, WIDTH)).astype(np.float32),
        "table_Gxd": rng.normal(size=(G, WIDTH)).astype(np.float32),
        "bias_G": rng.normal(size=G).astype(np.float32),
        "log_total_BxN": rng.normal(3, 1, (B, N)).astype(np.float32),
        "counts": sparse(dense),
        "bin_valid_BxN": bin_valid,
        "gene_mask_BxWxG": gene_mask,
        "mask_of_bin_BxN": mask_of_bin.astype(np.int32),
        "group_of_bin_BxN": rng.integers(-1, GROUPS, (B, N), np.int32),
    }
    return inputs, dense


def sparse(dense):
    fields = np.zeros((3, len(dense), CAPACITY), np.int32)
    fields[0] = -1
    for row, counts_NxG in enumerate(dense):
        bins, genes = np.nonzero(counts_NxG)
        order = np.lexsort((np.random.default_rng(row).random(len(bins)), bins))  # genes in any order within a bin
        entries = np.stack([bins, genes, counts_NxG[bins, genes]])[:, order]
        fields[:, row, : len(bins)] = entries
    return SparseCounts(fields[0], fields[1], fields[2].astype(np.uint16))


def allowed_genes(inputs):
    """Genes of each bin's mask, bool [B, N, G]."""
    window_BxN = inputs["mask_of_bin_BxN"]
    return inputs["gene_mask_BxWxG"][np.arange(len(window_BxN))[:, None], window_BxN]


def oracle(inputs, dense, z_loss=0.0):
    """CountNLL and the gradients of total_nats + gene_nats + z_nats in float64."""
    h, table, bias, log_total = (np.asarray(inputs[name], np.float64) for name in DIFFERENTIABLE)
    valid = inputs["bin_valid_BxN"]
    allowed = allowed_genes(inputs)
    logits = np.where(allowed, h @ table.T + bias, -np.inf)
    log_z = special.logsumexp(logits, -1, keepdims=True)
    log_share = logits - log_z
    n = dense.sum(-1)
    total = np.where(valid, np.exp(log_total) - n * log_total + special.gammaln(n + 1), 0)
    gene = -(dense * np.where(dense > 0, log_share, 0)).sum(-1)
    log_z = np.where(n > 0, log_z[..., 0], 0)
    groups = [inputs["group_of_bin_BxN"] == group for group in range(GROUPS)]
    sums = CountNLL(
        total.sum(), gene.sum(), z_loss * (n * log_z**2).sum(), n.sum(),
        np.array([(total + gene)[group].sum() for group in groups]), np.array([n[group].sum() for group in groups]),
    )  # fmt: skip
    softmax = np.exp(log_share)
    d_logits = (softmax * n[..., None] - dense) * valid[..., None] + softmax * (2 * z_loss * n * log_z)[..., None]
    gradients = d_logits @ table, np.einsum("bng,bnd->gd", d_logits, h), d_logits.sum((0, 1))
    return sums, (*gradients, (np.exp(log_total) - n) * valid)


def loss_and_gradients(inputs, chunk, gene_chunk=G, weight=1.0, z_loss=0.0):
    return compiled(inputs, weight, chunk, gene_chunk, z_loss)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def compiled(inputs, weight, chunk, gene_chunk=G, z_loss=0.0):
    """The sums, and the gradients of weight · (total + gene + z)."""

    def loss(*moving):
        given = {**inputs, **dict(zip(DIFFERENTIABLE, moving, strict=True))}
        sums = count_nll(**given, chunk=chunk, gene_chunk=gene_chunk, z_loss=z_loss, groups=GROUPS)
        return weight * (sums.total_nats + sums.gene_nats + sums.z_nats), sums

    moving = [inputs[name] for name in DIFFERENTIABLE]
    (_, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*moving)
    return sums, gradients


def assert_near(found, expected, tolerance):
    for name, x, y in zip((*CountNLL._fields, *DIFFERENTIABLE), (*found[0], *found[1]),
                          (*expected[0], *expected[1]), strict=True):  # fmt: skip
        error = np.abs(np.asarray(x, np.float64) - y).max() / (np.abs(y).max() or 1.0)
        assert error < tolerance, f"{name}: relative error {error:.2e}"

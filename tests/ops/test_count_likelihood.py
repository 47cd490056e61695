"""The count likelihood against a dense float64 oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tario_jax.config import InputError
from tario_jax.ops.count_likelihood import CountNLL, SparseCounts, check_counts, count_nll, log_rates

B, N, WIDTH, G, CAPACITY = 3, 22, 12, 128, 1500
GENES = 100  # the rest of the axis is padding


def case(seed=0):
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


def oracle(inputs, dense):
    """CountNLL and the gradients of total_nats and gene_nats in float64."""
    h, table, bias, log_total = (np.asarray(inputs[name], np.float64) for name in DIFFERENTIABLE)
    valid = inputs["bin_valid_BxN"]
    allowed = inputs["gene_mask_BxWxG"][np.arange(B)[:, None], inputs["mask_of_bin_BxN"]]
    logits = np.where(allowed, h @ table.T + bias, -np.inf)
    log_share = logits - special.logsumexp(logits, -1, keepdims=True)
    n = dense.sum(-1)
    total = (np.exp(log_total) - n * log_total + special.gammaln(n + 1))[valid].sum()
    gene = -(dense[dense > 0] * log_share[dense > 0]).sum()
    d_logits = (np.exp(log_share) * n[..., None] - dense) * valid[..., None]
    gradients = d_logits @ table, np.einsum("bng,bnd->gd", d_logits, h), d_logits.sum((0, 1))
    return CountNLL(total, gene, n.sum()), (*gradients, (np.exp(log_total) - n) * valid)


DIFFERENTIABLE = ("h_BxNxd", "table_Gxd", "bias_G", "log_total_BxN")


def loss_and_gradients(inputs, chunk, weight=1.0):
    return compiled(inputs, weight, chunk)


@functools.partial(jax.jit, static_argnums=2)
def compiled(inputs, weight, chunk):
    """The sums, and the gradients of weight · (total + gene)."""

    def loss(*moving):
        sums = count_nll(**{**inputs, **dict(zip(DIFFERENTIABLE, moving, strict=True))}, chunk=chunk)
        return weight * (sums.total_nats + sums.gene_nats), sums

    moving = [inputs[name] for name in DIFFERENTIABLE]
    (_, sums), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(*moving)
    return sums, gradients


def assert_near(found, expected, tolerance):
    for name, x, y in zip((*CountNLL._fields, *DIFFERENTIABLE), (*found[0], *found[1]),
                          (*expected[0], *expected[1]), strict=True):  # fmt: skip
        error = np.abs(np.asarray(x, np.float64) - y).max() / np.abs(y).max()
        assert error < tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("chunk", (8, 100))  # 22 bins: uneven, and more than there are
def test_loss_and_gradients(chunk):
    inputs, dense = case()
    found = loss_and_gradients(inputs, chunk)
    assert (np.asarray(inputs["counts"].bin_BxC) >= 0).sum(-1).max() > 512  # entries that are scattered at once
    assert_near(found, oracle(inputs, dense), 2e-6)
    never = ~inputs["gene_mask_BxWxG"].any((0, 1))
    assert never[GENES:].all()
    assert not np.asarray(found[1][1])[never].any() and not np.asarray(found[1][2])[never].any()


def test_loss_alone_is_the_same_and_computes_no_gradient():
    inputs, dense = case()
    alone = jax.jit(functools.partial(count_nll, chunk=8))
    for x, y in zip(alone(**inputs), oracle(inputs, dense)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    traced = alone.trace(**inputs), compiled.trace(inputs, 1.0, 8)
    assert [str(each.jaxpr).count("dot_general") for each in traced] == [1, 3]


def test_gradients_follow_the_cotangent():
    inputs, dense = case()
    (_, gradients), (_, expected) = loss_and_gradients(inputs, 8, weight=-0.37), oracle(inputs, dense)
    for x, y in zip(gradients, expected, strict=True):
        assert np.abs(x + 0.37 * y).max() < 2e-6 * np.abs(y).max()


def test_bfloat16():
    inputs, dense = case()
    inputs |= {name: jnp.asarray(inputs[name], jnp.bfloat16) for name in ("h_BxNxd", "table_Gxd")}
    found = loss_and_gradients(inputs, 8)
    assert [x.dtype for x in found[1]] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    assert_near(found, oracle(inputs, dense), 1e-2)
    np.testing.assert_allclose(found[0], oracle(inputs, dense)[0], rtol=2e-6)  # the sums are in float32


def test_bins_that_are_not_valid_do_not_matter():
    inputs, dense = case()
    clean = loss_and_gradients(inputs, 8)
    invalid = ~inputs["bin_valid_BxN"]
    dense[invalid, 0] = 7
    poisoned = inputs | {name: inputs[name].copy() for name in ("h_BxNxd", "log_total_BxN")}
    poisoned |= {"counts": sparse(dense)}
    poisoned["h_BxNxd"][invalid], poisoned["log_total_BxN"][invalid] = np.nan, np.inf
    for x, y in zip(jax.tree.leaves(loss_and_gradients(poisoned, 8)), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(x, y)
    for x in (clean[1][0], clean[1][3]):
        assert not np.asarray(x)[invalid].any()


def test_a_window_without_genes_and_a_row_without_counts():
    inputs, dense = case()
    inputs["gene_mask_BxWxG"][0] = False
    dense[0] = dense[2] = 0
    inputs["counts"] = sparse(dense)
    with np.errstate(invalid="ignore"):
        expected, _ = oracle(inputs, dense)
    found, gradients = loss_and_gradients(inputs, 8)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert all(np.isfinite(x).all() for x in gradients)


def test_permuting_genes_permutes_gradients_and_rates():
    inputs, dense = case()
    order = np.random.default_rng(5).permutation(G)
    permuted = inputs | {"table_Gxd": inputs["table_Gxd"][order], "bias_G": inputs["bias_G"][order]}
    permuted |= {"gene_mask_BxWxG": inputs["gene_mask_BxWxG"][..., order], "counts": sparse(dense[..., order])}
    (sums, gradients), (sums_p, gradients_p) = loss_and_gradients(inputs, 8), loss_and_gradients(permuted, 8)
    np.testing.assert_allclose(sums, sums_p, rtol=2e-6)
    for x, y in zip((gradients[0], gradients[1][order], gradients[2][order]), gradients_p[:3], strict=True):
        assert np.abs(x - y).max() < 2e-6 * np.abs(x).max()
    np.testing.assert_allclose(rates_of(inputs)[..., order], rates_of(permuted), rtol=1e-5, atol=1e-5)


def rates_of(inputs):
    return np.asarray(log_rates(*(inputs[name] for name in (*DIFFERENTIABLE, "gene_mask_BxWxG", "mask_of_bin_BxN"))))


def test_rates_are_those_that_the_loss_scores():
    inputs, dense = case()
    rates = rates_of(inputs)
    allowed = inputs["gene_mask_BxWxG"][np.arange(B)[:, None], inputs["mask_of_bin_BxN"]]
    assert np.isneginf(rates[~allowed]).all() and np.isfinite(rates[allowed]).all()
    np.testing.assert_allclose(np.exp(rates).sum(-1), np.exp(inputs["log_total_BxN"]), rtol=1e-5)
    # Poisson of every gene = Poisson of the total + multinomial, up to the coefficient, which no rate is in.
    sums, _ = oracle(inputs, dense)
    valid = inputs["bin_valid_BxN"]
    poisson = np.exp(rates[valid]).sum() - (dense[valid] * np.where(dense[valid] > 0, rates[valid], 0)).sum()
    constant = special.gammaln(dense[valid].sum(-1) + 1).sum()
    np.testing.assert_allclose(sums.total_nats + sums.gene_nats - constant, poisson, rtol=1e-5)


def test_temporaries_are_smaller_than_dense_logits():
    bins, genes, width, capacity = 512, 2048, 16, 4096
    shape = jax.ShapeDtypeStruct
    inputs = {
        "h_BxNxd": shape((1, bins, width), jnp.float32),
        "table_Gxd": shape((genes, width), jnp.float32),
        "bias_G": shape((genes,), jnp.float32),
        "log_total_BxN": shape((1, bins), jnp.float32),
        "counts": SparseCounts(*[shape((1, capacity), jnp.int32)] * 3),
        "bin_valid_BxN": shape((1, bins), jnp.bool),
        "gene_mask_BxWxG": shape((1, 1, genes), jnp.bool),
        "mask_of_bin_BxN": shape((1, bins), jnp.int32),
    }
    sizes = [compiled.lower(inputs, 1.0, chunk).compile().memory_analysis().temp_size_in_bytes for chunk in (32, bins)]
    logits = bins * genes * 4
    assert sizes[0] < logits / 2 < logits < sizes[1]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    (
        ("bin_BxC", N, "batch 3: row 1, entry 4 .*does not exist; expected 0 <= bin < 22"),
        ("bin_BxC", 5, "entry 5 .*out of order; expected ascending"),
        ("bin_BxC", -1, "entry 5 .*out of order; expected ascending bins, padding at the end"),
        ("gene_BxC", G, "gene 128.*does not exist"),
        ("gene_BxC", GENES, "gene 100.*outside the bin's mask"),
        ("count_BxC", -2, "count -2.*negative"),
    ),
)
def test_counts_are_checked(field, value, message):
    inputs, _ = case()
    others = [inputs[name] for name in ("bin_valid_BxN", "gene_mask_BxWxG", "mask_of_bin_BxN")]
    check_counts(inputs["counts"], *others, "batch 3")
    wrong = np.array(getattr(inputs["counts"], field), np.int32)
    wrong[1, 4] = value
    with pytest.raises(InputError, match=message):
        check_counts(inputs["counts"]._replace(**{field: wrong}), *others, "batch 3")


def test_chunk_must_be_positive():
    with pytest.raises(InputError, match="loss_chunk is 0; expected at least 1"):
        count_nll(**case()[0], chunk=0)

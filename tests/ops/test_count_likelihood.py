"""The count likelihood against a dense float64 oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from count_case import (
    DIFFERENTIABLE,
    GENES,
    GROUPS,
    G,
    allowed_genes,
    assert_near,
    case,
    compiled,
    loss_and_gradients,
    oracle,
    sparse,
)
from scipy import special, stats

from tario_jax.config import InputError, OptimConfig
from tario_jax.ops.count_likelihood import SparseCounts, check_counts, chunk_sizes, count_nll, log_rates


# 22 bins and 128 genes: in even and uneven parts, one at a time, and fewer than would fit
@pytest.mark.parametrize(("chunk", "gene_chunk"), ((8, 128), (100, 1000), (8, 64), (5, 50), (1, 7), (100, 30)))
def test_loss_and_gradients(chunk, gene_chunk):
    inputs, dense = case()
    found = loss_and_gradients(inputs, chunk, gene_chunk)
    assert (np.asarray(inputs["counts"].bin_BxC) >= 0).sum(-1).max() > 512  # entries that are looked up together
    assert_near(found, oracle(inputs, dense), 2e-6)
    never = ~inputs["gene_mask_BxWxG"].any((0, 1))
    assert never[GENES:].all()
    assert not np.asarray(found[1][1])[never].any() and not np.asarray(found[1][2])[never].any()


@pytest.mark.parametrize(("gene_chunk", "products"), ((G, [1, 3]), (50, [1, 4])))
def test_loss_alone_is_the_same_and_computes_no_gradient(gene_chunk, products):
    inputs, dense = case()
    alone = jax.jit(functools.partial(count_nll, chunk=8, gene_chunk=gene_chunk, groups=GROUPS))
    for x, y in zip(alone(**inputs), oracle(inputs, dense)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    traced = alone.trace(**inputs), compiled.trace(inputs, 1.0, 8, gene_chunk)
    assert [str(each.jaxpr).count("dot_general") for each in traced] == products


# chunks of bins and of genes that are even, uneven, and one of all
@pytest.mark.parametrize(("chunk", "gene_chunk"), ((100, 1000), (5, 50), (1, 128)))
def test_z_loss_and_its_gradients(chunk, gene_chunk):
    inputs, dense = case()
    found, expected = loss_and_gradients(inputs, chunk, gene_chunk, z_loss=0.05), oracle(inputs, dense, 0.05)
    assert_near(found, expected, 2e-6)
    for x, y in zip(expected[1][:3], oracle(inputs, dense)[1][:3], strict=True):
        assert np.abs(x - y).max() > 0.1 * np.abs(x).max()  # z-loss is much of what is compared


def test_the_gradients_of_the_oracle_are_its_differences():
    inputs, dense = case()
    rng, step = np.random.default_rng(1), 1e-5
    _, gradients = oracle(inputs, dense, 0.05)
    for name, gradient in zip(DIFFERENTIABLE, gradients, strict=True):
        direction = rng.normal(size=gradient.shape)
        ahead, behind = (
            sum(oracle(inputs | {name: inputs[name] + sign * step * direction}, dense, 0.05)[0][:3]) for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum(), rel=1e-5), name


def test_gene_nats_and_z_nats_are_differentiated_together_or_not_at_all():
    inputs, _ = case()

    @jax.jit
    def gradient(*weights):
        def loss(h):
            sums = count_nll(**{**inputs, "h_BxNxd": h}, z_loss=0.05)
            return sum(weight * nats for weight, nats in zip(weights, sums, strict=False))

        return jax.grad(loss)(inputs["h_BxNxd"])

    together = gradient(1.0, 0.5, 0.5)
    np.testing.assert_allclose(2 * together, gradient(1.0, 1.0, 1.0), rtol=1e-6)
    assert np.isnan(gradient(1.0, 1.0, 0.0)).all() and not gradient(1.0, 0.0, 0.0).any()


def test_groups_of_all_bins_add_up_and_change_nothing():
    inputs, _ = case()
    inputs["group_of_bin_BxN"] %= GROUPS
    sums, gradients = loss_and_gradients(inputs, 5)
    assert (np.asarray(sums.group_detections_K) > 0).all()
    np.testing.assert_allclose(sums.group_nats_K.sum(), sums.total_nats + sums.gene_nats, rtol=1e-6)
    assert sums.group_detections_K.sum() == sums.detections
    inputs["group_of_bin_BxN"] = np.full_like(inputs["group_of_bin_BxN"], GROUPS)
    of_none, same = loss_and_gradients(inputs, 5)
    assert not of_none.group_nats_K.any() and not of_none.group_detections_K.any()
    for x, y in zip((*of_none[:4], *same), (*sums[:4], *gradients), strict=True):
        np.testing.assert_array_equal(x, y)


def test_two_bins_of_most_entries_are_read_whole():
    """Their entries are many times those of a mean chunk, so they are looked up in several pieces."""
    inputs, dense = case()
    inputs["bin_valid_BxN"][:, :2], inputs["group_of_bin_BxN"][:, :2] = True, (0, 1)
    dense[:] = 0
    dense[:, :2] = np.where(allowed_genes(inputs)[:, :2], 8, 0)
    once = sparse(dense // 8)
    fields = np.stack([np.tile(field[:, :200].astype(np.int32), 8) for field in once])  # a gene in 8 entries
    order_BxC = np.argsort(np.where(fields[0] < 0, 2, fields[0]), axis=1, kind="stable")  # padding to the end
    inputs["counts"] = SparseCounts(*np.take_along_axis(fields, order_BxC[None], 2))
    assert (inputs["counts"].bin_BxC >= 0).sum(-1).min() > 2 * 512
    assert_near(loss_and_gradients(inputs, 4), oracle(inputs, dense), 2e-6)


def test_gradients_follow_the_cotangent():
    inputs, dense = case()
    (_, gradients), (_, expected) = loss_and_gradients(inputs, 8, weight=-0.37), oracle(inputs, dense)
    for x, y in zip(gradients, expected, strict=True):
        assert np.abs(x + 0.37 * y).max() < 2e-6 * np.abs(y).max()


@pytest.mark.parametrize("gene_chunk", (G, 30))
def test_bfloat16(gene_chunk):
    inputs, dense = case()
    inputs |= {name: jnp.asarray(inputs[name], jnp.bfloat16) for name in ("h_BxNxd", "table_Gxd")}
    found = loss_and_gradients(inputs, 8, gene_chunk)
    assert [x.dtype for x in found[1]] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    assert_near(found, oracle(inputs, dense), 1e-2)
    for x, y in zip(found[0], oracle(inputs, dense)[0], strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)  # the sums are in float32


def test_bins_that_are_not_valid_do_not_matter():
    inputs, dense = case()
    clean = loss_and_gradients(inputs, 8, z_loss=0.05)
    invalid = ~inputs["bin_valid_BxN"]
    dense[invalid, 0] = 7
    poisoned = inputs | {name: inputs[name].copy() for name in ("h_BxNxd", "log_total_BxN")}
    poisoned |= {"counts": sparse(dense)}
    poisoned["h_BxNxd"][invalid], poisoned["log_total_BxN"][invalid] = np.nan, np.inf
    for x, y in zip(jax.tree.leaves(loss_and_gradients(poisoned, 8, z_loss=0.05)), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(x, y)
    for x in (clean[1][0], clean[1][3]):
        assert not np.asarray(x)[invalid].any()


def test_a_window_without_genes_and_a_row_without_counts():
    inputs, dense = case()
    inputs["gene_mask_BxWxG"][0] = False
    dense[0] = dense[2] = 0
    inputs["counts"] = sparse(dense)
    with np.errstate(invalid="ignore"):
        expected, _ = oracle(inputs, dense, 0.05)
    found, gradients = loss_and_gradients(inputs, 8, z_loss=0.05)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    assert all(np.isfinite(x).all() for x in gradients)


def test_one_window_a_row_is_one_of_two_that_are_the_same():
    inputs, dense = case()
    inputs["mask_of_bin_BxN"][:] = 1
    dense *= allowed_genes(inputs)
    inputs["counts"] = sparse(dense)
    one = inputs | {"gene_mask_BxWxG": inputs["gene_mask_BxWxG"][:, 1:]}
    one["mask_of_bin_BxN"] = np.zeros_like(one["mask_of_bin_BxN"])
    assert_near(loss_and_gradients(one, 8), oracle(inputs, dense), 2e-6)
    np.testing.assert_array_equal(rates_of(one), rates_of(inputs))


def test_permuting_genes_permutes_gradients_and_rates():
    inputs, dense = case()
    order = np.random.default_rng(5).permutation(G)
    permuted = inputs | {"table_Gxd": inputs["table_Gxd"][order], "bias_G": inputs["bias_G"][order]}
    permuted |= {"gene_mask_BxWxG": inputs["gene_mask_BxWxG"][..., order], "counts": sparse(dense[..., order])}
    (sums, gradients), (sums_p, gradients_p) = loss_and_gradients(inputs, 8), loss_and_gradients(permuted, 8)
    for x, y in zip(sums, sums_p, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)
    for x, y in zip((gradients[0], gradients[1][order], gradients[2][order]), gradients_p[:3], strict=True):
        assert np.abs(x - y).max() < 2e-6 * np.abs(x).max()
    np.testing.assert_allclose(rates_of(inputs)[..., order], rates_of(permuted), rtol=1e-5, atol=1e-5)


def rates_of(inputs):
    return np.asarray(log_rates(*(inputs[name] for name in (*DIFFERENTIABLE, "gene_mask_BxWxG", "mask_of_bin_BxN"))))


def test_rates_are_those_that_the_loss_scores():
    inputs, dense = case()
    rates = rates_of(inputs)
    allowed = allowed_genes(inputs)
    assert np.isneginf(rates[~allowed]).all() and np.isfinite(rates[allowed]).all()
    np.testing.assert_allclose(np.exp(rates).sum(-1), np.exp(inputs["log_total_BxN"]), rtol=1e-5)
    # Poisson of every gene = Poisson of the total + multinomial, up to the coefficient, which no rate is in.
    sums, _ = oracle(inputs, dense)
    valid = inputs["bin_valid_BxN"]
    poisson = np.exp(rates[valid]).sum() - (dense[valid] * np.where(dense[valid] > 0, rates[valid], 0)).sum()
    constant = special.gammaln(dense[valid].sum(-1) + 1).sum()
    np.testing.assert_allclose(sums.total_nats + sums.gene_nats - constant, poisson, rtol=1e-5)


def test_temporaries_are_those_of_one_chunk():
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
        "group_of_bin_BxN": shape((1, bins), jnp.int32),
    }

    def temporaries(*chunk):
        return compiled.lower(inputs, 1.0, *chunk).compile().memory_analysis().temp_size_in_bytes

    logits = bins * genes * 4
    few_bins, few_genes, whole = temporaries(32, genes), temporaries(256, 256), temporaries(bins, genes)
    assert max(few_bins, few_genes) < logits / 4 < logits < whole


def test_the_chunk_is_what_a_budget_of_memory_holds():
    assert chunk_sizes(1, 4096, 19456) == (208, 19456)  # 16 MiB of float32 logits, in even parts of whole registers
    assert chunk_sizes(8, 512, 19456) == (24, 19456)  # of all rows together
    assert chunk_sizes(1, 64, 1024) == (64, 1024)
    assert chunk_sizes(1, 4096, 65536) == (128, 32768)  # genes are split before a chunk has fewer than 128 bins
    assert chunk_sizes(500, 4096, 19456) == (1, 19456)
    assert chunk_sizes(1, 4096, 19456, chunk=1000, gene_chunk=5000) == (824, 4864)
    for bins, most in ((22, 8), (100, 64), (4096, 1000), (7, 3)):
        assert chunk_sizes(1, bins, 1024, chunk=most).bins <= most


@pytest.mark.parametrize(
    ("field", "value", "message"),
    (
        ("bin_BxC", 22, "batch 3: row 1, entry 4 .*does not exist; expected 0 <= bin < 22"),
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


@pytest.mark.parametrize("name", ("chunk", "gene_chunk"))
def test_a_chunk_is_not_negative(name):
    with pytest.raises(InputError, match=f"loss_{name} is -1; expected at least 1, or 0 for what the budget"):
        count_nll(**case()[0], **{name: -1})


def test_the_weight_of_z_loss_is_not_negative():
    with pytest.raises(InputError, match="optim.z_loss is -0.1; expected at least 0"):
        OptimConfig(z_loss=-0.1)


@pytest.mark.parametrize("size", [0.5, 8.0, 3e4])
def test_negative_binomial_totals(size):
    """Against scipy's, and their gradients against differences in float64; a large r is nearly a Poisson."""
    inputs, dense = case()
    valid = inputs["bin_valid_BxN"]

    def nats(log_total_BxN, log_size):
        return count_nll(**{**inputs, "log_total_BxN": log_total_BxN}, log_size=log_size).total_nats

    def expected(log_total_BxN, log_size):
        mean, r = np.exp(log_total_BxN[valid]), np.exp(log_size)
        return -stats.nbinom.logpmf(dense.sum(-1)[valid], r, r / (r + mean)).sum()

    log_total, log_size = inputs["log_total_BxN"].astype(np.float64), float(np.log(size))
    at = jnp.asarray(log_total, jnp.float32), jnp.float32(log_size)
    np.testing.assert_allclose(jax.jit(nats)(*at), expected(log_total, log_size), rtol=1e-5)
    d_total, d_size = jax.jit(jax.grad(nats, (0, 1)))(*at)
    step, direction = 1e-4, np.random.default_rng(0).normal(size=log_total.shape)
    ahead, behind = (expected(log_total + sign * step * direction, log_size) for sign in (1, -1))
    assert (np.asarray(d_total, np.float64) * direction).sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)
    assert not np.asarray(d_total)[~valid].any()
    ahead, behind = (expected(log_total, log_size + sign * step) for sign in (1, -1))
    assert float(d_size) == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)


def test_weighted_genes():
    """Σ w c (−log softmax(logits + log w)), with no gradient where the softmax of the logits is the counts'."""
    inputs, dense = case()
    weight_G = np.random.default_rng(2).gamma(2.0, 1.0, G).astype(np.float32) + 0.1
    plain = jax.jit(count_nll)(**inputs)
    found = jax.jit(functools.partial(count_nll, chunk=5, gene_chunk=50))(**inputs, gene_weight_G=weight_G)
    logits = inputs["h_BxNxd"].astype(np.float64) @ inputs["table_Gxd"].T.astype(np.float64) + inputs["bias_G"]
    logits = np.where(allowed_genes(inputs), logits + np.log(weight_G), -np.inf)
    kept = inputs["bin_valid_BxN"] & (dense.sum(-1) > 0)
    log_p = logits[kept] - special.logsumexp(logits[kept], axis=-1, keepdims=True)
    weighed = dense[kept] * weight_G
    np.testing.assert_allclose(found.gene_nats, -weighed[weighed > 0] @ log_p[weighed > 0], rtol=1e-5)
    assert found.detections == plain.detections and found.total_nats == plain.total_nats

    one_bin = {**inputs, "bin_valid_BxN": np.zeros_like(inputs["bin_valid_BxN"])}
    one_bin["bin_valid_BxN"][1, 3] = True
    counts_G = dense[1, 3] + allowed_genes(inputs)[1, 3]  # none of them 0
    own = np.zeros_like(dense)
    own[1, 3] = counts_G
    one_bin |= {"counts": sparse(own), "h_BxNxd": np.zeros_like(inputs["h_BxNxd"]),
                "bias_G": np.log(np.maximum(counts_G, 1e-30)).astype(np.float32)}  # fmt: skip
    slope = jax.grad(lambda bias_G: count_nll(**{**one_bin, "bias_G": bias_G}, gene_weight_G=weight_G).gene_nats)
    assert np.abs(slope(one_bin["bias_G"])).max() < 1e-3 * counts_G.max()

"""The TPU kernels in Pallas' interpreter against the float64 oracle; `test_attention_tpu_compile` compiles them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS, B, D, H, K, arrays, as_visibility, assert_near, case, oracle

from tario_jax.ops.attention import tpu, tpu_grid
from tario_jax.ops.attention.merge import merge
from tario_jax.ops.attention.work import block_pairs
from tario_jax.ops.visibility import KeyVisibility

BLOCK = 16  # neither length is a multiple
run = functools.partial(jax.jit, static_argnames=("block",))


def forward(q, k, v, visibility, block=BLOCK, out_dtype=None):
    out_dtype = out_dtype or q.dtype
    return tpu.forward(
        q, k, v, *visibility, scale=q.shape[-1] ** -0.5, out_dtype=out_dtype, interpret=True, block=block
    )


def backward(q, k, v, visibility, d_out, lse, delta, block=BLOCK, grad_dtype=jnp.float32):
    of_rows = (d_out, lse, delta)
    scale = q.shape[-1] ** -0.5
    return tpu.backward(q, k, v, *visibility, *of_rows, scale=scale, grad_dtype=grad_dtype, interpret=True, block=block)


@run
def out_gradients_and_lse(q, k, v, d_out, visibility, block=BLOCK):
    out, lse = forward(q, k, v, visibility, block)
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    return (out, *backward(q, k, v, visibility, d_out, lse, delta, block, q.dtype)), lse


def lse_by_oracle(q, k, mask):
    """float64 [B, Sq, H], +inf where nothing is seen."""
    k = np.repeat(np.asarray(k, np.float64), q.shape[2] // k.shape[2], axis=2)
    scores = np.einsum("bqhd,bshd->bqhs", np.asarray(q, np.float64), k) * q.shape[-1] ** -0.5
    with np.errstate(divide="ignore"):
        lse = np.log((np.exp(scores) * mask[:, :, None]).sum(-1))
    return np.where(np.isneginf(lse), np.inf, lse)


@pytest.mark.parametrize("kind", MASKS)
def test_output_gradients_and_log_sum_exp_in_float32(kind):
    visibility, mask = case(kind)
    inputs = arrays()
    found, lse = out_gradients_and_lse(*inputs, visibility)
    assert_near(found, oracle(*inputs, mask), 2e-6)
    np.testing.assert_allclose(lse, lse_by_oracle(*inputs[:2], mask), rtol=2e-6, atol=2e-6)
    sees, seen = mask.any(2), mask.any(1)
    for x, rows in zip(found, (sees, sees, seen, seen), strict=True):
        assert not np.asarray(x)[~rows].any()  # exactly 0


@pytest.mark.parametrize("kind", ("causal", "packed", "random_order"))
def test_output_and_gradients_in_bfloat16(kind):
    visibility, mask = case(kind)
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays()]
    found, lse = out_gradients_and_lse(*inputs, visibility)
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4 and lse.dtype == jnp.float32
    assert_near(found, oracle(*inputs, mask), 1e-2)
    # not rounded to bfloat16 anywhere: only the inputs are
    np.testing.assert_allclose(lse, lse_by_oracle(*(np.asarray(x, np.float32) for x in inputs[:2]), mask), atol=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), ((3, 3), (8, 8), (4, 1), (16, 1)))
def test_heads_that_share_steps_and_keys(heads, kv_heads):
    # of 8 heads a step takes 4, two groups for the two cores of a v5p; 16 on one key head take two steps of 8
    visibility, mask = case("packed", sq=40, sk=52)
    inputs = arrays(sq=40, sk=52, heads=heads, kv_heads=kv_heads)
    assert_near(out_gradients_and_lse(*inputs, visibility)[0], oracle(*inputs, mask), 2e-6)


@pytest.mark.parametrize(("sq", "sk"), ((32, 16), (7, 90), (90, 5)))
def test_lengths(sq, sk):
    visibility, mask = case("random_order", sq=sq, sk=sk)
    inputs = arrays(sq=sq, sk=sk)
    assert_near(out_gradients_and_lse(*inputs, visibility)[0], oracle(*inputs, mask), 2e-6)


@pytest.mark.parametrize("poison", (np.nan, np.inf))
@pytest.mark.parametrize("kind", ("packed", "padded", "random_order"))
def test_what_nobody_sees_does_not_matter(kind, poison):
    visibility, mask = case(kind)
    if kind == "random_order":  # here every key is seen by some query: write two of them after all reading
        write = visibility[1].write_step_BxS.at[:, 10:12].set(99)
        visibility, mask = (visibility[0], visibility[1]._replace(write_step_BxS=write)), mask.copy()
        mask[:, :, 10:12] = False
    inputs = arrays()
    clean, clean_lse = out_gradients_and_lse(*inputs, visibility)
    q, k, v, d_out = (x.copy() for x in inputs)
    sees, seen = mask.any(2), mask.any(1)
    assert not sees.all() and not seen.all()
    q[~sees], d_out[~sees], k[~seen], v[~seen] = poison, poison, poison, poison
    found, lse = out_gradients_and_lse(q, k, v, d_out, visibility)
    for x, y in zip((*found, lse), (*clean, clean_lse), strict=True):
        np.testing.assert_array_equal(x, y)


def test_scores_of_hundreds():
    visibility, mask = case("prefix")
    q, k, v, d_out = arrays()
    inputs = 30 * q, 10 * k, v, d_out
    assert_near(out_gradients_and_lse(*inputs, visibility)[0], oracle(*inputs, mask), 1e-4)


@run
def of_two_halves(q, k, v, d_out, visibility, block=BLOCK):
    """As a ring of two does: each half of the keys apart, float32 parts, and the log-sum-exp of both going back."""
    half = k.shape[1] // 2
    halves = [
        (k[:, of], v[:, of], (visibility[0], KeyVisibility(*(x[:, of] for x in visibility[1]))))
        for of in (slice(half), slice(half, None))
    ]
    out, lse = merge(*(x for each in halves for x in forward(q, *each, block, jnp.float32)))
    delta = (d_out.astype(jnp.float32) * out).sum(-1)
    (dq, *dkv), (more, *other_dkv) = (backward(q, *each, d_out, lse, delta, block) for each in halves)
    return out, dq + more, *(jnp.concatenate(x, 1) for x in zip(dkv, other_dkv, strict=True))


@pytest.mark.parametrize("kind", ("causal", "packed", "random_order"))
def test_keys_in_two_parts_add_up(kind):
    visibility, mask = case(kind)  # causal: the first queries see nothing of the second half
    inputs = arrays()
    found = of_two_halves(*inputs, visibility)
    assert all(x.dtype == jnp.float32 for x in found)
    assert_near(found, oracle(*inputs, mask), 2e-6)


def test_lists_too_long_for_the_scalar_memory_are_cut(monkeypatch):
    visibility, _ = case("packed")
    inputs = arrays()
    whole = out_gradients_and_lse(*inputs, visibility)
    pairs = block_pairs(*visibility, BLOCK, BLOCK)  # two rows of five blocks of queries and four of keys
    assert [part.blocks for part in tpu_grid.parts(pairs, by_keys=False)] == [10]
    monkeypatch.setattr(tpu_grid, "_LONGEST_LIST", 25)
    assert [part.blocks for part in tpu_grid.parts(pairs, by_keys=False)] == [6, 4]
    in_parts = jax.jit(lambda *inputs: out_gradients_and_lse.__wrapped__(*inputs))(*inputs, visibility)
    for x, y in zip(jax.tree.leaves(in_parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_kernel_has_one_step_for_each_pair_of_blocks_that_can_be_seen():
    # Five blocks of queries, causal over four of keys in the first row; in the second, nothing sees anything.
    i, j = np.arange(5 * BLOCK), np.arange(4 * BLOCK)
    segment_q, segment_k = np.zeros((B, len(i))), np.zeros((B, len(j)))
    segment_k[1] = 1
    visibility = as_visibility(segment_q, np.tile(i, (B, 1)), segment_k, np.tile(j, (B, 1)))
    (part,) = tpu_grid.parts(block_pairs(*visibility, BLOCK, BLOCK), by_keys=False)
    codes = np.asarray(part.codes[: part.entries])
    own, kind, other = codes >> (part.other_bits + 2), codes >> part.other_bits & 3, codes & 2**part.other_bits - 1
    full, partial, idle = 0, 1, 2
    expected = [(q, full, k) for q in range(5) for k in range(4) if k < q]
    expected += [(q, partial, q) for q in range(4)] + [(q, idle, 4) for q in range(5, 10)]
    assert list(zip(own, kind, other, strict=True)) == sorted(expected)


def test_every_run_gives_the_same_bits():
    visibility, _ = case("random_order")
    inputs = arrays()
    first, second = (jax.tree.leaves(out_gradients_and_lse(*inputs, visibility)) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("q", "k", "reason"),
    [
        (((B, 8, H, 64), "bfloat16"), ((B, 8, K, 64), "bfloat16"), None),
        (((B, 8, H, D), "float32"), ((B, 8, K, D), "float32"), None),
        (((B, 8, H, 64), "float16"), ((B, 8, K, 64), "float16"), "float16 is neither bfloat16 nor float32"),
        (((B, 8, H, 64), "bfloat16"), ((B, 8, K, 64), "float32"), "queries are bfloat16, keys float32"),
        (((B, 8, H, 12), "float32"), ((B, 8, K, 12), "float32"), "heads are 12 wide, not a multiple of 8 up to 256"),
        (((B, 8, H, 512), "float32"), ((B, 8, K, 512), "float32"), "heads are 512 wide, not a multiple of 8 up to 256"),
        (((1, 2**24, 1, 64), "bfloat16"), ((1, 2**24, 1, 64), "bfloat16"),
         "32768 blocks of queries and 32768 of keys are too many to number"),
    ],
)  # fmt: skip
def test_what_the_kernels_do_not_take(q, k, reason):
    assert tpu.unsupported(*(jax.ShapeDtypeStruct(*x) for x in (q, k))) == reason

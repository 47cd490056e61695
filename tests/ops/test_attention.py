"""Attention against a float64 oracle in numpy: outputs and all gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import MASKS, SK, SQ, B, D, H, K, arrays, as_visibility, assert_near, case, oracle

from tario_jax.config import InputError
from tario_jax.ops.attention import ATTENTION_OUT, attention, choose_strategy
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

BLOCK = 16  # neither length is a multiple
STRATEGIES = ("reference", "blockwise")  # those of one device without a kernel


@functools.partial(jax.jit, static_argnames=("strategy", "block"))
def out_and_gradients(q, k, v, d_out, visibility, strategy, block=BLOCK):
    out, pull = jax.vjp(lambda *qkv: attention(*qkv, *visibility, strategy=strategy, block=block), q, k, v)
    return out, *pull(d_out)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_output_and_gradients_in_float32(strategy, kind):
    visibility, mask = case(kind)
    inputs = arrays()
    found = out_and_gradients(*inputs, visibility, strategy=strategy)
    assert_near(found, oracle(*inputs, mask), 2e-6)
    sees, seen = mask.any(2), mask.any(1)
    for x, rows in zip(found, (sees, sees, seen, seen), strict=True):
        assert not np.asarray(x)[~rows].any()  # exactly 0


@pytest.mark.parametrize("kind", ("causal", "packed", "random_order"))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_output_and_gradients_in_bfloat16(strategy, kind):
    visibility, mask = case(kind)
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays()]
    found = out_and_gradients(*inputs, visibility, strategy=strategy)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    assert_near(found, oracle(*inputs, mask), 1e-2)


def test_one_block_for_the_whole_row():
    visibility, mask = case("random_order")
    inputs = arrays()
    assert_near(out_and_gradients(*inputs, visibility, strategy="blockwise", block=256), oracle(*inputs, mask), 2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_large_scores_do_not_overflow(strategy):
    visibility, mask = case("prefix")
    q, k, v, d_out = arrays()
    inputs = 30 * q, 10 * k, v, d_out
    found = out_and_gradients(*inputs, visibility, strategy=strategy)
    assert_near(found, oracle(*inputs, mask), 1e-4)  # scores of hundreds: their rounding is what is left


@pytest.mark.parametrize("poison", (np.nan, np.inf))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_nobody_sees_does_not_matter(strategy, poison):
    visibility, mask = case("packed")
    inputs = arrays()
    clean = out_and_gradients(*inputs, visibility, strategy=strategy)
    q, k, v, d_out = (x.copy() for x in inputs)
    sees, seen = mask.any(2), mask.any(1)
    assert not sees.all() and not seen.all()
    q[~sees], d_out[~sees], k[~seen], v[~seen] = poison, poison, poison, poison
    for x, y in zip(out_and_gradients(q, k, v, d_out, visibility, strategy=strategy), clean, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_packed_row_equals_its_sequences_alone(strategy):
    # Two windows in a row, tokens interleaved, the second with its own steps; then padding.
    rng = np.random.default_rng(2)
    segment_q, segment_k = (
        rng.permuted(np.tile(np.repeat([0, 1, -1], (third, third, s - 2 * third)), (B, 1)), axis=1)
        for s, third in ((SQ, 30), (SK, 20))
    )
    read, write = rng.integers(0, 5, (B, SQ)), rng.integers(0, 5, (B, SK))
    inputs = arrays()
    packed = out_and_gradients(*inputs, as_visibility(segment_q, read, segment_k, write), strategy=strategy)
    for segment in (0, 1):
        of_q, of_k = segment_q[0] == segment, segment_k[0] == segment
        alone = [x[:1, of] for x, of in zip(inputs, (of_q, of_k, of_k, of_q), strict=True)]
        zeros_q, zeros_k = np.zeros((1, of_q.sum())), np.zeros((1, of_k.sum()))
        visibility = as_visibility(zeros_q, read[:1, of_q], zeros_k, write[:1, of_k])
        found = out_and_gradients(*alone, visibility, strategy=strategy)
        for x, y, of in zip(packed, found, (of_q, of_q, of_k, of_k), strict=True):
            np.testing.assert_allclose(x[:1, of], y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("sq", "sk"), ((1, 1), (1, 52), (75, 1), (3, 2)))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shortest_lengths(strategy, sq, sk):
    visibility, mask = case("random_order", sq=sq, sk=sk, seed=4)
    inputs = arrays(sq=sq, sk=sk)
    expected = oracle(*inputs, mask)
    for x, y in zip(out_and_gradients(*inputs, visibility, strategy=strategy), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("rows", "sq", "sk"), ((2, 5, 0), (2, 0, 5), (0, 5, 5)))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_keys_no_queries_and_no_rows(strategy, rows, sq, sk):
    visibility = as_visibility(*(np.zeros((rows, s)) for s in (sq, sq, sk, sk)))
    q, k = np.ones((rows, sq, H, D), np.float32), np.ones((rows, sk, K, D), np.float32)
    out, *gradients = out_and_gradients(q, k, k, q, visibility, strategy=strategy)
    assert out.shape == q.shape and not np.asarray(out).any()
    assert [x.shape for x in gradients] == [q.shape, k.shape, k.shape]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_segments_and_steps_up_to_the_ends_of_int32(strategy):
    rng, (low, high) = np.random.default_rng(5), (-(2**31), 2**31 - 1)
    segments, steps = [low, -7, -1, 0, 1, high - 1, high], [low, low + 1, -5, 0, 5, high - 1, high]
    fields = []
    for length in (SQ, SK):  # in runs, so that there are full, partial and empty pairs of blocks
        segment = np.sort(rng.choice(segments, (B, length)), axis=1)
        fields += [segment, np.sort(rng.choice(steps, (B, length)), axis=1)]
    segment_q, read, segment_k, write = fields
    mask = (segment_q[:, :, None] == segment_k[:, None]) & (segment_q[:, :, None] >= 0)
    mask &= write[:, None] <= read[:, :, None]
    inputs = arrays()
    found = out_and_gradients(*inputs, as_visibility(*fields), strategy=strategy, block=8)
    assert_near(found, oracle(*inputs, mask), 2e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numpy_arrays_are_taken(strategy):
    visibility, mask = case("causal")
    q, k, v, d_out = arrays()
    out = attention(q, k, v, *jax.tree.map(np.asarray, visibility), strategy=strategy, block=BLOCK)
    np.testing.assert_allclose(out, oracle(q, k, v, d_out, mask)[0], rtol=2e-5, atol=2e-6)


def test_auto_is_dense_while_scores_are_few():
    def chosen(sq, sk, **options):
        q, k = (jax.ShapeDtypeStruct((B, s, heads, D), jnp.float32) for s, heads in ((sq, H), (sk, K)))
        return choose_strategy(q, k, **options)

    assert str(chosen(256, 256)) == chosen(256, 256).strategy == "reference"
    assert chosen(257, 256).strategy == "blockwise"
    assert str(chosen(257, 256)) == "blocks in plain XLA (no kernel for cpu)"  # what is missing is said
    assert str(chosen(257, 256, strategy="blockwise")) == "blocks in plain XLA"
    visibility, _ = case("causal")
    inputs = arrays()
    for x, y in zip(out_and_gradients(*inputs, visibility, strategy="auto"),
                    out_and_gradients(*inputs, visibility, strategy="reference"), strict=True):  # fmt: skip
        np.testing.assert_array_equal(x, y)


def test_blockwise_never_holds_an_array_of_both_lengths():
    s = 2048
    shapes = [jax.ShapeDtypeStruct((1, s, heads, D), jnp.float32) for heads in (H, K, K, H)]
    field = jax.ShapeDtypeStruct((1, s), jnp.int32)
    visibility = QueryVisibility(field, field), KeyVisibility(field, field)
    compiled = {
        strategy: out_and_gradients.lower(*shapes, visibility, strategy=strategy, block=256).compile()
        for strategy in STRATEGIES
    }
    both_lengths = re.compile(r"\[[\d,]*2048[\d,]*2048[\d,]*\]")
    assert both_lengths.search(compiled["reference"].as_text())  # the search finds what it is meant to find
    assert not both_lengths.search(compiled["blockwise"].as_text())
    sizes = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    assert sizes["blockwise"] < s * s * 4  # less than the scores of one head
    assert sizes["reference"] > 4 * sizes["blockwise"]


def test_blockwise_inside_scan_and_remat():
    visibility, _ = case("prefix")
    x = jnp.asarray(np.random.default_rng(3).normal(size=(B, SK, H, D)), jnp.float32)
    gains = jnp.asarray([0.9, 1.1, 1.3])
    visibility = QueryVisibility(*(f[:, :SK] for f in visibility[0])), visibility[1]

    def loss(x, gains, strategy, policy):
        def layer(x, gain):
            keys = x[:, :, :K] * gain
            return x + attention(x, keys, keys[::-1], *visibility, strategy=strategy, block=BLOCK), None

        return (jax.lax.scan(jax.checkpoint(layer, policy=policy), x, gains)[0] ** 2).sum()

    policies = jax.checkpoint_policies
    save = policies.save_only_these_names(ATTENTION_OUT)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))
    expected = gradient(x, gains, "reference", save)
    traced = [gradient.trace(x, gains, "blockwise", policy) for policy in (policies.nothing_saveable, save)]
    for a, b in zip(traced[1].lower().compile()(x, gains), expected, strict=True):
        # three layers grow the gradients to about 1e3: the whole array is compared, not elements near zero
        assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)
    # Saved by name, the forward pass is not run a second time: forward and backward, against forward, again, backward.
    # Each pass has two loops, over full and over partial pairs.
    assert [str(each.jaxpr).count("while[") for each in traced] == [6, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "flash"}, "'flash'; expected one of auto, reference, blockwise"),
        ({"scale": 0}, "scale is 0; expected a positive number"),
        ({"scale": -1.0}, "scale is -1.0; expected a positive number"),
        ({"scale": np.nan}, "scale is nan; expected a positive number"),
        ({"scale": jnp.float32(1)}, "scale is 1.0; expected a positive number that is known before tracing"),
        ({"block": 0}, "block is 0; expected at least 1"),
        ({"q": np.zeros((SQ, H, D), np.float32)}, r"q is \(75, 4, 8\), k .* expected \[B, Sq, H, D\]"),
        ({"v": np.zeros((B, SK, K, 16), np.float32)}, r"v \(2, 52, 2, 16\); expected"),
        (dict.fromkeys("kv", np.zeros((B, SK, 3, D), np.float32)), "4 heads on 3 key heads"),
        (dict.fromkeys("kv", np.zeros((B, SK, 0, D), np.float32)), "4 heads on 0 key heads"),
        ({"q": np.zeros((B, SQ, H, D), jnp.bfloat16)}, "q is bfloat16, k float32, v float32; expected one dtype"),
        (dict.fromkeys("qkv", np.zeros((B, SQ, H, D), np.int32)), "q, k and v are int32; expected float32, bf"),
        ({"kv_visibility": KeyVisibility(*[np.zeros((B, SQ), np.int32)] * 2)}, r"kv_visibility is \(2, 75\); expect"),
        ({"q_visibility": QueryVisibility(*[np.zeros((B, SQ), np.uint32)] * 2)}, "q_visibility is uint32; expected"),
        ({"kv_visibility": KeyVisibility(*[np.zeros((B, SK), np.float32)] * 2)}, "kv_visibility is float32; expected"),
    ],
)
def test_mistakes_get_one_line(change, message):
    names = ("q", "k", "v", "q_visibility", "kv_visibility")
    given = dict(zip(names, (*arrays()[:3], *case("full")[0]), strict=True)) | change
    with pytest.raises(InputError, match=message) as mistake:
        attention(*[given.pop(name) for name in names], **given)
    assert "\n" not in str(mistake.value)

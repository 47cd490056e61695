"""Ring and all-gather attention on virtual devices, against the float64 oracle of one device's tests."""

import json
from pathlib import Path

import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.ops.attention.stripes import stripes

# Each program is run in a process with eight virtual devices; this folder is on its path for the oracle.
_PREAMBLE = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    + """
import functools, json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh
from attention_cases import MASKS, arrays, as_visibility, case, oracle, relative_errors
from tario_jax.config import InputError
from tario_jax.ops.attention import ATTENTION_OUT, attention
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

def mesh_of(ranks, axis="context"):
    return Mesh(np.array(jax.devices()[:ranks]), (axis,), axis_types=(AxisType.Auto,))

@functools.partial(jax.jit, static_argnames=("strategy", "block"))
def out_and_gradients(q, k, v, d_out, visibility, strategy="ring", block=8):
    out, pull = jax.vjp(lambda *qkv: attention(*qkv, *visibility, strategy=strategy, block=block), q, k, v)
    return out, *pull(d_out)
"""
)

_EXACT = """
heads, kv_heads, sq, sk = json.loads(sys.argv[1])
for dtype, rank_counts in json.loads(sys.argv[2]):
    for strategy in json.loads(sys.argv[3]):
        for ranks in rank_counts:
            with jax.set_mesh(mesh_of(ranks)):
                for kind in MASKS:
                    visibility, mask = case(kind, sq=sq, sk=sk)
                    inputs = [jnp.asarray(x, dtype) for x in arrays(sq=sq, sk=sk, heads=heads, kv_heads=kv_heads)]
                    found = out_and_gradients(*inputs, visibility, strategy=strategy)
                    errors = relative_errors(found, oracle(*inputs, mask))
                    rows = mask.any(2), mask.any(2), mask.any(1), mask.any(1)
                    blind = max(float(abs(np.asarray(x, np.float32)[~seen]).max(initial=0))
                                for x, seen in zip(found, rows, strict=True))
                    kinds = [str(x.dtype) for x in found]
                    print(json.dumps([dtype, strategy, ranks, kind, max(errors), blind, kinds]))
"""


@pytest.mark.parametrize(
    ("heads", "kv_heads", "lengths", "runs", "strategies"),
    [
        pytest.param(4, 2, (203, 148), [("float32", (2, 8)), ("bfloat16", (8,))], ["ring"], id="ring"),
        pytest.param(
            4,
            2,
            (203, 148),
            [("float32", (1, 4)), ("bfloat16", (1, 2))],
            ["ring"],
            id="ring of others",
            marks=pytest.mark.slow,
        ),
        pytest.param(4, 2, (203, 148), [("float32", (2, 8)), ("bfloat16", (8,))], ["all_gather"], id="all-gather"),
        pytest.param(3, 3, (64, 64), [("float32", (8,))], ["ring", "all_gather"], id="as many key heads as heads"),
        pytest.param(4, 1, (75, 230), [("float32", (4,))], ["ring"], id="one key head, fewer queries than keys"),
    ],
)
def test_output_and_gradients(devices8, heads, kv_heads, lengths, runs, strategies):
    said = devices8(_PREAMBLE + _EXACT, *map(json.dumps, ((heads, kv_heads, *lengths), runs, strategies)))
    worst = {}
    for dtype, strategy, ranks, kind, error, blind, kinds in map(json.loads, said.splitlines()):
        bar = 2e-6 if dtype == "float32" else 1e-2
        assert error < bar and blind == 0, (dtype, strategy, ranks, kind, error, blind)
        assert kinds == [dtype] * 4
        worst[dtype, strategy, ranks] = max(worst.get((dtype, strategy, ranks), 0), error)
    assert len(worst) == len(strategies) * sum(len(ranks) for _, ranks in runs)
    of_bfloat16 = [error for (dtype, *_), error in worst.items() if dtype == "bfloat16"]
    assert max(of_bfloat16, default=0) < 1.3 * min(of_bfloat16, default=1)  # partial results are float32: flat in ranks


_POISON = """
visibility, mask = case("packed")
inputs = arrays()
q, k, v, d_out = (x.copy() for x in inputs)
sees, seen = mask.any(2), mask.any(1)
q[~sees], d_out[~sees], k[~seen], v[~seen] = np.nan, np.inf, np.nan, np.inf
for strategy in ("ring", "all_gather"):
    with jax.set_mesh(mesh_of(4)):
        clean = out_and_gradients(*inputs, visibility, strategy=strategy)
        for x, y in zip(out_and_gradients(q, k, v, d_out, visibility, strategy=strategy), clean, strict=True):
            np.testing.assert_array_equal(x, y)

# scores of hundreds: log-sum-exps that are merged must not overflow
visibility, mask = case("prefix")
inputs = arrays()
large = [30 * inputs[0], 10 * inputs[1], *inputs[2:]]
with jax.set_mesh(mesh_of(8)):
    assert max(relative_errors(out_and_gradients(*large, visibility), oracle(*large, mask))) < 1e-4

# a packed row is its sequences alone: two of them, tokens interleaved, each with steps of its own, then padding
rng = np.random.default_rng(2)
sq, sk = inputs[0].shape[1], inputs[1].shape[1]
of_q, of_k = (rng.permuted(np.tile(np.repeat([0, 1, -1], (24, 20, s - 44)), (2, 1)), axis=1) for s in (sq, sk))
read, write = rng.integers(0, 5, of_q.shape), rng.integers(0, 5, of_k.shape)
with jax.set_mesh(mesh_of(4)):
    whole = out_and_gradients(*inputs, as_visibility(of_q, read, of_k, write))
    for segment in (0, 1):
        here = [(0, where[0] == segment) for where in (of_q, of_k, of_k, of_q)]
        alone = [x[row, some][None] for x, (row, some) in zip(inputs, here, strict=True)]
        fields = [np.zeros(part.shape[1])[None] for part in alone[:2]]
        steps = read[:1, here[0][1]], write[:1, here[1][1]]
        found = out_and_gradients(*alone, as_visibility(fields[0], steps[0], fields[1], steps[1]))
        for x, y, (row, some) in zip(whole, found, (here[0], here[0], here[1], here[1]), strict=True):
            np.testing.assert_allclose(np.asarray(x)[row, some], y[0], rtol=2e-5, atol=2e-6)

# heads over tensor, rows over fsdp, tokens over context, all at once
mesh = jax.make_mesh((1, 2, 2, 2), ("replica", "fsdp", "context", "tensor"), axis_types=(AxisType.Auto,) * 4)
visibility, mask = case("random_order")
with jax.set_mesh(mesh):
    assert max(relative_errors(out_and_gradients(*inputs, visibility), oracle(*inputs, mask))) < 2e-6
print("held")
"""


@pytest.mark.slow
def test_poison_large_scores_and_other_axes(devices8):
    assert devices8(_PREAMBLE + _POISON).split() == ["held"]


_OTHER_CALLERS = """
# on a mesh of Explicit axes, which jax.make_mesh makes by default, wherever the arrays lie
def errors(q, k, v, visibility, mask, expected, strategy):
    out, pull = jax.vjp(lambda *qkv: attention(*qkv, *visibility, strategy=strategy, block=8), q, k, v)
    return relative_errors((out, *pull(jax.device_put(d_out, out.sharding))), expected)

visibility, mask = case("random_order", sq=76, sk=52)
q, k, v, d_out = arrays(sq=76, sk=52)
expected = oracle(q, k, v, d_out, mask)
mesh = jax.make_mesh((2, 4), ("fsdp", "context"))
with jax.set_mesh(mesh):
    placed = jax.device_put((q, k, v), jax.NamedSharding(mesh, jax.P("fsdp", "context")))
    for strategy, where in (("ring", (q, k, v)), ("all_gather", placed)):
        assert max(errors(*where, visibility, mask, expected, strategy)) < 2e-6
    try:
        attention(*arrays(sq=75, sk=52)[:3], *case("causal", sq=75, sk=52)[0], strategy="ring")
    except InputError as mistake:
        assert "75 queries on a mesh of Explicit axes do not divide over context = 4" in str(mistake)
        print("refused")

# inside a caller's own shard_map over rows; over context it is refused
mesh = jax.make_mesh((2, 4), ("fsdp", "context"), axis_types=(AxisType.Auto,) * 2)
def mapped(spec, axes):
    inside = lambda q, k, v, visibility: attention(q, k, v, *visibility, strategy="ring", block=8)
    run = jax.shard_map(inside, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=axes, check_vma=False)
    return jax.jit(run)(q, k, v, visibility)
assert max(relative_errors([mapped(jax.P("fsdp"), {"fsdp"})], expected[:1])) < 2e-6
try:
    mapped(jax.P("fsdp", "context"), {"fsdp", "context"})
except InputError as mistake:
    assert "inside a jax.shard_map over context; expected outside" in str(mistake)
    print("refused")
"""


@pytest.mark.slow
def test_explicit_axes_and_inside_a_shard_map(devices8):
    assert devices8(_PREAMBLE + _OTHER_CALLERS).split() == ["refused", "refused"]


_REMAT = """
visibility, _ = case("prefix", sq=64, sk=64)
x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 64, 4, 8)), jnp.float32)

def loss(x, gains, strategy, policy):
    def layer(x, gain):
        keys = x[:, :, :2] * gain
        return x + attention(x, keys, keys[:, ::-1], *visibility, strategy=strategy, block=8), None
    return (jax.lax.scan(jax.checkpoint(layer, policy=policy), x, gains)[0] ** 2).sum()

policies = jax.checkpoint_policies
save = policies.save_only_these_names(ATTENTION_OUT)
gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))
gains = jnp.asarray([0.9, 1.1])
expected = gradient(x, gains, "reference", save)
with jax.set_mesh(mesh_of(8)):
    programs = [gradient.trace(x, gains, "ring", policy) for policy in (policies.nothing_saveable, save)]
    for program in programs:
        for a, b in zip(program.lower().compile()(x, gains), expected, strict=True):
            assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)
print(json.dumps([str(program.jaxpr).count(" ppermute[") for program in programs]))
"""


@pytest.mark.slow
def test_remat_by_name_does_not_run_the_ring_again(devices8):
    again, once = json.loads(devices8(_PREAMBLE + _REMAT))
    # forward: K with V, and the integers; backward: before the loop, in it, after it: 2 + 3 + 2 (K with V and integers
    # set out, then all three, then the gradients of the last two hops)
    assert (again, once) == (2 + 2 + 7, 2 + 7)


_PROGRAM_TEXT = """
def compiled(ranks, s_local, strategy="ring"):
    mesh = mesh_of(ranks)
    by_token = jax.NamedSharding(mesh, jax.P(None, "context"))
    x = jax.ShapeDtypeStruct((1, ranks * s_local, 2, 16), jnp.float32, sharding=by_token)
    field = jax.ShapeDtypeStruct((1, ranks * s_local), jnp.int32, sharding=by_token)
    visibility = QueryVisibility(field, field), KeyVisibility(field, field)
    with jax.set_mesh(mesh):
        return out_and_gradients.lower(x, x, x, x, visibility, strategy=strategy, block=64).compile()

programs = {ranks: compiled(ranks, 512) for ranks in (2, 4, 8)}
text = programs[8].as_text()
bytes_of = {ranks: program.memory_analysis().temp_size_in_bytes for ranks, program in programs.items()}
print(json.dumps({
    "square": bool(re.search(r"\\[[\\d,]*512[\\d,]*512[\\d,]*\\]", text)),
    "whole": bool(re.search(r"\\[[\\d,]*4096[\\d,]*\\]", text.split("ENTRY")[1])),
    "others": sorted(set(re.findall(r"(all-gather|all-reduce|all-to-all|reduce-scatter)", text))),
    "permutes": len(re.findall(r" collective-permute(?:-start)?\\(", text)),
    "bytes": bytes_of, "gathered": compiled(8, 512, "all_gather").memory_analysis().temp_size_in_bytes,
    "half": compiled(8, 256).memory_analysis().temp_size_in_bytes,
}))
"""


@pytest.mark.slow
def test_a_ring_holds_neither_squares_nor_whole_sequences(devices8):
    said = json.loads(devices8(_PREAMBLE + _PROGRAM_TEXT))
    assert not said["square"] and not said["whole"] and said["others"] == []
    assert said["permutes"] == 2 + 7  # by message, of which a hop has at most three
    four, eight = said["bytes"]["4"], said["bytes"]["8"]
    assert eight < 1.05 * four  # tokens and devices grow together: memory does not
    assert said["half"] < 0.6 * eight and eight < 0.5 * said["gathered"]


@pytest.mark.parametrize(("length", "ranks", "stripe"), [(64, 4, 8), (72, 4, 8), (24, 8, 16), (60, 2, 7)])
def test_stripes_are_a_permutation_dealt_by_turns(length, ranks, stripe):
    order = stripes(length, ranks, stripe)
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    rounds = length // (ranks * stripe)
    for rank, part in enumerate(order.reshape(ranks, -1)):
        for turn in range(rounds):
            first = (turn * ranks + rank) * stripe
            np.testing.assert_array_equal(part[turn * stripe : (turn + 1) * stripe], np.arange(first, first + stripe))
        assert (np.diff(part) > 0).all()


def test_lengths_that_ranks_cannot_share_are_refused():
    with pytest.raises(InputError, match="30 tokens for 4 ranks of context; expected a multiple"):
        stripes(30, 4, 8)

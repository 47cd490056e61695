"""The GPU kernels against a float64 oracle in numpy: interpreted on a CPU, and in full where there is a Hopper GPU."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from tario_jax.ops.attention import attention, choose_strategy, gpu
from tario_jax.ops.attention.gpu_backward import BackwardTiles
from tario_jax.ops.attention.gpu_forward import ForwardTiles
from tario_jax.ops.attention.gpu_work import plan
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

MASKS = ("causal", "full", "prefix", "packed", "tiles", "random_order")
SMALL = (1, 150, 140, 2, 1, 64)  # B, SQ, SK, H, K, D: no length is a multiple of a block


def case(kind, shape, seed=0):
    """Visibility of queries and keys, and the mask bool [B, SQ, SK], built from the words and not from the rule."""
    batch, sq, sk = shape[:3]
    rng = np.random.default_rng(seed)
    i, j = np.arange(sq), np.arange(sk)
    segment_q, read, segment_k, write = (np.zeros((batch, n), int) for n in (sq, sq, sk, sk))
    mask = np.ones((batch, sq, sk), bool)
    if kind == "causal":
        read[:], write[:] = i, j
        mask &= j <= i[:, None]
    elif kind == "prefix":
        prefix = sk // 3
        read[:], write[:] = np.maximum(i - prefix, 0), np.maximum(j - prefix, 0)
        mask &= (j <= prefix) | (j <= i[:, None])
    elif kind == "packed":  # sequences of any length, causal, then padding; there is a sequence of keys alone
        ends = np.sort(rng.choice(np.arange(5, min(sq, sk) - 25), 3, replace=False))
        segment_q[:], segment_k[:] = np.searchsorted(ends, i, side="right"), np.searchsorted(ends, j, side="right")
        segment_q[segment_q == 1] = 7
        segment_q[:, -20:], segment_k[:, -15:] = -1, -1
        read[:], write[:] = i, j
        mask &= (segment_q[:, :, None] == segment_k[:, None]) & (j <= i[:, None])
        mask[:, -20:], mask[:, :, -15:] = False, False
    elif kind == "tiles":
        segment_q[:], segment_k[:] = i // 50, j // 50
        mask &= (i // 50)[:, None] == j // 50
    elif kind == "random_order":  # groups of bins in any order; queries of the first group see nothing
        write[:], read[:] = rng.integers(1, 9, (batch, sk)), rng.integers(0, 9, (batch, sq))
        mask &= write[:, None] <= read[:, :, None]
    fields = [jnp.asarray(field, jnp.int32) for field in (segment_q, read, segment_k, write)]
    return (QueryVisibility(*fields[:2]), KeyVisibility(*fields[2:])), mask


def oracle(shape, mask, seed=1):
    """Inputs in bfloat16, those of keys that nobody sees poisoned; and in float64 what the kernels are to give."""
    batch, sq, sk, heads, kv_heads, width = shape
    rng = np.random.default_rng(seed)
    sees, seen = mask.any(2), mask.any(1)
    shapes = ((batch, sq, heads, width), (batch, sk, kv_heads, width), (batch, sk, kv_heads, width), shape[:2])
    q, k, v = (rng.normal(size=s).astype(jnp.bfloat16) for s in shapes[:3])
    d_out = rng.normal(size=q.shape).astype(jnp.bfloat16)
    q[~sees], d_out[~sees] = 0, 0
    repeats = heads // kv_heads
    q_, k_, v_, d_out_ = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q, k, v, d_out))
    k_, v_ = np.repeat(k_, repeats, 1), np.repeat(v_, repeats, 1)
    scale = width**-0.5
    scores = np.where(mask[:, None], scale * q_ @ k_.swapaxes(2, 3), -1e300)
    top = scores.max(-1, keepdims=True)
    weight = np.where(mask[:, None], np.exp(scores - top), 0)
    total = weight.sum(-1, keepdims=True)
    lse = np.where(total > 0, top + np.log(np.maximum(total, 1e-300)), np.inf)[..., 0]
    weight /= np.maximum(total, 1e-300)
    out = weight @ v_
    delta = (d_out_ * out).sum(-1)
    d_scores = scale * weight * (d_out_ @ v_.swapaxes(2, 3) - delta[..., None])

    def of_key_heads(x):
        return x.reshape(batch, kv_heads, repeats, sk, width).sum(2)

    gradients = d_scores @ k_, of_key_heads(d_scores.swapaxes(2, 3) @ q_), of_key_heads(weight.swapaxes(2, 3) @ d_out_)
    k[~seen], v[~seen] = np.nan, np.inf
    back = lambda x: x.swapaxes(1, 2)  # noqa: E731
    given = [jnp.asarray(x) for x in (q, k, v, d_out)]
    given += [jnp.asarray(back(x), jnp.float32) for x in (lse, delta)]
    return given, [back(x) for x in (out, *gradients, lse)]


def error(found, expected):
    return np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max()


def check_forward(run, kind, shape):
    visibility, mask = case(kind, shape)
    (q, k, v, *_), (out, *_, lse) = oracle(shape, mask)
    q = jnp.where(jnp.asarray(mask.any(2))[:, :, None, None], q, jnp.nan)
    found, found_lse = run(q, k, v, *visibility)
    assert error(found, out) < 1e-2
    np.testing.assert_allclose(found_lse, lse, atol=1e-4)  # +inf where a query sees nothing
    assert not np.asarray(found)[~mask.any(2)].any()  # exactly 0


def check_backward(run, kind, shape):
    visibility, mask = case(kind, shape)
    (q, k, v, d_out, lse, delta), (_, *gradients, _) = oracle(shape, mask)
    found = run(q, k, v, *visibility, d_out, lse, delta)
    for name, x, y in zip(("dq", "dk", "dv"), found, gradients, strict=True):
        assert error(x, y) < 1e-2, name
    assert not np.asarray(found[0])[~mask.any(2)].any()
    assert not np.asarray(found[1])[~mask.any(1)].any() and not np.asarray(found[2])[~mask.any(1)].any()


def interpreted():
    """What the kernels give in jax's interpreter, which checks too that every arrival at a barrier is waited for."""
    # a private place, that another jax may have moved: the tests on a GPU do without it
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    static = dict(scale=SMALL[-1] ** -0.5, interpret=InterpretGPUParams())
    tiles = dict(warpgroups=2, block_k=64, registers=240)
    forward = functools.partial(gpu.forward, **static)
    plain = jax.jit(
        functools.partial(forward, out_dtype=jnp.bfloat16, tiles=ForwardTiles(**tiles, stages=2, ahead=False))
    )
    ahead = jax.jit(
        functools.partial(forward, out_dtype=jnp.float32, tiles=ForwardTiles(**tiles, stages=3, ahead=True))
    )
    backward_tiles = BackwardTiles(warpgroups=2, stages_k=2, part_q=64, stages_q=2, registers=240)
    backward = jax.jit(functools.partial(gpu.backward, **static, grad_dtype=jnp.float32, tiles=backward_tiles))
    for kind in ("causal", "packed", "random_order"):
        check_forward(plain, kind, SMALL)
    check_forward(ahead, "packed", SMALL)
    for kind in ("packed", "random_order"):
        check_backward(backward, kind, SMALL)

    # From the log-sum-exp of more keys: two halves, as on two hops of a ring. The gradients of q add up, those of the
    # keys stand apart.
    visibility, mask = case("causal", SMALL)
    (q, k, v, d_out, lse, delta), (_, dq, dk, dv, _) = oracle(SMALL, mask)
    halves = []
    for half in (slice(0, 70), slice(70, 140)):
        kv = KeyVisibility(*(field[:, half] for field in visibility[1]))
        halves.append(backward(q, k[:, half], v[:, half], visibility[0], kv, d_out, lse, delta))
    assert error(halves[0][0] + halves[1][0], dq) < 1e-2
    for i, expected in ((1, dk), (2, dv)):
        assert error(np.concatenate([half[i] for half in halves], axis=1), expected) < 1e-2


@pytest.mark.slow
def test_interpreted():
    # In a process of its own: the interpreter of jax 0.10 compiles a thread of the kernel while another one waits for
    # it, and on a few cores neither goes on. NPROC gives XLA more threads, if it is set before XLA starts.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"}
    run = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("kind", MASKS)
def test_lists_hold_every_visible_pair_once_and_full_ones_are_full(kind):
    shape, block_q, block_k = (2, 300, 280), 64, 32
    visibility, mask = case(kind, shape)
    pairs = plan(*visibility, block_q, block_k)
    seen = np.asarray(pairs.tokens.segment_kv_BxSk)[:, : shape[2]] >= 0
    np.testing.assert_array_equal(seen, mask.any(1))
    blocks = np.pad(mask, [(0, 0), (0, -shape[1] % block_q), (0, -shape[2] % block_k)])
    blocks = blocks.reshape(2, -1, block_q, blocks.shape[2] // block_k, block_k).swapaxes(2, 3)
    for work, listed_blocks in ((pairs.by_queries(), blocks), (pairs.by_keys(), blocks.swapaxes(1, 2))):
        other = np.asarray(work.other_BxXxY) % work.other_BxXxY.shape[2]
        for b, x in np.ndindex(other.shape[:2]):
            full, listed = int(work.full_BxX[b, x]), int(work.listed_BxX[b, x])
            assert listed_blocks[b, x, other[b, x, :full]].all()
            assert len(set(other[b, x, :listed])) == listed
            assert not listed_blocks[b, x, other[b, x, listed:]].any()


def test_padding_of_any_negative_segment_sees_nothing():
    """A key that nobody sees has a segment that no query may have: the kernels compare segments alone."""
    low = np.iinfo(np.int32).min
    segment, step = jnp.asarray([[low, -7, -1, 0]], jnp.int32), jnp.zeros((1, 4), jnp.int32)
    tokens = plan(QueryVisibility(segment, step), KeyVisibility(segment, step), 4, 4).tokens
    same = np.asarray(tokens.segment_q_BxSq)[:, :, None] == np.asarray(tokens.segment_kv_BxSk)[:, None]
    np.testing.assert_array_equal(same[0], np.diag([False, False, False, True]))


def test_what_is_not_supported_is_said():
    def arrays(dtype, width):
        return (jax.ShapeDtypeStruct((1, 256, 2, width), dtype),) * 2

    assert "bfloat16, not float32" in gpu.unsupported(*arrays(jnp.float32, 64))
    assert "width 64 or 128, not 96" in gpu.unsupported(*arrays(jnp.bfloat16, 96))
    if jax.default_backend() == "cpu":
        assert "need an NVIDIA GPU; jax runs on cpu" in gpu.unsupported(*arrays(jnp.bfloat16, 64))


def test_gpus_that_are_not_here_are_judged_by_what_they_are(monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 0))
    arrays = (jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16),) * 2

    def unsupported(kind, platform="gpu"):
        device = AbstractDevice(kind, None, platform)
        mesh = AbstractMesh((8,), ("fsdp",), (AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return gpu.unsupported(*arrays)

    assert unsupported("H100") is None and unsupported("NVIDIA H200") is None
    assert unsupported("NVIDIA A100") == "the GPU kernels are for Hopper; the mesh is of NVIDIA A100"
    if jax.default_backend() == "cpu":
        assert "need an NVIDIA GPU" in unsupported("chip", "tpu")


REASON = gpu.unsupported(*(jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16),) * 2)
LARGE = [(2, 1000, 900, 4, 2, 64), (2, 1000, 900, 4, 2, 128), (1, 512, 1024, 3, 1, 128)]


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("kind", MASKS)
def test_on_the_gpu(kind, shape):
    for dtype in (jnp.bfloat16, jnp.float32):
        run = functools.partial(gpu.forward, scale=shape[-1] ** -0.5, out_dtype=dtype)
        check_forward(jax.jit(run), kind, shape)
        run = functools.partial(gpu.backward, scale=shape[-1] ** -0.5, grad_dtype=dtype)
        check_backward(jax.jit(run), kind, shape)


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("strategy", ("auto", "ring"))
@pytest.mark.parametrize("kind", ("packed", "random_order"))
def test_through_attention_on_the_gpu(kind, strategy):
    """As the kernel of one device and as the inner block of a ring of one; blind queries may hold anything."""
    visibility, mask = case(kind, LARGE[0])
    (q, k, v, d_out, *_), (out, dq, dk, dv, _) = oracle(LARGE[0], mask)
    blind = ~jnp.asarray(mask.any(2))[:, :, None, None]
    q, d_out = jnp.where(blind, jnp.nan, q), jnp.where(blind, jnp.inf, d_out)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        chosen = choose_strategy(q, k, strategy=strategy)
        assert chosen.plan.inner.name == "GPU kernel" and chosen.plan.spread == (
            "ring" if strategy == "ring" else "none"
        )

        @jax.jit
        def out_and_gradients(q, k, v, d_out):
            found, pull = jax.vjp(lambda *qkv: attention(*qkv, *visibility, strategy=strategy), q, k, v)
            return found, *pull(d_out)

        found = out_and_gradients(q, k, v, d_out)
    for name, x, y in zip(("out", "dq", "dk", "dv"), found, (out, dq, dk, dv), strict=True):
        assert error(x, y) < 1e-2, name


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_same_bits_on_the_gpu():
    visibility, mask = case("random_order", LARGE[0])
    (q, k, v, d_out, lse, delta), _ = oracle(LARGE[0], mask)
    forward = jax.jit(functools.partial(gpu.forward, scale=0.125, out_dtype=jnp.bfloat16))
    backward = jax.jit(functools.partial(gpu.backward, scale=0.125, grad_dtype=jnp.bfloat16))
    runs = [(*forward(q, k, v, *visibility), *backward(q, k, v, *visibility, d_out, lse, delta)) for _ in range(2)]
    for x, y in zip(*runs, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


if __name__ == "__main__":
    interpreted()

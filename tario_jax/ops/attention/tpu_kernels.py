"""The bodies of the TPU kernels of `tario_jax.ops.attention.tpu`: what one step of their grids computes.

A step is one entry of a list: a pair of a block of queries and a block of keys, for a few heads. Entries of one *own*
block stand together (of queries in forward and dQ, of keys in dK and dV): the first clears the sums, the last writes.

Operands have their tokens in the lanes, [heads, D, tokens]: so they are dense in memory at D = 64 too. The scores have
keys in rows and queries in lanes: maxima and sums over keys are taken between registers and not across lanes, and what
belongs to each query is one dense row. Every product of a pair is then a plain one (`_NN`) or one with its right side
turned (`_NT`), which the matrix unit does by itself, but for the left side of K Q and V dO: where keys are not the own
block, which is turned once, those are turned on their way into the matrix unit. (By the compiler's schedule for a
v5e, four heads of a full pair of 512 × 512 at D = 128 take 5,100 bundles forward; with keys in the lanes, 7,000.)

Axes: g heads of queries and k heads of keys of a step, q and s tokens of a block, D width. The scores, and the
log-sum-exp that the backward kernels read, are in base 2, which is what the hardware raises.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

FULL, PARTIAL, IDLE = range(3)  # kinds of entries, in the order of visiting; an idle one computes nothing
KIND_BITS = 2
END = jnp.iinfo(jnp.int32).max  # the code behind the last entry
LOG2_E = math.log2(math.e)

# What a hidden score becomes, and where a running maximum starts. A hidden score lies so far below any maximum that
# its weight is exactly 0 without a second mask, and no difference of two of them overflows or is NaN.
_HIDDEN, _START = -2e38, -1e30

_AHEAD = 2  # heads whose scores are made before one's are used: the matrix unit works beside the vector unit

_NN, _NT = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def forward_kernel(
    codes, q_gxDxq, k_kxDxs, v_kxDxs, sight_2xq, mark_2xs, out_gxDxq, lse_gx1xq,
    top_gx1xq, total_gx1xq, sum_gxDxq, *, other_bits: int, scale: float,
):  # fmt: skip
    """Online softmax over the listed blocks of keys; the log-sum-exp is natural, +inf for a query that sees nothing."""
    kind, first, last = _entry(codes, other_bits)
    heads, repeats = q_gxDxq.shape[0], q_gxDxq.shape[0] // k_kxDxs.shape[0]

    @pl.when(first)
    def _():
        top_gx1xq[...] = jnp.full(top_gx1xq.shape, _START, jnp.float32)
        total_gx1xq[...] = jnp.zeros(total_gx1xq.shape, jnp.float32)
        sum_gxDxq[...] = jnp.zeros(sum_gxDxq.shape, jnp.float32)

    def pair(mask_sxq):
        seen_1xs = _seen(mask_sxq)

        def scores(h):
            return _hide(scale * LOG2_E * _dot(k_kxDxs[h // repeats].T, q_gxDxq[h], _NN), mask_sxq)

        ahead = [scores(h) for h in range(min(_AHEAD, heads))]
        for h in range(heads):
            if h + _AHEAD < heads:
                ahead.append(scores(h + _AHEAD))
            score_sxq = ahead.pop(0)
            # The mask hides the scores of a NaN key; a weight of 0 does not silence a NaN value (0 · NaN).
            v_Dxs = _keep(v_kxDxs[h // repeats], seen_1xs)
            top_1xq = jnp.maximum(top_gx1xq[h], score_sxq.max(0, keepdims=True))
            weight_sxq = jnp.exp2(score_sxq - top_1xq)
            shrink_1xq = jnp.exp2(top_gx1xq[h] - top_1xq)
            top_gx1xq[h] = top_1xq
            total_gx1xq[h] = shrink_1xq * total_gx1xq[h] + weight_sxq.sum(0, keepdims=True)
            sum_gxDxq[h] = shrink_1xq * sum_gxDxq[h] + _dot(v_Dxs, weight_sxq.astype(v_Dxs.dtype), _NN)

    _meet(kind, pair, lambda: _visible(mark_2xs[...].T, sight_2xq[...]))

    @pl.when(last)
    def _():
        for h in range(heads):
            blind_1xq = total_gx1xq[h] == 0
            total_1xq = jnp.where(blind_1xq, 1, total_gx1xq[h])
            out_gxDxq[h] = (sum_gxDxq[h] / total_1xq).astype(out_gxDxq.dtype)
            lse_gx1xq[h] = jnp.where(blind_1xq, jnp.inf, top_gx1xq[h] / LOG2_E + jnp.log(total_1xq))


def d_queries_kernel(
    codes, q_gxDxq, d_out_gxDxq, k_kxDxs, v_kxDxs, of_row_gx2xq, sight_2xq, mark_2xs, dq_gxDxq,
    sum_gxDxq, *, other_bits: int, scale: float,
):  # fmt: skip
    """dS = P ∘ (V dO − delta) and dQ = scale · K dS over the listed blocks of keys; P from the log-sum-exp."""
    kind, first, last = _entry(codes, other_bits)
    heads, repeats = q_gxDxq.shape[0], q_gxDxq.shape[0] // k_kxDxs.shape[0]

    @pl.when(first)
    def _():
        sum_gxDxq[...] = jnp.zeros(sum_gxDxq.shape, jnp.float32)

    def pair(mask_sxq):
        seen_1xs = _seen(mask_sxq)
        for h in range(heads):
            k_Dxs, v_Dxs = _keep(k_kxDxs[h // repeats], seen_1xs), _keep(v_kxDxs[h // repeats], seen_1xs)
            lse_1xq, delta_1xq = of_row_gx2xq[h, 0:1, :], of_row_gx2xq[h, 1:2, :]
            score_sxq = _hide(scale * LOG2_E * _dot(k_Dxs.T, q_gxDxq[h], _NN), mask_sxq)
            weight_sxq = jnp.exp2(score_sxq - lse_1xq)
            d_score_sxq = weight_sxq * (_dot(v_Dxs.T, d_out_gxDxq[h], _NN) - delta_1xq)
            sum_gxDxq[h] += _dot(k_Dxs, d_score_sxq.astype(k_Dxs.dtype), _NN)

    _meet(kind, pair, lambda: _visible(mark_2xs[...].T, sight_2xq[...]))

    @pl.when(last)
    def _():
        dq_gxDxq[...] = (scale * sum_gxDxq[...]).astype(dq_gxDxq.dtype)


def d_keys_kernel(
    codes, q_gxDxq, d_out_gxDxq, k_kxDxs, v_kxDxs, of_row_gx2xq, sight_2xq, mark_2xs, dk_kxDxs, dv_kxDxs,
    own_k_kxsxD, own_v_kxsxD, own_mark_sx2, sum_k_kxsxD, sum_v_kxsxD, *, other_bits: int, scale: float,
):  # fmt: skip
    """dV = Pᵀ dO and dK = scale · dSᵀ Q over the listed blocks of queries, and over the heads that read one key head.

    A NaN key spoils its own row of scores alone, and the mask hides that.
    """
    kind, first, last = _entry(codes, other_bits)
    heads, kv_heads = q_gxDxq.shape[0], k_kxDxs.shape[0]
    repeats = heads // kv_heads
    part, parts = pl.program_id(2), pl.num_programs(2)  # of the heads that read the same key head

    @pl.when(first & (part == 0))
    def _():
        own_mark_sx2[...] = mark_2xs[...].T
        for h in range(kv_heads):
            own_k_kxsxD[h] = k_kxDxs[h].T
            own_v_kxsxD[h] = v_kxDxs[h].T
        sum_k_kxsxD[...] = jnp.zeros(sum_k_kxsxD.shape, jnp.float32)
        sum_v_kxsxD[...] = jnp.zeros(sum_v_kxsxD.shape, jnp.float32)

    def pair(mask_sxq):
        for h in range(heads):
            q_Dxq, d_out_Dxq, of_key = q_gxDxq[h], d_out_gxDxq[h], h // repeats
            lse_1xq, delta_1xq = of_row_gx2xq[h, 0:1, :], of_row_gx2xq[h, 1:2, :]
            score_sxq = _hide(scale * LOG2_E * _dot(own_k_kxsxD[of_key], q_Dxq, _NN), mask_sxq)
            weight_sxq = jnp.exp2(score_sxq - lse_1xq)
            sum_v_kxsxD[of_key] += _dot(weight_sxq.astype(d_out_Dxq.dtype), d_out_Dxq, _NT)
            d_score_sxq = weight_sxq * (_dot(own_v_kxsxD[of_key], d_out_Dxq, _NN) - delta_1xq)
            d_score_sxq = _keep(d_score_sxq, mask_sxq)
            sum_k_kxsxD[of_key] += _dot(d_score_sxq.astype(q_Dxq.dtype), q_Dxq, _NT)

    _meet(kind, pair, lambda: _visible(own_mark_sx2[...], sight_2xq[...]))

    @pl.when(last & (part == parts - 1))
    def _():
        for h in range(kv_heads):
            dk_kxDxs[h] = (scale * sum_k_kxsxD[h]).T.astype(dk_kxDxs.dtype)
            dv_kxDxs[h] = sum_v_kxsxD[h].T.astype(dv_kxDxs.dtype)


def _entry(codes, other_bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of this step: the kind of its entry, and whether it is the first and the last one of its own block."""
    n = pl.program_id(1)
    own = codes[n] >> (other_bits + KIND_BITS)
    kind = (codes[n] >> other_bits) & (2**KIND_BITS - 1)
    first = (n == 0) | (codes[jnp.maximum(n - 1, 0)] >> (other_bits + KIND_BITS) != own)
    return kind, first, codes[n + 1] >> (other_bits + KIND_BITS) != own


def _meet(kind: jax.Array, pair: Callable, mask: Callable) -> None:
    """Runs `pair(None)` for a full pair of blocks and `pair(mask())` for a partial one."""

    @pl.when(kind == FULL)
    def _():
        pair(None)

    @pl.when(kind == PARTIAL)
    def _():
        pair(mask())


def _visible(mark_sx2: jax.Array, sight_2xq: jax.Array) -> jax.Array:
    """The rule of visibility, bool [s, q]. Padding of keys has a segment of its own, so that none needs to be >= 0."""
    return (mark_sx2[:, 0:1] == sight_2xq[0:1, :]) & (mark_sx2[:, 1:2] <= sight_2xq[1:2, :])


def _seen(mask_sxq: jax.Array | None) -> jax.Array | None:
    """bool [1, s]: which keys any query of the block sees."""
    return None if mask_sxq is None else jnp.where(mask_sxq, 1.0, 0.0).max(1, keepdims=True).T > 0


def _hide(score: jax.Array, mask: jax.Array | None) -> jax.Array:
    return score if mask is None else jnp.where(mask, score, _HIDDEN)


def _keep(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x where the mask says so, else 0, whatever x holds."""
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


def _dot(x: jax.Array, y: jax.Array, dimensions) -> jax.Array:
    """In float32; float32 operands are not rounded to bfloat16 on their way."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)

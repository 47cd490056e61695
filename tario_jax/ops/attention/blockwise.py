"""Attention by blocks: online softmax forward, recomputed scores backward; no array of Sq × Sk in either.

The scheme is that of Rabe & Staats (arXiv 2112.05682) and FlashAttention-2 (Dao, arXiv 2307.08691), with a list of
work in front: for each block of queries the blocks of keys that it can see, by the least and greatest segment and step
of each block. The inner loop runs over that list only, so empty pairs cost nothing. Lists are kept per row of the
batch; the rows of a batch walk their own lists side by side, and the loop ends with the longest.

Loops with a trip count known only at run time have no derivative of their own: the custom one makes them legal.

Axes: B rows, Q and J blocks of queries and of keys, q and s tokens of a block, K key heads, R query heads a key head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible, visible_block_pairs

_LOWEST = jnp.finfo(jnp.float32).min  # finite, so that the difference of two is never NaN


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def blockwise_attention(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    block: int,
    scale: float,
    residual_name: str,
) -> jax.Array:
    """[B, Sq, H, D] in the dtype of q; see `tario_jax.ops.attention.attention`.

    Any lengths: blocks hold at most `block` tokens and the last is padded. `residual_name` is the name of output and
    log-sum-exp for a remat policy.
    """
    return _forward(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, block, scale)[0]


class _Keys(NamedTuple):
    """Blocked keys and values; every field starts with [B, J]."""

    k_BxJxKxsxD: jax.Array
    v_BxJxKxsxD: jax.Array
    visibility: KeyVisibility  # [B, J, s]

    def take(self, j_B: jax.Array) -> "_Keys":
        """Block j_B[b] of row b, without the axis J."""
        return jax.tree.map(lambda x: jax.vmap(lambda row, j: row[j])(x, j_B), self)


class _Work(NamedTuple):
    """For each block of queries, the blocks of keys in the order of visiting: those that it can see come first.

    trips_Q is how many they are, in the row that has most; a row that has fewer meets blocks that its mask blanks out.
    It is taken before the loop over Q: with the batch sharded it is a reduction over devices, one then and not one a
    block.
    """

    j_QxBxJ: jax.Array
    trips_Q: jax.Array


def _block_size(length: int, block: int) -> int:
    """`block` where it divides the length; else the even share of as many blocks, so that padding stays small."""
    share = math.ceil(length / math.ceil(length / block))
    return min(block, math.ceil(share / 8) * 8)


def _blocked(x_BxSx___: jax.Array, block: int, fill: int = 0) -> jax.Array:
    """[B, S, …] -> [B, blocks, block, …], padded at the end with `fill`."""
    batch, length, *rest = x_BxSx___.shape
    blocks = math.ceil(length / block)
    padding = [(0, 0), (0, blocks * block - length)] + [(0, 0)] * len(rest)
    return jnp.pad(x_BxSx___, padding, constant_values=fill).reshape(batch, blocks, block, *rest)


def _blocked_queries(x_BxSxHxD: jax.Array, block: int, kv_heads: int) -> jax.Array:
    """[B, S, H, …] -> [Q, B, K, R, q, …]: the outer loop runs over the first axis."""
    x_BxQxqxHxD = _blocked(x_BxSxHxD, block)
    batch, blocks, _, heads, *rest = x_BxQxqxHxD.shape
    x_BxQxqxKxRxD = x_BxQxqxHxD.reshape(batch, blocks, block, kv_heads, heads // kv_heads, *rest)
    return jnp.moveaxis(x_BxQxqxKxRxD, (1, 2), (0, 4))


def _unblocked_queries(x_QxBxKxRxqxD: jax.Array, length: int) -> jax.Array:
    """The inverse of `_blocked_queries`, without the padding."""
    x_BxQxqxKxRxD = jnp.moveaxis(x_QxBxKxRxqxD, (0, 4), (1, 2))
    batch, blocks, block, kv_heads, repeats, *rest = x_BxQxqxKxRxD.shape
    return x_BxQxqxKxRxD.reshape(batch, blocks * block, kv_heads * repeats, *rest)[:, :length]


def _blocked_keys(k_BxSxKxD: jax.Array, v_BxSxKxD: jax.Array, visibility: KeyVisibility, block: int) -> _Keys:
    k, v = (_blocked(x, block).swapaxes(2, 3) for x in (k_BxSxKxD, v_BxSxKxD))
    segment, write_step = _blocked(visibility.segment_BxS, block, -1), _blocked(visibility.write_step_BxS, block)
    return _Keys(k, v, KeyVisibility(segment, write_step))


def _unblocked_keys(x_BxJxKxsxD: jax.Array, length: int) -> jax.Array:
    batch, blocks, kv_heads, block, width = x_BxJxKxsxD.shape
    return x_BxJxKxsxD.swapaxes(2, 3).reshape(batch, blocks * block, kv_heads, width)[:, :length]


def _plan(q_visibility: QueryVisibility, keys: _Keys, block: int) -> tuple[QueryVisibility, _Work]:
    """Blocked visibility of the queries, int32 [Q, B, q], and the list of work."""
    segment, read_step = _blocked(q_visibility.segment_BxS, block, -1), _blocked(q_visibility.read_step_BxS, block)
    blocked = QueryVisibility(segment, read_step)
    possible_QxBxJ = visible_block_pairs(blocked, keys.visibility).swapaxes(0, 1)
    trips_Q = possible_QxBxJ.sum(-1, dtype=jnp.int32).max(-1)
    work = _Work(jnp.argsort(~possible_QxBxJ, axis=-1, stable=True), trips_Q)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), blocked), work


def _pair(n: jax.Array, work: _Work, keys: _Keys, q_visibility: QueryVisibility):
    """The n-th pair of each row: its number j_B, its keys, and its mask [B, 1, 1, q, s]."""
    j_B = lax.dynamic_index_in_dim(work.j_QxBxJ, n, axis=-1, keepdims=False)
    pair = keys.take(j_B)
    mask_Bxqxs = visible(q_visibility, pair.visibility)
    # A weight of 0 does not silence a NaN (0 · NaN = NaN): keys that no query of the block sees are set to 0.
    seen_Bx1xsx1 = mask_Bxqxs.any(1)[:, None, :, None]
    k, v = (jnp.where(seen_Bx1xsx1, x, 0) for x in (pair.k_BxJxKxsxD, pair.v_BxJxKxsxD))
    return j_B, k, v, mask_Bxqxs[:, None, None]


def _scores(q_BxKxRxqxD: jax.Array, k_BxKxsxD: jax.Array, scale: float) -> jax.Array:
    return scale * jnp.einsum("bkrqd,bksd->bkrqs", q_BxKxRxqxD, k_BxKxsxD, preferred_element_type=jnp.float32)


def _forward(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, block, scale):
    """Output [B, Sq, H, D] in q's dtype and natural log-sum-exp float32 [B, Sq, H], +inf where nothing is seen."""
    sq, sk, kv_heads = q_BxSqxHxD.shape[1], *k_BxSkxKxD.shape[1:3]
    block_q = _block_size(sq, block)
    keys = _blocked_keys(k_BxSkxKxD, v_BxSkxKxD, kv_visibility, _block_size(sk, block))
    q_visibility_Q, work_Q = _plan(q_visibility, keys, block_q)

    def one_block(of_block):
        q_BxKxRxqxD, visibility, work = of_block

        def one_pair(n, carry):
            top, total, out = carry
            _, k, v, mask = _pair(n, work, keys, visibility)
            scores = jnp.where(mask, _scores(q_BxKxRxqxD, k, scale), _LOWEST)
            new_top = jnp.maximum(top, scores.max(-1))
            weight = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
            shrink = jnp.exp(top - new_top)
            part = jnp.einsum("bkrqs,bksd->bkrqd", weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return new_top, shrink * total + weight.sum(-1), shrink[..., None] * out + part

        shape = q_BxKxRxqxD.shape
        start = (
            jnp.full(shape[:-1], _LOWEST, jnp.float32),
            jnp.zeros(shape[:-1], jnp.float32),
            jnp.zeros(shape, jnp.float32),
        )
        top, total, out = lax.fori_loop(0, work.trips_Q, one_pair, start)
        sees = total != 0
        total = jnp.where(sees, total, 1)
        # +inf makes every recomputed weight of such a row exp(score − inf) = 0.
        return (out / total[..., None]).astype(q_BxKxRxqxD.dtype), jnp.where(sees, top + jnp.log(total), jnp.inf)

    out, lse = lax.map(one_block, (_blocked_queries(q_BxSqxHxD, block_q, kv_heads), q_visibility_Q, work_Q))
    return _unblocked_queries(out, sq), _unblocked_queries(lse, sq)


def _forward_rule(q, k, v, q_visibility, kv_visibility, block, scale, residual_name):
    out, lse = _forward(q, k, v, q_visibility, kv_visibility, block, scale)
    out, lse = checkpoint_name(out, residual_name), checkpoint_name(lse, residual_name)
    return out, (q, k, v, q_visibility, kv_visibility, out, lse)


def _backward_rule(block, scale, residual_name, residuals, d_out_BxSqxHxD):
    """dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q (Dao 2023, algorithm 2)."""
    q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, out_BxSqxHxD, lse_BxSqxH = residuals
    sq, sk, kv_heads = q_BxSqxHxD.shape[1], *k_BxSkxKxD.shape[1:3]
    block_q = _block_size(sq, block)
    keys = _blocked_keys(k_BxSkxKxD, v_BxSkxKxD, kv_visibility, _block_size(sk, block))
    q_visibility_Q, work_Q = _plan(q_visibility, keys, block_q)

    # A query that sees nothing sends nothing, even if it or its cotangent holds NaN.
    sees_BxSqxHx1 = (lse_BxSqxH != jnp.inf)[..., None]
    q = jnp.where(sees_BxSqxHx1, q_BxSqxHxD, 0)
    d_out = jnp.where(sees_BxSqxHx1, d_out_BxSqxHxD, 0)
    delta_BxSqxH = jnp.sum(d_out.astype(jnp.float32) * out_BxSqxHxD.astype(jnp.float32), -1)

    def one_block(d_keys, of_block):
        (q_BxKxRxqxD, d_out_BxKxRxqxD, lse_BxKxRxq, delta_BxKxRxq), visibility, work = of_block

        def one_pair(n, carry):
            dq, dk, dv = carry
            j_B, k, v, mask = _pair(n, work, keys, visibility)
            weight = jnp.where(mask, jnp.exp(_scores(q_BxKxRxqxD, k, scale) - lse_BxKxRxq[..., None]), 0)
            d_weight = jnp.einsum("bkrqd,bksd->bkrqs", d_out_BxKxRxqxD, v, preferred_element_type=jnp.float32)
            d_scores = jnp.where(mask, scale * weight * (d_weight - delta_BxKxRxq[..., None]), 0)
            weight, d_scores = weight.astype(v.dtype), d_scores.astype(k.dtype)
            dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            dq = dq + dot("bkrqs,bksd->bkrqd", d_scores, k)
            dk = _add_block(dk, j_B, dot("bkrqs,bkrqd->bksd", d_scores, q_BxKxRxqxD))
            dv = _add_block(dv, j_B, dot("bkrqs,bkrqd->bksd", weight, d_out_BxKxRxqxD))
            return dq, dk, dv

        start = (jnp.zeros(q_BxKxRxqxD.shape, jnp.float32), *d_keys)
        dq, *d_keys = lax.fori_loop(0, work.trips_Q, one_pair, start)
        return tuple(d_keys), dq.astype(q_BxKxRxqxD.dtype)

    zeros = jnp.zeros(keys.k_BxJxKxsxD.shape, jnp.float32)
    blocked = tuple(_blocked_queries(x, block_q, kv_heads) for x in (q, d_out, lse_BxSqxH, delta_BxSqxH))
    (dk, dv), dq = lax.scan(one_block, (zeros, zeros), (blocked, q_visibility_Q, work_Q))
    dk, dv = _unblocked_keys(dk, sk).astype(k_BxSkxKxD.dtype), _unblocked_keys(dv, sk).astype(v_BxSkxKxD.dtype)
    return _unblocked_queries(dq, sq), dk, dv, None, None


def _add_block(total_BxJx___: jax.Array, j_B: jax.Array, part_Bx___: jax.Array) -> jax.Array:
    """Adds part_B[b] to block j_B[b] of row b."""

    def of_row(total, j, part):
        return lax.dynamic_update_index_in_dim(total, lax.dynamic_index_in_dim(total, j, 0, False) + part, j, 0)

    return jax.vmap(of_row)(total_BxJx___, j_B, part_Bx___)


blockwise_attention.defvjp(_forward_rule, _backward_rule)

"""Attention by blocks in plain XLA: online softmax forward, recomputed scores backward; no array of Sq × Sk in either.

The scheme is that of Rabe & Staats (arXiv 2112.05682) and FlashAttention-2 (Dao, arXiv 2307.08691), with a list of work
in front (`work`): a block of queries walks the blocks of keys that it can see, first the full ones, which take no mask,
then the partial ones. Empty pairs cost nothing, and rows of the batch are walked one after the other, each by its own
lists: what a row does not hold it does not pay for.

The loops' trip counts are known only at run time, so they have no derivative of their own; `plan` supplies it.

Axes: B rows, q and s tokens of a block of queries and of keys, K key heads, R query heads a key head, r = R·q.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.ops.attention.work import Work, block_pairs, blocked
from tario_jax.ops.products import dot
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible

LOWEST = jnp.finfo(jnp.float32).min  # finite, so that the difference of two is never NaN


def forward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    *,
    block: int,
    scale: float,
    out_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Output [B, Sq, H, D] in `out_dtype` and natural log-sum-exp float32 [B, Sq, H].

    A query that sees nothing has output 0 and log-sum-exp +inf: then exp(score − log-sum-exp) is 0 for every score.
    """
    (batch, sq, heads, width), kv_heads = q_BxSqxHxD.shape, k_BxSkxKxD.shape[2]
    walk = _Walk(q_visibility, kv_visibility, block)
    queries = walk.of_queries(q_BxSqxHxD)
    keys = walk.of_keys(k_BxSkxKxD, v_BxSkxKxD)
    rows = heads // kv_heads * walk.block_q

    def one_block(at):
        q_KxrxD = _by_key_head(queries[at], kv_heads)

        def one_pair(n, carry, partial):
            top, total, out = carry
            k, v, mask = walk.pair(at, n, keys, partial)
            scores = dot("ksd,krd->ksr", k, q_KxrxD) * scale
            scores = scores if mask is None else _masked(scores, mask, LOWEST)
            new_top = jnp.maximum(top, scores.max(1))
            weight = jnp.exp(scores - new_top[:, None])
            weight = weight if mask is None else _masked(weight, mask, 0)
            shrink = jnp.exp(top - new_top)
            part = dot("kds,ksr->kdr", _turned(v), weight.astype(v.dtype))
            return new_top, shrink * total + weight.sum(1), shrink[:, None] * out + part

        start = (
            jnp.full((kv_heads, rows), LOWEST, jnp.float32),
            jnp.zeros((kv_heads, rows), jnp.float32),
            jnp.zeros((kv_heads, width, rows), jnp.float32),
        )
        top, total, out = walk.pairs(at, one_pair, start)
        sees = total != 0
        total = jnp.where(sees, total, 1)
        out = (out / total[:, None]).astype(out_dtype).swapaxes(1, 2)
        return _by_token(out, heads), _by_token(jnp.where(sees, top + jnp.log(total), jnp.inf), heads)

    out, lse = lax.map(one_block, walk.blocks())
    return walk.unblocked(out, batch, sq), walk.unblocked(lse, batch, sq)


def backward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    d_out_BxSqxHxD: jax.Array,
    lse_BxSqxH: jax.Array,
    delta_BxSqxH: jax.Array,
    *,
    block: int,
    scale: float,
    grad_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v in `grad_dtype`, as far as these keys contribute.

    dV = Pᵀ dO, dS = P ∘ (dO Vᵀ − delta), dQ = dS K, dK = dSᵀ Q (Dao 2023, algorithm 2), delta = rowsum(dO ∘ O).
    `lse` may be that of more keys than these. A query that sees nothing (+inf) sends nothing, even if it or its
    cotangent holds NaN.
    """
    (batch, sq, heads, width), (_, sk, kv_heads, _) = q_BxSqxHxD.shape, k_BxSkxKxD.shape
    walk = _Walk(q_visibility, kv_visibility, block)
    queries = [walk.of_queries(x) for x in (q_BxSqxHxD, d_out_BxSqxHxD, lse_BxSqxH, delta_BxSqxH)]
    keys = walk.of_keys(k_BxSkxKxD, v_BxSkxKxD)

    def one_block(d_keys, at):
        q_KxrxD, d_out_KxrxD, lse_Kxr, delta_Kxr = (_by_key_head(x[at], kv_heads) for x in queries)
        sees_Kxr = lse_Kxr != jnp.inf
        q_KxrxD, d_out_KxrxD = (jnp.where(sees_Kxr[..., None], x, 0) for x in (q_KxrxD, d_out_KxrxD))
        delta_Kxr = jnp.where(sees_Kxr, delta_Kxr, 0)

        def one_pair(n, carry, partial):
            dq, dk, dv = carry
            k, v, mask = walk.pair(at, n, keys, partial)
            weight = jnp.exp(dot("ksd,krd->ksr", k, q_KxrxD) * scale - lse_Kxr[:, None])
            weight = weight if mask is None else _masked(weight, mask, 0)
            d_scores = scale * weight * (dot("ksd,krd->ksr", v, d_out_KxrxD) - delta_Kxr[:, None])
            weight, d_scores = weight.astype(v.dtype), d_scores.astype(k.dtype)
            dq = dq + dot("kds,ksr->kdr", _turned(k), d_scores)
            dk = walk.added(dk, at, n, dot("ksr,krd->ksd", d_scores, q_KxrxD))
            dv = walk.added(dv, at, n, dot("ksr,krd->ksd", weight, d_out_KxrxD))
            return dq, dk, dv

        start = (jnp.zeros(q_KxrxD.swapaxes(1, 2).shape, jnp.float32), *d_keys)
        dq, *d_keys = walk.pairs(at, one_pair, start)
        return tuple(d_keys), _by_token(dq.astype(grad_dtype).swapaxes(1, 2), heads)

    zeros = jnp.zeros(keys[0].shape, jnp.float32)
    (dk, dv), dq = lax.scan(one_block, (zeros, zeros), walk.blocks())
    dk, dv = (x.reshape(batch, -1, kv_heads, width)[:, :sk].astype(grad_dtype) for x in (dk, dv))
    return walk.unblocked(dq, batch, sq), dk, dv


class _Walk:
    """The blocks of queries of all rows, one after the other, and for each the pairs that its list holds.

    `at` is the number of a block of queries over all rows; arrays of blocks start with it, [B·Q, block, …].
    """

    def __init__(self, q_visibility: QueryVisibility, kv_visibility: KeyVisibility, block: int):
        self.block_q, self._block_k = (
            _block_size(x.segment_BxS.shape[1], block) for x in (q_visibility, kv_visibility)
        )
        self._work = block_pairs(q_visibility, kv_visibility, self.block_q, self._block_k).by_queries()
        self._q_visibility = QueryVisibility(*(_flat(blocked(x, self.block_q, -1)) for x in q_visibility))
        self._kv_visibility = KeyVisibility(*(_flat(blocked(x, self._block_k, -1)) for x in kv_visibility))
        self._work = Work(*(_flat(x) for x in self._work))
        self._key_blocks = self._work.other_BxXxY.shape[-1]
        self._query_blocks = math.ceil(q_visibility.segment_BxS.shape[1] / self.block_q)

    def blocks(self) -> jax.Array:
        return jnp.arange(len(self._work.full_BxX), dtype=jnp.int32)

    def of_queries(self, x_BxSqx___: jax.Array) -> jax.Array:
        return _flat(blocked(x_BxSqx___, self.block_q))

    def of_keys(self, *xs_BxSkx___: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(_flat(blocked(x, self._block_k)) for x in xs_BxSkx___)

    def unblocked(self, x_Nxqx___: jax.Array, batch: int, length: int) -> jax.Array:
        return x_Nxqx___.reshape(batch, -1, *x_Nxqx___.shape[2:])[:, :length]

    def pairs(self, at: jax.Array, one_pair, start):
        """Folds `one_pair(n, carry, partial)` over the list of block `at`."""
        full, listed = self._work.full_BxX[at], self._work.listed_BxX[at]
        carry = lax.fori_loop(0, full, functools.partial(one_pair, partial=False), start)
        return lax.fori_loop(full, listed, functools.partial(one_pair, partial=True), carry)

    def _keys_at(self, at: jax.Array, n: jax.Array) -> jax.Array:
        return at // self._query_blocks * self._key_blocks + self._work.other_BxXxY[at, n]

    def pair(self, at: jax.Array, n: jax.Array, keys: tuple[jax.Array, jax.Array], partial: bool):
        """Keys and values [K, s, D] of the n-th pair, and its mask bool [s, q] or None."""
        j = self._keys_at(at, n)
        k, v = (x[j].swapaxes(0, 1) for x in keys)
        if not partial:
            return k, v, None
        mask_sxq = visible(*(
            type(blocks)(*(field[number][None] for field in blocks))
            for blocks, number in ((self._q_visibility, at), (self._kv_visibility, j))
        ))[0].T  # fmt: skip
        # A weight of 0 does not silence a NaN (0 · NaN = NaN): keys that no query of the block sees are set to 0.
        seen_sx1 = mask_sxq.any(1)[:, None]
        return jnp.where(seen_sx1, k, 0), jnp.where(seen_sx1, v, 0), mask_sxq

    def added(self, total: jax.Array, at: jax.Array, n: jax.Array, part_KxsxD: jax.Array) -> jax.Array:
        return total.at[self._keys_at(at, n)].add(part_KxsxD.swapaxes(0, 1))


def _block_size(length: int, block: int) -> int:
    """`block` where it divides the length; else the even share of as many blocks, so that padding stays small."""
    share = math.ceil(length / math.ceil(length / block))
    return min(block, math.ceil(share / 8) * 8)


def _flat(x_BxXx___: jax.Array) -> jax.Array:
    return x_BxXx___.reshape(-1, *x_BxXx___.shape[2:])


def _by_key_head(x_qxHx___: jax.Array, kv_heads: int) -> jax.Array:
    """[q, H, …] -> [K, r, …]: the queries of all heads of a key head in one matrix."""
    block, heads, *rest = x_qxHx___.shape
    x = x_qxHx___.reshape(block, kv_heads, heads // kv_heads, *rest)
    return jnp.moveaxis(x, 0, 2).reshape(kv_heads, -1, *rest)


def _by_token(x_Kxrx___: jax.Array, heads: int) -> jax.Array:
    """The inverse of `_by_key_head`."""
    kv_heads, rows, *rest = x_Kxrx___.shape
    x = x_Kxrx___.reshape(kv_heads, heads // kv_heads, -1, *rest)
    return jnp.moveaxis(x, 2, 0).reshape(-1, heads, *rest)


def _masked(x_Kxsxr: jax.Array, mask_sxq: jax.Array, fill: float) -> jax.Array:
    kv_heads, s, _ = x_Kxsxr.shape
    x = x_Kxsxr.reshape(kv_heads, s, -1, mask_sxq.shape[1])
    return jnp.where(mask_sxq[:, None], x, fill).reshape(x_Kxsxr.shape)


def _turned(x_KxsxD: jax.Array) -> jax.Array:
    """[K, D, s], made before the product: XLA's CPU products are several times slower where they turn it themselves."""
    return lax.optimization_barrier(x_KxsxD.swapaxes(1, 2))

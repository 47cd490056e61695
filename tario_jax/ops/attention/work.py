"""What there is to compute: which blocks of keys each block of queries can see, and how much of them.

A pair of blocks is *empty* where no token may attend to another, *full* where every one may to every other, and
*partial* otherwise. Told from the least and greatest segment and step of each block alone, so no array of Sq × Sk is
needed; a pair called partial may turn out to be empty or full, never the other way round.

Lists are kept for each row of the batch: rows that are packed differently cost what they hold.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

_BIG = jnp.iinfo(jnp.int32).max


class Work(NamedTuple):
    """For each block the blocks that it is to meet: full ones first, then partial ones; the rest is never read.

    Listed by blocks of queries, X = Q and Y = J; by blocks of keys, X = J and Y = Q.
    """

    other_BxXxY: jax.Array  # int32, numbers of blocks
    full_BxX: jax.Array  # int32, how many of them are full
    listed_BxX: jax.Array  # int32, full and partial


class Pairs(NamedTuple):
    """bool [B, Q, J]: pairs of blocks of queries and of keys."""

    possible_BxQxJ: jax.Array
    full_BxQxJ: jax.Array

    def by_queries(self) -> Work:
        """For each block of queries, the blocks of keys."""
        return _listed(self.possible_BxQxJ, self.full_BxQxJ)

    def by_keys(self) -> Work:
        """For each block of keys, the blocks of queries."""
        return _listed(self.possible_BxQxJ.swapaxes(1, 2), self.full_BxQxJ.swapaxes(1, 2))


class _Range(NamedTuple):
    """Of each block, [B, blocks]: its segments and steps. Padding counts for `whole` alone."""

    low: jax.Array
    high: jax.Array
    first: jax.Array
    last: jax.Array
    whole: jax.Array  # no padding, one segment


def block_pairs(q: QueryVisibility, kv: KeyVisibility, block_q: int, block_k: int) -> Pairs:
    """Empty, partial and full pairs of blocks of `block_q` queries and `block_k` keys; the last ones may be shorter."""
    of_q, of_k = _ranges(q.segment_BxS, q.read_step_BxS, block_q), _ranges(kv.segment_BxS, kv.write_step_BxS, block_k)
    of_q, of_k = _Range(*(x[:, :, None] for x in of_q)), _Range(*(x[:, None, :] for x in of_k))
    possible = (of_q.low <= of_k.high) & (of_k.low <= of_q.high) & (of_k.first <= of_q.last)
    full = of_q.whole & of_k.whole & (of_q.low == of_k.low) & (of_k.last <= of_q.first)
    return Pairs(possible, full)


def padded(x_BxSx___: jax.Array, tokens: int, fill: int | float = 0) -> jax.Array:
    """[B, S, …] with `fill` at the end, to a multiple of so many tokens."""
    missing = -x_BxSx___.shape[1] % tokens
    if not missing:
        return x_BxSx___
    padding = [(0, 0), (0, missing)] + [(0, 0)] * (x_BxSx___.ndim - 2)
    return jnp.pad(x_BxSx___, padding, constant_values=fill)


def blocked(x_BxSx___: jax.Array, block: int, fill: int = 0) -> jax.Array:
    """[B, S, …] -> [B, blocks, block, …], padded at the end with `fill`."""
    batch, length, *rest = x_BxSx___.shape
    return padded(x_BxSx___, block, fill).reshape(batch, math.ceil(length / block), block, *rest)


def _ranges(segment_BxS: jax.Array, step_BxS: jax.Array, block: int) -> _Range:
    segment, step = blocked(segment_BxS, block, -1), blocked(step_BxS, block)
    valid = segment >= 0
    # A block of padding only gets the empty range [big, −1], which overlaps with nothing.
    low, high = jnp.where(valid, segment, _BIG).min(-1), segment.max(-1)
    first, last = jnp.where(valid, step, _BIG).min(-1), jnp.where(valid, step, -_BIG).max(-1)
    return _Range(low, high, first, last, valid.all(-1) & (low == high))


def _listed(possible_BxXxY: jax.Array, full_BxXxY: jax.Array) -> Work:
    rank = jnp.where(full_BxXxY, 0, jnp.where(possible_BxXxY, 1, 2))
    other = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
    return Work(other, full_BxXxY.sum(-1, dtype=jnp.int32), possible_BxXxY.sum(-1, dtype=jnp.int32))

"""What the GPU kernels are told: the tokens' integers, and for each block the list of blocks that it meets.

The lists are those of `tario_jax.ops.attention.work` with one more distinction: partial pairs with keys that nobody
sees come last. Such keys may hold anything, and the kernels set them to 0 where they meet them: a weight of 0 does not
silence a NaN. It is made of few operations, each over all blocks at once, because each costs some microseconds.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.ops.attention.work import block_pairs, blocked, padded
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

NOBODY = jnp.iinfo(jnp.int32).min  # the segment of a key that nobody sees; no query has it


class Tokens(NamedTuple):
    """int32, of whole blocks. Keys that nobody sees have the segment NOBODY."""

    segment_q_BxSq: jax.Array
    read_step_BxSq: jax.Array
    segment_kv_BxSk: jax.Array
    write_step_BxSk: jax.Array


class Work(NamedTuple):
    """For each block the blocks that it meets, int32: full pairs, then partial ones, then those with unseen keys.

    Listed by blocks of queries, X = Q and Y = J; by blocks of keys, X = J and Y = Q. What comes after `listed` is
    never read.
    """

    other_BxXxY: jax.Array  # the number of the block is the remainder by Y
    full_BxX: jax.Array  # how many pairs are full,
    seen_BxX: jax.Array  # full or partial with no unseen keys,
    listed_BxX: jax.Array  # and not empty


class Plan(NamedTuple):
    tokens: Tokens
    rank_BxQxJ: jax.Array  # of each pair of blocks: 0 full, 1 partial, 2 partial with unseen keys, 3 empty

    def by_queries(self) -> Work:
        return _listed(self.rank_BxQxJ)

    def by_keys(self) -> Work:
        return _listed(self.rank_BxQxJ.swapaxes(1, 2))


def plan(q: QueryVisibility, kv: KeyVisibility, block_q: int, block_k: int) -> Plan:
    """Pairs of blocks of `block_q` queries and `block_k` keys, and the tokens, padded to whole blocks."""
    segment_q_BxS = jnp.maximum(q.segment_BxS, -1)  # whatever stands for padding, it is not NOBODY
    q = QueryVisibility(padded(segment_q_BxS, block_q, -1), padded(q.read_step_BxS, block_q))
    kv = KeyVisibility(padded(kv.segment_BxS, block_k, -1), padded(kv.write_step_BxS, block_k))
    kv = KeyVisibility(jnp.where(_seen(q, kv, block_q), kv.segment_BxS, NOBODY), kv.write_step_BxS)
    pairs = block_pairs(q, kv, block_q, block_k)
    unseen_BxJ = (blocked(kv.segment_BxS, block_k) == NOBODY).any(-1)
    partial_BxQxJ = jnp.where(unseen_BxJ[:, None], 2, 1)
    rank_BxQxJ = jnp.where(pairs.full_BxQxJ, 0, jnp.where(pairs.possible_BxQxJ, partial_BxQxJ, 3))
    return Plan(Tokens(*q, *kv), rank_BxQxJ)


def _seen(q: QueryVisibility, kv: KeyVisibility, block_q: int) -> jax.Array:
    """bool [B, Sk]: keys that some query sees: those written by the latest read_step of their segment.

    Segments are looked up by their remainder in a table longer than the row. Two that share an entry, which those
    numbered from 0 never do, may make a key count as seen that is not: it matters only if that key holds NaN or inf.
    """
    batch, sq = q.segment_BxS.shape
    entries = 1 << math.ceil(math.log2(sq + kv.segment_BxS.shape[1]))
    # Thousands of queries of one segment would wait for one entry: a block of one segment sends one of them for all.
    segment_BxQxq, read_step_BxQxq = blocked(q.segment_BxS, block_q), blocked(q.read_step_BxS, block_q)
    whole_BxQx1 = (segment_BxQxq == segment_BxQxq[..., :1]).all(-1, keepdims=True)
    read_step_BxQxq = jnp.where(whole_BxQx1, read_step_BxQxq.max(-1, keepdims=True), read_step_BxQxq)
    sends = (segment_BxQxq >= 0) & ~(whole_BxQx1 & (jnp.arange(block_q) > 0))
    entry_BxQxq = jnp.where(sends, segment_BxQxq % entries, entries)  # out of bounds: dropped
    rows = jnp.arange(batch)[:, None]
    latest = jnp.full((batch, entries), NOBODY, jnp.int32)
    latest = latest.at[rows, entry_BxQxq.reshape(batch, sq)].max(read_step_BxQxq.reshape(batch, sq), mode="drop")
    latest_BxSk = latest[rows, kv.segment_BxS % entries]
    return (kv.segment_BxS >= 0) & (latest_BxSk > NOBODY) & (kv.write_step_BxS <= latest_BxSk)


def _listed(rank_BxXxY: jax.Array) -> Work:
    y = rank_BxXxY.shape[-1]
    other = jnp.sort(rank_BxXxY * y + jnp.arange(y, dtype=jnp.int32), axis=-1)  # an argsort would sort pairs of numbers
    return Work(other, *((rank_BxXxY <= rank).sum(-1, dtype=jnp.int32) for rank in range(3)))

"""What may see what: one rule for causal text, prefixes, packing, padding and any order of writing.

Token i may attend to token j iff they share a segment >= 0 and `write_step[j] <= read_step[i]`.
A local layer uses the same rule with a tile number, unique in the row, in place of the segment.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class QueryVisibility(NamedTuple):
    """Of the tokens that look: int32 [B, Sq] each. Segment −1 is padding: it sees nothing."""

    segment_BxS: jax.Array
    read_step_BxS: jax.Array


class KeyVisibility(NamedTuple):
    """Of the tokens that are looked at: int32 [B, Sk] each. Segment −1 is padding: nobody sees it."""

    segment_BxS: jax.Array
    write_step_BxS: jax.Array


def visible(q: QueryVisibility, kv: KeyVisibility) -> jax.Array:
    """The rule written out, bool [B, Sq, Skv]: for short sequences, or for one pair of blocks."""
    segment_q_BxSx1 = q.segment_BxS[:, :, None]
    same_BxSxS = (segment_q_BxSx1 == kv.segment_BxS[:, None, :]) & (segment_q_BxSx1 >= 0)
    return same_BxSxS & (kv.write_step_BxS[:, None, :] <= q.read_step_BxS[:, :, None])


def visible_block_pairs(q: QueryVisibility, kv: KeyVisibility) -> jax.Array:
    """Which pairs of blocks can hold a visible pair of tokens.

    Here the fields are blocked, int32 [B, blocks, block]; the result is bool [B, q blocks, kv blocks]. From the least
    and greatest segment and step of each block only, so it may say yes for a pair that turns out to be empty, never no
    for one that is not.
    """
    big = jnp.iinfo(jnp.int32).max
    valid_q, valid_kv = q.segment_BxS >= 0, kv.segment_BxS >= 0
    # A block of padding only gets the empty range [big, −1], which overlaps with nothing.
    low_q_BxQ = jnp.where(valid_q, q.segment_BxS, big).min(-1)[:, :, None]
    high_q_BxQ = q.segment_BxS.max(-1)[:, :, None]
    low_kv_BxK = jnp.where(valid_kv, kv.segment_BxS, big).min(-1)[:, None, :]
    high_kv_BxK = kv.segment_BxS.max(-1)[:, None, :]
    latest_read_BxQ = jnp.where(valid_q, q.read_step_BxS, -big).max(-1)[:, :, None]
    earliest_write_BxK = jnp.where(valid_kv, kv.write_step_BxS, big).min(-1)[:, None, :]
    return (low_q_BxQ <= high_kv_BxK) & (low_kv_BxK <= high_q_BxQ) & (earliest_write_BxK <= latest_read_BxQ)

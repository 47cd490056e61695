"""What may see what: one rule for causal text, prefixes, packing, padding and any order of writing.

Token i may attend to token j iff they share a segment >= 0 and `write_step[j] <= read_step[i]`.
A local layer uses the same rule with a tile number, unique in the row, in place of the segment.
"""

from typing import NamedTuple

import jax


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

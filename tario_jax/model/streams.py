"""Two streams of tokens: those that are seen, H&E and contents, and the queries, which nobody sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility


class Visibility(NamedTuple):
    """The three integers of both streams; keys are those of the seen tokens."""

    seen: QueryVisibility
    queries: QueryVisibility
    keys: KeyVisibility


class Streams(NamedTuple):
    """Two streams as one array [B, A, …], A = S + Q: on each rank of context its seen tokens, then its queries.

    So joining and parting them moves nothing between ranks.
    """

    seen_length: int
    ranks: int

    def together(self, seen_BxSx___: jax.Array, queries_BxQx___: jax.Array) -> jax.Array:
        return side_by_side(self.ranks, seen_BxSx___, queries_BxQx___)

    def seen(self, x_BxAx___: jax.Array) -> jax.Array:
        return self._part(x_BxAx___, slice(None, self.seen_length // self.ranks))

    def queries(self, x_BxAx___: jax.Array) -> jax.Array:
        return self._part(x_BxAx___, slice(self.seen_length // self.ranks, None))

    def looking(self, visibility: Visibility) -> QueryVisibility:
        """Of all A tokens, what attention calls queries."""
        return jax.tree.map(self.together, visibility.seen, visibility.queries)

    def _part(self, x_BxAx___: jax.Array, of_rank: slice) -> jax.Array:
        x_BxCxAx___ = x_BxAx___.reshape(x_BxAx___.shape[0], self.ranks, -1, *x_BxAx___.shape[2:])[:, :, of_rank]
        return x_BxCxAx___.reshape(x_BxCxAx___.shape[0], -1, *x_BxCxAx___.shape[3:])


def side_by_side(ranks: int, *parts_BxSx___: jax.Array) -> jax.Array:
    """Parts [B, S, …] as one array: on each rank its share of the first, then its share of the next."""
    parts = [x.reshape(x.shape[0], ranks, -1, *x.shape[2:]) for x in parts_BxSx___]
    x_BxCxAx___ = jnp.concatenate(parts, 2)
    return x_BxCxAx___.reshape(x_BxCxAx___.shape[0], -1, *x_BxCxAx___.shape[3:])


def context_ranks() -> int:
    """Devices along the axis context of the ambient mesh."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("context", 1)

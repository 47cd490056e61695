"""Attention within tiles: what a local layer sees, as one small dense attention a tile.

A tile's tokens lie apart in a row, by modality, but whole on one device. Side by side they are some hundred: dense,
each pair of them is computed once, where blocks of the whole row would meet several tiles that do not see each other,
and nothing is sent over `context`.

Axes: X tiles of all rows of a device, q queries and s keys of a tile, K key heads, R query heads a key head, D width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tario_jax.config import BATCH_AXES
from tario_jax.ops.attention.blockwise import LOWEST
from tario_jax.ops.attention.plan import ATTENTION_OUT
from tario_jax.ops.products import dot
from tario_jax.ops.ranks import Ranks
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible

_LARGEST = 512**2  # scores of a tile and head: beyond, blocks of the row are cheaper
_BUDGET_BYTES = 256 << 20  # of the scores that exist at once


class Tiles(NamedTuple):
    """How a row is laid on each device: stretch after stretch, each tile by tile. Tokens of a tile in each stretch."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @classmethod
    def of(cls, patches: int, bins: int, *, content: bool) -> "Tiles":
        """Of tiles with so many H&E patches and bins: H&E, contents (where bins are ever read) and queries."""
        return cls((patches, bins, bins), (patches, bins)) if content else cls((patches, bins), (patches,))

    @property
    def are_small(self) -> bool:
        """Whether one dense attention a tile is the way."""
        return sum(self.queries) * sum(self.keys) <= _LARGEST


def tile_attention(q_BxSqxHxD: jax.Array, k_BxSkxKxD: jax.Array, v_BxSkxKxD: jax.Array,
                   q_visibility: QueryVisibility, kv_visibility: KeyVisibility, tiles: Tiles) -> jax.Array:  # fmt: skip
    """Softmax attention [B, Sq, H, D] of each query over the keys of its tile, as far as the visibility rule grants.

    It is what `attention` gives where no segment reaches over two tiles: the same scale, types and zeros, and what is
    not seen may hold anything. Under an ambient mesh rows lie over replica × fsdp, tokens over context, heads over
    tensor.
    """
    return _attention(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, q_visibility, kv_visibility, tiles):
    return _forward_rule(q, k, v, q_visibility, kv_visibility, tiles)[0]


def _forward_rule(q, k, v, q_visibility, kv_visibility, tiles):
    given = (q, k, v, q_visibility, kv_visibility)
    of_queries, of_keys = tiles
    out, lse = _on_mesh(_forward, given, (of_queries, of_keys, of_keys, of_queries, of_keys), (of_queries,) * 2, (4, 3))
    out, lse = checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_OUT)
    return out, (*given, out, lse)


def _backward_rule(tiles, kept, d_out):
    of_queries, of_keys = tiles
    laid = (of_queries, of_keys, of_keys, of_queries, of_keys, of_queries, of_queries, of_queries)
    gradients = _on_mesh(_backward, (*kept, d_out), laid, (of_queries, of_keys, of_keys), (4, 4, 4))
    return *gradients, None, None


_attention.defvjp(_forward_rule, _backward_rule)


def _on_mesh(function: Callable, arrays: tuple, laid: tuple, results: tuple, ndims: tuple[int, ...]) -> tuple:
    """`function` of the tiles of each device. laid, results: the stretches of its arguments and of what it gives."""
    ranks = Ranks.ambient()

    def spec(ndim: int):
        return ranks.spec(*(BATCH_AXES, "context", "tensor", None)[:ndim])

    def local(*arrays):
        rows, heads = arrays[0].shape[0], arrays[0].shape[2]
        cut = tuple(jax.tree.map(lambda x, of=of: _by_tile(x, of), part) for part, of in zip(arrays, laid, strict=True))
        found = _in_groups(function, cut, 4 * heads * sum(laid[0]) * sum(laid[1]))
        return tuple(_by_stretch(x, rows, of) for x, of in zip(found, results, strict=True))

    in_specs = jax.tree.map(lambda x: spec(x.ndim), arrays)
    return ranks.run(local, in_specs, tuple(map(spec, ndims)))(*arrays)


def _by_tile(x_BxSx___: jax.Array, stretches: tuple[int, ...]) -> jax.Array:
    """[X, tokens of a tile, …] of an array that lies stretch after stretch."""
    rows, length, *rest = x_BxSx___.shape
    tiles = length // sum(stretches)
    parts, begin = [], 0
    for tokens in stretches:
        parts.append(x_BxSx___[:, begin : begin + tiles * tokens].reshape(rows, tiles, tokens, *rest))
        begin += tiles * tokens
    return jnp.concatenate(parts, 2).reshape(rows * tiles, -1, *rest)


def _by_stretch(x_Xxnx___: jax.Array, rows: int, stretches: tuple[int, ...]) -> jax.Array:
    """The inverse of `_by_tile`."""
    tiles, tokens, *rest = x_Xxnx___.shape
    x = x_Xxnx___.reshape(rows, tiles // rows, tokens, *rest)
    parts, begin = [], 0
    for tokens in stretches:
        parts.append(x[:, :, begin : begin + tokens].reshape(rows, -1, *rest))
        begin += tokens
    return jnp.concatenate(parts, 1)


def _in_groups(function: Callable, arrays: tuple, bytes_a_tile: int) -> tuple:
    """`function` of all tiles, so many at once as the budget of scores holds."""
    tiles = arrays[0].shape[0]
    most = max(1, _BUDGET_BYTES // bytes_a_tile)
    groups = next(count for count in range(1, tiles + 1) if tiles % count == 0 and tiles // count <= most)
    if groups == 1:
        return function(*arrays)
    grouped = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lax.map(lambda group: function(*group), grouped))


def _forward(q_XxqxHxD, k_XxsxKxD, v_XxsxKxD, q_visibility, kv_visibility) -> tuple[jax.Array, jax.Array]:
    """Output, and float32 log-sum-exp [X, q, H]: +inf where nothing is seen."""
    mask, q, k, v = _seen(q_XxqxHxD, k_XxsxKxD, v_XxsxKxD, q_visibility, kv_visibility)
    scores = jnp.where(mask, _scores(q, k), LOWEST)
    top = scores.max(-1, keepdims=True)
    weight = jnp.where(mask, jnp.exp(scores - top), 0)
    total_XxKxRxqx1 = weight.sum(-1, keepdims=True)
    sees = total_XxKxRxqx1 > 0
    total_XxKxRxqx1 = jnp.where(sees, total_XxKxRxqx1, 1)
    out = dot("xkrqs,xskd->xkrqd", weight.astype(v.dtype), v) / total_XxKxRxqx1
    lse = jnp.where(sees, top + jnp.log(total_XxKxRxqx1), jnp.inf)
    return _by_token(out).astype(q_XxqxHxD.dtype), _by_token(lse)[..., 0]


def _backward(q_XxqxHxD, k_XxsxKxD, v_XxsxKxD, q_visibility, kv_visibility, out_XxqxHxD, lse_XxqxH, d_out_XxqxHxD):
    """Gradients of q, k and v: as in `blockwise.backward`, of whole tiles."""
    mask, q, k, v = _seen(q_XxqxHxD, k_XxsxKxD, v_XxsxKxD, q_visibility, kv_visibility)
    sees_XxqxHx1 = (lse_XxqxH != jnp.inf)[..., None]
    d_out, out = (jnp.where(sees_XxqxHx1, x, 0) for x in (d_out_XxqxHxD, out_XxqxHxD))
    delta_XxqxHx1 = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    d_out, delta, lse = (_by_key_head(x, k.shape[2]) for x in (d_out, delta_XxqxHx1, lse_XxqxH[..., None]))
    weight = jnp.where(mask, jnp.exp(_scores(q, k) - lse), 0)
    d_scores = weight * (dot("xkrqd,xskd->xkrqs", d_out, v) - delta) * q.shape[-1] ** -0.5
    weight, d_scores = weight.astype(v.dtype), d_scores.astype(k.dtype)
    dq = _by_token(dot("xkrqs,xskd->xkrqd", d_scores, k))
    dk, dv = dot("xkrqs,xkrqd->xskd", d_scores, q), dot("xkrqs,xkrqd->xskd", weight, d_out)
    return tuple(x.astype(q_XxqxHxD.dtype) for x in (dq, dk, dv))


def _seen(q_XxqxHxD, k_XxsxKxD, v_XxsxKxD, q_visibility, kv_visibility):
    """The mask [X, 1, 1, q, s], q [X, K, R, q, D], and keys and values; 0 in place of what sees or is seen by nothing.

    A weight of 0 does not silence a NaN (0 · NaN = NaN).
    """
    mask_Xxqxs = visible(q_visibility, kv_visibility)
    q = jnp.where(mask_Xxqxs.any(2)[:, :, None, None], q_XxqxHxD, 0)
    k, v = (jnp.where(mask_Xxqxs.any(1)[:, :, None, None], x, 0) for x in (k_XxsxKxD, v_XxsxKxD))
    return mask_Xxqxs[:, None, None], _by_key_head(q, k.shape[2]), k, v


def _scores(q_XxKxRxqxD, k_XxsxKxD) -> jax.Array:
    return dot("xkrqd,xskd->xkrqs", q_XxKxRxqxD, k_XxsxKxD) * q_XxKxRxqxD.shape[-1] ** -0.5


def _by_key_head(x_XxqxHx_: jax.Array, kv_heads: int) -> jax.Array:
    tiles, tokens, heads, width = x_XxqxHx_.shape
    return x_XxqxHx_.reshape(tiles, tokens, kv_heads, heads // kv_heads, width).transpose(0, 2, 3, 1, 4)


def _by_token(x_XxKxRxqx_: jax.Array) -> jax.Array:
    """The inverse of `_by_key_head`."""
    tiles, kv_heads, group, tokens, width = x_XxKxRxqx_.shape
    return x_XxKxRxqx_.transpose(0, 3, 1, 2, 4).reshape(tiles, tokens, kv_heads * group, width)

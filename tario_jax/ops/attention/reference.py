"""Dense attention in float32, at the matrix unit's highest precision: what the other strategies are held against."""

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible


def reference_attention(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    scale: float,
) -> jax.Array:
    """[B, Sq, H, D] in the dtype of q; holds [B, H, Sq, Sk] scores. See `tario_jax.ops.attention.attention`."""
    batch, sq, heads, width = q_BxSqxHxD.shape
    kv_heads = k_BxSkxKxD.shape[2]
    mask_BxSqxSk = visible(q_visibility, kv_visibility)
    sees_BxSq, seen_BxSk = mask_BxSqxSk.any(2), mask_BxSqxSk.any(1)
    # A weight of 0 does not silence a NaN (0 · NaN = NaN): what nobody sees, and what sees nothing, is set to 0.
    q = jnp.where(sees_BxSq[:, :, None, None], q_BxSqxHxD.astype(jnp.float32), 0)
    k = jnp.where(seen_BxSk[:, :, None, None], k_BxSkxKxD.astype(jnp.float32), 0)
    v = jnp.where(seen_BxSk[:, :, None, None], v_BxSkxKxD.astype(jnp.float32), 0)
    q_BxSqxKxRxD = q.reshape(batch, sq, kv_heads, heads // kv_heads, width)

    mask_Bx1x1xSqxSk = mask_BxSqxSk[:, None, None]
    scores = scale * jnp.einsum("bqkrd,bskd->bkrqs", q_BxSqxKxRxD, k, precision="highest")
    top = lax.stop_gradient(jnp.max(scores, -1, keepdims=True, where=mask_Bx1x1xSqxSk, initial=-jnp.inf))
    top = jnp.where(jnp.isneginf(top), 0, top)  # a row that sees nothing: no −inf − −inf
    # The inner where keeps exp from overflowing on masked scores, whose gradient would be 0 · inf.
    weight = jnp.where(mask_Bx1x1xSqxSk, jnp.exp(jnp.where(mask_Bx1x1xSqxSk, scores - top, 0)), 0)
    total = weight.sum(-1, keepdims=True)
    weight = weight / jnp.where(total == 0, 1, total)
    out = jnp.einsum("bkrqs,bskd->bqkrd", weight, v, precision="highest").reshape(batch, sq, heads, width)
    return jnp.where(sees_BxSq[:, :, None, None], out, 0).astype(q_BxSqxHxD.dtype)

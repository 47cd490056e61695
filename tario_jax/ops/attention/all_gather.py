"""Attention with the keys of all devices of the mesh axis `context` gathered on each: simple, and fast while they fit.

All arrays here are what one device holds, inside `jax.shard_map` over `context`; see `ring` for the alternative.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.ops.attention.inner import Inner
from tario_jax.ops.attention.messages import AXIS, packed, send, unpacked
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility


def forward(
    inner: Inner,
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    *,
    scale: float,
    out_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Output in `out_dtype` and float32 log-sum-exp of this device's queries over the keys of all."""
    keys = _gathered(k_BxSkxKxD, v_BxSkxKxD, kv_visibility)
    return inner.forward(q_BxSqxHxD, *keys[:2], q_visibility, keys[2], scale=scale, out_dtype=out_dtype)


def backward(
    inner: Inner,
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    d_out_BxSqxHxD: jax.Array,
    lse_BxSqxH: jax.Array,
    delta_BxSqxH: jax.Array,
    *,
    scale: float,
    grad_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of this device's queries, keys and values; see `blockwise.backward`."""
    keys = _gathered(k_BxSkxKxD, v_BxSkxKxD, kv_visibility)
    dq, *d_keys = inner.backward(
        q_BxSqxHxD, *keys[:2], q_visibility, keys[2], d_out_BxSqxHxD, lse_BxSqxH, delta_BxSqxH, scale=scale,
        grad_dtype=jnp.float32,
    )  # fmt: skip
    (d_kv,) = send(lambda x: lax.psum_scatter(x, AXIS, scatter_dimension=2, tiled=True), jnp.stack(d_keys))
    dk, dv = d_kv
    return dq.astype(grad_dtype), dk.astype(grad_dtype), dv.astype(grad_dtype)


def _gathered(k_BxSkxKxD, v_BxSkxKxD, kv_visibility: KeyVisibility) -> tuple[jax.Array, jax.Array, KeyVisibility]:
    messages = packed(k_BxSkxKxD, v_BxSkxKxD, kv_visibility)
    return unpacked(send(lambda x: lax.all_gather(x, AXIS, axis=2, tiled=True), *messages))

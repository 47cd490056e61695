"""Ring attention: keys and values travel round the mesh axis `context`, and each device meets them with its queries.

After Liu, Zaharia & Abbeel (arXiv 2310.01889), with the visibility rule in place of one mask: the integers of the keys
travel with them, and at every hop the lists of work are made anew, so that a hop costs what is visible in it. Devices
hold stripes of the sequence (`stripes`), so that each has its share of every hop's work.

All arrays here are what one device holds, inside `jax.shard_map` over `context`. A hop sends two messages, K with V and
their two integers, while it computes; n devices make n − 1 hops. In the backward pass dK with dV, in float32, travel
one hop behind, a third message: while they are on their way, the next hop is computed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.ops.attention.inner import Inner
from tario_jax.ops.attention.merge import merge
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

    def meet(keys, out, lse):
        k, v, visibility = unpacked(keys)
        part = inner.forward(q_BxSqxHxD, k, v, q_visibility, visibility, scale=scale, out_dtype=jnp.float32)
        return merge(out, lse, *part)

    def hop(_, carry):
        keys, *so_far = carry
        return _sent(*keys), *meet(keys, *so_far)

    keys = packed(k_BxSkxKxD, v_BxSkxKxD, kv_visibility)
    nothing = jnp.zeros(q_BxSqxHxD.shape, jnp.float32), jnp.full(q_BxSqxHxD.shape[:3], jnp.inf, jnp.float32)
    out, lse = meet(*lax.fori_loop(0, lax.axis_size(AXIS) - 1, hop, (keys, *nothing)))
    return out.astype(out_dtype), lse


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

    def meet(keys):
        k, v, visibility = unpacked(keys)
        dq, dk, dv = inner.backward(
            q_BxSqxHxD, k, v, q_visibility, visibility, d_out_BxSqxHxD, lse_BxSqxH, delta_BxSqxH,
            scale=scale, grad_dtype=jnp.float32,
        )  # fmt: skip
        return dq, jnp.stack([dk, dv])

    def hop(_, carry):
        keys, d_kv_2xBxSkxKxD, dq = carry
        *next_keys, came = _sent(*keys, d_kv_2xBxSkxKxD)
        more, d_here = meet(keys)
        return next_keys, came + d_here, dq + more

    ranks = lax.axis_size(AXIS)
    keys = packed(k_BxSkxKxD, v_BxSkxKxD, kv_visibility)
    dq, d_kv = meet(keys)  # this device's own keys: no gradients are on their way yet
    if ranks > 1:
        keys, d_kv, dq = lax.fori_loop(0, ranks - 2, hop, (_sent(*keys), d_kv, dq))
        (came,) = _sent(d_kv)
        more, d_here = meet(keys)
        dq, (d_kv,) = dq + more, _sent(came + d_here)  # home
    dk, dv = d_kv
    return dq.astype(grad_dtype), dk.astype(grad_dtype), dv.astype(grad_dtype)


def _sent(*messages: jax.Array) -> list[jax.Array]:
    """What the device before this one in the ring sends, when this one sends its `messages` on."""
    ranks = lax.axis_size(AXIS)
    to_next = [(rank, (rank + 1) % ranks) for rank in range(ranks)]
    return send(lambda message: lax.ppermute(message, AXIS, to_next), *messages)

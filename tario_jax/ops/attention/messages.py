"""Messages between the devices of the mesh axis `context`, inside `jax.shard_map` over it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tario_jax.ops.ranks import ambient_platform
from tario_jax.ops.visibility import KeyVisibility

AXIS = "context"


def packed(k_BxSkxKxD: jax.Array, v_BxSkxKxD: jax.Array, visibility: KeyVisibility) -> list[jax.Array]:
    """[2, B, Sk, K, D] and int32 [2, B, Sk]: each is one message, since every message costs latency."""
    return [jnp.stack([k_BxSkxKxD, v_BxSkxKxD]), jnp.stack(visibility)]


def unpacked(keys: list[jax.Array]) -> tuple[jax.Array, jax.Array, KeyVisibility]:
    """The inverse of `packed`."""
    kv_2xBxSkxKxD, marks_2xBxSk = keys
    return *kv_2xBxSkxKxD, KeyVisibility(*marks_2xBxSk)


def send(collective: Callable[[jax.Array], jax.Array], *messages: jax.Array) -> list[jax.Array]:
    """`collective` of each message.

    Virtual devices share a few threads, and a message holds one until all devices have theirs: several at once can
    take them all, and wait for ever. There, each starts when the one before has come.
    """
    one_by_one = ambient_platform() == "cpu"
    came: list[jax.Array] = []
    for message in messages:
        came.append(collective(_after(came[-1], message) if one_by_one and came else message))
    return came


def _after(first: jax.Array, then: jax.Array) -> jax.Array:
    """`then`, but not before there is `first`: the comparison never holds, and only numbers tell that."""
    never = first.ravel()[0].astype(jnp.float32) * 0 == 1
    return jnp.where(never, 0, then)

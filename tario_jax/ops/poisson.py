"""Draws of Poisson counts, each row from a key of its own.

`jax.random.poisson` multiplies uniform numbers, as many as the largest count; at the rates of bins most counts are 0 or
1. So one uniform number a count is turned through the distribution function instead (on two CPU cores a tenth of the
time), and only what is too large for that, where there is any, is left to jax.
"""

import jax
import jax.numpy as jnp

_LARGE = 24.0  # beyond it exp(−rate) nears float32's smallest steps, and the walk to the count grows long
_TAIL = 1e-9  # probabilities below it are beyond what a float32 uniform number can tell apart


def draw_poisson(key_B: jax.Array, rates_BxnxG: jax.Array) -> jax.Array:
    """Counts, float32 [B, n, G], Poisson with these rates, which are at least 0.

    A row depends on its own key and rates alone, whatever the other rows are.
    """
    pair_Bx2 = jax.vmap(jax.random.split)(key_B)
    uniform_BxnxG = jax.vmap(lambda key: jax.random.uniform(key, rates_BxnxG.shape[1:]))(pair_Bx2[:, 0])
    is_large_BxnxG = rates_BxnxG > _LARGE
    counts_BxnxG = _inverted(uniform_BxnxG, jnp.where(is_large_BxnxG, 0.0, rates_BxnxG))

    def with_large(counts_BxnxG):
        large_BxnxG = jnp.where(is_large_BxnxG, rates_BxnxG, 0.0)
        drawn_BxnxG = jax.vmap(jax.random.poisson)(pair_Bx2[:, 1], large_BxnxG).astype(jnp.float32)
        return jnp.where(is_large_BxnxG, drawn_BxnxG, counts_BxnxG)

    return jax.lax.cond(is_large_BxnxG.any(), with_large, lambda counts: counts, counts_BxnxG)


def _inverted(uniform: jax.Array, rates: jax.Array) -> jax.Array:
    """The smallest n with uniform <= P(count <= n), walked up from 0 for all entries at once."""

    def goes_on(walked):
        n, probability, up_to, _ = walked
        # rounding may leave up_to below the largest uniform numbers for good: past the tail nothing goes on
        return (uniform > up_to) & ((n < rates) | (probability > _TAIL))

    def up(walked):
        n, probability, up_to, counts = walked
        counts += goes_on(walked)
        n += 1
        probability = probability * rates / n
        return n, probability, up_to + probability, counts

    zero = jnp.exp(-rates)
    return jax.lax.while_loop(lambda walked: goes_on(walked).any(), up, (0.0, zero, zero, jnp.zeros_like(rates)))[3]

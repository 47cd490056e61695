"""Adding up attention over disjoint sets of keys."""

import jax
import jax.numpy as jnp


def merge(
    out_a_BxSxHxD: jax.Array, lse_a_BxSxH: jax.Array, out_b_BxSxHxD: jax.Array, lse_b_BxSxH: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp over the keys of both, float32: out = Σ exp(lse_i − lse) out_i.

    A log-sum-exp of +inf marks a query that sees none of the keys, as in `blockwise.forward`.
    """
    a, b = (jnp.where(jnp.isposinf(lse), -jnp.inf, lse) for lse in (lse_a_BxSxH, lse_b_BxSxH))
    top = jnp.maximum(a, b)
    sees = ~jnp.isneginf(top)
    top = jnp.where(sees, top, 0)  # no −inf − −inf
    weight_a, weight_b = jnp.exp(a - top), jnp.exp(b - top)
    total = jnp.where(sees, weight_a + weight_b, 1)
    out = (weight_a / total)[..., None] * out_a_BxSxHxD + (weight_b / total)[..., None] * out_b_BxSxHxD
    return out, jnp.where(sees, top + jnp.log(total), jnp.inf)

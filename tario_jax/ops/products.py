"""Products that say how precisely they are made: float32 is left to no matrix unit, and accumulators are float32."""

import jax
import jax.numpy as jnp


def precision(a: jax.Array, b: jax.Array) -> str | None:
    """Of a product of these. Unasked, a GPU rounds float32 operands to TF32, and a TPU to bfloat16."""
    return "highest" if a.dtype == b.dtype == jnp.float32 else None


def dot(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum(axes, a, b)`, summed in float32; that of float32 arrays at full precision wherever it runs."""
    return jnp.einsum(axes, a, b, precision=precision(a, b), preferred_element_type=jnp.float32)

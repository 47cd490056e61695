"""Products with weights: compute in the tokens' type, gradients of weights in float32."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from tario_jax.config import BATCH_AXES
from tario_jax.ops.products import dot, precision
from tario_jax.ops.ranks import Ranks, ambient_platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(equation: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """`einsum(equation, x, weight)` in x's type, of a float32 weight. x has rows first, and tokens or tiles after them.

    On a mesh they stay where they are, rows over replica × fsdp and tokens over context, and weights come to them: left
    to itself XLA sometimes sends the tokens. The weight's gradient leaves the product as the float32 that it is
    accumulated in: summed over devices as bfloat16, it would lose with each of them what the accumulator has kept.
    """
    weight = weight.astype(x.dtype)
    return _in_place(jnp.einsum(equation, x, weight, precision=precision(x, weight)))


def _forward(equation: str, x, weight):
    return project(equation, x, weight), (x, weight)


def _backward(equation: str, kept, dy):
    x, weight = kept
    x_axes, weight_axes, y_axes = *equation.partition("->")[0].split(","), equation.partition("->")[2]
    weight_, axes = weight.astype(x.dtype), weight_axes
    if ambient_platform() == "cpu":  # XLA's CPU products are several times slower where they turn the weight themselves
        axes = "".join(axis for axis in weight_axes if axis in y_axes) + "".join(
            axis for axis in weight_axes if axis not in y_axes
        )
        weight_ = jax.lax.optimization_barrier(jnp.einsum(f"{weight_axes}->{axes}", weight_))
    dx = _in_place(jnp.einsum(f"{y_axes},{axes}->{x_axes}", dy, weight_, precision=precision(dy, weight_)))
    dweight = dot(f"{x_axes},{y_axes}->{weight_axes}", x, dy)
    return dx, dweight.astype(weight.dtype)


project.defvjp(_forward, _backward)


def _in_place(x: jax.Array) -> jax.Array:
    ranks = Ranks.ambient()
    if not ranks.sizes:
        return x
    laid = [ranks.present(*axes) or None for axes in (BATCH_AXES, ("context",))]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*laid, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 2)))

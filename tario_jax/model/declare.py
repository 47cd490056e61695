"""One declaration a parameter: shape, logical axes, scale of its start, and its learning rate beside the others'."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Calibration(nnx.Variable):
    """A statistic of the training data that is set before step 0 and never trained."""


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: float, gain: float = 1.0, *,
           grown: float = 1.0, output: bool = False) -> nnx.Param:  # fmt: skip
    """A float32 parameter from a normal truncated at two deviations, of variance gain² / fan_in.

    grown: fan_in over that of the base, for muP (model/width.py): the learning rate falls as it grows; output: fan_out
    does not grow with it, and the variance falls by `grown` once more.
    """
    # 0.8796 is the deviation of a standard normal that is cut at ±2
    start = jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)
    deviation = gain / fan_in**0.5 / (grown**0.5 if output else 1.0)
    return nnx.Param(start * (deviation / 0.8796), axes=axes, rate=1 / grown)


def start_at_zero(parameter: nnx.Param, row: int) -> nnx.Param:
    """The parameter with one row set to 0: an input that training may never vary then adds nothing at other values."""
    return nnx.Param(parameter[...].at[row].set(0.0), axes=parameter.axes, rate=parameter.rate)


def constant(shape: tuple[int, ...], axes: tuple[str, ...], value: float) -> nnx.Param:
    return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes, rate=1.0)


def start_of(value: np.ndarray, axes: tuple[str, ...]) -> nnx.Param:
    return nnx.Param(jnp.asarray(value, jnp.float32), axes=axes, rate=1.0)


def statistic(shape: tuple[int, ...], value: float) -> Calibration:
    return Calibration(jnp.full(shape, value, jnp.float32), axes=("vector",) * len(shape))


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / rms(x) · scale over the last axis, computed in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    return (normed * scale).astype(x.dtype)

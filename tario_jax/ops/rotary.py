"""Rotary position encoding in two dimensions, on places in µm."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.config import InputError


class Turns(NamedTuple):
    """How far each token's pairs turn, float32 [B, S, 1, 2, D / 4]: by token, the same for every head, x and y."""

    cos: jax.Array
    sin: jax.Array


def turns_at(xy_um_BxSx2: jax.Array, width: int, *, shortest_um: float, longest_um: float) -> Turns:
    """The turns of heads of `width` at these places: made once, they serve all layers.

    The first half of D turns with x, the second with y. Within a half, element i is paired with element i + D/4, and
    the pair turns once in a wavelength; the D/4 wavelengths run geometrically from `shortest_um` to `longest_um`
    (Su et al., arXiv 2104.09864, with wavelengths in µm in place of powers of 10,000). Places near 0, such as those in
    a window's own frame, keep the angles exact.

    Raises `InputError` if D is not a multiple of 4 or the wavelengths are not 0 < shortest <= longest.
    """
    if width % 4:
        raise InputError(f"rotary: heads are {width} wide; expected a multiple of 4 (model.head_dim)")
    if not 0 < shortest_um <= longest_um:
        raise InputError(f"rotary: wavelengths are {shortest_um} to {longest_um} µm; expected 0 < shortest <= longest")
    pairs = width // 4
    step = math.log(longest_um / shortest_um) / max(pairs - 1, 1)
    turns_per_um_P = jnp.exp(-step * jnp.arange(pairs, dtype=jnp.float32)) / shortest_um
    angle = 2 * math.pi * jnp.asarray(xy_um_BxSx2, jnp.float32)[:, :, None, :, None] * turns_per_um_P
    return Turns(jnp.cos(angle), jnp.sin(angle))


def rotate(x_BxSxHxD: jax.Array, turns: Turns) -> jax.Array:
    """Turns queries or keys by their place, so that their scores depend on differences of places only.

    Products are in float32, the result in the dtype of x.
    """
    cos, sin = turns
    x = x_BxSxHxD.astype(jnp.float32).reshape(*x_BxSxHxD.shape[:-1], 2, 2, -1)  # [B, S, H, axis, member, P]
    first, second = x[..., 0, :], x[..., 1, :]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-2)
    return turned.reshape(x_BxSxHxD.shape).astype(x_BxSxHxD.dtype)

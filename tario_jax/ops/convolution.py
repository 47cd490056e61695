"""3 × 3 convolutions of patches, and the gradient of their weights in float32.

On an accelerator a convolution is one instruction. On a CPU XLA's gradient of small ones is many times slower than one
product over the neighbours side by side, which on an accelerator would write them, nine times the input, to memory.

Axes: B rows, T tiles, P patches of a tile, Y and X cells of a patch, C and E channels in and out.
"""

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import BATCH_AXES
from tario_jax.ops.project import project
from tario_jax.ops.ranks import Ranks, ambient_platform

_OF_CELLS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NYXC, YXCE -> NYXE
_OF_WEIGHTS = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))  # NYXC, NYXE -> YXCE
_AROUND = ((1, 1), (1, 1))


def convolve3x3(x_BxTxPxYxXxC: jax.Array, weight_9CxE: jax.Array, *, side_by_side: bool | None = None) -> jax.Array:
    """The sum over each cell's neighbours and itself, 0 beyond the patch: [B, T, P, Y, X, E] in x's type.

    weight: float32, its rows by neighbour (from above left, by lines) and then by channel. side_by_side: the way of a
    CPU; None: that of the platform. Under an ambient mesh rows lie over replica × fsdp, tiles over context.
    """
    if ambient_platform() == "cpu" if side_by_side is None else side_by_side:
        Y, X = x_BxTxPxYxXxC.shape[3:5]
        padded = jnp.pad(x_BxTxPxYxXxC, ((0, 0), (0, 0), (0, 0), *_AROUND, (0, 0)))
        around = jnp.concatenate([padded[..., i : i + Y, j : j + X, :] for i in range(3) for j in range(3)], -1)
        return project("btpyxi,ie->btpyxe", around, weight_9CxE)
    return _convolve(x_BxTxPxYxXxC, weight_9CxE)


@jax.custom_vjp
def _convolve(x, weight_9CxE):
    def local(x, weight_9CxE):
        cells = x.reshape(-1, *x.shape[3:])
        y = lax.conv_general_dilated(cells, _kernel(x, weight_9CxE), (1, 1), _AROUND, dimension_numbers=_OF_CELLS,
                                     preferred_element_type=jnp.float32)  # fmt: skip
        return y.reshape(*x.shape[:5], -1).astype(x.dtype)

    return _run(local, 1)(x, weight_9CxE)


def _forward(x, weight_9CxE):
    return _convolve(x, weight_9CxE), (x, weight_9CxE)


def _backward(kept, dy):
    x, weight_9CxE = kept
    ranks = Ranks.ambient()

    def local(x, weight_9CxE, dy):
        cells, d_cells = x.reshape(-1, *x.shape[3:]), dy.reshape(-1, *dy.shape[3:])
        turned = _kernel(x, weight_9CxE)[::-1, ::-1].swapaxes(2, 3)
        dx = lax.conv_general_dilated(d_cells, turned, (1, 1), _AROUND, dimension_numbers=_OF_CELLS,
                                      preferred_element_type=jnp.float32)  # fmt: skip
        d_kernel = lax.conv_general_dilated(cells, d_cells, (1, 1), _AROUND, dimension_numbers=_OF_WEIGHTS,
                                            preferred_element_type=jnp.float32)  # fmt: skip
        d_weight = ranks.sum(d_kernel, *BATCH_AXES, "context").reshape(weight_9CxE.shape)
        return dx.reshape(x.shape).astype(x.dtype), d_weight.astype(weight_9CxE.dtype)

    return _run(local, 2)(x, weight_9CxE, dy)


_convolve.defvjp(_forward, _backward)


def _kernel(x, weight_9CxE) -> jax.Array:
    return weight_9CxE.reshape(3, 3, x.shape[-1], -1).astype(x.dtype)


def _run(local, outputs: int):
    """`local(x, weight[, dy])` on each device's rows and tiles: gives y, or dx and the whole dweight."""
    ranks = Ranks.ambient()
    of_cells, whole = ranks.spec(BATCH_AXES, "context"), ranks.spec()
    if outputs == 1:
        return ranks.run(local, (of_cells, whole), of_cells)
    return ranks.run(local, (of_cells, whole, of_cells), (of_cells, whole))

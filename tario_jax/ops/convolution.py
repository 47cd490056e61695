"""3 × 3 convolutions of patches, and the gradient of their weights in float32.

A convolution is one instruction, and so is the gradient of its inputs. That of its weights is one on an accelerator; on
a CPU, where XLA's own is slower, it is nine products, one a neighbour.

Axes: B rows, T tiles, P patches of a tile, Y and X cells of a patch, C and E channels in and out; N all patches.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import BATCH_AXES
from tario_jax.ops.products import precision
from tario_jax.ops.ranks import Ranks, ambient_platform

_OF_CELLS = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NYXC, YXCE -> NYXE
_OF_WEIGHTS = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))  # NYXC, NYXE -> YXCE
_AROUND = ((1, 1), (1, 1))


def convolve3x3(x_BxTxPxYxXxC: jax.Array, weight_9CxE: jax.Array, *, by_neighbour: bool | None = None) -> jax.Array:
    """The sum over each cell's neighbours and itself, 0 beyond the patch: [B, T, P, Y, X, E] in x's type.

    weight: float32, its rows by neighbour (from above left, by lines) and then by channel. by_neighbour: how its
    gradient is made, as on a CPU; None: as on the platform. Under an ambient mesh rows lie over replica × fsdp, tiles
    over context.
    """
    by_neighbour = ambient_platform() == "cpu" if by_neighbour is None else by_neighbour
    return _convolve(x_BxTxPxYxXxC, weight_9CxE, by_neighbour)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x, weight_9CxE, by_neighbour):
    del by_neighbour

    def local(x, weight_9CxE):
        y = _slide(x.reshape(-1, *x.shape[3:]), _kernel(x, weight_9CxE), _OF_CELLS)
        return y.reshape(*x.shape[:5], -1).astype(x.dtype)

    return _run(local, 1)(x, weight_9CxE)


def _forward(x, weight_9CxE, by_neighbour):
    return _convolve(x, weight_9CxE, by_neighbour), (x, weight_9CxE)


def _backward(by_neighbour, kept, dy):
    x, weight_9CxE = kept
    ranks = Ranks.ambient()

    def local(x, weight_9CxE, dy):
        cells, d_cells = x.reshape(-1, *x.shape[3:]), dy.reshape(-1, *dy.shape[3:])
        turned = _kernel(x, weight_9CxE)[::-1, ::-1].swapaxes(2, 3)
        dx = _slide(d_cells, turned, _OF_CELLS)
        d_weight = (_by_neighbour if by_neighbour else _at_once)(cells, d_cells).reshape(weight_9CxE.shape)
        d_weight = ranks.sum(d_weight, *BATCH_AXES, "context")
        return dx.reshape(x.shape).astype(x.dtype), d_weight.astype(weight_9CxE.dtype)

    return _run(local, 2)(x, weight_9CxE, dy)


_convolve.defvjp(_forward, _backward)


def _slide(x: jax.Array, kernel: jax.Array, dimensions: lax.ConvDimensionNumbers) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), _AROUND, dimension_numbers=dimensions,
                                    precision=precision(x, kernel), preferred_element_type=jnp.float32)  # fmt: skip


def _at_once(x_NxYxXxC: jax.Array, dy_NxYxXxE: jax.Array) -> jax.Array:
    """The gradient of the kernel, float32 [3, 3, C, E]."""
    return _slide(x_NxYxXxC, dy_NxYxXxE, _OF_WEIGHTS)


def _by_neighbour(x_NxYxXxC: jax.Array, dy_NxYxXxE: jax.Array) -> jax.Array:
    """The same, as products over all cells."""
    (_, Y, X, C), E = x_NxYxXxC.shape, dy_NxYxXxE.shape[-1]
    padded, rows = jnp.pad(x_NxYxXxC, ((0, 0), *_AROUND, (0, 0))), dy_NxYxXxE.reshape(-1, E)
    of_neighbours = [jnp.matmul(padded[:, i : i + Y, j : j + X].reshape(-1, C).T, rows,
                                precision=precision(padded, rows), preferred_element_type=jnp.float32)
                     for i in range(3) for j in range(3)]  # fmt: skip
    return jnp.stack(of_neighbours).reshape(3, 3, C, E)


def _kernel(x, weight_9CxE) -> jax.Array:
    return weight_9CxE.reshape(3, 3, x.shape[-1], -1).astype(x.dtype)


def _run(local, outputs: int):
    """`local(x, weight[, dy])` on each device's rows and tiles: gives y, or dx and the whole dweight."""
    ranks = Ranks.ambient()
    of_cells, whole = ranks.spec(BATCH_AXES, "context"), ranks.spec()
    if outputs == 1:
        return ranks.run(local, (of_cells, whole), of_cells)
    return ranks.run(local, (of_cells, whole, of_cells), (of_cells, whole))

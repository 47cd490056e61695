"""H&E patches as tokens: a pyramid of convolutions over each tile, beside fixed statistics of stain and texture.

Cells of about 3 px, which are a part of a nucleus at 1 µm per px, then cells of about 6, then the patch. The
convolutions run over a whole tile, so a patch knows what lies some 25 px around it, and no nucleus is cut at its edge.
Beyond the tile there is nothing: a tile lies on one device, and what is farther away is for attention.

Axes: B rows, T tiles of a row, P patches of a tile, Y and X px or cells of a tile, C channels, d width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.declare import constant, statistic, weight
from tario_jax.model.frozen_features import FrozenFeatures
from tario_jax.model.stain import stain_densities, texture_count, texture_statistics
from tario_jax.model.width import Growth
from tario_jax.ops.convolution import convolve3x3
from tario_jax.ops.project import project
from tario_jax.tokens.batch import Batch

WIDE = 2  # channels of the larger cells over those of the smaller ones
WIDE_LAYERS = 2
_CELL_PX, _TIMES = 3, 2


class Pyramid(NamedTuple):
    """How a patch is parted: px of a small cell, small cells of a large one, large cells of the patch, along a side."""

    cell_px: int
    cells: int
    large: int

    @classmethod
    def of(cls, patch_px: int) -> "Pyramid":
        cell_px = _divisor(patch_px, _CELL_PX)
        cells = _divisor(patch_px // cell_px, _TIMES)
        return cls(cell_px, cells, patch_px // cell_px // cells)


def _divisor(number: int, near: int) -> int:
    """The divisor nearest to `near`, the larger of two."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: (abs(n - near), -n))


class HEEncoder(nnx.Module):
    """One token a patch."""

    def __init__(self, config: ModelConfig, patch_px: int, rngs: nnx.Rngs, frozen: int = 0):
        """frozen: length of the stored features of a frozen encoder; 0: there are none."""
        d, c, features = config.width, config.stem_width, texture_count(patch_px)
        grown = Growth.of(config)
        self.pyramid = Pyramid.of(patch_px)
        self.density_mean = statistic((3,), 0.0)
        self.density_scale = statistic((3,), 1.0)
        self.texture_mean = statistic((features,), 0.0)
        self.texture_scale = statistic((features,), 1.0)
        inside, wide = 9 * 3 * self.pyramid.cell_px**2, WIDE * c
        of_large, out = self.pyramid.cells**2 * c, self.pyramid.large**2 * wide
        self.stem_in = weight(rngs, (inside, c), ("pixels", "hidden"), inside)
        self.stem_bias = constant((c,), ("vector",), 0.0)
        self.stem_conv = weight(rngs, (9 * c, c), ("neighbours", "stem"), 9 * c, grown=grown.stem_width)
        self.stem_conv_bias = constant((c,), ("vector",), 0.0)
        self.stem_join = weight(rngs, (of_large, wide), ("neighbours", "stem"), of_large, grown=grown.stem_width)
        self.stem_join_bias = constant((wide,), ("vector",), 0.0)
        self.wide_conv = weight(rngs, (WIDE_LAYERS, 9 * wide, wide), ("layers", "neighbours", "stem"), 9 * wide,
                                grown=grown.stem_width)  # fmt: skip
        self.wide_conv_bias = constant((WIDE_LAYERS, wide), ("layers", "vector"), 0.0)
        self.stem_out = weight(rngs, (out, d), ("pixels", "hidden"), out, gain=0.5, grown=grown.stem_width)
        self.texture_in = weight(rngs, (features, d), ("features", "hidden"), features)
        self.texture_bias = constant((d,), ("vector",), 0.0)
        self.texture_hidden = weight(rngs, (d, d), ("hidden", "stem"), d, grown=grown.width)
        self.frozen = FrozenFeatures(config, frozen, rngs) if frozen else None

    def standardised(self, batch: Batch) -> jax.Array:
        """Stain densities in deviations from training tissue: float32 [B, T, P, px, px, 3]."""
        density = stain_densities(batch.he_BxTxPxYxXx3, batch.stain_mix_BxTx3x3)
        return (density - self.density_mean[...]) / self.density_scale[...]

    def looks(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Stain densities, and statistics of stain and texture [B, T, P, F], in deviations from training tissue."""
        density = self.standardised(batch)
        texture = (texture_statistics(density) - self.texture_mean[...]) / self.texture_scale[...]
        return density, jnp.clip(texture, -6.0, 6.0)

    def __call__(self, batch: Batch, dtype: jnp.dtype, hidden_BxTxP: jax.Array | None = None) -> jax.Array:
        """Tokens [B, T, P, d].

        hidden: patches that no other token may know of; then no token holds stored features, and theirs say nothing.
        """
        density, texture = (jax.lax.stop_gradient(x) for x in self.looks(batch))
        if hidden_BxTxP is not None:  # the convolutions reach into the patches beside
            density = jnp.where(hidden_BxTxP[..., None, None, None], 0.0, density)
        token = self._seen(density.astype(dtype))
        known = project("btpf,fd->btpd", texture.astype(dtype), self.texture_in[...])
        known = _gelu(known, self.texture_bias[...])
        token += project("btpd,de->btpe", known, self.texture_hidden[...])
        if self.frozen is None or hidden_BxTxP is not None:  # stored features see far around their patch
            return token
        return token + self.frozen(batch.features_BxTxPxF, dtype)

    def _seen(self, density_BxTxPxYxXx3: jax.Array) -> jax.Array:
        """What the convolutions make of the pixels, [B, T, P, d]."""
        cell_px, cells, large = self.pyramid
        x = joined(as_picture(density_BxTxPxYxXx3), cell_px)
        x = _gelu(convolve3x3(x, self.stem_in[...]), self.stem_bias[...])
        x = x + _gelu(convolve3x3(x, self.stem_conv[...]), self.stem_conv_bias[...])
        x = _gelu(project("btpyxi,ic->btpyxc", joined(x, cells), self.stem_join[...]), self.stem_join_bias[...])
        for kernel, bias in zip(self.wide_conv[...], self.wide_conv_bias[...], strict=True):
            x = x + _gelu(convolve3x3(x, kernel), bias)
        patches = joined(x, large)
        return project("btpi,id->btpd", patches.reshape(*patches.shape[:2], -1, patches.shape[-1]), self.stem_out[...])


def as_picture(x_BxTxPxYxXxC: jax.Array) -> jax.Array:
    """Patches of a tile, row by row, as one picture: [B, T, 1, Y, X, C]."""
    B, T, P, y, x, C = x_BxTxPxYxXxC.shape
    side = round(P**0.5)
    # rows and tiles stay two axes: merged, XLA would gather the pixels of all tiles on each device of a mesh
    rows = x_BxTxPxYxXxC.reshape(B, T, side, side, y, x, C).transpose(0, 1, 2, 4, 3, 5, 6)
    return rows.reshape(B, T, 1, side * y, side * x, C)


def joined(x_BxTx1xYxXxC: jax.Array, cells: int) -> jax.Array:
    """Squares of cells as one: [B, T, 1, Y / cells, X / cells, cells² C]."""
    B, T, _, Y, X, C = x_BxTx1xYxXxC.shape
    squares = x_BxTx1xYxXxC.reshape(B, T, 1, Y // cells, cells, X // cells, cells, C).transpose(0, 1, 2, 3, 5, 4, 6, 7)
    return squares.reshape(B, T, 1, Y // cells, X // cells, cells * cells * C)


def _gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """gelu(x + bias) in x's type; the bias is added, and its gradient summed, in its own."""
    return jax.nn.gelu(x + bias).astype(x.dtype)

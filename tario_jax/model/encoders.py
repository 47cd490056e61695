"""One encoder a modality: H&E patches, contents of bins, queries of bins."""

import jax
import jax.numpy as jnp
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.declare import constant, rms_norm, start_at_zero, statistic, weight
from tario_jax.model.frozen_features import FrozenFeatures
from tario_jax.model.stain import stain_densities, texture_count, texture_statistics
from tario_jax.model.width import Growth
from tario_jax.ops.convolution import convolve3x3
from tario_jax.ops.count_content import count_content, dense_content
from tario_jax.ops.pooling import weighted_means
from tario_jax.ops.project import project
from tario_jax.ops.sparse_counts import SparseCounts
from tario_jax.tokens.batch import Batch


class HEEncoder(nnx.Module):
    """One token a patch: a small convolutional stem on stain densities beside fixed stain and texture statistics."""

    def __init__(self, config: ModelConfig, patch_px: int, rngs: nnx.Rngs, frozen: int = 0):
        """frozen: length of the stored features of a frozen encoder; 0: there are none."""
        d, c, features = config.width, config.stem_width, texture_count(patch_px)
        grown = Growth.of(config)
        self.stride = stem_stride(patch_px)
        self.cells = patch_px // self.stride
        self.density_mean = statistic((3,), 0.0)
        self.density_scale = statistic((3,), 1.0)
        self.texture_mean = statistic((features,), 0.0)
        self.texture_scale = statistic((features,), 1.0)
        inside = self.stride**2 * 3
        self.stem_in = weight(rngs, (inside, c), ("pixels", "stem"), inside)
        self.stem_bias = constant((c,), ("vector",), 0.0)
        self.stem_conv = weight(rngs, (9 * c, c), ("neighbours", "stem"), 9 * c, grown=grown.stem_width)
        self.stem_conv_bias = constant((c,), ("vector",), 0.0)
        self.stem_out = weight(rngs, (self.cells**2 * c, d), ("pixels", "hidden"), self.cells**2 * c, gain=0.5,
                               grown=grown.stem_width)  # fmt: skip
        self.texture_in = weight(rngs, (features, d), ("features", "hidden"), features)
        self.texture_bias = constant((d,), ("vector",), 0.0)
        self.texture_hidden = weight(rngs, (d, d), ("hidden", "stem"), d, grown=grown.width)
        self.frozen = FrozenFeatures(config, frozen, rngs) if frozen else None

    def standardised(self, batch: Batch) -> jax.Array:
        """Stain densities in deviations from training tissue: float32 [B, T, P, px, px, 3]."""
        density = stain_densities(batch.he_BxTxPxYxXx3, batch.stain_mix_BxTx3x3)
        return (density - self.density_mean[...]) / self.density_scale[...]

    def __call__(self, batch: Batch, dtype: jnp.dtype) -> jax.Array:
        """Tokens [B, T, P, d]."""
        density = jax.lax.stop_gradient(self.standardised(batch))
        texture = (texture_statistics(density) - self.texture_mean[...]) / self.texture_scale[...]
        texture = jnp.clip(texture, -6.0, 6.0).astype(dtype)
        B, T, P = density.shape[:3]
        n, s = self.cells, self.stride
        # rows and tiles stay two axes: merged, XLA would gather the pixels of all tiles on each device of a mesh
        cells = density.astype(dtype).reshape(B, T, P, n, s, n, s, 3).transpose(0, 1, 2, 3, 5, 4, 6, 7)
        cells = _gelu(project("btpyxi,ic->btpyxc", cells.reshape(B, T, P, n, n, s * s * 3), self.stem_in[...]),
                      self.stem_bias[...])  # fmt: skip
        cells = cells + _gelu(convolve3x3(cells, self.stem_conv[...]), self.stem_conv_bias[...])
        seen = project("btpi,id->btpd", cells.reshape(B, T, P, -1), self.stem_out[...])
        known = _gelu(project("btpf,fd->btpd", texture, self.texture_in[...]), self.texture_bias[...])
        token = seen + project("btpd,de->btpe", known, self.texture_hidden[...])
        return token if self.frozen is None else token + self.frozen(batch.features_BxTxPxF, dtype)


def _gelu(x: jax.Array, bias: jax.Array) -> jax.Array:
    """gelu(x + bias) in x's type; the bias is added, and its gradient summed, in its own."""
    return jax.nn.gelu(x + bias).astype(x.dtype)


def stem_stride(patch_px: int) -> int:
    """Side of the stem's first cells: the divisor of the patch nearest to 6 px."""
    return min((s for s in range(1, patch_px + 1) if patch_px % s == 0), key=lambda s: abs(s - 6))


class BinEncoder(nnx.Module):
    """Tokens of bins: what one holds (content), and where one is and what H&E lies under it (query)."""

    def __init__(self, config: ModelConfig, genes_padded: int, rngs: nnx.Rngs, *, content: bool):
        d, r = config.width, config.gene_dim
        grown = Growth.of(config)
        self.chunk = config.loss_chunk
        self.query_size = start_at_zero(weight(rngs, (2, d), ("features", "hidden"), 2), row=1)
        self.query_he = weight(rngs, (d, d), ("hidden", "stem"), d, grown=grown.width)
        self.query_norm = constant((d,), ("vector",), 1.0)
        if not content:
            return
        self.tied = config.tie_genes
        if not self.tied:
            self.gene_table = weight(rngs, (genes_padded, r), ("genes", "gene_dim"), r / grown.gene_dim)
        self.content_in = weight(rngs, (r, d), ("hidden", "stem"), r, grown=grown.gene_dim)
        self.content_total = start_at_zero(weight(rngs, (2, d), ("features", "hidden"), 2), row=1)

    def content(self, batch: Batch, head_table_Gxr: jax.Array, gene_bias_G: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Content tokens [B, T, N, d]: the bin's counts against the mean composition, its total and its size.

        A bin's composition enters as variance-stabilised residuals of its measured genes from the mean composition at
        its total, read through the gene table (ops/count_content.py).
        """
        B, T, N = batch.bin_step_BxTxN.shape
        table = head_table_Gxr if self.tied else self.gene_table[...]
        counts = SparseCounts(batch.count_bin_BxC, batch.count_gene_BxC, batch.count_BxC)
        with jax.named_scope("gene_head"):  # it reads through the same table, at a cost of the same kind
            held, total = count_content(
                table, jax.nn.softmax(gene_bias_G), counts, batch.measured_gene_BxWxG,
                jnp.repeat(batch.window_BxT, N, axis=1), dtype=dtype, chunk=self.chunk,
            )  # fmt: skip
        held, total = held.reshape(B, T, N, -1), total.reshape(B, T, N)
        return self._content(held, total, batch.bin_size_um_BxTxN, batch.bin_measured_BxTxN)

    def content_of(self, counts_BxnxG: jax.Array, measured_gene_BxG: jax.Array, size_um_Bxn: jax.Array,
                   measured_Bxn: jax.Array, head_table_Gxr: jax.Array, gene_bias_G: jax.Array,
                   dtype: jnp.dtype) -> jax.Array:  # fmt: skip
        """The same tokens [B, n, d] of n bins of each row, from dense counts: of bins that are drawn, not read."""
        table = head_table_Gxr if self.tied else self.gene_table[...]
        with jax.named_scope("gene_head"):
            held, total = dense_content(table, jax.nn.softmax(gene_bias_G), counts_BxnxG, measured_gene_BxG, dtype)
        return self._content(held[:, None], total[:, None], size_um_Bxn[:, None], measured_Bxn[:, None])[:, 0]

    def _content(self, held_BxTxNxr, total_BxTxN, size_um_BxTxN, measured_BxTxN) -> jax.Array:
        area_um2 = size_um_BxTxN * size_um_BxTxN * jnp.maximum(measured_BxTxN, 0.05)
        density = jnp.log((total_BxTxN + 0.5) / area_um2)
        place = jnp.stack([density, jnp.log(size_um_BxTxN / 36.0)], -1).astype(held_BxTxNxr.dtype)
        return project("btnr,rd->btnd", held_BxTxNxr, self.content_in[...]) + project(
            "btnf,fd->btnd", place, self.content_total[...]
        )

    def query(self, batch: Batch, he_BxTxPxd: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Query tokens [B, T, N, d]: the bin's size and the mean of the H&E tokens under it."""
        B, T, P, d = he_BxTxPxd.shape
        patch, share = batch.pool_patch_BxTxNxM, batch.pool_weight_BxTxNxM
        of_bins = (x.reshape(B, -1, x.shape[-1]) for x in (patch, share))
        under = weighted_means(he_BxTxPxd.reshape(B, T * P, d), *of_bins).reshape(*patch.shape[:3], d)
        under = project("btnd,de->btne", rms_norm(under, self.query_norm[...]), self.query_he[...])
        size = jnp.log(batch.bin_size_um_BxTxN / 36.0)
        place = jnp.stack([jnp.ones_like(size), size], -1).astype(dtype)
        return under + project("btnf,fd->btnd", place, self.query_size[...])

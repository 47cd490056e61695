"""Bins as tokens: what one holds (content), and where one is and what H&E lies under it (query)."""

import jax
import jax.numpy as jnp
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.declare import constant, rms_norm, start_at_zero, statistic, weight
from tario_jax.model.width import Growth
from tario_jax.ops.count_content import count_content, dense_content
from tario_jax.ops.pooling import weighted_means
from tario_jax.ops.project import project
from tario_jax.ops.sparse_counts import SparseCounts
from tario_jax.tokens.batch import Batch


class BinEncoder(nnx.Module):
    """Tokens of bins: what one holds (content), and where one is and what H&E lies under it (query)."""

    def __init__(self, config: ModelConfig, genes_padded: int, rngs: nnx.Rngs, *, content: bool,
                 only_um: float | None = None):  # fmt: skip
        """only_um: side of all bins of training. Its weight is then one direction of a constant, and what it would say
        of another side no data decided: every bin is taken for one of that side."""
        d, r = config.width, config.gene_dim
        self.only_um = only_um
        grown = Growth.of(config)
        self.chunk = config.loss_chunk
        self.query_size = start_at_zero(weight(rngs, (2, d), ("features", "hidden"), 2), row=1)
        self.query_he = weight(rngs, (d, d), ("hidden", "stem"), d, grown=grown.width)
        self.query_norm = constant((d,), ("vector",), 1.0)
        self.query_depth = constant((2, d), ("features", "hidden"), 0.0)
        self.depth_mean, self.depth_scale = statistic((), 0.0), statistic((), 1.0)
        if not content:
            return
        self.tied = config.tie_genes
        if not self.tied:
            self.gene_table = weight(rngs, (genes_padded, r), ("genes", "gene_dim"), r / grown.gene_dim)
        self.content_in = weight(rngs, (r, d), ("hidden", "stem"), r, grown=grown.gene_dim)
        self.content_total = start_at_zero(weight(rngs, (2, d), ("features", "hidden"), 2), row=1)
        self.content_depth = constant((2, d), ("features", "hidden"), 0.0)
        self.near_in = weight(rngs, (d, d), ("hidden", "stem"), d, grown=grown.width)
        self.near_known = constant((d,), ("vector",), 0.0)

    def content(self, batch: Batch, query_BxTxNxd: jax.Array, head_table_Gxr: jax.Array, gene_bias_G: jax.Array,
                dtype: jnp.dtype) -> jax.Array:  # fmt: skip
        """Content tokens [B, T, N, d]: the bin's query, which holds its H&E, and its counts against the mean
        composition, its total and its size.

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
        token = self._content(held, total, batch.bin_size_um_BxTxN, batch.bin_measured_BxTxN)
        return token + query_BxTxNxd + self._of_depth(batch, gene_bias_G, self.content_depth, dtype)

    def content_of(self, batch: Batch, query_Bxnxd: jax.Array, counts_BxnxG: jax.Array, size_um_Bxn: jax.Array,
                   measured_Bxn: jax.Array, head_table_Gxr: jax.Array, gene_bias_G: jax.Array,
                   dtype: jnp.dtype) -> jax.Array:  # fmt: skip
        """The same tokens [B, n, d] of n bins of each row, from dense counts: of bins that are drawn, not read.

        batch: what they are drawn in, a window a row.
        """
        table, genes_BxG = head_table_Gxr if self.tied else self.gene_table[...], batch.measured_gene_BxWxG[:, 0]
        with jax.named_scope("gene_head"):
            held, total = dense_content(table, jax.nn.softmax(gene_bias_G), counts_BxnxG, genes_BxG, dtype)
        token = self._content(held[:, None], total[:, None], size_um_Bxn[:, None], measured_Bxn[:, None])
        return (token + self._of_depth(batch, gene_bias_G, self.content_depth, dtype)[:, :1])[:, 0] + query_Bxnxd

    def _content(self, held_BxTxNxr, total_BxTxN, size_um_BxTxN, measured_BxTxN) -> jax.Array:
        area_um2 = size_um_BxTxN * size_um_BxTxN * jnp.maximum(measured_BxTxN, 0.05)
        density = jnp.log((total_BxTxN + 0.5) / area_um2)
        place = jnp.stack([density, self._log_size(size_um_BxTxN)], -1).astype(held_BxTxNxr.dtype)
        return project("btnr,rd->btnd", held_BxTxNxr, self.content_in[...]) + project(
            "btnf,fd->btnd", place, self.content_total[...]
        )

    def _log_size(self, size_um: jax.Array) -> jax.Array:
        return jnp.log((size_um if self.only_um is None else jnp.full_like(size_um, self.only_um)) / 36.0)

    def near(self, content_BxQxd: jax.Array, near_BxNxV: jax.Array, weight_BxNxV: jax.Array) -> jax.Array:
        """What N queries know at once of contents around them, [B, N, d]: a mean that fewer of them say less in.

        near: slots among the Q contents; weight: 0 of those that are not written.
        """
        known_BxN = weight_BxNxV.sum(-1)
        weight_BxNxV = weight_BxNxV / (known_BxN + 1)[..., None]
        mean_BxNxd = weighted_means(content_BxQxd, near_BxNxV, weight_BxNxV)
        share = (known_BxN / (known_BxN + 1))[..., None] * self.near_known[...]
        return project("bnd,de->bne", mean_BxNxd, self.near_in[...]) + share.astype(mean_BxNxd.dtype)

    def _of_depth(self, batch: Batch, gene_bias_G: jax.Array, weight_2xd: nnx.Param, dtype: jnp.dtype) -> jax.Array:
        """What every token of a tile holds of how deep its section was measured [B, T, 1, d]; 0 where it is not told.

        A section that measured a part of the panel is as deep as its density over that part's share says.
        """
        share_BxW = jnp.where(batch.measured_gene_BxWxG, jax.nn.softmax(gene_bias_G), 0.0).sum(-1)
        log_depth_BxW = batch.log_depth_BxW - jnp.log(jnp.maximum(share_BxW, 1e-9))
        told_BxW = jnp.isfinite(log_depth_BxW)
        standard_BxW = jnp.where(told_BxW, (log_depth_BxW - self.depth_mean[...]) / self.depth_scale[...], 0.0)
        known_BxWx2 = jnp.stack([told_BxW.astype(jnp.float32), jnp.clip(standard_BxW, -4.0, 4.0)], -1)
        known_BxWx2 = jax.lax.stop_gradient(known_BxWx2).astype(dtype)
        known_BxTx2 = jnp.take_along_axis(known_BxWx2, batch.window_BxT[:, :, None], axis=1)
        return project("btf,fd->btd", known_BxTx2, weight_2xd[...])[:, :, None]

    def query(self, batch: Batch, he_BxTxPxd: jax.Array, gene_bias_G: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Query tokens [B, T, N, d]: the bin's size, the mean of the H&E tokens under it, and the depth if told."""
        B, T, P, d = he_BxTxPxd.shape
        patch, share = batch.pool_patch_BxTxNxM, batch.pool_weight_BxTxNxM
        of_bins = (x.reshape(B, -1, x.shape[-1]) for x in (patch, share))
        under = weighted_means(he_BxTxPxd.reshape(B, T * P, d), *of_bins).reshape(*patch.shape[:3], d)
        under = project("btnd,de->btne", rms_norm(under, self.query_norm[...]), self.query_he[...])
        size = self._log_size(batch.bin_size_um_BxTxN)
        place = jnp.stack([jnp.ones_like(size), size], -1).astype(dtype)
        token = under + project("btnf,fd->btnd", place, self.query_size[...])
        return token + self._of_depth(batch, gene_bias_G, self.query_depth, dtype)

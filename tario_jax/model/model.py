"""The model: encoders, decoder, gene head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.bin_encoder import BinEncoder
from tario_jax.model.declare import constant, rms_norm, statistic, weight
from tario_jax.model.decoder import Decoder, compute_dtype
from tario_jax.model.he_encoder import HEEncoder
from tario_jax.model.streams import Visibility, context_ranks, side_by_side
from tario_jax.model.width import Growth
from tario_jax.ops.attention.tiles import Tiles
from tario_jax.ops.count_likelihood import SparseCounts, count_nll, log_rates
from tario_jax.ops.products import dot
from tario_jax.ops.project import project
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility
from tario_jax.tokens.batch import Batch


class Predicted(NamedTuple):
    """What the decoder says of each bin before the gene axis is opened; Q = T·N bin slots of a row."""

    gene_BxQxr: jax.Array
    log_total_BxQ: jax.Array


class Given(NamedTuple):
    """What is known beside the H&E, or in its place, where that differs from what training's rule says."""

    read_step_BxTxN: jax.Array  # int32: a query sees contents up to this group; in training those before its own
    content_gene_BxWxG: jax.Array  # bool: genes that contents tell of; in training all that the window measured
    he_seen_B: jax.Array  # bool: rows whose H&E is known; of the others neither tokens nor queries hold any of it


class Loss(NamedTuple):
    """Sums over the bins of a batch, float32 scalars: those of its parts add up to those of the whole.

    First: bins of the first group of every sequence, predicted from the H&E alone. Last: bins of the last group of each
    sequence that was written in more than one, predicted from nearly all the others.
    """

    total_nats: jax.Array
    gene_nats: jax.Array
    z_nats: jax.Array  # 0 without z-loss
    detections: jax.Array
    first_nats: jax.Array  # total and gene
    first_detections: jax.Array
    last_nats: jax.Array
    last_detections: jax.Array

    @property
    def objective(self) -> jax.Array:
        """What training brings down, and the only thing to differentiate where there is a z-loss."""
        return self.total_nats + self.gene_nats + self.z_nats


class Tario(nnx.Module):
    """H&E and contents of bins in, rates of every gene in every queried bin out."""

    def __init__(self, config: ModelConfig, genes_padded: int, patch_px: int, *, content: bool, rngs: nnx.Rngs,
                 frozen: int = 0, only_um: float | None = None):  # fmt: skip
        """genes_padded: padded length of the panel; content: whether bins are ever read (False: one-shot only);
        frozen: length of stored features of H&E patches; only_um: side of all bins of training, as `BinEncoder`'s."""
        d, r = config.width, config.gene_dim
        self.config, self.reads_content = config, content
        grown = Growth.of(config)
        self.he_encoder = HEEncoder(config, patch_px, rngs, frozen)
        self.bin_encoder = BinEncoder(config, genes_padded, rngs, content=content, only_um=only_um)
        self.decoder = Decoder(config, rngs)
        self.head_norm = constant((d,), ("vector",), 1.0)
        self.gene_in = weight(rngs, (d, r), ("hidden", "stem"), d, gain=0.0 if config.zero_read_out else 1.0,
                              grown=grown.width, output=grown.gene_dim == 1)  # fmt: skip
        # input of the contents too: its entries are those of the base, and gene_gain stands before the logits
        self.gene_table = weight(rngs, (genes_padded, r), ("genes", "gene_dim"), r / grown.gene_dim, gain=0.5)
        self.gene_gain = 1 / grown.gene_dim
        self.gene_bias = constant((genes_padded,), ("gene_bias",), 0.0)
        self.total_weight = weight(rngs, (d,), ("vector",), d, gain=0.1, grown=grown.width, output=True)
        self.total_bias = constant((), (), 0.0)  # log detections per µm²
        if config.total_likelihood == "negative_binomial":
            self.total_log_size = constant((), (), 2.0)  # log r: totals vary by mu + mu² / r
        if config.rare_gene_weight:
            self.gene_weight = statistic((genes_padded,), 1.0)

    def __call__(self, batch: Batch, given: Given | None = None) -> Predicted:
        """Every bin slot of the batch, predicted from what its query may see; given: as in training by default."""
        he_BxTxPxd, queries = self.encoded(batch, given)
        B, T, N, d = queries.shape
        tokens, places = [he_BxTxPxd], [batch.patch_xy_um_BxTxPx2]
        if self.reads_content:
            content, queries = self.with_contents(batch, queries, given)
            tokens.append(content)
            places.append(batch.bin_xy_um_BxTxNx2)
        # by modality, tile by tile within: blocks of attention hold one modality, whatever their size
        seen, seen_xy = (side_by_side(context_ranks(), *(x.reshape(B, -1, x.shape[-1]) for x in parts))
                         for parts in (tokens, places))  # fmt: skip
        visibility = {kind: visibilities(batch, self.reads_content, local=kind == "local", given=given)
                      for kind in dict.fromkeys(self.config.pattern)}  # fmt: skip
        with jax.named_scope("decoder"):
            tiles = Tiles.of(he_BxTxPxd.shape[2], N, content=self.reads_content)
            _, queries = self.decoder(seen, queries.reshape(B, T * N, d), seen_xy,
                                      batch.bin_xy_um_BxTxNx2.reshape(B, T * N, 2), visibility, tiles)  # fmt: skip
        size_BxQ, measured_BxQ = (x.reshape(B, T * N) for x in (batch.bin_size_um_BxTxN, batch.bin_measured_BxTxN))
        return self.read_out(queries, size_BxQ, measured_BxQ)

    def with_contents(self, batch: Batch, query_BxTxNxd: jax.Array, given: Given | None = None
                      ) -> tuple[jax.Array, jax.Array]:  # fmt: skip
        """Contents of all bins, and the queries with what is written around each of them, [B, T, N, d] both."""
        B, _, _, d = query_BxTxNxd.shape
        read = batch if given is None else batch._replace(measured_gene_BxWxG=given.content_gene_BxWxG)
        with jax.named_scope("encoders"):
            content_BxTxNxd = self.bin_encoder.content(read, query_BxTxNxd, self.gene_table[...], self.gene_bias[...],
                                                       query_BxTxNxd.dtype)  # fmt: skip
            near_BxQxd = self.bin_encoder.near(content_BxTxNxd.reshape(B, -1, d), *near_and_known(batch, given))
        return content_BxTxNxd, query_BxTxNxd + near_BxQxd.reshape(query_BxTxNxd.shape)

    def encoded(self, batch: Batch, given: Given | None = None) -> tuple[jax.Array, jax.Array]:
        """Tokens of the H&E [B, T, P, d], and queries [B, T, N, d]."""
        if given is not None:  # a query holds the H&E under its bin: where that is unknown, its shares are 0
            shares = batch.pool_weight_BxTxNxM
            batch = batch._replace(pool_weight_BxTxNxM=jnp.where(given.he_seen_B[:, None, None, None], shares, 0))
        dtype = compute_dtype(self.config)
        with jax.named_scope("encoders"):
            he_BxTxPxd = self.he_encoder(batch, dtype)
            return he_BxTxPxd, self.bin_encoder.query(batch, he_BxTxPxd, self.gene_bias[...], dtype)

    def read_out(self, queries_BxQxd: jax.Array, size_um_BxQ: jax.Array, measured_BxQ: jax.Array) -> Predicted:
        """What queries say after all layers, of bins of this side of which this share is measured."""
        with jax.named_scope("gene_head"):
            h = rms_norm(queries_BxQxd, self.head_norm[...])
            log_density = dot("bqd,d->bq", h.astype(jnp.float32), self.total_weight[...]) + self.total_bias[...]
            log_total = log_density + jnp.log(size_um_BxQ**2 * jnp.maximum(measured_BxQ, 1e-3))
            gene = project("bqd,dr->bqr", h, self.gene_in[...])
            return Predicted(gene if self.gene_gain == 1 else gene * self.gene_gain, log_total)

    def loss(self, batch: Batch, z_loss: float = 0.0, *, as_trained: bool = False) -> Loss:
        """Negative log-likelihood of the batch's counts, Poisson and every detection alike: what runs are compared by.

        z_loss: weight of each detection's log²Z (`count_nll`); as_trained: with the model's likelihood of totals and
        its weights of genes, which is what training minimises.
        """
        predicted = self(batch)
        B, T, N = batch.bin_step_BxTxN.shape
        counts = SparseCounts(batch.count_bin_BxC, batch.count_gene_BxC, batch.count_BxC)
        # log_total is that of the whole panel: a window that measured a part of it can hold that part's share only
        frequency_G = jax.lax.stop_gradient(jax.nn.softmax(self.gene_bias[...]))
        measured_BxW = jnp.where(batch.measured_gene_BxWxG, frequency_G, 0.0).sum(-1)
        measured_BxQ = jnp.take_along_axis(measured_BxW, _window_of_bin(batch), axis=1)
        log_total_BxQ = predicted.log_total_BxQ + jnp.log(jnp.maximum(measured_BxQ, 1e-9))
        with jax.named_scope("gene_head"):
            nll = count_nll(
                predicted.gene_BxQxr, self.gene_table[...], self.gene_bias[...], log_total_BxQ, counts,
                batch.bin_measured_BxTxN.reshape(B, T * N) > 0, batch.measured_gene_BxWxG, _window_of_bin(batch),
                chunk=self.config.loss_chunk, gene_chunk=self.config.loss_gene_chunk, z_loss=z_loss,
                group_of_bin_BxN=_first_or_last(batch), groups=2,
                log_size=getattr(self, "total_log_size", None) if as_trained else None,
                gene_weight_G=getattr(self, "gene_weight", None) if as_trained else None,
            )  # fmt: skip
        (first, last), (first_detections, last_detections) = nll.group_nats_K, nll.group_detections_K
        return Loss(nll.total_nats, nll.gene_nats, nll.z_nats, nll.detections, first, first_detections,
                    last, last_detections)  # fmt: skip

    def rates(self, batch: Batch, given: Given | None = None) -> jax.Array:
        """Expected detections in every bin slot, float32 [B, T·N, G]; 0 for genes that the window does not measure.

        Those that it does share the total of the whole panel, of which `loss` takes their part: ask with the whole one.
        """
        return self.rates_of(self(batch, given), batch.measured_gene_BxWxG, _window_of_bin(batch))

    def rates_of(self, predicted: Predicted, measured_gene_BxWxG: jax.Array, window_BxQ: jax.Array) -> jax.Array:
        """Expected detections [B, Q, G] of Q bins that are predicted; window: that each of them belongs to."""
        return jnp.exp(log_rates(predicted.gene_BxQxr, self.gene_table[...], self.gene_bias[...],
                                 predicted.log_total_BxQ, measured_gene_BxWxG, window_BxQ))  # fmt: skip


def near_and_known(batch: Batch, given: Given | None = None) -> tuple[jax.Array, jax.Array]:
    """Slots [B, T·N, V] of the bins around each bin, and their weights, 0 of those whose content it may not see."""
    B, T, N, V = batch.near_bin_BxTxNxV.shape
    near_BxQxV, weight_BxQxV = (x.reshape(B, T * N, V) for x in (batch.near_bin_BxTxNxV, batch.near_weight_BxTxNxV))
    step_BxQ = batch.bin_step_BxTxN.reshape(B, T * N)
    read_BxQ = step_BxQ - 1 if given is None else given.read_step_BxTxN.reshape(B, T * N)
    step_BxQxV = jnp.take_along_axis(step_BxQ[:, None], near_BxQxV.reshape(B, 1, -1), 2).reshape(B, T * N, V)
    return near_BxQxV, jnp.where(step_BxQxV <= read_BxQ[..., None], weight_BxQxV, 0)


def _window_of_bin(batch: Batch) -> jax.Array:
    """Window of the row that each bin slot belongs to, int32 [B, T·N]."""
    return jnp.repeat(batch.window_BxT, batch.bin_step_BxTxN.shape[2], axis=1)


def _first_or_last(batch: Batch) -> jax.Array:
    """0 for bins of the first group of their sequence, 1 for those of its last of several, −1 for others; [B, T·N].

    What it says of padding is of no effect.
    """
    B, T, N = batch.bin_step_BxTxN.shape
    step_BxTxN = jnp.where(batch.bin_measured_BxTxN > 0, batch.bin_step_BxTxN, 0)
    sequences = batch.measured_gene_BxWxG.shape[1]  # at most one a window
    is_of_BxTxS = batch.segment_BxT[:, :, None] == jnp.arange(sequences)
    last_BxS = jnp.where(is_of_BxTxS, step_BxTxN.max(2)[:, :, None], 0).max(1)  # over all of its tiles, wherever
    last_BxT = jnp.where(is_of_BxTxS, last_BxS[:, None], 0).max(2)
    is_last_BxTxN = step_BxTxN == last_BxT[:, :, None]
    return jnp.where(step_BxTxN == 1, 0, jnp.where(is_last_BxTxN, 1, -1)).reshape(B, T * N)


def visibilities(batch: Batch, content: bool, *, local: bool, given: Given | None = None) -> Visibility:
    """The three integers of all tokens: seen ones (H&E, then contents, tile by tile on each rank), and queries.

    H&E reads and writes at 0; content of group s reads and writes at s; a query of group s reads at s − 1, or as given.
    Padding has segment −1. Local layers take the tile's place in the row in place of the window: numbers that rise with
    the tokens, so that a block of tokens holds a narrow range of them.
    """
    B, T, N = batch.bin_step_BxTxN.shape
    P = batch.he_BxTxPxYxXx3.shape[2]
    segment_BxT = jnp.where(batch.segment_BxT >= 0, jnp.arange(T), -1) if local else batch.segment_BxT
    he_segment = jnp.broadcast_to(segment_BxT[:, :, None], (B, T, P)).reshape(B, -1)
    read_step = batch.bin_step_BxTxN.reshape(B, -1) - 1
    if given is not None:
        he_segment = jnp.where(given.he_seen_B[:, None], he_segment, -1)
        read_step = given.read_step_BxTxN.reshape(B, -1)
    bin_segment = jnp.where(batch.bin_measured_BxTxN > 0, segment_BxT[:, :, None], -1).reshape(B, -1)
    bin_step = batch.bin_step_BxTxN.reshape(B, -1)
    segments, steps = [he_segment], [jnp.zeros_like(he_segment)]
    if content:
        segments.append(bin_segment)
        steps.append(bin_step)
    segment, step = (side_by_side(context_ranks(), *parts) for parts in (segments, steps))
    return Visibility(
        QueryVisibility(segment, step), QueryVisibility(bin_segment, read_step), KeyVisibility(segment, step)
    )

"""Generation in steps: the H&E is written once, then bins, group by group, as they are drawn.

A group is predicted from the H&E and from the contents that are written, its counts are drawn, their contents are
written, the next group is predicted from them too, and so on. What a cache of keys and values holds of a sample is what
one pass over all of it would compute (model/decoder.py). What is told of a sample are its conditional rates and its
drawn counts, neither of which is the prediction (predict/generate.py). Contents of bins that another window drew are
written before all else.

Axes: B rows (a window each), Q bin slots of a row, K groups, n bins of a group, m bins that were drawn before, G padded
gene axis, g chosen genes, r and d widths.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.model.cache import DecoderCache
from tario_jax.model.decoder import compute_dtype
from tario_jax.model.model import Predicted, Tario, near_and_known, visibilities
from tario_jax.model.streams import Visibility
from tario_jax.ops.poisson import draw_poisson
from tario_jax.tokens.batch import Batch

Draw = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""draw(key_B, rates_BxnxG, slot_Bxn): the counts [B, n, G] of the bins in these slots (−1: padding)."""


class Begun(NamedTuple):
    """A batch whose H&E is written: what all of its samples begin from."""

    cache: DecoderCache
    queries_BxQxd: jax.Array
    predicted: Predicted  # of all bins from the H&E alone


class Order(NamedTuple):
    """What a sample writes, and in which order; bins that are in neither array stay unwritten."""

    before_Bxm: jax.Array  # int32, slots of bins that were drawn already; −1 is padding
    content_Bxmxd: jax.Array  # their tokens
    slot_KxBxn: jax.Array  # int32, slots of the bins that are drawn, by group; −1 is padding
    key_B: jax.Array  # jax.random keys


class Drawn(NamedTuple):
    """A sample: of every bin slot what was said of it when its turn came; of others, from the H&E alone."""

    predicted: Predicted
    content_BxQxd: jax.Array  # tokens of the bins that are written; 0 elsewhere
    counts_BxQxg: jax.Array  # of chosen genes, as they were drawn


class Sums(NamedTuple):
    """Over samples, of by how much rates differ from those from the H&E alone, as a share of these: [B, Q, G] each."""

    share: jax.Array
    square: jax.Array

    @staticmethod
    def zero(predicted: Predicted, measured_gene_BxWxG: jax.Array) -> "Sums":
        zeros = jnp.zeros((*predicted.log_total_BxQ.shape, measured_gene_BxWxG.shape[2]), jnp.float32)
        return Sums(zeros, zeros)


def begin(model: Tario, batch: Batch) -> Begun:
    """Writes the H&E, and predicts every bin from it. batch: a window a row, nothing dealt over `context`."""
    he_BxTxPxd, queries = model.encoded(batch)
    B, T, N, d = queries.shape
    he_BxPxd = he_BxTxPxd.reshape(B, -1, d)
    patches, bins = he_BxPxd.shape[1], T * N
    batch = batch._replace(bin_step_BxTxN=jnp.ones_like(batch.bin_step_BxTxN))
    slot_BxP = jnp.broadcast_to(jnp.arange(patches), (B, patches))
    visibility = {kind: _of_he(fields, patches) for kind, fields in _whole(model, batch).items()}
    cache = DecoderCache.empty(model.config, B, patches + bins, compute_dtype(model.config))
    cache, queries_out = model.decoder.extend(
        cache, slot_BxP, he_BxPxd, queries.reshape(B, bins, d), batch.patch_xy_um_BxTxPx2.reshape(B, patches, 2),
        batch.bin_xy_um_BxTxNx2.reshape(B, bins, 2), visibility,
    )  # fmt: skip
    size_BxQ, measured_BxQ = _bins(batch)
    return Begun(cache, queries.reshape(B, bins, d), model.read_out(queries_out, size_BxQ, measured_BxQ))


def write_groups(model: Tario, batch: Batch, begun: Begun, order: Order, chosen_g: jax.Array,
                 draw: Draw | None = None) -> Drawn:  # fmt: skip
    """Draws one sample. chosen_g: positions of genes whose counts are kept; draw: Poisson counts by default."""
    draw = draw or (lambda key_B, rates_BxnxG, slot_Bxn: draw_poisson(key_B, rates_BxnxG))
    batch = batch._replace(bin_step_BxTxN=_steps(order, begun.queries_BxQxd.shape[1], batch.bin_step_BxTxN.shape))
    B, Q, d = begun.queries_BxQxd.shape
    patches = begun.cache.k_LxBxSxKxD.shape[2] - Q
    size_BxQ, measured_BxQ = _bins(batch)
    xy_BxQx2 = batch.bin_xy_um_BxTxNx2.reshape(B, Q, 2)
    visibility = _whole(model, batch)
    table, bias = model.gene_table[...], model.gene_bias[...]
    near_and_weight = near_and_known(batch)

    def one(carry, at):
        cache, written_Bxm, content_Bxmxd, sample = carry
        step, asked_Bxn = at
        near = (_taken(of_all, asked_Bxn) for of_all in near_and_weight)
        alone_Bxnxd = _taken(begun.queries_BxQxd, asked_Bxn)
        queries_Bxnxd = alone_Bxnxd + model.bin_encoder.near(sample.content_BxQxd, *near)
        cache, queries = model.decoder.extend(
            cache, jnp.where(written_Bxm < 0, -1, patches + written_Bxm), content_Bxmxd,
            queries_Bxnxd, _taken(xy_BxQx2, written_Bxm), _taken(xy_BxQx2, asked_Bxn),
            {kind: _of_group(fields, patches, written_Bxm, asked_Bxn) for kind, fields in visibility.items()},
        )  # fmt: skip
        size_Bxn, measured_Bxn = _taken(size_BxQ, asked_Bxn), _taken(measured_BxQ, asked_Bxn)
        predicted = model.read_out(queries, size_Bxn, measured_Bxn)
        rates_BxnxG = model.rates_of(predicted, batch.measured_gene_BxWxG, jnp.zeros_like(asked_Bxn))
        # a slot of padding has the rates of another bin, and would draw for nothing
        rates_BxnxG = jnp.where(asked_Bxn[:, :, None] >= 0, rates_BxnxG, 0)
        counts_BxnxG = draw(jax.vmap(jax.random.fold_in, (0, None))(order.key_B, step), rates_BxnxG, asked_Bxn)
        content_Bxnxd = model.bin_encoder.content_of(
            batch, alone_Bxnxd, counts_BxnxG, size_Bxn, measured_Bxn, table, bias,
            content_Bxmxd.dtype,
        )  # fmt: skip
        new = Drawn(predicted, content_Bxnxd, counts_BxnxG[:, :, chosen_g])
        sample = jax.tree.map(lambda kept, new: _put(kept, asked_Bxn, new), sample, new)
        return (cache, asked_Bxn, content_Bxnxd, sample), None

    dtype = begun.queries_BxQxd.dtype
    sample = Drawn(begun.predicted, jnp.zeros((B, Q, d), dtype), jnp.zeros((B, Q, len(chosen_g)), jnp.float32))
    before_Bxmxd = order.content_Bxmxd.astype(dtype)
    sample = sample._replace(content_BxQxd=_put(sample.content_BxQxd, order.before_Bxm, before_Bxmxd))
    first = begun.cache, order.before_Bxm, before_Bxmxd, sample
    (cache, written, content, sample), _ = one(first, (0, order.slot_KxBxn[0]))
    steps = jnp.arange(1, len(order.slot_KxBxn))
    (_, _, _, sample), _ = jax.lax.scan(one, (cache, written, content, sample), (steps, order.slot_KxBxn[1:]))
    return sample


def add_samples(model: Tario, batch: Batch, begun: Begun, window_R: jax.Array, order: Order, chosen_g: jax.Array,
                sums: Sums) -> tuple[Sums, jax.Array, Drawn]:  # fmt: skip
    """Draws R samples, each of a window of the batch, and adds their rates to the sums of their windows.

    window_R: int32, rows of the batch; the rows of `order` are those of the samples. Returns the sums, of the chosen
    genes the rates as a share of those from the H&E alone [R, Q, g], and the samples.
    """
    batch, begun = jax.tree.map(lambda x: x[window_R], batch), _of_rows(begun, window_R)
    drawn = write_groups(model, batch, begun, order, chosen_g)
    rates_RxQxG, alone_RxQxG = (_rates(model, batch, what) for what in (drawn.predicted, begun.predicted))
    share_RxQxG = jnp.where(alone_RxQxG > 0, rates_RxQxG / jnp.maximum(alone_RxQxG, 1e-30) - 1, 0)
    sums = Sums(sums.share.at[window_R].add(share_RxQxG), sums.square.at[window_R].add(share_RxQxG**2))
    return sums, 1 + share_RxQxG[:, :, chosen_g], drawn


def _of_rows(begun: Begun, row_R: jax.Array) -> Begun:
    cache, at_row = begun.cache, lambda x: x[row_R]
    kept = DecoderCache(cache.k_LxBxSxKxD[:, row_R], cache.v_LxBxSxKxD[:, row_R],
                        jax.tree.map(at_row, cache.visibility))  # fmt: skip
    return Begun(kept, at_row(begun.queries_BxQxd), jax.tree.map(at_row, begun.predicted))


def averaged(sums: Sums, samples: int) -> tuple[jax.Array, jax.Array]:
    """Mean over samples of the rates as a share of those from the H&E alone, and its variance between samples (0 for
    one sample), [B, Q, G] each."""
    mean = sums.share / samples
    between = (sums.square - samples * mean**2) / max(samples - 1, 1)
    return 1 + mean, jnp.maximum(between, 0)


def _steps(order: Order, slots: int, shape: tuple[int, ...]) -> jax.Array:
    """The step of writing of every bin slot [B, T, N]: 1 of what was drawn before, from 2 on of the groups."""
    K, B, _ = order.slot_KxBxn.shape
    step_BxQ = jnp.full((B, slots), K + 2, jnp.int32)
    step_BxQ = _put(step_BxQ, order.before_Bxm, jnp.ones_like(order.before_Bxm))
    step_K = jnp.broadcast_to(jnp.arange(2, K + 2, dtype=jnp.int32)[:, None, None], order.slot_KxBxn.shape)
    slot_BxKn, step_BxKn = (jnp.moveaxis(x, 0, 1).reshape(B, -1) for x in (order.slot_KxBxn, step_K))
    step_BxQ = _put(step_BxQ, slot_BxKn, step_BxKn)
    return step_BxQ.reshape(shape)


def _rates(model: Tario, batch: Batch, predicted: Predicted) -> jax.Array:
    return model.rates_of(predicted, batch.measured_gene_BxWxG, jnp.zeros(predicted.log_total_BxQ.shape, jnp.int32))


def _bins(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Side and measured share of each bin slot, [B, Q]."""
    rows = len(batch.bin_size_um_BxTxN)
    return batch.bin_size_um_BxTxN.reshape(rows, -1), batch.bin_measured_BxTxN.reshape(rows, -1)


def _whole(model: Tario, batch: Batch) -> dict[str, Visibility]:
    """Of all tokens that are ever written, H&E and then contents, and of all queries, for each kind of layer."""
    return {kind: visibilities(batch, True, local=kind == "local") for kind in dict.fromkeys(model.config.pattern)}


def _of_he(fields: Visibility, patches: int) -> Visibility:
    """With the H&E as the only tokens that are written."""
    seen, keys = (jax.tree.map(lambda x: x[:, :patches], part) for part in (fields.seen, fields.keys))
    return Visibility(seen, fields.queries, keys)


def _of_group(fields: Visibility, patches: int, written_Bxn: jax.Array, asked_Bxn: jax.Array) -> Visibility:
    """With the contents that are written, and the queries that are asked; those of padding are in no segment."""

    def taken(field, slot_Bxn, first):
        segment_BxS, *steps = field
        segment_Bxn = jnp.where(slot_Bxn < 0, -1, _taken(segment_BxS[:, first:], slot_Bxn))
        return type(field)(segment_Bxn, *(_taken(step_BxS[:, first:], slot_Bxn) for step_BxS in steps))

    return Visibility(taken(fields.seen, written_Bxn, patches), taken(fields.queries, asked_Bxn, 0),
                      taken(fields.keys, written_Bxn, patches))  # fmt: skip


def _taken(x_BxQx___: jax.Array, slot_Bxn: jax.Array) -> jax.Array:
    """What lies in these slots; for padding, whatever lies in the first."""
    return jax.vmap(lambda x_Qx___, slot_n: x_Qx___[slot_n])(x_BxQx___, jnp.maximum(slot_Bxn, 0))


def _put(x_BxQx___: jax.Array, slot_Bxn: jax.Array, new_Bxnx___: jax.Array) -> jax.Array:
    """With the new values in these slots; those of padding are dropped."""

    def of_row(x_Qx___, slot_n, new_nx___):
        return x_Qx___.at[jnp.where(slot_n < 0, len(x_Qx___), slot_n)].set(new_nx___, mode="drop")

    return jax.vmap(of_row)(x_BxQx___, slot_Bxn, new_Bxnx___)

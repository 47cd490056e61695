"""Generation in K steps: the H&E is written once, then the bins, group by group, as they are drawn.

Group 1 is predicted from the H&E alone, its counts are drawn, their contents are written, group 2 is predicted from
them too, and so on. What a cache of keys and values holds of a sample is what one pass over all of it would compute
(model/decoder.py). The prediction is what is said of each bin, its conditional rates, never the drawn counts.

Axes: B rows (a window each), Q bin slots of a row, K groups, n bins of a group, G padded gene axis, g chosen genes,
r and d widths.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.model.cache import DecoderCache
from tario_jax.model.decoder import compute_dtype
from tario_jax.model.model import Predicted, Tario, visibilities
from tario_jax.model.streams import Visibility
from tario_jax.ops.poisson import draw_poisson
from tario_jax.tokens.batch import Batch

_LEVEL_SHARE = 1 / 8  # of the bins of a window: a level is estimated from at least so many

Draw = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""draw(key_B, rates_BxnxG, slot_Bxn): the counts [B, n, G] of the bins in these slots (−1: padding)."""


class Begun(NamedTuple):
    """A batch whose H&E is written: what all of its samples begin from."""

    cache: DecoderCache
    queries_BxQxd: jax.Array
    said: Predicted  # of all bins from the H&E alone


class Order(NamedTuple):
    """In which order a sample writes the bins, and what it draws from."""

    step_BxQ: jax.Array  # int32, the group of each bin slot, 1 … K
    slot_KxBxn: jax.Array  # int32, the slots of each group; −1 is padding
    key_B: jax.Array  # jax.random keys


class Sums(NamedTuple):
    """Over samples, of the rates' differences from those from the H&E alone: [B, Q, G] each.

    Differences, since squares of whole rates would lose in float32 what samples differ by.
    """

    difference: jax.Array
    square: jax.Array

    @staticmethod
    def zero(said: Predicted, measured_gene_BxWxG: jax.Array) -> "Sums":
        zeros = jnp.zeros((*said.log_total_BxQ.shape, measured_gene_BxWxG.shape[2]), jnp.float32)
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
                 draw: Draw | None = None) -> tuple[Predicted, jax.Array]:  # fmt: skip
    """What is said of every bin when its group's turn comes, and the counts [B, Q, g] that were drawn of some genes.

    chosen_g: positions of those genes; draw: Poisson counts with the rates by default.
    """
    draw = draw or (lambda key_B, rates_BxnxG, slot_Bxn: draw_poisson(key_B, rates_BxnxG))
    batch = batch._replace(bin_step_BxTxN=order.step_BxQ.reshape(batch.bin_step_BxTxN.shape))
    B, Q, _ = begun.queries_BxQxd.shape
    patches = begun.cache.k_LxBxSxKxD.shape[2] - Q
    size_BxQ, measured_BxQ = _bins(batch)
    xy_BxQx2 = batch.bin_xy_um_BxTxNx2.reshape(B, Q, 2)
    visibility = _whole(model, batch)
    genes_BxG = batch.measured_gene_BxWxG[:, 0]
    table, bias = model.gene_table[...], model.gene_bias[...]

    def drawn(step, said: Predicted, slot_Bxn):
        said = Predicted(_taken(said.gene_BxQxr, slot_Bxn), _taken(said.log_total_BxQ, slot_Bxn))
        rates_BxnxG = model.rates_said(said, batch.measured_gene_BxWxG, jnp.zeros_like(slot_Bxn))
        # a slot of padding has the rates of another bin, and would draw for nothing
        rates_BxnxG = jnp.where(slot_Bxn[:, :, None] >= 0, rates_BxnxG, 0)
        return draw(jax.vmap(jax.random.fold_in, (0, None))(order.key_B, step), rates_BxnxG, slot_Bxn)

    def one(carry, at):
        cache, said, counts_BxnxG, chosen_BxQxg = carry
        step, written_Bxn, asked_Bxn = at
        size_Bxn, measured_Bxn = _taken(size_BxQ, written_Bxn), _taken(measured_BxQ, written_Bxn)
        content_Bxnxd = model.bin_encoder.content_of(counts_BxnxG, genes_BxG, size_Bxn, measured_Bxn, table, bias,
                                                     begun.queries_BxQxd.dtype)  # fmt: skip
        cache, queries = model.decoder.extend(
            cache, jnp.where(written_Bxn < 0, -1, patches + written_Bxn), content_Bxnxd,
            _taken(begun.queries_BxQxd, asked_Bxn), _taken(xy_BxQx2, written_Bxn), _taken(xy_BxQx2, asked_Bxn),
            {kind: _of_group(fields, patches, written_Bxn, asked_Bxn) for kind, fields in visibility.items()},
        )  # fmt: skip
        new = model.read_out(queries, _taken(size_BxQ, asked_Bxn), _taken(measured_BxQ, asked_Bxn))
        said = jax.tree.map(lambda kept, new: _put(kept, asked_Bxn, new), said, new)
        counts_BxnxG = drawn(step, said, asked_Bxn)
        chosen_BxQxg = _put(chosen_BxQxg, asked_Bxn, counts_BxnxG[:, :, chosen_g])
        return (cache, said, counts_BxnxG, chosen_BxQxg), None

    first = order.slot_KxBxn[0]
    counts_BxnxG = drawn(0, begun.said, first)
    chosen_BxQxg = jnp.zeros((B, Q, len(chosen_g)), counts_BxnxG.dtype)
    chosen_BxQxg = _put(chosen_BxQxg, first, counts_BxnxG[:, :, chosen_g])
    if len(order.slot_KxBxn) == 1:  # nothing is written, and a model that reads no contents has no encoder for them
        return begun.said, chosen_BxQxg
    carry = begun.cache, begun.said, counts_BxnxG, chosen_BxQxg
    steps = jnp.arange(1, len(order.slot_KxBxn))
    (_, said, _, chosen_BxQxg), _ = jax.lax.scan(one, carry, (steps, order.slot_KxBxn[:-1], order.slot_KxBxn[1:]))
    return said, chosen_BxQxg


def detection_levels(log_total_BxQ: jax.Array, alone_BxQ: jax.Array, step_BxQ: jax.Array, valid_BxQ: jax.Array,
                     groups: int) -> jax.Array:  # fmt: skip
    """Log of the level of detection that a sample has come to believe in where it writes each bin, [B, Q].

    The H&E does not show how much of the RNA an assay finds of a patient: from it alone the model says the mean over
    patients; from contents it reads a level, and in a sample these are drawn, so the level is no patient's, and it
    drifts. The level of a group is its predicted total relative to that from the H&E alone (`alone`, logs both) over
    the same bins. Small groups are estimated with their neighbours in the order of writing, an eighth of the window
    together: of one bin alone nothing but the H&E's total would be left. The first group has level 1, as it read none.
    """
    reach = max(0, math.ceil((groups * _LEVEL_SHARE - 1) / 2))
    group_K = jnp.arange(1, groups + 1)
    middle_K = jnp.where(group_K > 1, jnp.clip(group_K, 2 + reach, groups - reach), 1)
    near_KxK = (jnp.abs(group_K - middle_K[:, None]) <= reach) & ((group_K > 1) == (group_K > 1)[:, None])

    def near(log_BxQ):
        total_BxQ = jnp.where(valid_BxQ, jnp.exp(log_BxQ), 0)
        total_BxK = jax.vmap(lambda step_Q, total_Q: jnp.zeros(groups).at[step_Q - 1].add(total_Q))(step_BxQ, total_BxQ)
        return total_BxK @ near_KxK.T

    total_BxK, alone_BxK = near(log_total_BxQ), near(alone_BxQ)
    level_BxK = jnp.where((alone_BxK > 0) & (total_BxK > 0), jnp.log(total_BxK) - jnp.log(alone_BxK), 0)
    return jnp.take_along_axis(level_BxK, step_BxQ - 1, axis=1)


def add_sample(model: Tario, batch: Batch, begun: Begun, order: Order, chosen_g: jax.Array,
               sums: Sums) -> tuple[Sums, jax.Array, jax.Array]:  # fmt: skip
    """Draws one sample and adds its rates, at the level from the H&E alone, to the sums.

    Returns those, and of the chosen genes its rates and its counts [B, Q, g] (counts as drawn, level and all).
    """
    said, counts_BxQxg = write_groups(model, batch, begun, order, chosen_g)
    valid_BxQ = batch.bin_measured_BxTxN.reshape(order.step_BxQ.shape) > 0
    level_BxQ = detection_levels(said.log_total_BxQ, begun.said.log_total_BxQ, order.step_BxQ, valid_BxQ,
                                 len(order.slot_KxBxn))  # fmt: skip
    said = said._replace(log_total_BxQ=said.log_total_BxQ - level_BxQ)
    rates_BxQxG, alone_BxQxG = (_rates(model, batch, what) for what in (said, begun.said))
    difference = rates_BxQxG - alone_BxQxG
    return Sums(sums.difference + difference, sums.square + difference**2), rates_BxQxG[:, :, chosen_g], counts_BxQxg


def averaged(model: Tario, batch: Batch, begun: Begun, sums: Sums, samples: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean over samples of the rates, and their variance between samples (0 for one sample), [B, Q, G] each."""
    mean = sums.difference / samples
    between = (sums.square - samples * mean**2) / jnp.maximum(samples - 1, 1)
    return _rates(model, batch, begun.said) + mean, jnp.maximum(between, 0)


def _rates(model: Tario, batch: Batch, said: Predicted) -> jax.Array:
    return model.rates_said(said, batch.measured_gene_BxWxG, jnp.zeros(said.log_total_BxQ.shape, jnp.int32))


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

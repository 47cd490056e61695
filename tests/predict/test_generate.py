"""Generation in steps: it is the model's own, averages rates, is of the whole section, and depends on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_reader import data_of, made_reader
from refusals import refused
from tiny_tissue import PANEL

import tario_jax
from tario_jax.model.generation import Order, begin, write_groups
from tario_jax.model.model import Tario
from tario_jax.predict import writing
from tario_jax.predict.generate import Steps, generate_section
from tario_jax.tokens.batch import tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window

ALL = np.arange(len(PANEL))


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run)


@pytest.fixture(scope="module")
def section(tiny_corpus):
    return tiny_corpus.section("F1")


def generated(predictor, section, steps, **more):
    return generate_section(predictor, section, steps, tissue="virtual", **more)


def written_batch(predictor, section, groups):
    """Two windows of measured tissue, written in K groups, a third one of padding; and their counts, dense."""
    data = data_of(predictor, order="random", rows=3)
    layout = corpus_layout([section], data, len(PANEL))
    windows = [read_window(section, *corner, data) for corner in ((0.0, 0.0), (100.0, 60.0))]
    rngs = [[np.random.default_rng(row)] for row in range(3)]
    batch = tokenise([[window] for window in windows] + [[]], data, layout, np.full((3, 1), groups), rngs)
    bins = layout.tiles * layout.bins_per_tile
    counts_BxQxG = np.zeros((3, bins, layout.genes_padded), np.float32)
    row, entry = np.nonzero(batch.count_bin_BxC >= 0)
    at = row, batch.count_bin_BxC[row, entry], batch.count_gene_BxC[row, entry]
    np.add.at(counts_BxQxG, at, batch.count_BxC[row, entry])
    return batch, counts_BxQxG


def slots_of(batch, step):
    """Slots of the bins of a group, [B, n]; −1 is padding, of which each row has some."""
    valid_BxQ = batch.bin_measured_BxTxN.reshape(len(batch.bin_step_BxTxN), -1) > 0
    found = [np.flatnonzero((steps == step) & valid) for steps, valid in
             zip(batch.bin_step_BxTxN.reshape(valid_BxQ.shape), valid_BxQ, strict=True)]  # fmt: skip
    slot_Bxn = np.full((len(found), 1 + valid_BxQ.shape[1] // 4), -1, np.int32)
    for row, slots in enumerate(found):
        slot_Bxn[row, : len(slots)] = slots
    return slot_Bxn


@pytest.mark.parametrize("pattern", [pytest.param(("global",), marks=pytest.mark.slow), ("local", "global")])
def test_with_true_contents_it_is_one_pass_over_everything(tiny_run, section, pattern):
    """Group 1 was drawn before, by other windows; groups 2 to 4 are drawn, and come out as they were measured."""
    predictor = made_reader(tiny_run, model={"pattern": pattern})
    batch, counts_BxQxG = written_batch(predictor, section, 4)
    batch = batch._replace(log_depth_BxW=np.full((3, 1), -1.0, np.float32))
    valid = batch.bin_measured_BxTxN.reshape(3, -1) > 0
    before_Bxm, slot_KxBxn = slots_of(batch, 1), np.stack([slots_of(batch, step) for step in (2, 3, 4)])

    def forced(model, batch, counts_BxQxG):
        def draw(key_B, rates_BxnxG, slot_Bxn):
            return jnp.take_along_axis(counts_BxQxG, jnp.maximum(slot_Bxn, 0)[:, :, None], 1)

        ones_Bxm, tables = jnp.ones(before_Bxm.shape), (model.gene_table[...], model.gene_bias[...])
        begun = begin(model, batch)
        query_Bxmxd = jnp.take_along_axis(begun.queries_BxQxd, jnp.maximum(before_Bxm, 0)[:, :, None], 1)
        content_Bxmxd = model.bin_encoder.content_of(batch, query_Bxmxd, draw(None, None, before_Bxm),
                                                     18.0 * ones_Bxm, ones_Bxm, *tables, jnp.float32)  # fmt: skip
        order = Order(before_Bxm, content_Bxmxd, slot_KxBxn, jax.random.wrap_key_data(jnp.zeros((3, 2), jnp.uint32)))
        drawn = write_groups(model, batch, begun, order, ALL, draw)
        rates = model.rates_of(drawn.predicted, batch.measured_gene_BxWxG, jnp.zeros_like(valid, jnp.int32))
        return rates, drawn.counts_BxQxg, drawn.content_BxQxd

    rates, chosen, content = (np.asarray(x) for x in predictor.call(forced, batch, counts_BxQxG))
    later = valid & (batch.bin_step_BxTxN.reshape(3, -1) > 1)
    assert (batch.bin_measured_BxTxN[batch.bin_measured_BxTxN > 0] == 1).all()  # as the contents of group 1 say
    expected = np.asarray(predictor.call(Tario.rates, batch))
    np.testing.assert_allclose(rates[valid], expected[valid], rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(chosen[later], counts_BxQxG[later][:, ALL])
    assert (np.abs(content[valid]).max(-1) > 0).all() and (content[~valid] == 0).all()
    # contents matter: without them, bins of later groups come out otherwise
    alone = np.asarray(predictor.call(Tario.rates, batch._replace(bin_step_BxTxN=np.ones_like(batch.bin_step_BxTxN))))
    assert np.abs(alone / np.maximum(expected, 1e-9) - 1)[later][:, ALL].max() > 0.02


def test_one_step_is_one_shot(reader, section):
    expected = reader.predict_section(section, tissue="virtual")
    maps, samples = generated(reader, section, Steps(1, samples=3), genes=ALL)
    np.testing.assert_allclose(maps.rates_NxG, expected.rates_NxG, rtol=1e-4)
    assert (maps.between_NxG == 0).all() and maps.decoding == expected.decoding == "one-shot"
    assert samples.counts_SxNxg.shape == (3, len(maps.x_um_N), 12)


@pytest.mark.slow
def test_how_windows_are_batched_does_not_matter(tiny_run, reader, section):
    steps = Steps(4, samples=2, seed=1)
    expected, of_four = generated(reader, section, steps, genes=ALL)
    for rows in (1, 3):
        found, of_rows = generated(made_reader(tiny_run, rows=rows), section, steps, genes=ALL)
        np.testing.assert_allclose(found.rates_NxG, expected.rates_NxG, rtol=1e-4)
        apart, expected_apart = (np.sqrt(maps.between_NxG) / maps.rates_NxG for maps in (found, expected))
        np.testing.assert_allclose(apart, expected_apart, rtol=2e-3, atol=3e-3)
        np.testing.assert_array_equal(of_rows.counts_SxNxg, of_four.counts_SxNxg)


@pytest.mark.parametrize(
    "order",
    [*(pytest.param(order, marks=pytest.mark.slow) for order in ("raster", "hilbert")), "random", "coarse_to_fine"],
)
def test_samples_are_what_the_mean_and_the_spread_are_of(reader, section, order):
    steps = Steps(4, samples=4, order=order)
    maps, samples = generated(reader, section, steps, genes=ALL)
    rates = samples.rates_SxNxg.astype(np.float64)
    one_shot = reader.predict_section(section, tissue="virtual").rates_NxG
    np.testing.assert_allclose(maps.rates_NxG, one_shot, rtol=1e-4)
    np.testing.assert_allclose(rates.mean(0), one_shot, rtol=1e-4)
    # of which float32 keeps the deviation, as a share of the rate, to a thousandth: it is a difference of squares
    apart, expected = np.sqrt(maps.between_NxG) / maps.rates_NxG, rates.std(0, ddof=1) / rates.mean(0)
    np.testing.assert_allclose(apart, expected, rtol=5e-3, atol=1e-3)
    assert maps.between_NxG.max() > 1e-4 and order in maps.decoding
    again, _ = generated(reader, section, steps, genes=ALL)
    other, _ = generated(reader, section, dataclasses.replace(steps, seed=1), genes=ALL)
    np.testing.assert_array_equal(again.between_NxG, maps.between_NxG)
    assert np.abs(other.between_NxG / np.maximum(maps.between_NxG, 1e-12) - 1).max() > 1e-2
    assert np.abs(samples.moved_Nxg - 1).max() > 1e-3


def test_a_sample_is_of_the_whole_section(reader, section, monkeypatch):
    """Windows that overlap come in turns, each bin is drawn once, and a window is handed what others have drawn."""
    orders = []
    kept = writing.add_samples

    def seen(model, batch, begun, window_R, order, chosen_g, sums):
        jax.debug.callback(lambda *parts: orders.append(parts), order.before_Bxm, order.content_Bxmxd, order.slot_KxBxn)
        return kept(model, batch, begun, window_R, order, chosen_g, sums)

    monkeypatch.setattr(writing, "add_samples", seen)
    maps, samples = generated(reader, section, Steps(4, samples=1), genes=ALL)
    jax.effects_barrier()
    drawn = sum((slot_KxBxn >= 0).sum() for _, _, slot_KxBxn in orders)
    assert drawn == len(maps.x_um_N) and (samples.counts_SxNxg.sum(-1) > 0).mean() > 0.9
    first, *_, last = orders
    assert (first[0] == -1).all() and (last[0] >= 0).sum() > 4
    assert (np.abs(last[1][last[0] >= 0]).max(-1) > 0).all() and (last[1][last[0] < 0] == 0).all()


def test_a_sample_is_as_deep_as_one_shot_says(reader, section, monkeypatch):
    told = []
    kept = writing.begin

    def seen(model, batch):
        jax.debug.callback(lambda depth: told.append(depth), batch.log_depth_BxW)
        return kept(model, batch)

    monkeypatch.setattr(writing, "begin", seen)
    alone = reader.predict_section(section, tissue="virtual")
    generated(reader, section, Steps(4, samples=1))
    jax.effects_barrier()
    expected = np.log(alone.rates_NxG.sum(1, dtype=np.float64).mean() / alone.size_um**2)
    np.testing.assert_allclose(np.concatenate(told), expected, rtol=1e-4)


def test_counts_are_drawn_with_the_rates(reader, section):
    _, samples = generated(reader, section, Steps(1, samples=60), genes=ALL)
    rates = samples.rates_SxNxg[0].astype(np.float64)
    mean, variance = samples.counts_SxNxg.mean(0), samples.counts_SxNxg.var(0)
    z = (mean - rates) / np.sqrt(rates / 60)
    assert 0.9 < z.std() < 1.1 and abs(z.mean()) < 0.1
    assert variance.sum() / rates.sum() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_every_bin_a_step_of_its_own(reader, section):
    """K = 0, and more steps than a window has bins, are the same."""
    each, _ = generated(reader, section, Steps(0, samples=1))
    more, _ = generated(reader, section, Steps(99, samples=1))
    np.testing.assert_array_equal(each.rates_NxG, more.rates_NxG)
    assert each.between_NxG is None and np.isfinite(each.rates_NxG).all()


def test_what_cannot_be_generated_is_refused_in_a_line(tiny_run, section):
    one_shot = tario_jax.load(tiny_run)
    refused(lambda: generated(one_shot, section, Steps(4)), "trained one-shot", "data.groups = ((1, 1.0),)")
    maps, _ = generated(one_shot, section, Steps(1, samples=1))
    np.testing.assert_allclose(maps.rates_NxG, one_shot.predict_section(section, tissue="virtual").rates_NxG, rtol=1e-4)
    refused(lambda: Steps(-1), "groups is -1", "at least 0")
    refused(lambda: Steps(4, samples=0), "samples is 0", "at least 1")
    refused(lambda: Steps(4, order="spiral"), "'spiral'", "raster, hilbert")

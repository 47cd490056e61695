"""Generation in K steps: it is the model's own, averages rates, keeps to one level, and depends on nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_reader import data_of, made_reader
from refusals import refused
from tiny_tissue import PANEL

import tario_jax
from tario_jax.model.generation import Order, begin, detection_levels, write_groups
from tario_jax.model.model import Tario
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


def order_of(batch, groups):
    rows = len(batch.bin_step_BxTxN)
    step_BxQ = batch.bin_step_BxTxN.reshape(rows, -1)
    valid_BxQ = batch.bin_measured_BxTxN.reshape(rows, -1) > 0
    of_group = [[np.flatnonzero((step_BxQ[row] == k) & valid_BxQ[row]) for row in range(rows)]
                for k in range(1, groups + 1)]  # fmt: skip
    most = max(len(slots) for rows_of_group in of_group for slots in rows_of_group)
    slot_KxBxn = np.full((groups, rows, most + 1), -1, np.int32)  # one more than any needs
    for k, rows_of_group in enumerate(of_group):
        for row, slots in enumerate(rows_of_group):
            slot_KxBxn[k, row, : len(slots)] = slots
    return Order(step_BxQ, slot_KxBxn, jax.random.wrap_key_data(np.zeros((rows, 2), np.uint32)))


@pytest.mark.parametrize("pattern", [pytest.param(("global",), marks=pytest.mark.slow), ("local", "global")])
def test_with_true_contents_it_is_one_pass_over_everything(tiny_run, section, pattern):
    predictor = made_reader(tiny_run, model={"pattern": pattern})
    batch, counts_BxQxG = written_batch(predictor, section, 4)
    order, valid = order_of(batch, 4), batch.bin_measured_BxTxN.reshape(3, -1) > 0

    def forced(model, batch, order, counts_BxQxG):
        def draw(key_B, rates_BxnxG, slot_Bxn):
            return jnp.take_along_axis(counts_BxQxG, jnp.maximum(slot_Bxn, 0)[:, :, None], 1)

        said, chosen = write_groups(model, batch, begin(model, batch), order, ALL, draw)
        return model.rates_said(said, batch.measured_gene_BxWxG, jnp.zeros_like(order.step_BxQ)), chosen

    rates, chosen = predictor.call(forced, batch, order, counts_BxQxG)
    expected = np.asarray(predictor.call(Tario.rates, batch))
    np.testing.assert_allclose(np.asarray(rates)[valid], expected[valid], rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(chosen)[valid], counts_BxQxG[valid][:, ALL])
    # contents matter: without them, bins of later groups come out otherwise
    alone = np.asarray(predictor.call(Tario.rates, batch._replace(bin_step_BxTxN=np.ones_like(batch.bin_step_BxTxN))))
    later = valid & (batch.bin_step_BxTxN.reshape(3, -1) > 1)
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
        np.testing.assert_allclose(found.between_NxG, expected.between_NxG, rtol=2e-3, atol=1e-7)
        np.testing.assert_array_equal(of_rows.counts_SxNxg, of_four.counts_SxNxg)


@pytest.mark.parametrize("order", ["raster", "hilbert", "random", "coarse_to_fine"])
def test_samples_are_what_the_mean_and_the_spread_are_of(reader, section, order):
    """Windows that do not overlap: each place has one window, and nothing is blended."""
    steps = Steps(4, samples=4, order=order)
    maps, samples = generated(reader, section, steps, overlap=0.0, genes=ALL)
    inside = np.flatnonzero((maps.x_um_N < 72) & (maps.y_um_N < 72))  # the first window shares none of these
    rates = samples.rates_SxNxg[:, inside].astype(np.float64)
    np.testing.assert_allclose(maps.rates_NxG[inside], rates.mean(0), rtol=1e-4)
    np.testing.assert_allclose(maps.between_NxG[inside], rates.var(0, ddof=1), rtol=1e-2, atol=1e-7)
    assert maps.between_NxG.max() > 1e-4 and order in maps.decoding
    again, _ = generated(reader, section, steps, overlap=0.0, genes=ALL)
    other, _ = generated(reader, section, dataclasses.replace(steps, seed=1), overlap=0.0, genes=ALL)
    np.testing.assert_array_equal(again.rates_NxG, maps.rates_NxG)
    assert np.abs(other.rates_NxG / maps.rates_NxG - 1).max() > 1e-3


def test_counts_are_drawn_with_the_rates(reader, section):
    maps, samples = generated(reader, section, Steps(1, samples=60), overlap=0.0, genes=ALL)
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


def test_totals_keep_the_level_of_the_he_alone(reader, section):
    """A window's total is that from the H&E alone, in every sample and group, though the model says otherwise."""
    alone = reader.predict_section(section, tissue="virtual", overlap=0.0).rates_NxG
    maps, samples = generated(reader, section, Steps(4, samples=2), overlap=0.0, genes=ALL)
    inside = np.flatnonzero((maps.x_um_N < 72) & (maps.y_um_N < 72))
    totals = samples.rates_SxNxg[:, inside].sum(-1)
    np.testing.assert_allclose(totals.sum(1), alone[inside].sum(), rtol=1e-4)
    assert np.abs(totals / alone[inside].sum(-1) - 1).max() > 0.01  # bins within a group still differ


def level_oracle(total, alone, step, groups):
    reach = max(0, int(np.ceil((groups / 8 - 1) / 2)))
    level = np.ones(len(total))
    for group in range(2, groups + 1):
        middle = min(max(group, 2 + reach), groups - reach)
        near = (np.abs(step - middle) <= reach) & (step > 1)
        level[step == group] = total[near].sum() / alone[near].sum()
    return level


@pytest.mark.parametrize("groups", [1, 4, 64])
def test_a_level_that_drifts_is_taken_out(groups):
    """A level that changes with the groups is found again to the noise of bins; what bins differ by stays."""
    rng = np.random.default_rng(groups)
    step = rng.permutation(np.arange(256) * groups // 256) + 1
    alone, signal = rng.gamma(4, 10, 256), np.exp(0.2 * rng.standard_normal(256))
    drift = np.where(step == 1, 1.0, 1.6 * np.exp(0.3 * np.sin(np.pi * step / groups)))
    total = np.where(step == 1, alone, alone * signal * drift)
    valid = np.ones((1, 256), bool)
    logs = [np.log(x)[None].astype(np.float32) for x in (total, alone)]
    level = np.exp(np.asarray(detection_levels(*logs, step[None].astype(np.int32), valid, groups)))[0]
    np.testing.assert_allclose(level, level_oracle(total, alone, step, groups), rtol=1e-4)
    assert (level[step == 1] == 1).all()
    assert np.abs(np.log(level / drift)).max() < 0.25  # 32 bins that differ by 0.2, and the drift among them
    if groups > 1:
        left = np.log(total / level / alone)[step > 1]
        assert np.corrcoef(left, np.log(signal)[step > 1])[0, 1] > 0.95


def test_padding_has_no_part_in_a_level():
    alone = np.log(np.array([[1.0, 1.0, 1.0, 50.0]], np.float32))
    total = np.log(np.array([[1.0, 2.0, 2.0, 90.0]], np.float32))
    step, valid = np.array([[1, 2, 2, 2]], np.int32), np.array([[True, True, True, False]])
    found = np.exp(np.asarray(detection_levels(total, alone, step, valid, 2)))
    np.testing.assert_allclose(found[0, :3], [1, 2, 2], rtol=1e-5)


def test_what_cannot_be_generated_is_refused_in_a_line(tiny_run, section):
    one_shot = tario_jax.load(tiny_run)
    refused(lambda: generated(one_shot, section, Steps(4)), "trained one-shot", "data.groups = ((1, 1.0),)")
    maps, _ = generated(one_shot, section, Steps(1, samples=1))
    np.testing.assert_allclose(maps.rates_NxG, one_shot.predict_section(section, tissue="virtual").rates_NxG, rtol=1e-4)
    refused(lambda: Steps(-1), "groups is -1", "at least 0")
    refused(lambda: Steps(4, samples=0), "samples is 0", "at least 1")
    refused(lambda: Steps(4, order="spiral"), "'spiral'", "raster, hilbert")

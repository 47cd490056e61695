"""Coarse to fine over resolutions: larger bins given, or drawn first."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from made_reader import made_reader
from refusals import refused
from tiny_tissue import PANEL

from tario_jax.evaluate.decoding.section import even_shares, read_truth
from tario_jax.predict import writing
from tario_jax.predict.condition import Condition, predict_given
from tario_jax.predict.generate import Steps, generate_section
from tario_jax.predict.tissue import ImageSection

ALL = np.arange(len(PANEL))


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run, coarse_um=(72.0, 36.0))


@pytest.fixture(scope="module")
def section(tiny_corpus):
    return tiny_corpus.section("F1")


def test_what_is_predicted_from_the_image_knows_no_coarse_bins(tiny_run, reader, section):
    alone = made_reader(tiny_run, groups=((4, 1.0),)).predict_section(section, tissue="virtual")
    maps = reader.predict_section(section, tissue="virtual")
    np.testing.assert_allclose(maps.rates_NxG, alone.rates_NxG, rtol=1e-5)


def test_given_larger_bins_every_bin_is_asked(reader, tiny_corpus, section):
    """The counts that are given are those of the larger bins: other ones move the maps, the same ones do not."""
    found = predict_given(reader, tiny_corpus, section, Condition("coarse"))
    alone = reader.predict_section(section, tissue="virtual")
    assert len(found.maps.x_um_N) == len(alone.x_um_N) and found.asked_G.all()
    assert np.abs(found.maps.rates_NxG / alone.rates_NxG - 1).max() > 0.05
    again = predict_given(reader, tiny_corpus, section, Condition("coarse"))
    np.testing.assert_array_equal(again.maps.rates_NxG, found.maps.rates_NxG)
    assert "larger bins" in found.maps.decoding


def test_an_even_share_is_that_of_the_larger_bin(reader, tiny_corpus, section):
    truth = read_truth(section, tiny_corpus, reader, ALL, 18.0)
    counts_Nxg, total_N = even_shares(truth, 36.0)
    assert counts_Nxg.sum() == pytest.approx(truth.counts_Nxg.sum()) and total_N.sum() == pytest.approx(
        truth.total_N.sum()
    )
    first = (truth.x_um_N < 36.0) & (truth.y_um_N < 36.0)
    np.testing.assert_allclose(counts_Nxg[first], np.tile(truth.counts_Nxg[first].mean(0), (4, 1)))


@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_no_bin_is_drawn_before_the_larger_one_that_it_is_a_part_of(tiny_run, section, overlap):
    reader, held = made_reader(tiny_run, coarse_um=(36.0,)), []
    cover = reader.cover(section, tissue="virtual", bin_um=None, overlap=overlap, coarse=True)
    reader.blended(cover, held=held)
    plan = writing.WritingPlan(cover, held, Steps(2, order="resolutions"))
    places = cover.places
    larger_N = places.scale_N == 0
    square_N = [*zip(places.x_um_N // 36, places.y_um_N // 36, strict=True)]
    drawn_by = dict(zip(itertools.compress(square_N, larger_N), plan.window_N[larger_N], strict=True))
    assert len(plan.turns) > 1 and len(drawn_by) == larger_N.sum() == 20
    assert all(drawn_by[square] == window for square, window in zip(square_N, plan.window_N, strict=True))
    for window, placed in enumerate(held):  # who draws a bin holds it
        assert set(np.flatnonzero(plan.window_N == window)) <= set(placed.number_n)


def test_larger_bins_are_drawn_first_and_once(reader, section, monkeypatch):
    orders, kept = [], writing.add_samples

    def seen(model, batch, begun, window_R, order, chosen_g, sums):
        jax.debug.callback(lambda *parts: orders.append(parts), batch.bin_size_um_BxTxN[window_R], order.before_Bxm,
                           order.slot_KxBxn)  # fmt: skip
        return kept(model, batch, begun, window_R, order, chosen_g, sums)

    monkeypatch.setattr(writing, "add_samples", seen)
    steps = Steps(2, samples=1, order="resolutions")
    maps, samples = generate_section(reader, section, steps, tissue="virtual", genes=ALL)
    jax.effects_barrier()
    drawn = {72.0: 0, 36.0: 0, 18.0: 0}
    for size_BxTxN, _, slot_KxBxn in orders:
        size_BxQ = np.asarray(size_BxTxN).reshape(len(size_BxTxN), -1)
        for group, slot_Bxn in enumerate(np.asarray(slot_KxBxn)):
            for row, slot_n in enumerate(slot_Bxn):
                sides = size_BxQ[row][slot_n[slot_n >= 0]]
                assert set(sides) <= {(72.0, 36.0, 18.0, 18.0)[group]}
                for side in set(sides):
                    drawn[float(side)] += int((sides == side).sum())
    assert drawn == {72.0: 2 * 2, 36.0: 5 * 4, 18.0: 10 * 8} and len(maps.x_um_N) == 80
    assert samples.counts_SxNxg.shape == (1, 80, len(PANEL)) and samples.counts_SxNxg.sum() > 0
    assert "2 steps, resolutions order" in maps.decoding


def test_rates_stand_on_those_from_the_he_alone(reader, section):
    """Bins are asked before the larger ones are written: what has no content yet is not told as empty."""
    how = {"tissue": "virtual", "overlap": 0.0}  # else windows that hold whole larger bins lie otherwise
    alone = reader.predict_section(section, **how)
    maps, _ = generate_section(reader, section, Steps(2, 1, "resolutions"), **how)
    at = {place: number for number, place in enumerate(zip(alone.x_um_N, alone.y_um_N, strict=True))}
    number_N = [at[place] for place in zip(maps.x_um_N, maps.y_um_N, strict=True)]
    apart = np.abs(maps.rates_NxG / alone.rates_NxG[number_N] - 1).max(1)
    assert np.mean(apart < 1e-4) > 0.5, apart  # the others are in windows that were moved at the section's edge


@pytest.mark.slow
def test_in_one_step_of_bins_it_still_has_scales(reader, section):
    """K = 1 is not one-shot here: samples differ by what the larger bins were drawn as."""
    maps, samples = generate_section(reader, section, Steps(1, 3, "resolutions"), tissue="virtual", genes=ALL)
    np.testing.assert_allclose(samples.rates_SxNxg.mean(0), maps.rates_NxG, rtol=1e-4)
    assert maps.between_NxG.max() > 1e-4
    again, other = (
        generate_section(reader, section, dataclasses.replace(Steps(1, 3, "resolutions"), seed=seed), tissue="virtual",
                         genes=ALL)[1]
        for seed in (0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(again.counts_SxNxg, samples.counts_SxNxg)
    assert (other.counts_SxNxg != samples.counts_SxNxg).any()


def test_a_model_without_larger_bins_is_refused(tiny_run, tiny_corpus, section, reader):
    without = made_reader(tiny_run)
    how = {"tissue": "virtual"}
    message = refused(lambda: generate_section(without, section, Steps(4, order="resolutions"), **how))
    assert "knows none; train with data.coarse_um" in message
    message = refused(lambda: predict_given(without, tiny_corpus, section, Condition("coarse")))
    assert "knows none" in message
    finer = refused(lambda: generate_section(reader, section, Steps(4, order="resolutions"), bin_um=9.0, **how))
    assert "learnt with 18 µm" in finer


def test_coarse_places_are_those_that_windows_count(tiny_run):
    """Whatever share of a bin must lie on the image: every place is in some window, and none is another's."""
    for least in (0.5, 0.9):
        predictor = made_reader(tiny_run, coarse_um=(36.0,), min_measured=least)
        image = np.full((111, 161, 3), 128, np.uint8)
        section = ImageSection(image, 1.0, genes=len(PANEL))
        cover = predictor.cover(section, tissue="virtual", bin_um=None, overlap=0.5, coarse=True)
        seen_N = np.zeros(len(cover), bool)
        for windows, batch in cover.batches(4):
            for row, window in enumerate(windows):
                placed = cover.placed(batch, row, window)
                sizes = batch.bin_size_um_BxTxN[row].ravel()[placed.slot_n]
                assert (placed.number_n >= 0).all() and len(set(placed.number_n.tolist())) == len(placed.number_n)
                assert ((sizes == 36.0) == (cover.places.scale_N[placed.number_n] == 0)).all()
                seen_N[placed.number_n] = True
        assert seen_N.all()

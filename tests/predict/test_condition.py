"""Prediction from what was measured: what is given is read, what is asked is not, and what is hidden stays hidden."""

import dataclasses

import numpy as np
import pytest
from made_reader import data_of, made_reader
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

import tario_jax
from tario_jax.corpus.section import Detections
from tario_jax.model.model import Tario
from tario_jax.panel import Panel
from tario_jax.predict.condition import Condition, predict_given
from tario_jax.predict.generate import Steps
from tario_jax.tokens.batch import tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run)


def changed(data, *, where=None, genes=None, he=None):
    """The section with other detections where (x, y) is so, or of these genes, or with other pixels."""
    found = data.detections
    mine = np.ones(len(found.x_um_D), bool)
    if where is not None:
        mine &= where(found.x_um_D, found.y_um_D)
    if genes is not None:
        mine &= np.isin(found.gene_D, genes)
    if where is None and genes is None:
        mine[:] = False
    thinned = ~mine | (np.arange(len(mine)) % 3 == 0)
    kept = Detections(found.x_um_D[thinned], found.y_um_D[thinned], found.gene_D[thinned])
    return dataclasses.replace(data, detections=kept, he=data.he if he is None else he)


def predicted(reader, tmp_path, data, condition, name="c", capacity=1 << 11):
    corpus = write_corpus(tmp_path / name, [data])
    return predict_given(reader, corpus, corpus.sections[0], condition, capacity=capacity)


def checkerboard(x_um, y_um):
    return (np.floor(x_um / 18) + np.floor(y_um / 18)) % 2 == 0


def half(x_um, y_um):
    return np.floor(x_um / 36) % 2 == 0


@pytest.mark.parametrize(("bins", "is_given"), [("checkerboard", checkerboard), ("half", half)])
def test_given_bins_are_read_and_asked_ones_are_not(reader, tmp_path, bins, is_given):
    data = tiny_section("A1", "A", 0)
    found = predicted(reader, tmp_path, data, Condition(bins))
    assert not is_given(found.maps.x_um_N, found.maps.y_um_N).any() and found.asked_G.all()
    whole = reader.predict_section(write_corpus(tmp_path / "w", [data]).sections[0], tissue="virtual")
    assert len(found.maps.x_um_N) == (~is_given(whole.x_um_N, whole.y_um_N)).sum()

    asked = changed(data, where=lambda x, y: ~is_given(x, y))
    np.testing.assert_array_equal(
        predicted(reader, tmp_path, asked, Condition(bins), "asked").maps.rates_NxG,
        predicted(reader, tmp_path, data, Condition(bins), "whole").maps.rates_NxG,
    )
    given = predicted(reader, tmp_path, changed(data, where=is_given), Condition(bins), "given")
    assert np.abs(given.maps.rates_NxG / found.maps.rates_NxG - 1).max() > 2e-3
    assert "given" in found.maps.decoding


def test_it_is_one_pass_over_the_given_bins_and_then_the_rest(reader, tmp_path):
    """A section of one window, written by hand: given bins as group 1, asked ones as group 2, as training would."""
    section = write_corpus(tmp_path / "hand", [tiny_section("A1", "A", 0, width_um=72.0, height_um=72.0)]).sections[0]
    data = data_of(reader, rows=reader.rows)
    layout = corpus_layout([section], data, len(PANEL))
    empty = [[]] * (reader.rows - 1)
    batch = tokenise([[read_window(section, 0.0, 0.0, data)], *empty], data, layout, np.ones((reader.rows, 1), int),
                     [[np.random.default_rng(0)]] * reader.rows)  # fmt: skip
    asked = ~checkerboard(*np.moveaxis(batch.bin_xy_um_BxTxNx2, -1, 0))
    rates = np.asarray(reader.call(Tario.rates, batch._replace(bin_step_BxTxN=1 + asked.astype(np.int32))))[0]
    expected = dict(zip(map(tuple, batch.bin_xy_um_BxTxNx2[0].reshape(-1, 2)), rates[:, : len(PANEL)], strict=True))
    maps = predicted(reader, tmp_path, tiny_section("A1", "A", 0, width_um=72.0, height_um=72.0),
                     Condition("checkerboard")).maps  # fmt: skip
    assert len(maps.x_um_N) == 8
    for x_um, y_um, found in zip(maps.x_um_N, maps.y_um_N, maps.rates_NxG, strict=True):
        np.testing.assert_allclose(found, expected[x_um, y_um], rtol=1e-4)


def test_a_share_of_the_bins(reader, tmp_path):
    data = tiny_section("A1", "A", 0)
    few, most = (predicted(reader, tmp_path, data, Condition("random", share=share), str(share)).maps
                 for share in (0.2, 0.8))  # fmt: skip
    all_places = 80
    assert 0.65 * all_places < len(few.x_um_N) < 0.95 * all_places
    assert 0.05 * all_places < len(most.x_um_N) < 0.35 * all_places
    other = predicted(reader, tmp_path, data, Condition("random", share=0.2, seed=1), "other").maps
    assert set(zip(few.x_um_N, few.y_um_N, strict=True)) != set(zip(other.x_um_N, other.y_um_N, strict=True))


def test_a_part_of_the_panel_is_read_and_the_rest_is_not(reader, tmp_path):
    data, condition = tiny_section("A1", "A", 0), Condition("all")
    found = predicted(reader, tmp_path, data, condition)
    asked, given = np.flatnonzero(found.asked_G), np.flatnonzero(~found.asked_G)
    assert len(asked) == len(given) == 6 and len(found.maps.x_um_N) == 80
    without = predicted(reader, tmp_path, changed(data, genes=asked), condition, "asked")
    np.testing.assert_array_equal(without.maps.rates_NxG, found.maps.rates_NxG)
    fewer = predicted(reader, tmp_path, changed(data, genes=given), condition, "given")
    assert np.abs(fewer.maps.rates_NxG / found.maps.rates_NxG - 1).max() > 1e-3


@pytest.mark.parametrize("bins", ["checkerboard", "all"])
def test_without_the_he_no_pixel_matters(reader, tmp_path, bins):
    """And a section may have none."""
    data = tiny_section("A1", "A", 0)
    other = changed(data, he=np.random.default_rng(1).integers(0, 255, data.he.shape, dtype=np.uint8))
    seen = [predicted(reader, tmp_path, one, Condition(bins), f"seen{i}") for i, one in enumerate((data, other))]
    assert np.abs(seen[0].maps.rates_NxG / seen[1].maps.rates_NxG - 1).max() > 2e-3
    none = dataclasses.replace(data, he=None, he_um_per_px=None)
    hidden = [predicted(reader, tmp_path, one, Condition(bins, he=False), f"hidden{i}")
              for i, one in enumerate((data, other, none))]  # fmt: skip
    for one in hidden[1:]:
        np.testing.assert_array_equal(one.maps.rates_NxG, hidden[0].maps.rates_NxG)
    fewer = predicted(reader, tmp_path, changed(data, where=checkerboard), Condition(bins, he=False), "fewer")
    assert np.abs(fewer.maps.rates_NxG / hidden[0].maps.rates_NxG - 1).max() > 2e-3


def test_an_unmeasured_part_is_asked_and_never_given(reader, tmp_path):
    """Where nothing was imaged a bin cannot be given, whatever the pattern."""
    measured = np.ones((15, 18), bool)
    measured[:, :9] = False  # the left 90 µm
    data = changed(tiny_section("A1", "A", 0, measured=measured, measured_um_per_px=10.0), where=lambda x, y: x < 0)
    inside = data.detections.x_um_D >= 90
    kept = Detections(*(part[inside] for part in (data.detections.x_um_D, data.detections.y_um_D,
                                                  data.detections.gene_D)))  # fmt: skip
    found = predicted(reader, tmp_path, dataclasses.replace(data, detections=kept), Condition("checkerboard")).maps
    left = found.x_um_N < 90
    assert left.sum() == 5 * 8 and (~left).sum() == 20


def test_spots_are_given_as_bins_are(reader, tmp_path):
    x_um, y_um = (part.ravel() for part in np.meshgrid(np.arange(4) * 40.0 + 25, np.arange(3) * 40.0 + 25))
    data = spot_section("A1", "A", 0, x_um=x_um, y_um=y_um)
    found = predicted(reader, tmp_path, data, Condition("checkerboard")).maps
    assert len(found.x_um_N) == 6 and all(name in {f"s{i}" for i in range(12)} for name in found.names())
    assert len(set(found.names())) == 6
    hidden = Condition("checkerboard", he=False)  # of which a section has no need
    none = dataclasses.replace(data, he=None, he_um_per_px=None)
    alone = predicted(reader, tmp_path, none, hidden, "alone").maps
    assert alone.names() == found.names() and np.isfinite(alone.rates_NxG).all()


def test_genes_are_matched_by_symbol(reader, tmp_path):
    """A corpus with the panel in another order gives the same."""
    data = tiny_section("A1", "A", 0)
    expected = predicted(reader, tmp_path, data, Condition("checkerboard"))
    turned = Panel(PANEL.symbols[::-1])
    found = data.detections
    data = dataclasses.replace(data, detections=Detections(found.x_um_D, found.y_um_D, (11 - found.gene_D)))
    corpus = write_corpus(tmp_path / "turned", [data], panel=turned)
    turned = predict_given(reader, corpus, corpus.sections[0], Condition("checkerboard"))  # with a capacity of its own
    np.testing.assert_allclose(turned.maps.rates_NxG, expected.maps.rates_NxG, rtol=1e-5)


def test_what_cannot_be_given_is_refused_in_a_line(tiny_run, reader, tiny_corpus, tmp_path):
    section = tiny_corpus.section("F1")
    refused(lambda: predict_given(tario_jax.load(tiny_run), tiny_corpus, section, Condition("half")), "one-shot")
    refused(lambda: Condition("third"), "'third'", "half, checkerboard, random, all")
    refused(lambda: Condition("random", share=1.0), "share is 1")
    refused(lambda: Condition("random", seed=2**64), "seed is", "2^64")
    refused(lambda: Steps(4, seed=2**64), "seed is", "2^64")
    no_counts = dataclasses.replace(tiny_section("A1", "A", 0), detections=None, measured_gene_G=np.zeros(12, bool))
    refused(lambda: predicted(reader, tmp_path, no_counts, Condition("half"), "none"), "A1: holds no counts")
    no_he = dataclasses.replace(tiny_section("A1", "A", 0), he=None, he_um_per_px=None)
    refused(lambda: predicted(reader, tmp_path, no_he, Condition("half"), "no_he"), "has no H&E")
    small = tiny_section("A1", "A", 0, width_um=18.0, height_um=18.0, detections=9)
    refused(lambda: predicted(reader, tmp_path, small, Condition("half"), "small"), "none is left to predict")
    real = write_corpus(tmp_path / "real", [tiny_section("A1", "A", 0)], kind="real")
    refused(lambda: predict_given(reader, real, real.sections[0], Condition("half")), "real tissue")

"""batch(t) is a pure function of corpus, config, seed and t; capacities are never overrun in silence."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_tissue import PANEL, spot_section, tiny_config, tiny_section, write_corpus

from tario_jax.config import InputError
from tario_jax.config_files import to_dict
from tario_jax.corpus.section import Detections
from tario_jax.tokens import pipeline
from tario_jax.tokens.batch import Batch, empty_batch, make_layout, square_bins_per_tile, tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource, load_batches
from tario_jax.tokens.window import read_window

DATA = tiny_config(
    data={"rows": 4, "windows_per_row": 2, "groups": ((1, 1.0), (0, 1.0), (3, 2.0)), "order": "coarse_to_fine"}
).data


def same(a: Batch, b: Batch) -> bool:
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


def digest(batch: Batch) -> str:
    whole = hashlib.sha256()
    for array in batch:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def layout(tiny_corpus):
    return corpus_layout(tiny_corpus.sections, DATA, len(PANEL))


@pytest.fixture(scope="module")
def source(tiny_corpus, layout):
    return BatchSource(tiny_corpus.sections, DATA, layout, steps=12)


def test_a_batch_is_the_same_whenever_it_is_asked_for(source, tiny_corpus, layout):
    again = BatchSource(tiny_corpus.sections, DATA, layout, steps=99)
    assert same(source[7], again[7])
    assert not same(source[7], source[8])
    assert not np.array_equal(source[7].he_BxTxPxYxXx3[0], source[7].he_BxTxPxYxXx3[1])
    other_seed = BatchSource(tiny_corpus.sections, dataclasses.replace(DATA, seed=1), layout, steps=12)
    other_stream = BatchSource(tiny_corpus.sections, DATA, layout, steps=12, stream=1)
    assert not same(source[7], other_seed[7]) and not same(source[7], other_stream[7])


_PROGRAM = """
import hashlib, json, sys
from tario_jax.config import DataConfig
from tario_jax.config_files import from_dict
from tario_jax.corpus.read import Corpus
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
import numpy as np
corpus, data = Corpus.open(sys.argv[1]), from_dict(json.loads(sys.argv[2]), DataConfig)
source = BatchSource(corpus.sections, data, corpus_layout(corpus.sections, data, len(corpus.panel)), steps=12)
whole = hashlib.sha256()
for array in source[7]:
    whole.update(np.ascontiguousarray(array).tobytes())
print(whole.hexdigest())
"""


def test_another_process_makes_the_same_bits(source, tiny_corpus, repository):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tiny_corpus.root), json.dumps(to_dict(DATA))],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(source[7])


@pytest.mark.parametrize("rows", [range(0, 1), range(1, 3), range(3, 4)])
def test_a_process_that_holds_some_rows_makes_those_of_the_whole_batch(source, tiny_corpus, layout, rows):
    some = BatchSource(tiny_corpus.sections, DATA, layout, steps=12, rows=rows)[5]
    whole = source[5]
    assert same(some, Batch(*(array[rows.start : rows.stop] for array in whole)))


@pytest.mark.parametrize("first", [0, 4, 11, 12])
def test_reading_ahead_starts_at_any_step(source, first):
    batches = list(load_batches(source, first=first, prefetch=3))
    assert len(batches) == 12 - first
    assert all(same(batch, source[first + i]) for i, batch in enumerate(batches))


def test_validation_windows_are_as_scanned(tiny_corpus, layout):
    plain = BatchSource(tiny_corpus.sections, DATA, layout, steps=4, augment=False)
    np.testing.assert_array_equal(plain[0].stain_mix_BxTx3x3, np.broadcast_to(np.eye(3), (4, layout.tiles, 3, 3)))


def test_the_three_integers_of_a_batch(source, layout):
    batch = source[3]
    assert layout.tiles == 2 * layout.tiles_per_window == 8
    np.testing.assert_array_equal(batch.segment_BxT, np.tile(np.repeat([0, 1], 4), (4, 1)))
    assert all(len(set(row)) == layout.tiles for row in batch.tile_BxT)
    steps = batch.bin_step_BxTxN.reshape(4, 2, -1)
    valid = batch.bin_measured_BxTxN.reshape(4, 2, -1) > 0
    groups = set()
    for row in range(4):
        for window in range(2):
            found = np.unique(steps[row, window][valid[row, window]])
            np.testing.assert_array_equal(found, np.arange(1, len(found) + 1))
            groups.add(len(found))
    assert groups <= {1, 3, 16} and len(groups) > 1  # K is drawn by window: one, three, or one bin a group


def test_a_missing_window_is_padding(tiny_corpus, layout):
    window = read_window(tiny_corpus.sections[0], 20.0, 30.0, DATA)
    rngs = [[np.random.default_rng(0)] * 2] * 2
    batch = tokenise([[window], []], DATA, layout, np.ones((2, 2), int), rngs)
    empty = empty_batch(2, layout)
    np.testing.assert_array_equal(batch.segment_BxT, [[0] * 4 + [-1] * 4, [-1] * 8])
    for array, padding in zip(batch, empty, strict=True):
        np.testing.assert_array_equal(array[1], padding[1])
    assert (batch.bin_measured_BxTxN[0, 4:] == 0).all() and not batch.measured_gene_BxWxG[0, 1].any()
    assert not batch.measured_gene_BxWxG[..., len(PANEL) :].any()


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_too_many_counts_are_an_error_that_names_the_capacity_needed(tiny_corpus, layout):
    """The capacity that the message asks for is enough for the row that raised it."""
    window = read_window(tiny_corpus.sections[0], 20.0, 30.0, DATA)
    arguments = DATA, np.ones((1, 2), int), [[np.random.default_rng(0)] * 2]

    def tokenised(capacity):
        sized = dataclasses.replace(layout, count_capacity=capacity)
        return tokenise([[window, window]], arguments[0], sized, *arguments[1:])

    needed = 2 * len(window.bins.bin_E)
    assert tokenised(needed).count_BxC.sum() == 2 * window.bins.count_E.sum()
    with pytest.raises(InputError, match=f"{needed} or more .*--config.data.count_capacity"):
        tokenised(needed - 1)


def test_an_overflow_while_reading_ahead_stays_one_line(tiny_corpus, layout):
    small = BatchSource(tiny_corpus.sections, DATA, dataclasses.replace(layout, count_capacity=8), steps=4)
    with pytest.raises(InputError, match="more than its capacity 8") as caught:
        next(load_batches(small, first=0, prefetch=2))
    one_line(caught)


@pytest.fixture(scope="module")
def spotted(tmp_path_factory):
    """Spots of 20 µm on a grid of 30 µm, and one alone far off, on a scan of 0.7 µm per px."""
    x, y = (grid.ravel() for grid in np.meshgrid(30.0 * np.arange(1, 5), 30.0 * np.arange(1, 5)))
    grid = spot_section("A1", "A", 0, x_um=x, y_um=y, um_per_px=0.7, width_um=210.0, height_um=210.0)
    alone = spot_section("B1", "B", 1, x_um=[100.3], y_um=[99.9], um_per_px=0.7, width_um=210.0, height_um=210.0)
    return write_corpus(tmp_path_factory.mktemp("spots") / "c", [grid, alone])


def test_every_window_of_a_spot_section_holds_a_spot(spotted):
    """Also where only one place of the window can: tight windows around a lone spot."""
    data = dataclasses.replace(tiny_config().data, window_um=36.0, tile_um=36.0, rows=8)
    for sections in (spotted.sections, spotted.sections[1:]):
        layout = corpus_layout(sections, data, len(PANEL))
        source = BatchSource(sections, data, layout, steps=40)
        for t in range(40):
            assert (source[t].bin_measured_BxTxN > 0).any((1, 2)).all()


def test_windows_that_hold_no_whole_spot_are_refused(spotted):
    """All of them would be empty, and the run would learn from nothing."""
    data = dataclasses.replace(tiny_config().data, window_um=18.0, tile_um=18.0)
    with pytest.raises(InputError, match="'A1': spots of 20 µm do not fit windows of 18 µm") as caught:
        corpus_layout(spotted.sections, data, len(PANEL))
    one_line(caught)


def test_spot_capacities_of_the_corpus_hold_every_window(spotted):
    data = tiny_config().data
    layout = corpus_layout(spotted.sections, data, len(PANEL))
    source = BatchSource(spotted.sections, data, layout, steps=30)
    most = max(int((source[t].bin_measured_BxTxN > 0).sum(2).max()) for t in range(30))
    assert most <= layout.bins_per_tile <= 4  # 36 µm hold at most 2 × 2 of these spots
    data = dataclasses.replace(data, tile_um=72.0)
    few = make_layout(data, len(PANEL), bins_per_tile=3, largest_bin_um=20.0, count_capacity=999)
    window = read_window(spotted.sections[0], 20.0, 20.0, data)
    with pytest.raises(InputError, match="raise --config.data.max_spots to at least 4"):
        tokenise([[window]], data, few, np.ones((1, 1), int), [[np.random.default_rng(0)]])


def test_a_window_without_any_measured_bin_is_a_window_without_bins(tmp_path):
    mask = np.zeros((38, 45), bool)
    mask[:, 25:] = True  # nothing is known left of 100 µm
    corpus = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0, measured=mask)])
    data = tiny_config().data
    layout = corpus_layout(corpus.sections, data, len(PANEL))
    window = read_window(corpus.sections[0], 10.0, 20.0, data)
    batch = tokenise([[window]], data, layout, np.ones((1, 1), int), [[np.random.default_rng(0)]])
    assert (batch.bin_measured_BxTxN == 0).all() and batch.count_BxC.sum() == 0
    assert (batch.segment_BxT == 0).all() and (batch.he_BxTxPxYxXx3 < 255).any()


def test_sections_smaller_than_a_window_are_read_from_their_middle(tmp_path):
    small = tiny_section("A1", "A", 0, width_um=50.0, height_um=40.0, detections=200)
    corpus = write_corpus(tmp_path / "c", [small])
    data = dataclasses.replace(tiny_config().data, bin_um=9.0)
    layout = corpus_layout(corpus.sections, data, len(PANEL))
    assert layout.bins_per_tile == square_bins_per_tile(data)
    batch = BatchSource(corpus.sections, data, layout, steps=2)[0]
    valid = batch.bin_measured_BxTxN > 0
    assert 0 < valid.sum() < valid.size
    assert batch.count_BxC.sum() > 100


def test_a_denser_corpus_needs_a_larger_capacity(tmp_path):
    sparse = write_corpus(tmp_path / "sparse", [tiny_section("A1", "A", 0, detections=100)])
    dense = write_corpus(tmp_path / "dense", [tiny_section("A1", "A", 0, detections=9000)])
    thin, thick = (corpus_layout(corpus.sections, DATA, len(PANEL)) for corpus in (sparse, dense))
    assert thick.count_capacity > thin.count_capacity
    source = BatchSource(dense.sections, DATA, thick, steps=20)
    assert all(source[t].count_BxC.sum() > 0 for t in range(20))


def test_a_cohort_larger_than_what_is_held_open_gives_the_same(tiny_corpus, source, monkeypatch):
    """Sections are closed and opened again, also while other threads read: the batches do not tell."""
    monkeypatch.setattr(pipeline, "_HELD_OPEN", 1)
    small = BatchSource(tiny_corpus.sections, DATA, source.layout, steps=12)
    assert all(same(batch, source[t]) for t, batch in enumerate(load_batches(small, first=0, prefetch=8)))
    one_row = BatchSource(tiny_corpus.sections, DATA, source.layout, steps=12, rows=range(1))
    for t in range(12):
        one_row[t]
    assert set(one_row._opened) == {draw.section.id for draw in one_row.draws(11)[0]}
    assert all(bool(section._opening) == (section.id in one_row._opened) for section in tiny_corpus.sections)


def test_windows_are_chosen_in_tissue_and_a_section_that_is_all_tissue_gives_what_it_gave(tmp_path):
    """Tissue on a third of a slide: every window has its middle there, and no part of it is left out."""
    whole = tiny_section("A1", "A", 0, width_um=1152.0, height_um=384.0, um_per_px=1.0, detections=60_000)
    found = whole.detections
    left, stray = found.x_um_D < 384.0, np.arange(len(found)) < 20  # and a few on the glass
    on_third = Detections(*(values[left | stray] for values in (found.x_um_D, found.y_um_D, found.gene_D)))
    cut = dataclasses.replace(whole, section_id="B1", patient_id="B", detections=on_third)
    corpus = write_corpus(tmp_path / "c", [whole, cut])
    data = dataclasses.replace(tiny_config().data, rows=64)
    layout = corpus_layout(corpus.sections, data, len(PANEL))

    def middles(section):
        rows = BatchSource([section], data, layout, steps=1).draws(0)
        return np.array([(row[0].x_um, row[0].y_um) for row in rows]) + data.window_um / 2

    everywhere, third = (middles(section) for section in corpus.sections)
    assert everywhere[:, 0].max() > 1000 and third[:, 0].max() < 385
    kept = everywhere[:, 0] < 384
    np.testing.assert_array_equal(third[kept], everywhere[kept])
    assert np.histogram(third[:, 0], 3, (36, 384))[0].min() > 8 and np.histogram(third[:, 1], 3, (36, 348))[0].min() > 8
    # what was not imaged holds nothing, and a section without detections is drawn from as it is
    nothing = dataclasses.replace(whole, section_id="C1", patient_id="C", detections=Detections(*np.zeros((3, 0), int)))
    empty = write_corpus(tmp_path / "empty", [nothing]).sections[0]
    assert len(middles(empty)) == 64


def test_how_deep_a_section_was_measured_is_told_as_often_as_asked(tmp_path, layout):
    """Never in validation, and each window the density of its own section."""
    sections = [tiny_section(f"S{number}", "P", number, detections=500 * number) for number in (1, 2, 3)]
    sections = write_corpus(tmp_path / "corpus", sections).sections
    of_section = {section.id: np.log(section.density_per_um2) for section in sections}
    assert of_section["S3"] - of_section["S1"] == pytest.approx(np.log(3), abs=1e-6)
    for share in (0.0, 0.5, 1.0):
        source = BatchSource(sections, dataclasses.replace(DATA, depth_told=share), layout, steps=12)
        told = []
        for t in range(12):
            depth_BxW = source[t].log_depth_BxW
            for row, of_row in enumerate(source.draws(t)):
                for slot, draw in enumerate(of_row):
                    told.append(np.isfinite(depth_BxW[row, slot]))
                    expected = of_section[draw.section.id] if told[-1] else -np.inf
                    assert depth_BxW[row, slot] == pytest.approx(expected, rel=1e-6)
        assert abs(np.mean(told) - share) < 0.15
    as_scanned = BatchSource(sections, DATA, layout, steps=12, augment=False)
    assert np.isneginf(as_scanned[3].log_depth_BxW).all()

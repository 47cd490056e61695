"""Coarse bins: their counts are those of their parts, they are written first, and nobody sees what is later."""

import dataclasses

import numpy as np
import pytest
from made_reader import made_reader
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_config, tiny_section, write_corpus

from tario_jax.config import DataConfig
from tario_jax.model.model import Tario
from tario_jax.tokens.batch import _near, tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.coarse import coarsened, with_coarse
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.tokens.window import grid_centres, read_window

COARSE = {"coarse_um": (36.0,)}
SMALL = {"window_um": 72.0, "tile_um": 36.0, "bin_um": 18.0, "patch_px": 9}


def dense(bins) -> np.ndarray:
    counts_NxG = np.zeros((len(bins.x_um_N), len(PANEL)), int)
    np.add.at(counts_NxG, (bins.bin_E, bins.gene_E), bins.count_E)
    return counts_NxG


@pytest.fixture(scope="module")
def half_measured(tmp_path_factory):
    """Tissue of which the assay imaged what lies to the left of 100 µm."""
    measured = np.zeros((38, 45), bool)
    measured[:, :25] = True
    section = tiny_section("A1", "A", 0, measured=measured, measured_um_per_px=4.0)
    found = section.detections
    kept = found.x_um_D < 100.0
    found = dataclasses.replace(found, x_um_D=found.x_um_D[kept], y_um_D=found.y_um_D[kept], gene_D=found.gene_D[kept])
    sections = [dataclasses.replace(section, detections=found), tiny_section("B1", "B", 1)]
    return write_corpus(tmp_path_factory.mktemp("half") / "corpus", sections, split={"A": "train", "B": "held_out"})


def test_counts_and_areas_are_those_of_the_parts(half_measured):
    data = tiny_config().data
    window = read_window(half_measured.section("A1"), 36.0, 36.0, data)  # to 108 µm: its last column is not measured
    whole = coarsened(window.bins, 36.0, 72.0, 0.4)
    counts_NxG, parts = dense(window.bins), window.bins.measured_N.reshape(4, 4)
    expected = counts_NxG.reshape(2, 2, 2, 2, -1).sum((1, 3)).reshape(4, -1)
    np.testing.assert_array_equal(dense(whole), expected)
    assert expected.sum() == window.bins.count_E.sum() > 50
    np.testing.assert_allclose(whole.measured_N.reshape(2, 2), parts.reshape(2, 2, 2, 2).mean((1, 3)))
    assert (whole.measured_N.reshape(2, 2)[:, 1] == 0.5).all()  # a column of bins counts, the next one does not
    assert list(whole.x_um_N) == [18.0, 54.0, 18.0, 54.0] and (np.diff(whole.bin_E) >= 0).all()
    strict = coarsened(window.bins, 36.0, 72.0, 0.9)
    np.testing.assert_array_equal(dense(strict)[[0, 2]], expected[[0, 2]])
    assert (strict.measured_N[[1, 3]] == 0).all() and dense(strict)[[1, 3]].sum() == 0


def batch_of(section, data, groups=4):
    layout = corpus_layout([section], data, len(PANEL))
    window = read_window(section, 36.0, 36.0, data)
    windows = [[with_coarse(window, window.bins, data)], [window]]
    rngs = [[np.random.default_rng(3)] for _ in windows]
    return tokenise(windows, data, layout, np.full((2, 1), groups), rngs)


def test_scales_are_written_one_after_the_other(half_measured):
    """A row with coarse bins, and one without: the same bins in the same order, one group later."""
    data = tiny_config(data=COARSE | {"rows": 2}).data
    batch = batch_of(half_measured.section("B1"), data)
    real = batch.bin_measured_BxTxN > 0
    coarse = real & (batch.bin_size_um_BxTxN == 36.0)
    assert coarse[0].sum() == 4 and not coarse[1].any()
    assert (batch.bin_step_BxTxN[coarse] == 1).all()
    bins = real & ~coarse
    np.testing.assert_array_equal(batch.bin_step_BxTxN[0][bins[0]], batch.bin_step_BxTxN[1][bins[1]] + 1)
    np.testing.assert_array_equal(batch.bin_xy_um_BxTxNx2[0][bins[0]], batch.bin_xy_um_BxTxNx2[1][bins[1]])
    assert (np.diff(batch.count_bin_BxC[0][batch.count_bin_BxC[0] >= 0]) >= 0).all()
    assert batch.count_BxC[0].sum() == 2 * batch.count_BxC[1].sum()
    np.testing.assert_allclose(batch.pool_weight_BxTxNxM.sum(-1)[real], 1, rtol=1e-6)


def test_as_many_windows_have_them_as_the_share_says(half_measured):
    sections = [half_measured.section("B1")]
    shares = {}
    for share in (0.3, 1.0):
        data = tiny_config(data=COARSE | {"coarse_share": share}).data
        layout = corpus_layout(sections, data, len(PANEL))
        for augment in (True, False):  # windows as they are have none
            source = BatchSource(sections, data, layout, steps=50, augment=augment)
            found = [(source[t].bin_size_um_BxTxN == 36.0).any((1, 2)) for t in range(50)]
            shares[share, augment] = np.concatenate(found).mean()
    assert abs(shares[0.3, True] - 0.3) < 0.08 and shares[1.0, True] == 1
    assert shares[0.3, False] == shares[1.0, False] == 0


def test_bins_read_the_coarse_ones_and_those_no_bin(tiny_run, half_measured):
    """One group: counts of bins move nothing, those of coarse bins move bins and no coarse one."""
    predictor = made_reader(tiny_run, rows=2, groups=((1, 1.0),), **COARSE)
    batch = batch_of(half_measured.section("B1"), predictor.provenance.config.data, groups=1)
    before = np.asarray(predictor.call(Tario.rates, batch))[..., : len(PANEL)]
    slots = batch.bin_size_um_BxTxN.reshape(2, -1)
    real = batch.bin_measured_BxTxN.reshape(2, -1) > 0
    for side_um, moves in ((18.0, False), (36.0, True)):
        of_side = (slots[0][batch.count_bin_BxC[0]] == side_um) & (batch.count_bin_BxC[0] >= 0)
        count_BxC = batch.count_BxC.copy()
        count_BxC[0][of_side] *= 3
        after = np.asarray(predictor.call(Tario.rates, batch._replace(count_BxC=count_BxC)))[..., : len(PANEL)]
        moved = np.abs(after / before - 1).max(-1) * real
        assert moved[0][slots[0] == 36.0].max() < 1e-5 and moved[1].max() < 1e-5
        assert (moved[0][slots[0] == 18.0].max() > 1e-2) == moves


def test_what_does_not_nest_is_refused():
    for fields, word in (({"coarse_um": (48.0,)}, "coarse_um is (48.0,)"), ({"coarse_um": (36.0, 72.0)}, "fall"),
                         ({"coarse_um": (36.0,), "bin_um": 24.0}, "24 µm"), ({"coarse_um": (18.0,)}, "multiple"),
                         ({"coarse_share": 0.7}, "without data.coarse_um"),
                         ({"coarse_um": (36.0,), "coarse_share": 0.0}, "above 0")):  # fmt: skip
        assert word in refused(lambda of=fields: DataConfig(**SMALL | of))
    assert DataConfig(coarse_um=(72.0,)).one_shot is False


def test_spots_are_parts_of_nothing(tmp_path):
    spots = spot_section("S1", "S", 0, x_um=[40.0, 90.0], y_um=[40.0, 90.0])
    corpus = write_corpus(tmp_path / "corpus", [spots], split={"S": "train"})
    data = tiny_config(data=COARSE).data
    assert "hold spots" in refused(lambda: corpus_layout(corpus.sections, data, len(PANEL)))


def test_a_larger_bin_with_the_centre_of_a_bin_is_its_neighbour_and_it_is_not_its_own():
    """Three bins along one: the middle one has the centre of the larger."""
    x, y = grid_centres(324.0, 36.0)
    coarse_x, coarse_y = grid_centres(324.0, 108.0)
    near_NxV, weight_NxV = _near(np.concatenate([x, coarse_x]), np.concatenate([y, coarse_y]), 36.0, 4)
    assert not (near_NxV == np.arange(90)[:, None]).any() and (weight_NxV > 0).all()
    for larger in range(9):
        (middle,) = np.flatnonzero((x == coarse_x[larger]) & (y == coarse_y[larger]))
        assert near_NxV[middle, 0] == 81 + larger and near_NxV[81 + larger, 0] == middle

"""What a row holds: windows apart, or the windows of a patient in one sequence; bins of one size, or of several."""

import dataclasses

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.config import InputError
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.tokens.window import read_window

ALONE = tiny_config(data={"rows": 6, "windows_per_row": 3, "groups": ((1, 1.0), (4, 1.0)), "stain_jitter": 0.3}).data
TOGETHER = dataclasses.replace(ALONE, sequence="patient")
MIXED = dataclasses.replace(ALONE, bin_um=18.0, bin_mixture=((36.0, 1.0), (18.0, 2.0), (9.0, 1.0)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three patients of two sections each; those of C hold one window and no more."""
    sections = [tiny_section(f"{patient}{part}", patient, seed * 2 + part, detections=600)
                for seed, patient in enumerate("AB") for part in (1, 2)]  # fmt: skip
    sections += [tiny_section(f"C{part}", "C", 7 + part, width_um=100.0, height_um=90.0) for part in (1, 2)]
    return write_corpus(tmp_path_factory.mktemp("patients") / "c", sections)


def source_of(corpus, data, steps=20) -> BatchSource:
    return BatchSource(corpus.sections, data, corpus_layout(corpus.sections, data, len(PANEL)), steps=steps)


def by_window(array_BxT: np.ndarray, windows: int) -> np.ndarray:
    return array_BxT.reshape(len(array_BxT), windows, -1)


def test_windows_of_a_patient_are_one_sequence_without_common_tissue(corpus):
    source, side = source_of(corpus, TOGETHER), TOGETHER.window_um
    lengths = set()
    for t in range(20):
        for row in source.draws(t):
            lengths.add(len(row))
            assert len({draw.section.patient for draw in row}) == len({draw.groups for draw in row}) == 1
            assert all(draw.stain_mix_3x3 is row[0].stain_mix_3x3 for draw in row)
            for i, one in enumerate(row):
                for other in row[:i]:
                    apart = max(abs(one.x_um - other.x_um), abs(one.y_um - other.y_um))
                    assert one.section is not other.section or apart >= side
    assert lengths == {2, 3}  # C has room for two
    batch = source[3]
    for row, draws in enumerate(source.draws(3)):
        segment_WxT = by_window(batch.segment_BxT, 3)[row]
        assert (segment_WxT[: len(draws)] == 0).all() and (segment_WxT[len(draws) :] == -1).all()
    np.testing.assert_array_equal(batch.window_BxT[0], np.repeat([0, 1, 2], 4))


def test_windows_of_one_sequence_lie_a_window_apart(corpus):
    batch, apart = source_of(corpus, TOGETHER)[0], source_of(corpus, ALONE)[0]
    full = (batch.segment_BxT == 0).all(1)
    assert full.any()
    for name in ("patch_xy_um_BxTxPx2", "bin_xy_um_BxTxNx2"):
        xy = getattr(batch, name)[full].reshape(full.sum(), 3, -1, 2)
        valid = np.ones(xy.shape[:3], bool)
        if name.startswith("bin"):
            valid = batch.bin_measured_BxTxN[full].reshape(valid.shape) > 0
        for window in range(3):
            x_um, y_um = xy[:, window][valid[:, window]].T
            begin = 2 * window * TOGETHER.window_um
            assert begin < x_um.min() < x_um.max() < begin + TOGETHER.window_um
            assert 0 < y_um.min() < y_um.max() < TOGETHER.window_um
    assert apart.patch_xy_um_BxTxPx2.max() < ALONE.window_um and set(apart.segment_BxT.ravel()) == {0, 1, 2}


def test_bins_of_several_sizes_are_those_of_each_size_alone(corpus):
    source = source_of(corpus, MIXED)
    drawn = [draw.bin_um for t in range(20) for row in source.draws(t) for draw in row]
    shares = [np.mean(np.array(drawn) == side) for side in (36.0, 18.0, 9.0)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=0.08)
    assert source.layout.bins_per_tile == 16  # of 9 µm in tiles of 36
    t = next(t for t in range(20) if len({draw.bin_um for draw in source.draws(t)[0]}) == 3)
    batch, draws = source[t], source.draws(t)[0]
    for window, draw in enumerate(draws):
        alone = read_window(draw.section, draw.x_um, draw.y_um, dataclasses.replace(ALONE, bin_um=draw.bin_um),
                            quarter_turns=draw.quarter_turns, flip=draw.flip)  # fmt: skip
        tiles = slice(4 * window, 4 * window + 4)
        valid = batch.bin_measured_BxTxN[0, tiles] > 0
        assert set(batch.bin_size_um_BxTxN[0, tiles][valid]) == {draw.bin_um}
        assert valid.sum() == (alone.bins.measured_N > 0).sum()
        slot = batch.count_bin_BxC[0]
        inside = (slot >= 4 * 16 * window) & (slot < 4 * 16 * (window + 1))
        assert batch.count_BxC[0][inside].sum() == alone.bins.count_E.sum() > 0


@pytest.mark.parametrize(
    "fields, message",
    [({"bin_um": 24.0, "bin_mixture": ((36.0, 1.0), (18.0, 1.0))}, "data.bin_um is 24.0.*data.bin_mixture, 36, 18"),
     ({"bin_um": 36.0, "bin_mixture": ((36.0, 0.0),)}, "expected both more than 0"),
     ({"workers": -1}, "data.workers is -1; expected at least 0")],
)  # fmt: skip
def test_a_mixture_that_cannot_be_drawn_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(ALONE, **fields)


def test_without_a_mixture_nothing_is_drawn_for_it(corpus):
    """One size is the same windows, however it is asked for."""
    one = dataclasses.replace(ALONE, windows_per_row=1, bin_um=18.0)
    plain, same = (source_of(corpus, of)[4] for of in (one, dataclasses.replace(one, bin_mixture=((18.0, 3.0),))))
    assert all(np.array_equal(a, b) for a, b in zip(plain, same, strict=True))
    assert isinstance(plain, Batch)

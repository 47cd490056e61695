"""A window is tissue: its pixels, places, measured area and counts are those of the section, however it is turned."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config, tiny_section, write_corpus

from tario_jax.corpus.section import Detections, SectionData, Spots
from tario_jax.panel import Panel
from tario_jax.tokens.batch import make_layout, square_bins_per_tile, tokenise
from tario_jax.tokens.window import _count, read_window

TURNS = [(quarter, flip) for quarter in range(4) for flip in (False, True)]
SIDE_UM, CORNER_UM = 72.0, (20.0, 30.0)
BLOBS = Panel(tuple(f"BLOB{number}" for number in range(60)))


def data_of(**fields):
    return dataclasses.replace(tiny_config().data, **fields)


def colour(gene: int) -> np.ndarray:
    return np.array([4 * gene, 240 - 4 * gene, 17], np.uint8)


def blobs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places of 60 blobs, one a gene, on pixel centres of a section of 112 × 128 µm, five px apart at least."""
    cell = rng.choice(14 * 16, len(BLOBS), replace=False)
    return 8.0 * (cell % 14) + rng.integers(2, 6, 60) + 0.5, 8.0 * (cell // 14) + rng.integers(2, 6, 60) + 0.5


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A section whose H&E is white but for a blob of its own colour under each detection, and one with spots there."""
    x_um, y_um = blobs(np.random.default_rng(0))
    he = np.full((128, 112, 3), 255, np.uint8)
    for gene, (x, y) in enumerate(zip(x_um.astype(int), y_um.astype(int), strict=True)):
        he[y - 1 : y + 2, x - 1 : x + 2] = colour(gene)
    genes = np.arange(60, dtype=np.int32)
    detections = SectionData("A1", "A", "LUAD", 112.0, 128.0, 1.0, he, Detections(x_um, y_um, genes))
    spots = Spots(x_um, y_um, 4.0, np.arange(61), genes, np.ones(60, np.int32))
    spotted = SectionData("B1", "B", "LUAD", 112.0, 128.0, 1.0, he, spots=spots)
    corpus = write_corpus(tmp_path_factory.mktemp("painted") / "c", [detections, spotted], panel=BLOBS)
    return {"detections": corpus.section("A1"), "spots": corpus.section("B1")}


def centroid(colour_3: np.ndarray, pixels: np.ndarray, x_um: np.ndarray, y_um: np.ndarray):
    """Mean place of the pixels of this colour; None where there is none, or not the whole blob."""
    mine = (pixels == colour_3).all(-1)
    return (x_um[mine].mean(), y_um[mine].mean()) if mine.sum() == 9 else None


@pytest.mark.parametrize("kind", ["detections", "spots"])
@pytest.mark.parametrize(("quarter_turns", "flip"), TURNS)
def test_a_turned_window_has_the_blob_under_its_detection(painted, kind, quarter_turns, flip):
    """In the batch itself: the pixels of a gene's colour lie in the bin that counts this gene, in all eight turns."""
    data = data_of(bin_um=3.0, min_measured=0.5)
    per_tile = square_bins_per_tile(data) if kind == "detections" else 40
    layout = make_layout(data, 60, bins_per_tile=per_tile, largest_bin_um=4.0, count_capacity=128)
    window = read_window(painted[kind], *CORNER_UM, data, quarter_turns=quarter_turns, flip=flip)
    rng = np.random.default_rng(0)
    batch = tokenise([[window]], data, layout, np.ones((1, 1), int), [[rng]])
    pixels = batch.he_BxTxPxYxXx3[0]
    offset = np.arange(data.patch_px) + 0.5 - data.patch_px / 2
    x_px = np.broadcast_to(batch.patch_xy_um_BxTxPx2[0, :, :, None, None, 0] + offset, pixels.shape[:-1])
    y_px = np.broadcast_to(batch.patch_xy_um_BxTxPx2[0, :, :, None, None, 1] + offset[:, None], pixels.shape[:-1])
    bin_xy = batch.bin_xy_um_BxTxNx2[0].reshape(-1, 2)
    entries = batch.count_bin_BxC[0] >= 0
    bins = dict(zip(batch.count_gene_BxC[0, entries], batch.count_bin_BxC[0, entries], strict=True))
    assert len(bins) == entries.sum() > 10 and (batch.count_BxC[0, entries] == 1).all()
    seen = 0
    for gene, slot in bins.items():
        place = centroid(colour(gene), pixels, x_px, y_px)
        if place is None:  # the window's edge cuts the blob
            continue
        seen += 1
        reach = 1.5 if kind == "detections" else 1e-3
        assert np.abs(bin_xy[slot] - place).max() <= reach, gene
        under = batch.pool_patch_BxTxNxM[0].reshape(len(bin_xy), -1)[slot]
        held = [
            patch for patch in under if (pixels.reshape(-1, *pixels.shape[2:])[patch] == colour(gene)).all(-1).any()
        ]
        assert held, "the patches under the bin do not show its blob"
    assert seen > 8
    tile_of_bin = np.arange(len(bin_xy)) // layout.bins_per_tile
    tile_centre = batch.patch_xy_um_BxTxPx2[0].mean(1)
    valid = batch.bin_measured_BxTxN[0].ravel() > 0
    assert np.abs(bin_xy - tile_centre[tile_of_bin])[valid].max() <= data.tile_um / 2


@pytest.mark.parametrize(("quarter_turns", "flip"), TURNS)
def test_the_measured_area_is_turned_with_the_pixels(tmp_path, quarter_turns, flip):
    """Where the mask is 0 the H&E is black: the share of each bin is that of its pixels which are not."""
    rng = np.random.default_rng(5)
    mask = rng.random((32, 28)) < 0.6
    he = np.where(np.kron(mask, np.ones((4, 4), bool))[..., None], 255, 0).astype(np.uint8).repeat(3, 2)
    found = Detections(np.ones(1), np.ones(1), np.zeros(1, np.int32))
    data = SectionData("A1", "A", "LUAD", 112.0, 128.0, 1.0, he, found, measured=mask)
    section = write_corpus(tmp_path / "c", [data]).section("A1")
    for corner in (CORNER_UM, (-13.0, 61.0)):  # beyond the section nothing is measured, and the H&E is white there
        window = read_window(section, *corner, data_of(min_measured=1e-3), quarter_turns=quarter_turns, flip=flip)
        inside = np.zeros((72, 72), bool)
        inside[max(0, -int(corner[1])) : 128 - int(corner[1]), max(0, -int(corner[0])) : 112 - int(corner[0])] = True
        inside = np.rot90(inside[:, ::-1] if flip else inside, quarter_turns)
        measured = (window.he[..., 0] == 255) & inside
        expected = measured.reshape(4, 18, 4, 18).mean((1, 3)).ravel()
        assert 0.2 < expected.mean() < 0.8
        np.testing.assert_allclose(window.bins.measured_N, expected, atol=1e-5)


def test_a_bin_counts_from_its_measured_share_on(tmp_path):
    mask = np.ones((38, 45), bool)
    mask[:, :3] = False  # 12 µm: the first bin of 18 µm is measured to a third, the second whole
    section = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0, measured=mask)]).section("A1")
    found = section.detections(0, 0, 72, 72)
    for share, first in ((0.9, 1), (0.3, 0)):
        bins = read_window(section, 0.0, 0.0, data_of(min_measured=share)).bins
        measured = bins.measured_N.reshape(4, 4)
        np.testing.assert_allclose(measured[:, 0], 0.0 if first else 1 / 3, atol=1e-6)
        np.testing.assert_allclose(measured[:, 1:], 1.0)
        assert bins.count_E.sum() == (found.x_um_D >= 18 * first).sum()
        assert (measured.ravel()[bins.bin_E] > 0).all()


def dense(bins) -> np.ndarray:
    counts_NxG = np.zeros((len(bins.x_um_N), len(PANEL)), int)
    np.add.at(counts_NxG, (bins.bin_E, bins.gene_E), bins.count_E)
    return counts_NxG


@pytest.mark.parametrize(("quarter_turns", "flip"), TURNS)
def test_totals_are_conserved_at_every_resolution(tiny_corpus, quarter_turns, flip):
    """Bins of 36, 18 and 9 µm hold each detection once, nest, and equal a plain histogram of the turned places."""
    section = tiny_corpus.sections[0]
    x0, y0 = 31.0, 47.5
    found = section.detections(x0, y0, SIDE_UM, SIDE_UM)
    x, y = found.x_um_D - x0, found.y_um_D - y0
    x = SIDE_UM - x if flip else x
    for _ in range(quarter_turns):  # counter-clockwise on the screen, y downwards
        x, y = y, SIDE_UM - x
    finer = None
    for bin_um in (9.0, 18.0, 36.0):
        side = round(SIDE_UM / bin_um)
        window = read_window(section, x0, y0, data_of(bin_um=bin_um), quarter_turns=quarter_turns, flip=flip)
        counts = dense(window.bins)
        expected = np.zeros((side, side, len(PANEL)), int)
        np.add.at(expected, ((y / bin_um).astype(int), (x / bin_um).astype(int), found.gene_D), 1)
        np.testing.assert_array_equal(counts, expected.reshape(-1, len(PANEL)))
        np.testing.assert_array_equal(counts.sum(0), np.bincount(found.gene_D, minlength=len(PANEL)))
        if finer is not None:
            nested = finer.reshape(side, 2, side, 2, -1).sum((1, 3)).reshape(side * side, -1)
            np.testing.assert_array_equal(counts, nested)
        finer = counts


@pytest.mark.parametrize(("columns", "genes"), [(4, 7), (300, 65_536)])
def test_counting_equals_a_plain_count_with_keys_of_32_and_of_64_bits(columns, genes):
    """Detections in two runs, some beyond the window, and bins that do not count."""
    rng = np.random.default_rng(0)
    bin_um, corner_um = 8.0, (16.0, 4.0)
    x_um, y_um = (rng.uniform(at - 10, at + columns * bin_um + 10, 5000) for at in corner_um)
    steps = [np.floor(at * 1024).astype(np.int32) for at in (x_um, y_um)]
    gene = rng.choice([0, 1, genes - 1], 5000).astype(np.uint16)
    counts_N = rng.random(columns**2) < 0.7
    column, row = (np.floor(at - corner).astype(int) // 8 for at, corner in zip((x_um, y_um), corner_um, strict=True))
    expected = Counter(
        (int(r * columns + c), int(g)) for c, r, g in zip(column, row, gene, strict=True)
        if 0 <= c < columns and 0 <= r < columns and counts_N[r * columns + c]
    )  # fmt: skip
    runs = [(*(step[part].copy() for step in steps), gene[part], {}) for part in (slice(0, 1200), slice(1200, None))]
    found = _count(runs, corner_um, columns * bin_um, bin_um, 0, False, counts_N)
    assert [(b, g, n) for b, g, n in zip(*found, strict=True)] == [(*key, n) for key, n in sorted(expected.items())]


def test_bins_whose_side_is_no_whole_number_of_steps_hold_the_same(tiny_corpus):
    section, bin_um = tiny_corpus.sections[0], 7.0001
    found = section.detections(20.0, 30.0, SIDE_UM, SIDE_UM)
    window = read_window(section, 20.0, 30.0, data_of(bin_um=bin_um))
    side = int(SIDE_UM / bin_um)
    expected = np.zeros((side + 1, side + 1, len(PANEL)), int)
    places = ((at / bin_um).astype(int) for at in (found.y_um_D - 30.0, found.x_um_D - 20.0))
    np.add.at(expected, (*places, found.gene_D), 1)
    np.testing.assert_array_equal(dense(window.bins), expected[:side, :side].reshape(-1, len(PANEL)))


@pytest.mark.parametrize(("bin_um", "patch_px"), [(18.0, 9), (36.0, 9), (9.0, 12), (12.0, 9), (24.0, 18), (35.0, 9)])
def test_pool_weights_are_shares_of_the_bins_area(tiny_corpus, bin_um, patch_px):
    """Against the overlap of every bin with every patch, in float64."""
    data = data_of(bin_um=bin_um, patch_px=patch_px)
    layout = make_layout(data, len(PANEL), bins_per_tile=square_bins_per_tile(data), largest_bin_um=bin_um,
                         count_capacity=1024)  # fmt: skip
    window = read_window(tiny_corpus.sections[0], 20.0, 30.0, data)
    batch = tokenise([[window]], data, layout, np.ones((1, 1), int), [[np.random.default_rng(0)]])
    valid = batch.bin_measured_BxTxN[0].ravel() > 0
    assert valid.sum() == int(72 / bin_um + 1e-6) ** 2
    patch = batch.patch_xy_um_BxTxPx2[0].reshape(-1, 2).astype(float)
    bin_xy = batch.bin_xy_um_BxTxNx2[0].reshape(-1, 2)[valid].astype(float)
    near = np.minimum(bin_xy[:, None] + bin_um / 2, patch + patch_px / 2)
    far = np.maximum(bin_xy[:, None] - bin_um / 2, patch - patch_px / 2)
    share = np.maximum(near - far, 0).prod(-1) / bin_um**2
    pooled = np.zeros_like(share)
    slots = np.arange(len(bin_xy))[:, None]
    index = batch.pool_patch_BxTxNxM[0].reshape(len(valid), -1)[valid]
    weight = batch.pool_weight_BxTxNxM[0].reshape(len(valid), -1)[valid]
    np.add.at(pooled, (slots, index), weight)
    np.testing.assert_allclose(weight.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(pooled, share, atol=1e-6)


@pytest.mark.parametrize("kind", ["detections", "spots"])
def test_a_bin_knows_the_bins_around_it(painted, kind):
    """The 24 nearest, of which none is itself, weighed by distance; where parts of a window are not measured too."""
    data = data_of(bin_um=9.0, min_measured=0.5, groups=((1, 1.0), (4, 1.0)))
    near_bins = data.near_bins
    assert near_bins == 24
    per_tile = square_bins_per_tile(data) if kind == "detections" else 40
    layout = make_layout(data, 60, bins_per_tile=per_tile, largest_bin_um=9.0, count_capacity=128)
    for corner_um in (CORNER_UM, (-31.0, 30.0)):
        window = read_window(painted[kind], *corner_um, data)
        batch = tokenise([[window]], data, layout, np.ones((1, 1), int), [[np.random.default_rng(0)]])
        slots = np.flatnonzero(batch.bin_measured_BxTxN.ravel())
        xy = batch.bin_xy_um_BxTxNx2.reshape(-1, 2).astype(float)
        near, weight = (x.reshape(-1, near_bins)[slots] for x in (batch.near_bin_BxTxNxV, batch.near_weight_BxTxNxV))
        away = np.linalg.norm(xy[slots, None] - xy[slots], axis=-1)
        pitch_um = window.bins.pitch_um
        for number, mine in enumerate(slots):
            there = weight[number] > 0
            assert there.sum() == min(near_bins, len(slots) - 1) and np.isin(near[number][there], slots).all()
            assert mine not in near[number][there] and len(set(near[number][there])) == there.sum()
            found = np.linalg.norm(xy[near[number][there]] - xy[mine], axis=-1)
            np.testing.assert_allclose(found, np.sort(away[number])[1 : there.sum() + 1], rtol=1e-6)
            np.testing.assert_allclose(weight[number][there], np.exp(-0.5 * (found / (1.5 * pitch_um)) ** 2), rtol=1e-5)

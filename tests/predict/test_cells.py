"""Outlines, the areas of cells, and their rates: against geometry that can be said in a line."""

import json

import numpy as np
import pytest
from made_reader import says_everywhere
from refusals import refused
from skimage.measure import points_in_poly
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.corpus.section import Detections
from tario_jax.predict.cell_areas import PX_UM, areas_in_bins, cell_counts, cell_tiles, cells_at
from tario_jax.predict.cells import predict_cells, within
from tario_jax.predict.gene_validation import GeneValidation
from tario_jax.predict.outlines import Outlines, outlines_of_cells, read_geojson
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.squares import most_in_a_tile

DISC = 2 * np.pi * np.arange(64) / 64


def discs(places, radius_um) -> Outlines:
    ring = np.stack([np.cos(DISC), np.sin(DISC)], 1)
    return Outlines.of(
        [place + r * ring for place, r in zip(places, np.broadcast_to(radius_um, len(places)), strict=True)]
    )


def random_discs(seed: int, number: int = 60, side_um=(100.0, 80.0)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(0, side_um, (number, 2)), rng.uniform(1.5, 4.0, number)


# --- outlines


def test_areas_and_centres_of_polygons():
    far = np.array([20_000.0, 31_000.0])
    square, triangle = [[0, 0], [4, 0], [4, 4], [0, 4]], [[0, 0], [0, 6], [9, 0]]
    bent = [[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]]  # a square less a triangle of 4 by 3
    outlines = Outlines.of([np.array(square) + far, np.array(triangle), np.array(bent), np.array([[1, 1], [3, 3.0]])])
    np.testing.assert_allclose(outlines.area_um2_N, [16, 27, 10, 0], atol=1e-8)
    np.testing.assert_allclose(outlines.centre_um_Nx2[:2], [far + 2, [3, 2]])
    np.testing.assert_allclose(outlines.centre_um_Nx2[2], [2, (16 * 2 - 6 * 3) / 10])
    np.testing.assert_allclose(outlines.centre_um_Nx2[3], [2, 2])
    np.testing.assert_allclose(outlines.box_um_Nx4[1], [0, 0, 9, 6])
    assert len(Outlines.of([]).area_um2_N) == 0
    assert outlines.only(np.array([2, 0])).names == ("3", "1")


def test_geojson_is_read_as_it_was_written(tmp_path):
    outlines = discs([[20.0, 30.0], [50.0, 60.0]], 4.0)
    outlines.write_geojson(tmp_path / "o.geojson", 0.25, (100.0, 200.0))
    ring = json.loads((tmp_path / "o.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    np.testing.assert_allclose(ring[0], [24.0 / 0.25 + 100, 30.0 / 0.25 + 200])
    read = read_geojson(tmp_path / "o.geojson", 0.25, (100.0, 200.0))
    np.testing.assert_allclose(read.vertex_um_Vx2, outlines.vertex_um_Vx2, atol=1e-3)
    assert read.names == outlines.names


def test_a_feature_in_parts_is_its_largest_and_holes_are_filled(tmp_path):
    def ring(side):
        return [[0, 0], [side, 0], [side, side], [0, side], [0, 0]]

    features = [
        {"type": "Feature", "id": "a", "geometry": {"type": "MultiPolygon", "coordinates": [[ring(3)], [ring(8)]]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring(6), ring(2)]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring(0.5)]}},
    ]
    (tmp_path / "o.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    read = read_geojson(tmp_path / "o.geojson")
    assert read.names == ("a", "2") and read.area_um2_N.tolist() == [64, 36]


def test_wrong_outlines_are_answered_in_one_line(tmp_path):
    path = tmp_path / "o.geojson"
    point = {"features": [{"geometry": {"type": "Point", "coordinates": [1, 2]}}]}
    no_places = {"features": [{"geometry": {"type": "Polygon"}}]}
    open_ring = {"features": [{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}]}
    for content, words in (
        ("{", ("is no GeoJSON",)), ('{"type": "x"}', ("is no GeoJSON",)), (json.dumps(point), ("feature 1", "Point")),
        ("[3]", ("feature 1", "without geometry")), (json.dumps(open_ring), ("feature 1", "at least 4 places")),
        ('{"features": []}', ("no polygon",)), ('{"features": 5}', ("is no GeoJSON",)),
        (json.dumps(no_places), ("feature 1", "at least 4 places")),
    ):  # fmt: skip
        path.write_text(content)
        refused(lambda: read_geojson(path), f"--cells={path}", *words)
    refused(lambda: read_geojson(tmp_path / "none"), "no such file")
    discs([[20.0, 30.0]], 4.0).write_geojson(path, 0.05)
    refused(lambda: read_geojson(path), "160 µm wide", "2 to 60", "--cells-unit")


def test_cells_of_the_corpus_are_the_hulls_of_their_detections():
    corners = np.array([[0, 0], [8, 0], [8, 8], [0, 8], [4, 4], [3, 5], [5, 3], [2, 2]], float)
    line = np.stack([np.arange(9.0), np.arange(9.0)], 1)
    few = corners[:5] + 100
    x, y = np.concatenate([corners + 20, line, few, corners]).T
    cell = np.repeat([7, 8, 9, 0], [8, 9, 5, 8]).astype(np.int32)
    found = Detections(x, y, np.zeros(len(x), np.int32), cell_D=cell)
    outlines = outlines_of_cells(found, "A1")
    assert outlines.names == ("7",) and outlines.area_um2_N.tolist() == [64]
    np.testing.assert_allclose(outlines.centre_um_Nx2, [[24, 24]])
    refused(lambda: outlines_of_cells(Detections(x, y, found.gene_D), "A1"), "A1", "has no cell ids")


# --- areas


def brute_labels(places, radius, grow_um, side_um=(100.0, 80.0)):
    """The nearest disc of every px, by its border's distance; −1 beyond `grow_um`."""
    x = (np.arange(round(side_um[0] / PX_UM)) + 0.5) * PX_UM
    y = (np.arange(round(side_um[1] / PX_UM)) + 0.5) * PX_UM
    distance = np.hypot(x[None, :, None] - places[:, 0], y[:, None, None] - places[:, 1]) - radius
    return np.where(distance.min(-1) <= grow_um, distance.argmin(-1), -1)


@pytest.mark.parametrize("grow_um", [0.0, 3.0])
def test_a_cell_is_what_is_nearest_to_its_outline(grow_um):
    places, radius = random_discs(0)
    apart = np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) - radius[:, None] - radius
    alone = [i for i in range(len(places)) if not (apart[i, :i] < 0).any()]
    places, radius = places[alone], radius[alone]
    apart = (
        np.hypot(*(places[:, None] - places).transpose(2, 0, 1)) - radius[:, None] - radius + 99 * np.eye(len(places))
    )
    kept = np.flatnonzero((apart > 0.5).all(1))
    places, radius = places[kept], radius[kept]
    (tile,) = cell_tiles(discs(places, radius), 100.0, 80.0, grow_um)
    wrong = tile.label_YxX != brute_labels(places, radius, grow_um)
    # borders are those of px: a px of half a µm may fall to either side
    assert len(places) > 12 and wrong.mean() < (0.012 if grow_um == 0 else 0.03)


def test_tiles_make_one_labelling():
    places, radius = random_discs(1)
    outlines = discs(places, radius)
    (whole,) = cell_tiles(outlines, 100.0, 80.0, 3.0)
    pasted = np.full_like(whole.label_YxX, -9)
    for tile in cell_tiles(outlines, 100.0, 80.0, 3.0, tile_px=37):
        rows, columns = tile.label_YxX.shape
        pasted[tile.top_px : tile.top_px + rows, tile.left_px : tile.left_px + columns] = tile.label_YxX
    assert (pasted != whole.label_YxX).mean() < 2e-3 and pasted.min() == -1  # ties between equally near outlines
    for tile_px in (64, 1024):
        areas = areas_in_bins(cell_tiles(outlines, 100.0, 80.0, 3.0, tile_px), len(outlines), 9.0, 11, 8)
        expected = np.bincount(whole.label_YxX[whole.label_YxX >= 0], minlength=60) * PX_UM**2
        np.testing.assert_allclose(areas.area_um2_N, expected, atol=3 * PX_UM**2)


def test_overlaps_with_bins_and_places_are_those_of_the_labels():
    places, radius = random_discs(2)
    outlines, rng = discs(places, radius), np.random.default_rng(0)
    (whole,) = cell_tiles(outlines, 100.0, 80.0, 2.0)
    areas = areas_in_bins(cell_tiles(outlines, 100.0, 80.0, 2.0, 50), len(outlines), 9.0, 11, 8)
    expected = np.zeros((60, 8, 11))
    row, column = np.nonzero(whole.label_YxX >= 0)
    bin_of = [np.minimum((at + 0.5) * PX_UM // 9, most).astype(int) for at, most in ((row, 7), (column, 10))]
    np.add.at(expected, (whole.label_YxX[row, column], *bin_of), PX_UM**2)
    assert np.abs(areas.overlap_um2_NxB.toarray() - expected.reshape(60, -1)).sum() < 2e-3 * expected.sum()
    np.testing.assert_allclose(areas.area_um2_N, areas.overlap_um2_NxB.toarray().sum(1))
    x, y = rng.uniform(0, 100, 500), rng.uniform(0, 80, 500)
    held = cells_at(cell_tiles(outlines, 100.0, 80.0, 0.0, 50), x, y)
    for i in range(60):
        inside = points_in_poly(np.stack([x, y], 1), outlines.polygon(i))
        near_border = np.abs(np.hypot(*(np.stack([x, y], 1) - places[i]).T) - radius[i]) < PX_UM
        mine = (held == i) | ((held >= 0) & (held < i))  # an earlier one that overlaps has the area
        assert (mine[inside & ~near_border]).all() and not (held == i)[~inside & ~near_border].any()
    gene = rng.integers(0, 5, 500)
    counts = cell_counts(held, gene, 60, 5)
    assert counts.sum() == (held >= 0).sum() and counts[held[held >= 0][0], gene[held >= 0][0]] >= 1


# --- rates


@pytest.fixture(scope="module")
def constant(predictor) -> Predictor:
    """0.02 detections per µm², the same of every gene."""
    return says_everywhere(predictor, 0.02, np.ones(len(PANEL)))


def test_both_readings_of_a_flat_model_are_the_area_times_its_density(constant, tiny_corpus):
    section = tiny_corpus.section("F1")
    outlines = discs(*random_discs(3, side_um=(180, 150)))
    for reading in ("bins", "queries"):
        maps = predict_cells(constant, section, outlines, tissue="virtual", grow_um=3.0, reading=reading)
        expected = np.repeat(0.02 / 12 * maps.area_um2_N[:, None], 12, 1)
        np.testing.assert_allclose(maps.rates_NxG, expected, rtol=1e-4)
        assert len(maps.area_um2_N) >= 58 and np.ptp(maps.area_um2_N) > 20 and maps.reading == reading


def test_cells_that_cover_whole_bins_have_the_rates_of_the_bins(predictor, tiny_corpus):
    section = tiny_corpus.section("F1")
    bins = predictor.predict_section(section, tissue="virtual", bin_um=9.0)
    square = np.array([[0, 0], [9, 0], [9, 9], [0, 9.0]])
    chosen = [5, 44, 200, 301]
    corner = np.stack([bins.x_um_N, bins.y_um_N], 1)[chosen] - 4.5
    outlines = Outlines.of([square + at for at in corner])
    cells = predict_cells(predictor, section, outlines, tissue="virtual", grow_um=0, reading="bins")
    np.testing.assert_allclose(cells.rates_NxG, bins.rates_NxG[chosen], rtol=1e-5)
    assert np.ptp(cells.rates_NxG.sum(1)) > 0


def test_queries_of_one_size_on_bins_are_the_bins(predictor, tmp_path):
    """A section of one window: there a bin and a query of its place and size are one and the same."""
    section = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0, width_um=72.0, height_um=72.0)]).sections[0]
    bins = predictor.predict_section(section, tissue="virtual", bin_um=18.0)
    inner = np.flatnonzero((np.abs(bins.x_um_N - 36) < 18) & (np.abs(bins.y_um_N - 36) < 18))
    places = bins.x_um_N[inner], bins.y_um_N[inner]
    said = predictor.predict_squares(section, *places, np.full(len(inner), 18.0), tissue="virtual", overlap=0.0)
    np.testing.assert_allclose(said, bins.rates_NxG[inner], rtol=0.15)  # the window lies up to a few px aside
    assert np.corrcoef(said.ravel(), bins.rates_NxG[inner].ravel())[0, 1] > 0.98
    twice = predictor.predict_squares(section, *places, np.full(len(inner), 9.0), tissue="virtual", overlap=0.0)
    assert (twice.sum(1) < 0.5 * said.sum(1)).all()  # a quarter of the area


def test_no_tile_holds_more_than_it_was_made_for():
    rng = np.random.default_rng(0)
    for number in (1, 30, 400):
        x, y = rng.uniform(0, 200, (2, number))
        most = most_in_a_tile(x, y, 36.0)
        brute = max(((x >= left) & (x < left + 36) & (y >= top) & (y < top + 36)).sum()
                    for left in np.arange(-36, 200, 3) for top in np.arange(-36, 200, 3))  # fmt: skip
        assert brute <= most <= max(2 * brute, 3)


def test_outlines_elsewhere_and_twice_are_refused_and_the_buried_left_out(constant, tiny_corpus, tmp_path):
    section = tiny_corpus.section("F1")
    refused(lambda: within(discs([[500.0, 20.0]], 4.0), section), "F1", "none of 1 outlines", "180 x 150 µm")
    refused(lambda: within(discs([[50.0, 20.0], [50.0, 20.0]], [4.0, 6.0]), section), "'2'", "centre of another")
    kept = within(discs([[500.0, 20.0], [50.0, 20.0]], 4.0), section)
    assert kept.names == ("2",)
    buried = discs([[50.0, 20.0], [50.3, 20.0], [90.0, 20.0]], [6.0, 2.0, 4.0])
    maps = predict_cells(constant, section, buried, tissue="virtual", grow_um=0.0)
    assert maps.names() == ["1", "3"]
    data = spot_section("A1", "A", 0, x_um=[50.0], y_um=[50.0])
    spots = write_corpus(tmp_path / "c", [data]).sections[0]
    refused(lambda: predict_cells(constant, spots, buried, tissue="virtual", grow_um=0.0), "spots", "detections")


def test_cells_carry_what_was_validated_and_say_in_which_bins(constant, tiny_corpus, tmp_path, monkeypatch):
    ones_CxG = np.ones((2, 12))
    about = {"bin_um": 36.0, "corpus_seal": "seal", "split_by": "patient"}
    low_CxG = np.where(np.arange(12) < 3, 0.1, -0.1) * ones_CxG
    known = GeneValidation(PANEL.symbols, ("all", "LUAD"), np.array([30, 9]), ones_CxG, 0.5 * ones_CxG, low_CxG,
                           ones_CxG, about)  # fmt: skip
    monkeypatch.setattr(constant, "validation", known)
    outlines = discs([[50.0, 20.0], [90.0, 30.0]], 4.0)
    maps = predict_cells(constant, tiny_corpus.section("F1"), outlines, tissue="virtual", grow_um=2.0)
    said = "all: 30 patients, 3 genes above density; LUAD: 9 patients, 3 genes above density"
    assert maps.metadata()["validated_on"] == f"bins of 36 µm: {said}"
    assert maps.metadata()["validation_corpus_seal"] == "seal" and maps.metadata()["validation_split_by"] == "patient"
    assert maps.gene_columns()["validated_all"].sum() == 3
    monkeypatch.setitem(about, "bin_um", None)
    assert maps.validated_on == f"spots: {said}"
    maps.write_table(tmp_path / "cells.tsv")
    assert len((tmp_path / "cells.genes.tsv").read_text().splitlines()) == 13


def test_anndata_and_tables_hold_the_cells(constant, tiny_corpus, tmp_path):
    anndata = pytest.importorskip("anndata")
    section = tiny_corpus.section("F1")
    maps = predict_cells(constant, section, discs([[50.0, 20.0], [90.0, 30.0]], 4.0), tissue="virtual", grow_um=2.0)
    maps.write_h5ad(tmp_path / "cells.h5ad")
    read = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert list(read.obs.columns) == ["x_um", "y_um", "area_um2", "outline_um2"] and list(read.obs_names) == ["1", "2"]
    np.testing.assert_allclose(read.obs["outline_um2"], 16 * np.pi, rtol=0.01)
    np.testing.assert_allclose(read.obs["area_um2"], 36 * np.pi, rtol=0.05)
    assert read.uns["tario"]["unit"] == "expected detections per cell" and read.uns["tario"]["grow_um"] == 2.0
    maps.write_table(tmp_path / "cells.tsv")
    lines = [line for line in (tmp_path / "cells.tsv").read_text().splitlines() if not line.startswith("#")]
    assert lines[0].split("\t")[:5] == ["place", "x_um", "y_um", "area_um2", "outline_um2"] and len(lines) == 3

"""Figures of made images and counts come out as they were made, and the table says which lie outside."""

import dataclasses
import json

import numpy as np
import pytest
from skimage.color import rgb_from_hed
from tiny_tissue import tiny_section, write_corpus

from tario_jax.cli import main as cli
from tario_jax.config import InputError
from tario_jax.corpus.section import Detections
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.dispersion import GeneFigures, gene_figures, matched
from tario_jax.evaluate.histology import (
    FIGURES,
    TILE_UM,
    UM_PER_PX,
    choose_tiles,
    measure_image,
    segment_nuclei,
    tile_figures,
    white_of,
)
from tario_jax.evaluate.moran import neighbour_weights
from tario_jax.evaluate.realism import APERIO, HER2ST, Realism, Row, quantiles, read_aperio

WHITE = np.array([242.0, 240.0, 238.0])


def stained(haematoxylin, eosin, white=WHITE):
    """The image of these decadic densities."""
    density = haematoxylin[..., None] * rgb_from_hed[0] + eosin[..., None] * rgb_from_hed[1]
    return np.rint(white * 10**-density).astype(np.uint8)


def discs(side_um, um_per_px, radius_um, pitch_um, glass_um=0.0):
    """Nuclei of density 0.8 on a square grid in tissue of eosin 0.15, with glass at the left; and their middles."""
    axis = (np.arange(round(side_um / um_per_px)) + 0.5) * um_per_px
    x, y = np.meshgrid(axis, axis)
    dx, dy = (np.mod(place, pitch_um) - pitch_um / 2 for place in (x - glass_um, y))
    tissue = x > glass_um
    nucleus = tissue & (dx**2 + dy**2 <= radius_um**2)
    return stained(np.where(nucleus, 0.8, np.where(tissue, 0.1, 0.0)), np.where(tissue, 0.15, 0.0))


def median_of(found):
    return dict(zip(FIGURES, np.median(found.values_TxF, 0), strict=True))


@pytest.mark.parametrize("um_per_px", [0.69, 0.5, 0.3])
@pytest.mark.parametrize(("radius_um", "pitch_um"), [(3.2, 12.0), (4.5, 20.0)])
def test_discs_of_known_stain_size_and_number_are_measured_so_in_any_scan(um_per_px, radius_um, pitch_um):
    rgb = discs(2 * TILE_UM + 45, um_per_px, radius_um, pitch_um, glass_um=42.0)
    found = measure_image(rgb, um_per_px)
    assert len(found) == 4 and found.values_TxF.shape == (4, len(FIGURES))
    seen = median_of(found)
    area_um2, share = np.pi * radius_um**2, np.pi * radius_um**2 / pitch_um**2
    assert seen["nuclear area"] == pytest.approx(area_um2, rel=0.15)
    assert seen["nuclei"] == pytest.approx(1e6 / pitch_um**2, rel=0.05)
    assert seen["area covered by nuclei"] == pytest.approx(share, rel=0.15)
    assert seen["haematoxylin, tissue"] == pytest.approx(0.1 + 0.7 * share, rel=0.05)
    assert seen["eosin, tissue"] == pytest.approx(0.15, rel=0.05)
    assert seen["eosin, between nuclei"] == pytest.approx(0.15, rel=0.05)
    # the rim of a nucleus is mixed with what is around it
    assert 0.6 < seen["haematoxylin, nuclei"] <= 0.81 and 0.09 < seen["haematoxylin, between nuclei"] < 0.15


def with_discs(around, middles, radius_px=7):
    """Haematoxylin of a tile with discs of density 0.8, [H, W]."""
    y, x = np.mgrid[: around.shape[0], : around.shape[1]]
    inside = np.any([(x - cx) ** 2 + (y - cy) ** 2 <= radius_px**2 for cx, cy in middles], axis=0)
    return np.where(inside, 0.8, around).astype(np.float32)


def test_nuclei_that_touch_or_lie_in_dark_cytoplasm_are_told_apart():
    everywhere = np.ones((120, 120), bool)
    touching = with_discs(np.full((120, 120), 0.05), [(20 + 13 * k, 60) for k in range(6)])
    assert len(np.unique(segment_nuclei(touching, everywhere))) == 1 + 6
    island = np.full((120, 120), 0.05)
    island[15:105, 15:105] = 0.55
    nest = with_discs(island, [(30 + 20 * column, 30 + 20 * row) for column in range(4) for row in range(4)], 6)
    nuclei = segment_nuclei(nest, everywhere)
    assert len(np.unique(nuclei)) == 1 + 16
    within = nuclei[[50, 50, 70, 70], [50, 70, 50, 70]]  # at the island's rim cytoplasm is darker than around it too
    np.testing.assert_allclose(np.bincount(nuclei.ravel())[within], np.pi * 36, rtol=0.25)


def test_a_nucleus_on_the_edge_between_two_tiles_is_counted_in_one_of_them():
    edge = 119
    haematoxylin = with_discs(np.full((120, 120), 0.05), [(0, 60), (edge, 30), (60, 0), (30, edge), (60, 60)])
    found = dict(zip(FIGURES, tile_figures(haematoxylin, haematoxylin, np.ones((120, 120), bool)), strict=True))
    assert found["nuclei"] == pytest.approx(3 / (120 * UM_PER_PX / 1000) ** 2)
    assert found["nuclear area"] == pytest.approx(np.pi * (7 * UM_PER_PX) ** 2, rel=0.1)  # of the whole one


def test_tissue_of_one_stain_holds_no_nucleus():
    flat = np.full((400, 400), 0.2)
    found = measure_image(stained(flat, flat), 1 / 1.6)
    assert median_of(found)["nuclei"] == 0 and np.isnan(median_of(found)["nuclear area"])


def test_tiles_are_a_fixed_choice_among_those_with_tissue():
    side_um, um_per_px, glass_um = 6 * TILE_UM + 1, 0.7, 1.5 * TILE_UM
    rgb = discs(side_um, um_per_px, 3.0, 14.0, glass_um)
    white_3 = white_of(rgb)
    np.testing.assert_allclose(white_3, WHITE, atol=1)
    everything = choose_tiles(rgb, um_per_px, white_3, "made", 1000)
    assert len(everything) == 6 * 4 and everything[:, 0].min() > glass_um
    some, again = (choose_tiles(rgb, um_per_px, white_3, "made", 12) for _ in range(2))
    np.testing.assert_array_equal(some, again)
    assert len(np.unique(some, axis=0)) == 12 and {*map(tuple, some)} < {*map(tuple, everything)}
    # from every part: no corner of the slide stands for all of it
    assert all(2 < (some[:, axis] > np.median(everything[:, axis])).sum() < 10 for axis in range(2))


def test_white_is_the_colour_of_the_glass_and_stain_is_measured_against_it():
    tissue = np.full((400, 400), 0.2)
    tissue[:, :60] = 0
    for white in (np.array([224.0, 210.0, 226.0]), np.array([250.0, 250.0, 250.0])):
        found = median_of(measure_image(stained(tissue, tissue / 2, white), 0.6))
        assert found["haematoxylin, tissue"] == pytest.approx(0.2, abs=0.01)
        assert found["eosin, tissue"] == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(white_of(stained(tissue + 0.2, tissue + 0.2)), 244.0)  # no glass in sight


def test_images_that_cannot_be_measured_are_refused():
    small = np.full((200, 200, 3), 200, np.uint8)
    with pytest.raises(InputError, match="S1: 100 × 100 µm hold no tile of 200 µm"):
        measure_image(small, 0.5, "S1")
    with pytest.raises(InputError, match="1 µm per px"):
        measure_image(small, 1.0)


# --- counts


def test_overdispersion_is_that_of_the_counts_and_survives_a_loss_of_detections():
    rng = np.random.default_rng(0)
    columns = rows = 40
    weights = neighbour_weights(*grid_places(columns, rows, 18.0), 18.0, "square")
    mean_G, phi = np.repeat([0.5, 2.0, 8.0], 60), 0.7
    rate_NxG = rng.gamma(1 / phi, phi, (columns * rows, len(mean_G))) * mean_G
    counts_NxG = rng.poisson(rate_NxG).astype(np.float32)
    for kept in (counts_NxG, rng.binomial(counts_NxG.astype(int), 0.5).astype(np.float32)):
        seen = gene_figures(kept, weights)
        assert len(seen) == 180 and np.median(seen.values_Kx3[:, 1]) == pytest.approx(phi, rel=0.1)
    even = gene_figures(rng.poisson(mean_G, rate_NxG.shape).astype(np.float32), weights)
    zeros, over, moran = even.values_Kx3.T
    np.testing.assert_allclose(zeros, np.exp(-mean_G), atol=0.05)
    assert abs(np.median(over)) < 0.02 and abs(np.median(moran)) < 0.01


def test_genes_of_a_gradient_have_a_high_morans_i_and_rare_ones_are_left_out():
    rng = np.random.default_rng(1)
    x_um_N, y_um_N = grid_places(20, 20, 18.0)
    rate_NxG = np.stack([x_um_N / 30, np.full(400, 6.0), np.full(400, 0.1), np.full(400, 80.0)], 1)
    seen = gene_figures(rng.poisson(rate_NxG).astype(np.float32), neighbour_weights(x_um_N, y_um_N, 18.0, "square"))
    assert len(seen) == 2 and seen.values_Kx3[0, 2] > 0.5 > 0.1 > abs(seen.values_Kx3[1, 2])


def test_matched_genes_have_the_means_of_the_real_ones():
    rng = np.random.default_rng(2)
    virtual, real = (
        GeneFigures(np.exp(rng.normal(at, 0.8, n)), np.zeros((n, 3))) for at, n in ((0.0, 5000), (1.0, 300))
    )
    weights_V, matched_R = matched(virtual, real)
    assert weights_V.sum() == pytest.approx(matched_R.sum()) and matched_R.mean() > 0.9
    log_V, log_R = np.log(virtual.mean_K), np.log(real.mean_K[matched_R])
    assert np.average(log_V, weights=weights_V) == pytest.approx(log_R.mean(), abs=0.05)
    np.testing.assert_allclose(
        quantiles(log_V, weights_V), quantiles(log_R, np.ones(len(log_R))), atol=0.25
    )  # within a step


def test_counts_on_a_grid_are_those_of_a_histogram_and_gaps_are_left_out():
    rng = np.random.default_rng(3)
    found = Detections(rng.uniform(0, 95, 4000), rng.uniform(0, 75, 4000), rng.integers(0, 3, 4000).astype(np.int32))
    counts_NxG = grid_counts(found, 3, 4, 3, 20.0, 20.0)
    for gene in range(3):
        some = found.gene_D == gene
        plain, _, _ = np.histogram2d(
            found.y_um_D[some], found.x_um_D[some], (np.arange(0, 61, 20), np.arange(0, 81, 20))
        )
        np.testing.assert_array_equal(counts_NxG[:, gene].reshape(3, 4), plain)
    apart = grid_counts(found, 3, 4, 3, 20.0, 10.0)
    assert apart.sum() == pytest.approx(counts_NxG.sum() / 4, rel=0.1)


# --- the report


def test_a_source_weighs_the_same_however_many_tiles_it_has():
    values = np.concatenate([np.zeros(300), np.ones(11)])
    weights = np.concatenate([np.full(300, 1 / 300), np.full(11, 0.9 / 11)])
    assert quantiles(values, weights) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert quantiles(np.append(values, np.nan), np.append(weights, 5.0)) == (0.0, 0.0, 0.0, 1.0, 1.0)


def row(figure, median, **more):
    virtual = (median - 2, median - 1, median, median + 1, median + 2)
    real = (1.0, 2.0, 3.0, 4.0, 5.0)
    return Row(
        "stain and nuclei",
        figure,
        "µm²",
        virtual,
        real,
        (40, 300),
        **{"parts": {"HER2ST": real}, "judged": True, **more},
    )


def test_the_table_says_what_lies_outside():
    counts = dataclasses.replace(row("Moran's I", 9.0, judged=False), subject="counts beside Xenium", parts={})
    found = Realism("made", ("a", "b"), (row("nuclear area", 4.9), row("nuclei", 5.1), counts), ("stated",))
    assert [one.figure for one in found.outside] == ["nuclei"] == found.to_dict()["outside"]
    area, nuclei, moran = (next(ln for ln in found.table().splitlines() if ln.startswith(name))
                           for name in ("nuclear area", "nuclei", "Moran's I"))  # fmt: skip
    assert "inside" in area and "OUTSIDE" in nuclei and "outside" in moran
    assert "1 of 2 figures" in found.table() and "note: stated" in found.table()
    assert [entry["inside"] for entry in found.to_dict()["rows"]] == [True, False, False]


def test_between_two_sources_that_lie_apart_is_outside():
    low, high = (0.5, 0.8, 1.0, 1.2, 1.5), (4.5, 4.6, 4.7, 4.8, 5.0)
    assert not row("eosin", 3.0, parts={"HER2ST": low, "Aperio": high}).inside
    assert row("eosin", 4.8, parts={"HER2ST": low, "Aperio": high}).inside
    assert not row("eosin", 0.7, parts={"HER2ST": low, "Aperio": high}).inside  # below 10 % of all real tissue


@pytest.fixture(scope="module")
def made_corpus(tmp_path_factory):
    sections = [tiny_section(f"{patient}1", patient, seed, width_um=256.0, height_um=256.0, detections=3_000)
                for seed, patient in enumerate("AB")]  # fmt: skip
    return write_corpus(tmp_path_factory.mktemp("made") / "corpus", sections)


def test_mistakes_are_answered_in_one_line(made_corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("TARIO_REAL_DATA", raising=False)
    corpus = str(made_corpus.root)
    real = write_corpus(tmp_path / "real", [tiny_section("R1", "R", 0)], kind="real")
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((corpus, f"--real-data={tmp_path}"), "--realism only"),
        ((corpus, "--realism"), "$TARIO_REAL_DATA"),
        ((corpus, "--realism", f"--real-data={tmp_path / 'none'}"), "no such folder"),
        ((corpus, "--realism", f"--real-data={tmp_path / 'empty'}"), "has no folder her2st"),
        ((str(real.root), "--realism", f"--real-data={tmp_path}"), "this is real tissue"),
    ):
        assert cli.main(["check", *words]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


@pytest.mark.real_data
def test_an_aperio_slide_states_its_scale(real_data):
    pixels, um_per_px = read_aperio(next((real_data / "slides").glob("*.svs")))
    assert pixels.shape == (2967, 2220, 3) and pixels.dtype == np.uint8 and um_per_px == 0.499


@pytest.mark.slow
@pytest.mark.real_data
def test_grey_noise_is_not_taken_for_tissue(made_corpus, real_data, tmp_path, capsys):
    words = (
        "check",
        str(made_corpus.root),
        "--realism",
        f"--real-data={real_data}",
        f"--json={tmp_path / 'said.json'}",
    )
    assert cli.main([*words]) == 1
    said = json.loads((tmp_path / "said.json").read_text())
    out = capsys.readouterr().out
    assert said["sections"] == ["A1", "B1"] and len(said["rows"]) == len(FIGURES) + 9
    assert "eosin, tissue" in said["outside"] and out.count("OUTSIDE") == len(said["outside"])
    for one in said["rows"]:
        assert one["real"] == sorted(one["real"]) and one["virtual"] == sorted(one["virtual"])
        assert set(one["parts"]) == ({HER2ST, APERIO} if one["judged"] else set())
    area = next(one for one in said["rows"] if one["figure"] == "nuclear area")
    assert 20 < area["real"][0] < area["real"][-1] < 80
    assert "no section is 1.6 mm wide" in out

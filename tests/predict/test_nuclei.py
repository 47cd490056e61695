"""Nuclei are found where they were painted, once, whatever the tiles they are looked for in."""

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import spot_section, tiny_section, write_corpus

from tario_jax.evaluate.finer.nucleus_match import NucleusScore, match_places
from tario_jax.predict.nuclei import find_nuclei, haematoxylin
from tario_jax.predict.tissue import ImageSection
from tario_jax.virtual import Settings, simulate_section
from tario_jax.virtual.cell_truth import he_shift_um, stored_cells


def painted(side_um: float = 160.0, um_per_px: float = 0.5, seed: int = 0, least_um: float = 12.0):
    """Pink tissue with purple ellipses that do not touch: pixels, centres [N, 2] and areas [N] in µm."""
    rng = np.random.default_rng(seed)
    side = round(side_um / um_per_px)
    y, x = (np.mgrid[:side, :side] + 0.5) * um_per_px
    centres, areas = [], []
    pixels = np.empty((side, side, 3))
    pixels[...] = (232, 170, 200)
    for _ in range(2000):
        place = rng.uniform(8, side_um - 8, 2)
        if centres and np.hypot(*(np.array(centres) - place).T).min() < least_um:
            continue
        long, short, turn = rng.uniform(3.4, 4.6), rng.uniform(2.4, 3.4), rng.uniform(0, np.pi)
        dx, dy = x - place[0], y - place[1]
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        pixels[(along / long) ** 2 + (across / short) ** 2 < 1] = (88, 60, 140)
        centres.append(place)
        areas.append(np.pi * long * short)
    pixels += rng.normal(0, 4, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8), np.array(centres), np.array(areas)


@pytest.mark.parametrize("um_per_px", [0.25, 0.5, 0.69])
def test_painted_nuclei_are_found_one_by_one(um_per_px):
    he, centres, areas = painted(um_per_px=um_per_px)
    nuclei = find_nuclei(ImageSection(he, um_per_px, genes=1))
    mine = match_places(nuclei.centre_um_Nx2, centres, 1.0)
    assert len(nuclei) == len(centres) > 80 and sorted(mine) == list(range(len(centres)))
    np.testing.assert_allclose(np.median(nuclei.area_um2_N / areas[mine]), 1, atol=0.12)


def test_haematoxylin_is_what_is_blue():
    colours = np.array([[[255, 255, 255], [232, 150, 190], [88, 60, 140]]], np.uint8)
    glass, eosin, nucleus = haematoxylin(colours)[0]
    assert glass == 0 and nucleus > 3 * eosin


def test_tiles_neither_cut_a_nucleus_nor_find_it_twice():
    he = simulate_section(0, "core", Settings(section_um=256.0, panel="curated")).he
    section = ImageSection(he, 0.5, genes=1)
    whole = find_nuclei(section, tile_um=256.0)
    order = np.lexsort(whole.centre_um_Nx2.T)
    assert len(whole) > 150
    for tile_um in (64.0, 90.0):
        told = []
        tiled = find_nuclei(section, tile_um=tile_um, progress=lambda done, of, told=told: told.append((done, of)))
        assert told[-1][0] == told[-1][1] == int(np.ceil(256 / tile_um)) ** 2
        again = np.lexsort(tiled.centre_um_Nx2.T)
        np.testing.assert_allclose(tiled.centre_um_Nx2[again], whole.centre_um_Nx2[order])
        np.testing.assert_allclose(tiled.area_um2_N[again], whole.area_um2_N[order])


@pytest.mark.parametrize("number", [0, 3])
def test_most_nuclei_of_virtual_tissue_are_found(number):
    data = simulate_section(number, "core", Settings(section_um=256.0, panel="curated"))
    cells = stored_cells(data.truth)
    # where they are drawn, which is not quite where their detections lie
    true = np.stack([cells.x_um_N, cells.y_um_N], 1) + he_shift_um(data.truth)
    nuclei = find_nuclei(ImageSection(data.he, 0.5, genes=1))
    score = NucleusScore.of(match_places(nuclei.centre_um_Nx2, true), len(cells))
    assert score.recall > 0.85 and score.precision > 0.85 and abs(score.count_error) < 0.12


def test_glass_has_no_nuclei():
    assert len(find_nuclei(ImageSection(np.full((200, 300, 3), 250, np.uint8), 0.5, genes=1))) == 0


def test_what_has_no_nuclei_to_see_is_refused(tmp_path):
    coarse = ImageSection(np.zeros((100, 100, 3), np.uint8), 1.1, genes=1)
    refused(lambda: find_nuclei(coarse), "1.1 µm per px", "1 or finer", "--cells=FILE.geojson")
    section = tiny_section("A1", "A", 0)
    blind = write_corpus(tmp_path / "c", [spot_section("B1", "B", 0, x_um=[50.0], y_um=[50.0]), section]).sections[0]
    blind.record["arrays"].remove("he")
    refused(lambda: find_nuclei(blind), "has no H&E")


def test_matches_are_one_to_one_and_the_nearest_first():
    found = np.array([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]])
    true = np.array([[1.2, 0.0], [90.0, 0.0]])
    np.testing.assert_array_equal(match_places(found, true), [-1, 0, -1])
    score = NucleusScore.of(match_places(found, true), 2)
    assert (score.recall, score.precision, score.count_error) == (0.5, pytest.approx(1 / 3), 0.5)
    np.testing.assert_array_equal(match_places(found, true, 1000.0), [-1, 0, 1])
    assert len(match_places(np.zeros((0, 2)), true)) == 0 and match_places(found, np.zeros((0, 2))).tolist() == [-1] * 3


@pytest.mark.real_data
def test_a_real_slide_has_nuclei_of_the_size_of_nuclei(real_data):
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        he = np.asarray(slide.read_region((600, 800), 0, (1000, 1000)).convert("RGB"))
    nuclei = find_nuclei(ImageSection(he, 0.499, genes=1))
    low, middle, high = np.percentile(nuclei.area_um2_N, [10, 50, 90])
    assert 300 < len(nuclei) < 1200 and low > 8 and 15 < middle < 45 and high < 120
    blue = haematoxylin(he)
    column, row = (nuclei.centre_um_Nx2 / 0.499).astype(int).T
    assert blue[row, column].mean() > 2.5 * blue.mean()

"""The registration check finds shifts, mirrors and turns, and says so where it cannot."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from tiny_tissue import tiny_section, write_corpus
from whole_sections import whole_sections

from tario_jax.corpus import stored_section
from tario_jax.corpus.stored_section import Section
from tario_jax.sources import density_search
from tario_jax.sources.check import registration_of
from tario_jax.sources.density_search import correlate_over_overlap, haematoxylin
from tario_jax.sources.registration import check_registration
from tario_jax.sources.spots import read_spots
from tario_jax.sources.xenium import read_xenium


@pytest.fixture(scope="module")
def excerpt(real_data):
    """(H&E, µm per px, x_um, y_um of detections inside nuclei)."""
    (section,) = whole_sections(read_xenium(real_data / "xenium_excerpt", patient_id="X", cohort="breast"))
    found = section.detections
    inside = found.in_nucleus_D
    return section.he, section.he_um_per_px, found.x_um_D[inside], found.y_um_D[inside]


@pytest.mark.real_data
def test_the_excerpt_is_registered_within_5_um(excerpt):
    report = check_registration(*excerpt)
    assert report.ok and np.hypot(*report.shift_um) < 5 and report.score_at_zero > 0.7 > 3 * report.null_score
    assert report.line().startswith("registered: best shift")


@pytest.mark.real_data
@pytest.mark.parametrize("by", [(20, 0), (0, -20), (-12, 16)])
def test_a_shifted_copy_is_reported_with_its_shift(excerpt, by):
    he, um_per_px, x_um, y_um = excerpt
    report = check_registration(he, um_per_px, x_um + by[0], y_um + by[1])
    assert report.verdict == "shifted" and not report.ok
    np.testing.assert_allclose(report.shift_um, by, atol=1.5)
    assert "shifted: detections lie" in report.line()


@pytest.mark.real_data
@pytest.mark.parametrize(("change", "verdict", "orientation"), [
    (lambda he: he[:, ::-1], "mirrored", "mirrored left to right"),
    (lambda he: he[::-1], "mirrored", "mirrored top to bottom"),
    (lambda he: he[::-1, ::-1], "turned", "turned by 180°"),
    (lambda he: np.rot90(he, -1), "turned", "turned by 90°"),
    (lambda he: he.transpose(1, 0, 2), "mirrored", "mirrored along the other diagonal"),
])  # fmt: skip
def test_a_mirrored_or_turned_copy_is_reported(excerpt, change, verdict, orientation):
    he, um_per_px, x_um, y_um = excerpt
    report = check_registration(np.ascontiguousarray(change(he)), um_per_px, x_um, y_um)
    assert (report.verdict, report.orientation) == (verdict, orientation)
    assert report.score_as_stored < 0.5 * report.best_score


@pytest.mark.real_data
def test_detections_without_relation_to_the_image_are_not_checkable(excerpt):
    he, um_per_px, x_um, y_um = excerpt
    rng = np.random.default_rng(0)
    width_um, height_um = he.shape[1] * um_per_px, he.shape[0] * um_per_px
    anywhere = rng.uniform(0, 1, (2, 5000)) * [[width_um], [height_um]]
    assert check_registration(he, um_per_px, *anywhere).verdict == "not checkable"
    far = check_registration(he, um_per_px, (x_um + 80) % width_um, (y_um + 70) % height_um)
    assert far.verdict == "not checkable" and "far better" in far.line()


def test_a_section_is_checked_block_by_block_as_at_once(tmp_path, monkeypatch):
    """A section may be larger than memory: neither its H&E nor its detections are ever held whole."""
    made = tiny_section("A1", "A", 3, width_um=400.0, height_um=300.0, detections=40_000)
    nucleus = np.random.default_rng(0).random(40_000) < 0.5
    made = dataclasses.replace(made, registration="same_section_after",
                               detections=dataclasses.replace(made.detections, in_nucleus_D=nucleus))  # fmt: skip
    section = write_corpus(tmp_path / "c", [made], kind="real").sections[0]
    found = section.all_detections()
    inside = found.in_nucleus_D
    assert 15_000 < inside.sum() < 25_000
    at_once = check_registration(section.he(), section.he_um_per_px, found.x_um_D[inside], found.y_um_D[inside])
    largest = []
    read_part, read_blocks = Section.detections, Section.he_blocks

    def part_of(self, *box, **more):
        part = read_part(self, *box, **more)
        largest.append(len(part))
        return part

    def blocks_of(self):
        image = read_blocks(self)
        return dataclasses.replace(image, read=lambda *part: largest.append(part[0].stop - part[0].start) or
                                   image.read(*part))  # fmt: skip

    monkeypatch.setattr(Section, "detections", part_of)
    monkeypatch.setattr(Section, "he_blocks", blocks_of)
    monkeypatch.setattr(Section, "he", None)
    monkeypatch.setattr(stored_section, "_COUNTED_AT_ONCE", 10_000)
    monkeypatch.setattr(density_search, "_STRIP_PX", 800 * 40)
    assert registration_of(section) == at_once
    parts = [size for size in largest if size > 100]
    assert len(parts) == 5 and max(parts) < 15_000 and sum(parts) == 40_000  # a row of tiles each
    assert max(set(largest) - set(parts)) <= 40 and sum(set(largest) - set(parts)) > 0


def test_too_little_to_check_is_said_without_a_score():
    he = np.full((400, 400, 3), 230, np.uint8)
    place = np.random.default_rng(0).uniform(0, 400, (2, 1000))
    assert "no contrast" in check_registration(he, 1.0, *place).line()
    dotted = he.copy()
    dotted[::7, ::7] = (90, 60, 150)
    assert "at least 200" in check_registration(dotted, 1.0, *place[:, :10]).line()
    assert "at least 120 µm" in check_registration(he[:100], 1.0, *place).line()
    assert check_registration(he, 1.0, *place).to_dict()["best_score"] is None
    with pytest.raises(ValueError, match="belong together"):
        check_registration(he, 1.0, *place, weights=np.ones(1000))


def test_the_shift_of_a_large_section_is_found_to_a_micron(monkeypatch):
    """The map has px of 4 µm; a shift that is no multiple of them is found to a µm nevertheless."""
    monkeypatch.setattr("tario_jax.sources.density_search._COARSE_PX", 450)
    rng = np.random.default_rng(0)
    side_um, um_per_px = 1800, 1.0
    nuclei = rng.uniform(20, side_um - 20, (900, 2))
    mask = np.zeros((1800, 1800), bool)
    column, row = (nuclei / um_per_px).astype(int).T
    mask[row, column] = True
    near = ndimage.distance_transform_edt(~mask) * um_per_px < 5
    he = np.where(near[..., None], np.array([90, 60, 150]), np.array([225, 160, 200])).astype(np.uint8)
    x_um, y_um = (np.repeat(nuclei, 12, 0) + rng.normal(0, 2, (10_800, 2))).T
    report = check_registration(he, um_per_px, x_um + 6, y_um - 2)
    assert report.verdict == "shifted"
    np.testing.assert_allclose(report.shift_um, (6, -2), atol=0.5)


def test_on_the_coarse_map_of_a_whole_slide_a_shift_is_no_edge_of_the_search(monkeypatch):
    """With px of 20 µm a search of 30 µm is one px or two to each side."""
    monkeypatch.setattr("tario_jax.sources.density_search._COARSE_PX", 90)
    rng = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(rng.normal(size=(900, 900)), 40)  # px of 2 µm
    dense = tissue > np.quantile(tissue, 0.6)
    he = np.where(dense[..., None], np.array([120, 80, 165]), np.array([225, 170, 205])).astype(np.uint8)
    row, column = np.nonzero(dense)
    some = rng.integers(0, len(row), 60_000)
    report = check_registration(he, 2.0, 2.0 * column[some] + 20, 2.0 * row[some])
    assert report.verdict == "shifted", report.line()
    np.testing.assert_allclose(report.shift_um, (20, 0), atol=6)


@pytest.mark.parametrize(("off_um", "verdict"), [(4.0, "registered"), (5.0, "registered"), (6.2, "shifted")])
def test_a_shift_at_the_tolerance_is_no_fault_of_its_own_measurement(off_um, verdict):
    """Virtual tissue is off by up to 5 µm, on purpose: what is found of it is a few hundredths more or less."""
    rng = np.random.default_rng(1)
    nuclei = rng.uniform(20, 380, (160, 2))
    mask = np.zeros((800, 800), bool)
    column, row = (nuclei / 0.5).astype(int).T
    mask[row, column] = True
    near = ndimage.distance_transform_edt(~mask) * 0.5 < 4
    he = np.where(near[..., None], np.array([90, 60, 150]), np.array([225, 160, 200])).astype(np.uint8)
    places = np.repeat(nuclei, 12, 0) + rng.normal(0, 1.5, (1920, 2))
    for turn in (0.0, 4.0):  # one along an axis, one across both
        x_um, y_um = (places + off_um * np.array([np.cos(turn), np.sin(turn)])).T
        assert check_registration(he, 0.5, x_um, y_um).verdict == verdict


def test_correlation_over_the_overlap_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    fixed, moving = rng.normal(5, 1, (14, 11)), rng.normal(-3, 2, (14, 11))
    mask = np.ones((14, 11), bool)
    mask[:, :2] = False
    score = correlate_over_overlap(fixed, moving, mask)
    for dy, dx in ((0, 0), (3, -2), (-4, 1), (2, 3)):
        pairs = [
            (fixed[y + dy, x + dx], moving[y, x])
            for y in range(14) for x in range(11)
            if mask[y, x] and 0 <= y + dy < 14 and 0 <= x + dx < 11
        ]  # fmt: skip
        assert score[dy, dx] == pytest.approx(np.corrcoef(np.array(pairs).T)[0, 1], abs=1e-9)
    assert score[13, 0] == -1  # too little overlap


def test_haematoxylin_is_high_where_blue_and_keeps_its_scale():
    he = np.full((100, 90, 3), (235, 200, 220), np.uint8)
    he[40:60, 30:60] = (80, 60, 150)
    stain, um_per_px = haematoxylin(he, 0.25, 1.0)
    assert stain.shape == (25, 22) and um_per_px == 1.0
    assert stain[11:14, 9:13].min() > 3 * stain[:8].max()


@pytest.mark.real_data
@pytest.mark.slow
def test_spots_are_checked_at_their_own_power(real_data):
    folder = real_data / "her2st"
    section = next(read_spots(folder, patients=(("B", "breast"),), sections=("B4",)).sections)
    spots, he, um_per_px = section.spots, section.he, section.he_um_per_px
    total = np.add.reduceat(spots.count_E, spots.indptr[:-1])
    arguments = {"weights": total, "diameter_um": spots.diameter_um}
    as_stored = check_registration(he, um_per_px, spots.x_um_N, spots.y_um_N, **arguments)
    assert as_stored.verdict == "registered" and 50 <= as_stored.tolerance_um <= 100
    assert check_registration(he[:, ::-1], um_per_px, spots.x_um_N, spots.y_um_N, **arguments).verdict == "mirrored"
    moved = check_registration(he, um_per_px, spots.x_um_N + 150, spots.y_um_N, **arguments)
    assert moved.verdict == "shifted" and moved.shift_um[0] == pytest.approx(150, abs=50)
    shuffled = np.random.default_rng(0).permutation(total)
    nothing = check_registration(
        he, um_per_px, spots.x_um_N, spots.y_um_N, weights=shuffled, diameter_um=spots.diameter_um
    )
    assert nothing.verdict == "not checkable"

"""What is read from a corpus is what was written: places, counts, pixels, spots, measured area."""

import dataclasses

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.resample import box_means
from tario_jax.corpus.section import Detections, SectionData
from tario_jax.corpus.stored_section import coarser_he
from tario_jax.corpus.write import write_section


def assert_same_detections(read: Detections, written: Detections, within_um: float = 0.001):
    """The same detections, each at its place; matched by gene and order along x, so no two share both."""
    assert len(read) == len(written)
    for gene in np.unique(written.gene_D):
        ours = np.flatnonzero(read.gene_D == gene)
        theirs = np.flatnonzero(written.gene_D == gene)
        assert len(ours) == len(theirs)
        ours, theirs = ours[np.argsort(read.x_um_D[ours])], theirs[np.argsort(written.x_um_D[theirs])]
        assert np.abs(read.x_um_D[ours] - written.x_um_D[theirs]).max() <= within_um
        assert np.abs(read.y_um_D[ours] - written.y_um_D[theirs]).max() <= within_um


@pytest.fixture(scope="module")
def written() -> SectionData:
    return tiny_section("A1", "A", 7, width_um=171.0, height_um=150.5, patient={"stage": "II"},
                        quality={"control_counts": 3.0}, registration="same_section_after")  # fmt: skip


@pytest.fixture(scope="module")
def read(written, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "c", [written], kind="real").section("A1")


def test_places_are_kept_to_a_nanometre_and_counts_to_the_last(written, read):
    found = read.all_detections()
    assert_same_detections(found, written.detections)
    totals_G = np.bincount(written.detections.gene_D, minlength=len(PANEL))
    np.testing.assert_array_equal(read.gene_totals_G, totals_G)
    np.testing.assert_array_equal(np.bincount(found.gene_D, minlength=len(PANEL)), totals_G)
    np.testing.assert_array_equal(read.he(), written.he)


def test_what_is_known_of_a_section_comes_back(written, tmp_path):
    corpus = write_corpus(tmp_path / "c", [written], kind="real")
    assert (corpus.kind, corpus.panel) == ("real", PANEL)
    assert corpus.patients == ({"patient": "A", "cohort": "LUAD", "stage": "II"},)
    section = corpus.section("A1")
    assert (section.width_um, section.height_um, section.he_um_per_px) == (171.0, 150.5, 0.5)
    assert section.record["quality"] == {"control_counts": 3.0}
    assert section.record["registration"] == "same_section_after"
    assert section.truth is None and section.spots is None and section.measured_gene_G.all()


@pytest.mark.parametrize("window", [(0, 0, 72, 72), (63.5, 20.25, 65, 31), (-20, 100, 72, 72), (150, 140, 72, 72)])
def test_detections_of_a_window_are_those_whose_place_lies_in_it(written, read, window):
    x0, y0, width, height = window
    found = read.detections(*window)
    x, y = written.detections.x_um_D, written.detections.y_um_D
    inside = (x >= x0) & (x < x0 + width) & (y >= y0) & (y < y0 + height)
    assert inside.sum() > 10
    expected = Detections(x[inside], y[inside], written.detections.gene_D[inside])
    assert_same_detections(found, expected)


def test_neighbouring_windows_share_out_every_detection_far_from_the_origin(tmp_path):
    """At 9 mm from the origin float32 has steps of 0.001 µm: a place must not fall between two windows."""
    width, height = 9000.0, 8.0
    edge = 64.0 * np.arange(129, 140)
    x_um = np.concatenate([edge - 0.0002, edge + 0.0002, np.random.default_rng(0).uniform(8192, width, 500)])
    y_um = np.full(len(x_um), 4.0)
    found = Detections(x_um, y_um, np.zeros(len(x_um), np.int32))
    section = SectionData("A1", "A", "LUAD", width, height, detections=found)
    section = write_corpus(tmp_path / "c", [section]).section("A1")
    assert_same_detections(section.all_detections(), found)
    shared_out = sum(len(section.detections(x, 0, 64, 64)) for x in np.arange(0, width, 64.0))
    assert shared_out == len(x_um)


def test_flags_and_cells_follow_their_detections(tmp_path):
    plain = tiny_section("A1", "A", 3)
    place = plain.detections
    nucleus, cell = place.x_um_D % 2 < 1, (place.x_um_D * 100).astype(np.int32)
    flagged = Detections(place.x_um_D, place.y_um_D, place.gene_D, nucleus, cell)
    data = SectionData("A1", "A", "LUAD", 180.0, 150.0, detections=flagged)
    section = write_corpus(tmp_path / "c", [data]).section("A1")
    found = section.detections(30, 20, 70, 70, flags=True)
    assert len(found) and found.in_nucleus_D.any() and not found.in_nucleus_D.all()
    middle = np.abs(found.x_um_D % 1 - 0.5) < 0.4  # away from where rounding decides
    np.testing.assert_array_equal(found.in_nucleus_D[middle], (found.x_um_D % 2 < 1)[middle])
    assert np.abs(found.cell_D - found.x_um_D * 100).max() <= 1.1


def area_average(image, um_per_px, x_um, y_um, side_px, asked_um_per_px):
    """The definition, in float64: each asked pixel is the mean of the stored area under it; outside is white."""
    overlaps = []
    for corner, size in ((y_um, image.shape[0]), (x_um, image.shape[1])):
        low = corner + asked_um_per_px * np.arange(side_px)[:, None]
        edges = um_per_px * np.arange(size)
        covered = np.minimum(low + asked_um_per_px, edges + um_per_px) - np.maximum(low, edges)
        overlaps.append(np.maximum(covered, 0.0) / asked_um_per_px)
    rows, columns = overlaps
    ink = np.tensordot(rows, 255.0 - image.astype(np.float64), 1)
    return 255.0 - np.tensordot(columns, ink, (1, 1)).transpose(1, 0, 2)


@pytest.mark.parametrize("asked_um_per_px", [0.5, 1.0, 2.0, 0.73, 1.37, 0.4, 0.25])
@pytest.mark.parametrize("corner", [(10.0, 20.0), (10.37, 20.81), (-15.2, -9.9), (140.0, 120.3), (300.0, 300.0)])
def test_he_window_is_the_area_average(written, read, asked_um_per_px, corner):
    he = read.he_window(*corner, 48, asked_um_per_px)
    assert he.dtype == np.uint8 and he.shape == (48, 48, 3)
    expected = area_average(written.he, 0.5, *corner, 48, asked_um_per_px)
    assert np.abs(he - expected).max() <= 0.51


def test_spots_and_their_counts_come_back(tmp_path):
    data = spot_section("A1", "A", 4, x_um=[30.25, 90.0, 150.75], y_um=[40.0, 75.5, 110.125])
    section = write_corpus(tmp_path / "c", [data]).section("A1")
    for name in ("x_um_N", "y_um_N", "indptr", "gene_E", "count_E"):
        np.testing.assert_array_equal(getattr(section.spots, name), getattr(data.spots, name))
    assert (section.spots.name_N, section.spots.diameter_um) == (("s0", "s1", "s2"), 20.0)
    np.testing.assert_array_equal(section.gene_totals_G, data.spots.dense(len(PANEL)).sum(0))


def test_masks_and_truth_come_back(tmp_path):
    rng = np.random.default_rng(0)
    mask, genes = rng.random((38, 45)) < 0.7, np.arange(len(PANEL)) % 3 > 0
    truth = {"cells_x_um_N": rng.random(40), "hidden_type_N": rng.integers(0, 9, 40).astype(np.int8)}
    data = tiny_section("A1", "A", 5, measured=mask, measured_gene_G=genes, truth=truth)
    section = write_corpus(tmp_path / "c", [data]).section("A1")
    values, um_per_px = section.measured
    np.testing.assert_array_equal(values, mask)
    assert um_per_px == 4.0
    np.testing.assert_array_equal(section.measured_gene_G, genes)
    assert section.truth.keys() == truth.keys()
    for name, values in truth.items():
        np.testing.assert_array_equal(section.truth[name], values)
        assert section.truth[name].dtype == values.dtype


@pytest.mark.parametrize("corner_um", [(-30.0, -12.0), (61.0, 47.32), (170.0, 140.0), (900.0, 900.0)])
def test_the_measured_share_of_a_square_is_a_mean_over_its_area(corner_um):
    """By squares of a hundredth of a pixel, of places inside, across an edge, and far away."""
    mask, fine = (np.random.default_rng(0).random((38, 45)) < 0.7).astype(np.uint8), 100
    x_um_N, y_um_N = (corner + np.array([0.0, 4.04, 20.0]) for corner in corner_um)
    held = np.pad(mask, 10).repeat(fine, 0).repeat(fine, 1)  # 40 µm of nothing around it
    expected = []
    for x_um, y_um in zip(x_um_N, y_um_N, strict=True):
        top, left = (round((at - 9.0 + 40.0) / 4.0 * fine) for at in (y_um, x_um))
        part = held[max(top, 0) : max(top + 450, 0), max(left, 0) : max(left + 450, 0)]
        expected.append(part.sum() / 450**2)
    np.testing.assert_allclose(box_means(mask, 4.0, x_um_N, y_um_N, 18.0), expected, atol=1e-6)
    assert box_means(mask, 4.0, np.zeros(0), np.zeros(0), 18.0).shape == (0,)


def test_an_he_that_is_coarser_than_it_is_read_is_warned_of(tmp_path):
    sections = [tiny_section("A1", "A", 0, detections=9), tiny_section("B1", "B", 1, um_per_px=3.0, detections=9)]
    stored = write_corpus(tmp_path / "c", sections).sections
    said = coarser_he(stored, 1.0)
    assert "1 of 2 sections" in said and "the 1 µm per px" in said and "B1: 3" in said
    assert not coarser_he(stored[:1], 0.5) and coarser_he(stored[:1], 0.4)


def test_counts_of_a_gene_that_is_not_measured_are_refused(tmp_path):
    data = dataclasses.replace(tiny_section("A1", "A", 5), measured_gene_G=np.arange(len(PANEL)) > 0)
    with pytest.raises(InputError, match="holds counts of 'GENE0', a gene that it is said not to measure"):
        write_corpus(tmp_path / "c", [data])


@pytest.mark.parametrize("place", [(180.5, 10.0), (-0.5, 10.0), (10.0, 150.5), (10.0, np.nan)])
def test_detections_outside_of_their_section_are_refused(tmp_path, place):
    found = Detections(np.array([5.0, place[0]]), np.array([5.0, place[1]]), np.zeros(2, np.int32))
    data = SectionData("A1", "A", "LUAD", 180.0, 150.0, detections=found)
    with pytest.raises(InputError, match="1 of 2 detections lie outside its 180 x 150 µm"):
        write_corpus(tmp_path / "c", [data])
    with pytest.raises(InputError, match="not sealed"):
        Corpus.open(tmp_path / "c")


def test_genes_beyond_the_panel_are_refused(tmp_path):
    found = Detections(np.ones(2), np.ones(2), np.array([0, len(PANEL)], np.int32))
    with pytest.raises(InputError, match="gene numbers 0..12; the panel has 12 genes"):
        write_corpus(tmp_path / "c", [SectionData("A1", "A", "LUAD", 180.0, 150.0, detections=found)])


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "a\nb"])
def test_a_section_whose_name_is_no_folder_of_its_own_is_refused_and_the_corpus_stays(name, tmp_path):
    corpus = write_corpus(tmp_path / "c", [tiny_section("A1", "A", 0)], kind="real")
    refused(lambda: tiny_section(name, "P1", 0), "a section's name becomes a folder's")
    section = tiny_section("new", "P1", 0)
    object.__setattr__(section, "section_id", name)  # by another way: the writer removes what is below that folder
    refused(lambda: write_section(tmp_path / "c", PANEL, "real", section), "a section's name becomes a folder's")
    assert Corpus.open(tmp_path / "c").seal == corpus.seal


@pytest.mark.parametrize("name", ["P1 ", " P1", "P\t1", "P\n1"])
def test_a_patient_whose_name_looks_like_anothers_is_refused(name):
    refused(lambda: tiny_section("s", name, 0), "section 's'", repr(name), "without spaces around it")

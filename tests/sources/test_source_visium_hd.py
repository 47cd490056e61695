"""Visium HD: squares become detections that any bin counts, and bins finer than the squares allow are refused."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import scipy.spatial
from made_visium import FEATURES, UM_PER_PX, made_visium_hd
from refusals import refused
from tiny_tissue import tiny_config, write_corpus
from whole_sections import whole_sections

from tario_jax.corpus.resample import box_means
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.sources import spaceranger
from tario_jax.sources.visium_hd import read_visium_hd
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window

WHO = {"patient_id": "P1", "cohort": "COAD", "section_id": "H1"}
GENES = [row for row, feature in enumerate(FEATURES) if feature[1] not in ("CD3", "OLD")]


def read(made, **arguments):
    ingested = read_visium_hd(made.folder, **WHO, image=made.image, **arguments)
    (section,) = whole_sections(ingested)
    return ingested, section


def test_each_count_is_a_detection_in_its_square(tmp_path):
    made = made_visium_hd(tmp_path / "outs")
    ingested, section = read(made)
    found, symbol = section.detections, ingested.panel.symbols
    assert len(found) == made.counts[GENES].to_numpy().sum() and section.spots is None
    x_px = found.x_um_D / UM_PER_PX + section.quality["he_origin_x_px"]
    y_px = found.y_um_D / UM_PER_PX + section.quality["he_origin_y_px"]
    place = made.positions.set_index("barcode").loc[made.counts.index]
    centre_xy_px = np.stack([place.pxl_col_in_fullres, place.pxl_row_in_fullres], 1)
    miss_px, square = scipy.spatial.cKDTree(centre_xy_px).query(np.stack([x_px, y_px], 1))
    half_px = 1 / UM_PER_PX  # of the side of 2 µm
    assert half_px * 1.2 < miss_px.max() < half_px * np.sqrt(2) + 1e-2
    # every square has its own counts, gene by gene
    ours = pd.crosstab(square, np.array(symbol)[found.gene_D])
    theirs = made.counts[GENES].T.groupby([FEATURES[row][1] for row in GENES]).sum().T.to_numpy()
    np.testing.assert_array_equal(ours.reindex(range(len(theirs)), columns=list(symbol), fill_value=0), theirs)


@pytest.mark.parametrize("bin_um", [18.0, 36.0])
def test_bins_beside_whole_squares_hold_no_pattern_of_them(tmp_path, bin_um):
    """Squares of 8 µm of as many counts each: a bin of 18 µm holds two or three of their centres along a side."""
    made = made_visium_hd(tmp_path / "outs", square_um=8, side=40, each=40)
    ingested, section = read(made, square_um=8)
    columns, rows = (int(extent / bin_um) for extent in (section.width_um, section.height_um))
    counts = grid_counts(section.detections, len(ingested.panel), columns, rows, bin_um).sum(1)
    counts = np.asarray(counts).ravel()
    area = box_means(section.measured, section.measured_um_per_px, *grid_places(columns, rows, bin_um), bin_um)
    inside = counts[area > 0.999]
    assert len(inside) > 20
    expected = section.detections.x_um_D.size / (section.measured.sum() * section.measured_um_per_px**2) * bin_um**2
    assert inside.std() < 1.3 * np.sqrt(expected) and inside.mean() == pytest.approx(expected, rel=0.03)


def test_counts_are_read_in_blocks_as_at_once(tmp_path, monkeypatch):
    """A slide of squares of 2 µm holds more counts than memory: they stay in the file."""
    made = made_visium_hd(tmp_path / "outs")
    ingested, whole = read(made)
    monkeypatch.setattr(spaceranger, "_ENTRIES", 100)
    monkeypatch.setattr(spaceranger, "_BARCODES", 70)
    again = read_visium_hd(made.folder, **WHO, image=made.image)
    for section in again.sections:
        assert len(list(section.detections)) > 20 and max(map(len, section.detections)) < 400
        found = section.detections.gathered()
        for field in dataclasses.fields(found):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole.detections, field.name))
    assert again.report == ingested.report and again.panel == ingested.panel


@pytest.fixture
def stored(tmp_path):
    made = made_visium_hd(tmp_path / "outs")
    ingested, section = read(made)
    return made, section, write_corpus(tmp_path / "c", [section], panel=ingested.panel, kind="real")


@pytest.mark.parametrize("bin_um", [36.0, 18.0, 9.0])
def test_bins_of_any_size_hold_the_same_total(stored, bin_um):
    made, section, corpus = stored
    found = corpus.sections[0].all_detections()
    columns, rows = int(np.ceil(section.width_um / bin_um)), int(np.ceil(section.height_um / bin_um))
    counts = grid_counts(found, len(corpus.panel), columns, rows, bin_um)
    assert counts.sum() == made.counts[GENES].to_numpy().sum()
    assert corpus.sections[0].place_precision_um == 2


def test_the_measured_area_is_that_of_the_squares_in_tissue(stored):
    made, section, _ = stored
    tissue_um2 = (made.positions.in_tissue == 1).sum() * 4.0
    assert section.measured.sum() * section.measured_um_per_px**2 == pytest.approx(tissue_um2, rel=0.05)
    found = section.detections
    cell = (found.y_um_D // 4).astype(int), (found.x_um_D // 4).astype(int)
    assert section.measured[cell].mean() > 0.97  # all but those of squares on the rim


def test_bins_that_are_small_beside_the_squares_are_refused_where_windows_are_made(tmp_path):
    made = made_visium_hd(tmp_path / "outs", square_um=16, side=30)
    ingested, section = read(made, square_um=16)
    corpus = write_corpus(tmp_path / "c", [section], panel=ingested.panel, kind="real")
    data = dataclasses.replace(tiny_config().data, bin_um=18.0)
    words = ("section 'H1'", "squares of 16 µm", "bins of 18 µm", "at least 32 µm")
    refused(lambda: corpus_layout(corpus.sections, data, len(corpus.panel)), *words)
    sized = dataclasses.replace(data, count_capacity=999)  # no window is looked at: the corpus is refused all the same
    refused(lambda: corpus_layout(corpus.sections, sized, len(corpus.panel)), *words)
    refused(lambda: read_window(corpus.sections[0], 300.0, 300.0, data), *words)
    read_window(corpus.sections[0], 300.0, 300.0, data, with_counts=False)  # an H&E has no such limit
    window = read_window(corpus.sections[0], 320.0, 350.0, dataclasses.replace(data, bin_um=36.0))
    assert window.bins.count_E.sum() > 0


def test_coarser_squares_and_a_folder_without_them(tmp_path):
    made = made_visium_hd(tmp_path / "outs", square_um=8, side=40)
    ingested, section = read(made, square_um=8)
    assert section.quality["place_precision_um"] == 8 and "bins of less than 16 µm" in ingested.report.table()
    refused(lambda: read(made), "no folder square_002um", "--square-um=8")
    refused(lambda: read(made, square_um=4), "--square-um=4", "2, 8, 16")
    path = made.folder / "binned_outputs/square_008um/spatial/scalefactors_json.json"
    factors = json.loads(path.read_text())
    path.write_text(json.dumps(factors | {"microns_per_pixel": 0.3}))
    refused(lambda: read(made, square_um=8), "16 px apart, which are 4.8 µm", "of one run?")
    path.write_text(json.dumps(factors | {"bin_size_um": 16.0}))
    refused(lambda: read(made, square_um=8), "'bin_size_um' is 16; expected 8")

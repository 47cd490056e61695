"""Visium: counts, places and H&E are those of the folder, whichever release wrote it."""

import csv
import json

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from made_visium import FEATURES, UM_PER_PX, made_visium, write_h5, write_image, write_positions
from PIL import Image
from refusals import refused
from tiny_tissue import write_corpus
from whole_sections import whole_sections

from tario_jax.corpus.check import check_corpus
from tario_jax.sources.visium import read_visium

WHO = {"patient_id": "P1", "cohort": "BRCA", "section_id": "V1"}
GENES = [row for row, feature in enumerate(FEATURES) if feature[1] not in ("CD3", "OLD")]


def read(made, **arguments):
    ingested = read_visium(made.folder, **WHO, **{"image": made.image} | arguments)
    (section,) = whole_sections(ingested)
    return ingested, section


def in_tissue(made):
    """Counts by barcode and symbol, rows of one symbol summed, of the spots in tissue."""
    counts = made.counts.loc[list(made.positions.barcode[made.positions.in_tissue == 1]), GENES]
    return counts.T.groupby([FEATURES[row][1] for row in GENES]).sum().T


@pytest.mark.parametrize(("header", "flat"), [(True, False), (False, False), (False, True)])
def test_counts_places_and_image_are_those_of_the_folder(tmp_path, header, flat):
    made = made_visium(tmp_path / "outs", header=header, flat=flat)
    ingested, section = read(made)
    assert ingested.panel.symbols == ("AC012345.1", "MYC", "NEVER", "TBCE", "TP53")
    assert ingested.panel.ensembl == ("ENSG00000000005", "ENSG00000000002", "ENSG00000000006", "", "ENSG00000000001")
    expected = in_tissue(made)
    dense = pd.DataFrame(section.spots.dense(5), section.spots.name_N, ingested.panel.symbols)
    pd.testing.assert_frame_equal(dense, expected[list(dense.columns)], check_dtype=False, check_names=False)
    assert section.spots.diameter_um == 55 and section.spots.pitch_um == pytest.approx(100, abs=0.01)
    assert section.he_um_per_px == pytest.approx(UM_PER_PX, rel=1e-4)
    # the H&E is cut to the spots, and under each spot's centre lies its dark dot
    with Image.open(made.image) as scan:
        assert section.he.shape[0] < scan.height
    column = (section.spots.x_um_N / section.he_um_per_px).astype(int)
    row = (section.spots.y_um_N / section.he_um_per_px).astype(int)
    assert (section.he[row, column] == (120, 40, 140)).all()
    first = made.positions.set_index("barcode").loc[section.spots.name_N[0]]
    np.testing.assert_array_equal(section.spots.array_xy_Nx2[0], [first.array_col, first.array_row])


def test_every_row_and_count_is_kept_or_dropped_for_a_reason(tmp_path):
    made = made_visium(tmp_path / "outs")
    made.counts.loc["ZZZZ-1"] = 3
    write_h5(made.folder / "filtered_feature_bc_matrix.h5", made.counts)
    report = read(made)[0].report
    genes, counts, spots = (report.tally(what, "V1") for what in ("genes", "counts", "spots"))
    assert genes.dropped == {
        "feature type Antibody Capture, not a gene": 1, "probe that the vendor withdrew": 1,
        "further row of the same symbol, summed": 1,
    }  # fmt: skip
    assert (spots.read, spots.kept) == (31, 24) and spots.dropped["not in tissue"] == 6
    assert spots.dropped["not in tissue_positions.csv"] == 1
    assert counts.read == made.counts.to_numpy().sum() == counts.kept + sum(counts.dropped.values())
    assert counts.kept == in_tissue(made).to_numpy().sum()
    assert counts.dropped["feature type Antibody Capture, not a gene"] == made.counts[5].sum()
    assert "1 symbols have several rows, summed: TBCE" in report.table()


def test_the_raw_matrix_serves_where_there_is_no_filtered_one(tmp_path):
    made = made_visium(tmp_path / "outs")
    _, filtered = read(made)
    (made.folder / "filtered_feature_bc_matrix.h5").rename(made.folder / "raw_feature_bc_matrix.h5")
    _, raw = read(made)
    np.testing.assert_array_equal(raw.spots.count_E, filtered.spots.count_E)


def test_the_reduced_picture_is_used_with_its_own_scale_and_that_is_said(tmp_path):
    made = made_visium(tmp_path / "outs")
    ingested, section = read(made, image=None)
    assert section.he_um_per_px == pytest.approx(4 * UM_PER_PX, rel=1e-4) and section.quality["he_is_preview"] == 1
    assert "reduced picture tissue_hires_image.png at 2 µm per px" in ingested.report.table()
    assert section.spots.pitch_um == pytest.approx(100, abs=0.01)
    column = (section.spots.x_um_N / section.he_um_per_px).astype(int)
    row = (section.spots.y_um_N / section.he_um_per_px).astype(int)
    assert (section.he[row, column, 1] < 100).all() and np.median(section.he[..., 1]) > 200
    corpus = write_corpus(tmp_path / "c", [section], panel=ingested.panel, kind="real")
    (units,) = (finding for finding in check_corpus(corpus) if finding.subject == "units")
    assert not units.fault and "the vendor's reduced picture" in units.note  # coarse, and no misread scale
    (made.folder / "spatial/tissue_hires_image.png").unlink()
    refused(lambda: read(made, image=None), "tissue_hires_image.png", "--image=FILE")


def test_the_pitch_gives_the_scale_and_the_stated_diameter_must_agree(tmp_path):
    made = made_visium(tmp_path / "outs")
    assert "taken for 65 µm, gives 0.5" in read(made)[0].report.table()
    path = made.folder / "spatial/scalefactors_json.json"
    factors = json.loads(path.read_text())
    path.write_text(json.dumps(factors | {"spot_diameter_fullres": 55 / UM_PER_PX}))
    assert "taken for 55 µm, gives 0.5" in read(made)[0].report.table()
    path.write_text(json.dumps(factors | {"spot_diameter_fullres": 40.0}))
    refused(lambda: read(made), "scalefactors_json.json", "40 px, which is 20 µm", "of one run?")
    path.write_text(json.dumps({"tissue_hires_scalef": 1}))
    refused(lambda: read(made), "'spot_diameter_fullres' is None")


def test_a_spot_beyond_the_image_is_counted_and_another_image_refused(tmp_path):
    made = made_visium(tmp_path / "outs")
    (made.folder / "spatial/tissue_hires_image.png").unlink()  # by which the size of the image would be known
    with Image.open(made.image) as scan:
        right = made.positions.pxl_col_in_fullres.max() - 50
        scan.crop((0, 0, int(right), scan.height)).save(tmp_path / "cut.bmp")
        scan.resize((scan.width // 4, scan.height // 4)).save(tmp_path / "small.bmp")
    ingested, section = read(made, image=tmp_path / "cut.bmp")
    lost = ingested.report.tally("spots", "V1").dropped["outside the image"]
    assert lost > 0 and len(section.spots) == 24 - lost
    refused(lambda: read(made, image=tmp_path / "small.bmp"), "small.bmp", "lie outside", "in full resolution")
    refused(lambda: read(made, image=tmp_path / "none.png"), "--image=", "no such file")


def test_an_image_of_another_resolution_than_the_spots_is_refused(tmp_path):
    """Enlarged, all spots lie within it, each at the wrong place."""
    made = made_visium(tmp_path / "outs")
    with Image.open(made.image) as scan:
        pixels = np.asarray(scan)
    for um_per_px, image in ((UM_PER_PX, pixels), (UM_PER_PX / 2, pixels.repeat(2, 0).repeat(2, 1))):
        path = tmp_path / f"{um_per_px}.tif"
        px_per_cm = (1e4 / um_per_px,) * 2
        tifffile.imwrite(path, image, photometric="rgb", resolution=px_per_cm, resolutionunit="CENTIMETER")
    assert read(made, image=tmp_path / "0.5.tif")[1].he_um_per_px == pytest.approx(UM_PER_PX)
    refused(lambda: read(made, image=path), "--image=", "says 0.25 µm per px", "px of 0.5", "take the scale out")


def test_an_image_of_another_size_than_space_ranger_was_given_is_refused(tmp_path):
    """It states no scale, and all spots lie within it, each at the wrong place."""
    made = made_visium(tmp_path / "outs")
    with Image.open(made.image) as scan:
        scan.resize((scan.width * 2, scan.height * 2)).save(tmp_path / "larger.png")
        size = scan.size
    refused(lambda: read(made, image=tmp_path / "larger.png"), f"{2 * size[0]} × {2 * size[1]} px",
            "Space Ranger was given one of about", "name that one")  # fmt: skip


def test_a_section_is_called_by_the_run_since_every_output_is_called_outs(tmp_path):
    made = made_visium(tmp_path / "P2" / "outs")
    ingested = read_visium(made.folder, patient_id="P2", cohort="BRCA", image=made.image)
    assert next(ingested.sections).section_id == "P2"


def test_positions_that_a_spreadsheet_or_r_wrote_are_the_same(tmp_path):
    made = made_visium(tmp_path / "outs")
    _, plain = read(made)
    text = made.positions.to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    (made.folder / "spatial/tissue_positions.csv").write_text(text, encoding="utf-8-sig", newline="")
    _, quoted = read(made)
    np.testing.assert_array_equal(quoted.spots.x_um_N, plain.spots.x_um_N)
    assert quoted.spots.name_N == plain.spots.name_N


def test_what_is_no_visium_folder_is_answered_in_one_line(tmp_path):
    made = made_visium(tmp_path / "outs", header=True)
    refused(lambda: read_visium(tmp_path / "nowhere", **WHO), "no such folder")
    write_h5(made.folder / "filtered_feature_bc_matrix.h5", made.counts / 3, dtype=np.float64)
    refused(lambda: read(made), "filtered_feature_bc_matrix.h5", "expected raw counts")
    (made.folder / "filtered_feature_bc_matrix.h5").write_bytes(b"no h5")
    refused(lambda: read(made), "filtered_feature_bc_matrix.h5: cannot be read")
    (made.folder / "filtered_feature_bc_matrix.h5").unlink()
    refused(lambda: read(made), "no filtered_feature_bc_matrix.h5 and no raw_feature_bc_matrix.h5")
    write_h5(made.folder / "filtered_feature_bc_matrix.h5", made.counts.rename(index=lambda name: name[:-1] + "9"))
    refused(lambda: read(made), "'AAAC0000-9' and all others", "of one run")
    spatial = made.folder / "spatial"
    write_positions(spatial, made.positions.drop(columns="array_row"), header=True)
    refused(lambda: read(made), "tissue_positions.csv", "no column 'array_row'")
    write_positions(
        spatial, made.positions.assign(in_tissue=made.positions.in_tissue.where(lambda x: x > 0)), header=True
    )
    refused(lambda: read(made), "tissue_positions.csv", "'in_tissue' has an empty value")
    write_positions(spatial, made.positions[:0], header=True)
    refused(lambda: read(made), "tissue_positions.csv: holds no row")
    write_positions(spatial, made.positions.assign(pxl_row_in_fullres="here"), header=True)
    refused(lambda: read(made), "tissue_positions.csv", "cannot be read")
    shuffled = made.positions.assign(pxl_row_in_fullres=made.positions.pxl_row_in_fullres.to_numpy()[::-1] ** 0.5)
    write_positions(spatial, shuffled, header=True)
    refused(lambda: read(made), "do not follow", "swapped")
    write_positions(spatial, made.positions, header=False)
    refused(lambda: read(made), "2 files of tissue_positions.parquet")
    (made.folder / "binned_outputs").mkdir()
    refused(lambda: read(made), "--source=visium_hd")


@pytest.mark.parametrize(("name", "change", "words"), [
    ("indices", lambda values: np.where(np.arange(len(values)) == 3, 99, values), "to 99 for"),
    ("indices", lambda values: np.where(np.arange(len(values)) == 3, -1, values), "'indices' from -1"),
    ("indptr", lambda values: values[:-2], "'indptr' of 29 values"),
    ("indptr", lambda values: np.where(np.arange(len(values)) == 3, 10**6, values), "'indptr'"),
    ("data", lambda values: values[:-2], "'indptr'"),
    ("features/name", lambda values: values[:-1], "8 ids, 7 names"),
    ("barcodes", lambda values: values[[1, 1, *range(2, len(values))]], "stand twice"),
])  # fmt: skip
def test_a_matrix_whose_parts_do_not_fit_is_refused(tmp_path, name, change, words):
    made = made_visium(tmp_path / "outs")
    with h5py.File(made.folder / "filtered_feature_bc_matrix.h5", "r+") as file:
        values = file["matrix"][name][:]
        del file["matrix"][name]
        file["matrix"][name] = change(values)
    refused(lambda: read(made), "filtered_feature_bc_matrix.h5", words)


def test_swapped_pixel_columns_are_said(tmp_path):
    made = made_visium(tmp_path / "outs")
    swapped = {"pxl_row_in_fullres": "pxl_col_in_fullres", "pxl_col_in_fullres": "pxl_row_in_fullres"}
    positions = made.positions.rename(columns=swapped)[list(made.positions.columns)]
    write_positions(made.folder / "spatial", positions, header=True)
    write_image(made.image, positions, 10)
    (made.folder / "spatial/tissue_hires_image.png").unlink()
    assert "the image mirrors the array" in read(made)[0].report.table()


@pytest.mark.real_data
def test_the_visium_excerpt_adds_up(real_data):
    import h5py

    ingested = read_visium(real_data / "visium_excerpt", **WHO)
    (section,) = whole_sections(ingested)
    with h5py.File(real_data / "visium_excerpt/filtered_feature_bc_matrix.h5") as file:
        matrix = file["matrix"]
        ids = matrix["features/id"].asstr()[:]
        totals = pd.Series(np.bincount(matrix["indices"][:], matrix["data"][:], len(ids)), ids)
        first, barcodes = matrix["barcodes"].asstr()[0], len(matrix["barcodes"])
    ours = pd.Series(section.spots.dense(len(ingested.panel)).sum(0), ingested.panel.symbols)
    pd.testing.assert_series_equal(ours, totals.sort_index(), check_dtype=False)
    assert len(section.spots) == barcodes and ingested.panel.ensembl == ingested.panel.symbols
    # 65 µm over spot_diameter_fullres is 0.7268; the pitch says the same
    assert section.he_um_per_px == pytest.approx(0.7268 / 0.150015, rel=0.005)
    names = ["barcode", "in_tissue", "row", "col", "y", "x"]
    row = pd.read_csv(real_data / "visium_excerpt/tissue_positions_list.csv", names=names).set_index("barcode")
    place = row.loc[first, ["x", "y"]].to_numpy(float) * 0.150015
    place -= [section.quality[f"he_origin_{axis}_px"] * 0.150015 for axis in "xy"]
    at = section.spots.name_N.index(first)
    np.testing.assert_allclose(place * section.he_um_per_px, [section.spots.x_um_N[at], section.spots.y_um_N[at]])

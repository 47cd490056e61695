"""Xenium: detections and H&E end in one frame, and what cannot be of this run is answered in one line."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tifffile
from skimage.filters import gaussian
from whole_sections import whole_sections

from tario_jax.config import InputError
from tario_jax.sources.alignment import read_alignment
from tario_jax.sources.xenium import CONTROL, read_xenium

PIXEL_UM = 0.2125
WHO = {"patient_id": "P1", "cohort": "breast", "section_id": "S1"}
ANGLE = 0.03
# the H&E is mirrored top to bottom, slightly turned, 1.7 morphology px per px
AFFINE = np.array([
    [1.7 * np.cos(ANGLE), 1.7 * np.sin(ANGLE), 5000.0],
    [1.7 * np.sin(ANGLE), -1.7 * np.cos(ANGLE), 9000.0],
    [0, 0, 1],
])  # fmt: skip
HE_PX = (360, 300)  # width, height


def to_um(he_px):
    return (np.asarray(he_px) @ AFFINE[:2, :2].T + AFFINE[:2, 2]) * PIXEL_UM


def made_up(folder, *, strings=True):
    """A red blob on white at known H&E px, and detections at its centre's µm and all over the H&E."""
    rng = np.random.default_rng(0)
    width, height = HE_PX
    blob_px = np.array([[90.0, 60.0], [250.0, 70.0], [120.0, 220.0], [300.0, 240.0]])
    he = np.full((height, width, 3), 255.0)
    y, x = np.mgrid[:height, :width] + 0.5
    for cx, cy in blob_px:
        he[(x - cx) ** 2 + (y - cy) ** 2 < 36] = (200, 0, 0)
    he = np.rint(gaussian(he, 1, channel_axis=2, preserve_range=True)).astype(np.uint8)
    save_image(folder, he)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM}))
    np.savetxt(folder / "he_imagealignment.csv", AFFINE, delimiter=",")
    place = to_um(np.concatenate([blob_px, rng.uniform(0, 1, (2000, 2)) * HE_PX]))
    name = np.concatenate([["BLOB"] * 4, rng.choice(["NEGR1", "NANOG", "BLANK1", "BLANK_0001", "antisense_X"], 2000)])
    rows = pd.DataFrame({
        "transcript_id": np.arange(len(name)), "cell_id": "UNASSIGNED", "overlaps_nucleus": np.uint8(0),
        "feature_name": name if strings else [one.encode() for one in name],
        "x_location": place[:, 0].astype("float32"), "y_location": place[:, 1].astype("float32"), "qv": 40.0,
    })  # fmt: skip
    rows.to_parquet(folder / "transcripts.parquet")
    return rows


def save_image(folder, he, um_per_px=1.7 * PIXEL_UM):
    with tifffile.TiffWriter(folder / "a_he_image.ome.tif", bigtiff=True) as file:
        meta = {"axes": "YXS", "PhysicalSizeX": um_per_px, "PhysicalSizeXUnit": "µm"}
        file.write(he, photometric="rgb", subifds=1, metadata=meta)
        file.write(he[::2, ::2].copy(), photometric="rgb", subfiletype=1)


def read(folder, **arguments):
    ingested = read_xenium(folder, **WHO, **arguments)
    (section,) = whole_sections(ingested)
    return ingested, section


def refused(folder, *words):
    with pytest.raises(InputError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("strings", [True, False])
def test_the_tissue_under_a_detection_stays_under_it(tmp_path, strings):
    made_up(tmp_path, strings=strings)
    ingested, section = read(tmp_path)
    assert section.he_um_per_px == pytest.approx(1.7 * PIXEL_UM)
    at = section.detections.gene_D == ingested.panel.index["BLOB"]
    column = (section.detections.x_um_D[at] / section.he_um_per_px).astype(int)
    row = (section.detections.y_um_D[at] / section.he_um_per_px).astype(int)
    assert at.sum() == 4 and (section.he[row, column, 1] < 20).all()
    # and the blobs lie nowhere else: their centroids in the new frame are the detections' places
    red = 255.0 - section.he[..., 1]
    assert (red > 127).sum() == pytest.approx(4 * np.pi * 36, rel=0.15)
    y, x = np.mgrid[: red.shape[0], : red.shape[1]] + 0.5
    centre = np.array([(x * red).sum(), (y * red).sum()]) / red.sum() * section.he_um_per_px
    mean = [section.detections.x_um_D[at].mean(), section.detections.y_um_D[at].mean()]
    np.testing.assert_allclose(centre, mean, atol=0.1)
    assert section.measured is not None and 0.85 < section.measured.mean() < 1  # the turned H&E leaves corners


def test_genes_and_controls_are_told_apart_by_whole_prefixes(tmp_path):
    rows = made_up(tmp_path)
    ingested, section = read(tmp_path)
    assert ingested.panel.symbols == ("BLANK1", "BLOB", "NANOG", "NEGR1")
    controls = rows.feature_name.isin(["BLANK_0001", "antisense_X"]).sum()
    tally = ingested.report.tally("detections", "S1")
    assert tally.dropped["negative control, not a gene"] == controls == section.quality["control_detections"]
    assert tally.read == len(rows) == tally.kept + sum(tally.dropped.values()) and tally.kept == len(section.detections)
    for name in ("NEGR1", "NANOG", "NANS", "negControlProbe_1", "BLANKA"):
        assert not CONTROL.match(name)


def test_is_gene_quality_and_cells_are_read_where_they_stand(tmp_path):
    rows = made_up(tmp_path)
    rows["is_gene"] = rows.feature_name != "NANOG"
    rows.loc[4:53, "qv"] = 19.9
    rows["cell_id"] = np.where(rows.index % 3 == 0, "UNASSIGNED", np.where(rows.index % 3 == 1, "aaab-1", "aaac-1"))
    rows["overlaps_nucleus"] = (rows.index % 2).astype("uint8")
    rows.to_parquet(tmp_path / "transcripts.parquet")
    ingested, section = read(tmp_path)
    assert "NANOG" not in ingested.panel.index
    gene = rows.is_gene & ~rows.feature_name.isin(["BLANK_0001", "antisense_X"])
    assert ingested.report.tally("detections", "S1").dropped["qv below 20"] == (gene & (rows.qv < 20)).sum()
    kept = rows[gene & (rows.qv >= 20)]
    np.testing.assert_array_equal(section.detections.in_nucleus_D, kept.overlaps_nucleus == 1)
    np.testing.assert_array_equal(section.detections.cell_D > 0, kept.cell_id != "UNASSIGNED")
    assert len(set(section.detections.cell_D[(kept.cell_id == "aaab-1").to_numpy()])) == 1


def test_detections_beyond_the_image_are_counted(tmp_path):
    rows = made_up(tmp_path)
    rows.loc[0:2, "x_location"] += 500
    rows.to_parquet(tmp_path / "transcripts.parquet")
    ingested, section = read(tmp_path)
    assert ingested.report.tally("detections", "S1").dropped["outside the H&E"] == 3
    assert section.detections.x_um_D.max() <= section.width_um


def test_key_points_give_the_same_frame_as_the_affine(tmp_path):
    made_up(tmp_path)
    _, by_affine = read(tmp_path)
    points = np.array([[10.0, 10.0], [300.0, 20.0], [40.0, 280.0], [310.0, 290.0]])
    fixed = to_um(points) / PIXEL_UM
    frame = {"fixedX": fixed[:, 0], "fixedY": fixed[:, 1], "alignmentX": points[:, 0], "alignmentY": points[:, 1]}
    pd.DataFrame(frame).to_csv(tmp_path / "he_imagealignment.csv", index=False)
    ingested, by_points = read(tmp_path)
    assert np.abs(by_points.he.astype(int) - by_affine.he).max() <= 1 and "4 key points" in ingested.report.table()
    frame["fixedX"], frame["fixedY"] = frame["fixedX"] * [1, 2, 1, 0.5], frame["fixedY"]
    pd.DataFrame(frame).to_csv(tmp_path / "he_imagealignment.csv", index=False)
    refused(tmp_path, "he_imagealignment.csv")
    pd.DataFrame(frame)[:2].to_csv(tmp_path / "he_imagealignment.csv", index=False)
    refused(tmp_path, "he_imagealignment.csv: 2 key points")


@pytest.mark.parametrize(("change", "why"), [
    (lambda x, y: (x / PIXEL_UM, y / PIXEL_UM), "px of 0.2125 µm"),
    (lambda x, y: (x / 1000, y / 1000), "mm"),
    (lambda x, y: (y, x), "swapped"),
    (lambda x, y: (x + 9000, y), "of one run"),
])  # fmt: skip
def test_wrong_units_and_swapped_columns_are_refused_with_their_cause(tmp_path, change, why):
    rows = made_up(tmp_path)
    x, y = change(rows.x_location, rows.y_location)
    rows.assign(x_location=x, y_location=y).to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "transcripts.parquet", "'x_location'", "outside the H&E", why)


def test_an_affine_that_an_editor_saved_again_is_the_same(tmp_path):
    path = tmp_path / "a.csv"
    lines = ("", *(", ".join(map(repr, row)) for row in AFFINE.tolist()), "", "")
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    np.testing.assert_array_equal(read_alignment(path, PIXEL_UM).affine, AFFINE)


def test_an_inverse_or_broken_alignment_is_refused(tmp_path):
    made_up(tmp_path)
    np.savetxt(tmp_path / "he_imagealignment.csv", np.linalg.inv(AFFINE), delimiter=",")
    refused(tmp_path, "he_imagealignment.csv", "is it the inverse?")
    (tmp_path / "he_imagealignment.csv").write_text("1,2\n3,4\n")
    refused(tmp_path, "he_imagealignment.csv", "neither a 3×3 affine")
    with pytest.raises(InputError, match="equal scales"):
        np.savetxt(tmp_path / "he_imagealignment.csv", AFFINE * [[1], [2], [1]], delimiter=",")
        read_alignment(tmp_path / "he_imagealignment.csv", PIXEL_UM)


def test_missing_and_broken_files_and_columns_are_named(tmp_path):
    rows = made_up(tmp_path)
    rows.drop(columns="qv").to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "transcripts.parquet", "no column 'qv'")
    rows.assign(x_location="here").to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'x_location'", "expected numbers")
    rows.assign(feature_name=1).to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'feature_name'", "gene symbols")
    rows.assign(cell_id=[[1]] * len(rows)).to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'cell_id'", "expected names or numbers")
    for column, value, words in (
        ("is_gene", "True", "expected true and false"), ("overlaps_nucleus", "x", "expected 0 and 1"),
        ("codeword_category", 1, "expected words"), ("feature_name", b"\xff", "not UTF-8"),
    ):  # fmt: skip
        rows.assign(**{column: value}).to_parquet(tmp_path / "transcripts.parquet")
        refused(tmp_path, "transcripts.parquet", f"column '{column}'", words)
    (tmp_path / "transcripts.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path, "transcripts.parquet: cannot be read")
    rows.to_parquet(tmp_path / "transcripts.parquet")
    whole = (tmp_path / "a_he_image.ome.tif").read_bytes()
    for content in (b"not a tiff", whole[: len(whole) // 3], b""):
        (tmp_path / "a_he_image.ome.tif").write_bytes(content)
        refused(tmp_path, "a_he_image.ome.tif", "copy or export it again")
    save_image(tmp_path, np.zeros((*HE_PX, 3), np.uint16))
    refused(tmp_path, "a_he_image.ome.tif", "expected 8-bit RGB")
    for content in ('{"run": 1}', "[]"):
        (tmp_path / "experiment.xenium").write_text(content)
        refused(tmp_path, "experiment.xenium", "no 'pixel_size'")
    (tmp_path / "experiment.xenium").write_text('{"pixel_size": true}')
    refused(tmp_path, "experiment.xenium", "'pixel_size' is True")
    (tmp_path / "experiment.xenium").unlink()
    refused(tmp_path, "no file like experiment.xenium")


def same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_csv_gz_and_small_batches_give_what_one_parquet_file_gives(tmp_path, monkeypatch):
    rows = made_up(tmp_path).assign(codeword_category="predesigned_gene")
    rows["is_gene"] = rows.feature_name != "NANOG"
    rows["cell_id"] = np.where(rows.index % 3 == 0, "UNASSIGNED", "aaab-" + (rows.index % 7).astype(str))
    rows["overlaps_nucleus"] = (rows.index % 2).astype("uint8")
    rows[["x_location", "y_location"]] = rows[["x_location", "y_location"]].astype("float64")
    rows.to_parquet(tmp_path / "transcripts.parquet")
    ingested, whole = read(tmp_path)
    monkeypatch.setattr("tario_jax.sources.xenium_rows._BATCH_ROWS", 100)
    monkeypatch.setattr("tario_jax.sources.delimited._BLOCK_BYTES", 5000)
    batched, section = read(tmp_path)
    same(section.detections, whole.detections)
    assert len(list(next(read_xenium(tmp_path, **WHO).sections).detections)) > 10
    (tmp_path / "transcripts.parquet").unlink()
    rows.to_csv(tmp_path / "transcripts.csv.gz", index=False)
    as_text, section = read(tmp_path)
    same(section.detections, whole.detections)
    assert ingested.report == batched.report == as_text.report and as_text.panel == ingested.panel
    (tmp_path / "transcripts.csv.gz").unlink()
    refused(tmp_path, "no file like transcripts.parquet or transcripts.csv.gz")


@pytest.mark.parametrize("number", [True, False])
def test_versions_1_to_3_tell_genes_and_cells_in_their_own_ways(tmp_path, number):
    rows = made_up(tmp_path)
    control = rows.feature_name.isin(["BLANK_0001", "antisense_X"])
    rows["cell_id"] = np.where(rows.index % 3 == 0, -1 if number else "UNASSIGNED", rows.index % 5 + 1)
    if number:
        rows["cell_id"] = rows.cell_id.astype("int32")
    else:  # version 2 on: the category says what a name does not
        rows["codeword_category"] = np.where(control, "negative_control_probe", "custom_gene")
        rows.loc[rows.feature_name == "NANOG", "codeword_category"] = "genomic_control_probe"
    rows.to_parquet(tmp_path / "transcripts.parquet")
    ingested, section = read(tmp_path)
    assert ("NANOG" in ingested.panel.index) == number
    kept = rows[~control & (number | (rows.feature_name != "NANOG"))]
    np.testing.assert_array_equal(section.detections.cell_D > 0, kept.index % 3 != 0)
    assert len(np.unique(section.detections.cell_D)) == 6


def panel_file(folder, genes, controls=("NegControlProbe_1",)):
    targets = [{"type": {"descriptor": "gene", "data": {"id": identifier, "name": name}}} for name, identifier in genes]
    targets += [{"type": {"descriptor": "negative_control", "data": {"name": name}}} for name in controls]
    (folder / "gene_panel.json").write_text(json.dumps({"payload": {"targets": targets}}))


def test_the_panel_is_what_was_measured_not_what_was_found(tmp_path):
    rows = made_up(tmp_path)
    panel_file(tmp_path, [("NEGR1", "ENSG1"), ("BLOB", "ENSG2"), ("BLANK1", "ENSG3"), ("NEVER", "")])
    ingested, section = read(tmp_path)
    assert ingested.panel.symbols == ("BLANK1", "BLOB", "NEGR1", "NEVER")
    assert ingested.panel.ensembl == ("ENSG3", "ENSG2", "ENSG1", "")
    tally = ingested.report.tally("detections", "S1")
    assert tally.dropped["not a gene of gene_panel.json"] == (rows.feature_name == "NANOG").sum()
    assert tally.read == len(rows) == tally.kept + sum(tally.dropped.values()) and tally.kept == len(section.detections)
    assert "4 genes were measured, 3 with an Ensembl id, 3 were found" in ingested.report.table()
    genes = ingested.report.tally("genes", "S1")
    assert (genes.read, genes.kept) == (5, 4)
    panel_file(tmp_path, [("NEGR1", "ENSG1"), ("NEGR1", "ENSG2")])
    refused(tmp_path, "gene_panel.json", "'NEGR1' is ENSG1 and ENSG2")
    panel_file(tmp_path, [])
    refused(tmp_path, "gene_panel.json", "no gene among them")
    (tmp_path / "gene_panel.json").write_text('{"payload": []}')
    refused(tmp_path, "gene_panel.json", "no payload.targets")


def test_without_an_he_the_section_is_the_box_of_its_rows_and_the_report_says_so(tmp_path):
    rows = made_up(tmp_path)
    image = (tmp_path / "a_he_image.ome.tif").rename(tmp_path / "scan.ome.tif")
    alignment = (tmp_path / "he_imagealignment.csv").rename(tmp_path / "scan.csv")
    ingested, section = read(tmp_path)
    assert section.he is None and section.registration == "none" and section.measured is None
    assert section.width_um == pytest.approx(np.ptp(rows.x_location)) and "no H&E" in ingested.report.table()
    _, named = read(tmp_path, image=image, alignment=alignment, registration="adjacent")
    assert named.registration == "adjacent" and named.he_um_per_px == pytest.approx(1.7 * PIXEL_UM)
    for given, words in (
        ({"alignment": alignment}, ("scan.csv", "--image")),
        ({"image": image}, ("no file like *imagealignment.csv",)),
        ({"registration": "adjacent"}, ("--registration=adjacent", "name one too")),
    ):
        with pytest.raises(InputError) as caught:
            read(tmp_path, **given)
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.real_data
def test_the_excerpt_adds_up(real_data):
    ingested, section = read(real_data / "xenium_excerpt")
    rows = pd.read_parquet(real_data / "xenium_excerpt/transcripts.parquet")
    control = rows.feature_name.str.match("NegControl|BLANK_|antisense_")
    expected = rows[~control & (rows.qv >= 20)].groupby("feature_name").size()
    ours = pd.Series(np.bincount(section.detections.gene_D), index=list(ingested.panel.symbols))
    pd.testing.assert_series_equal(ours, expected, check_names=False, check_dtype=False)
    assert section.he_um_per_px == pytest.approx(0.3639, abs=1e-4) and section.he.shape == (446, 525, 3)
    assert section.quality["control_detections"] == control.sum()


@pytest.mark.parametrize(("change", "words"), [
    ({"section_id": "S 1"}, ("section 'S 1'", "--section")),
    ({"patient_id": "P1 "}, ("--patient", "'P1 '")),
    ({"cohort": "a\nb"}, ("--cohort",)),
])  # fmt: skip
def test_names_that_no_section_may_have_are_refused_before_the_transcripts_are_read(tmp_path, change, words):
    made_up(tmp_path)
    (tmp_path / "transcripts.parquet").write_bytes(b"an hour of reading")
    with pytest.raises(InputError) as caught:
        read_xenium(tmp_path, **WHO | change)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", ["a_he_image.tif", "a_he_image.tiff", "a_he_unaligned_image.ome.tif"])
def test_the_other_names_of_the_vendors_image_are_known(tmp_path, name):
    made_up(tmp_path)
    (tmp_path / "a_he_image.ome.tif").rename(tmp_path / name)
    assert read(tmp_path)[1].he is not None


def test_an_alignment_whose_image_is_not_there_is_refused_and_that_of_fluorescence_is_not(tmp_path):
    made_up(tmp_path)
    (tmp_path / "a_he_image.ome.tif").rename(tmp_path / "scan.ome.tif")
    refused(tmp_path, "he_imagealignment.csv: an alignment, but no H&E", "--image")
    (tmp_path / "he_imagealignment.csv").rename(tmp_path / "a_if_imagealignment.csv")
    assert read(tmp_path)[1].he is None


def test_of_several_alignments_that_of_the_he_is_taken_or_named(tmp_path):
    made_up(tmp_path)
    (tmp_path / "b_if_imagealignment.csv").write_text("not ours")
    read(tmp_path)
    (tmp_path / "he_imagealignment.csv").rename(tmp_path / "c_imagealignment.csv")
    refused(tmp_path, "2 files like *imagealignment.csv", "--alignment")
    (tmp_path / "b_he_image.ome.tif").write_text("another")
    refused(tmp_path, "2 files like *he_image.ome.tif", "--image")

"""Xenium's fields of view: what none of them imaged was not measured."""

import json

import numpy as np
import pandas as pd
import pytest
from test_source_xenium import PIXEL_UM, made_up, read, refused

from tario_jax.sources.xenium_fields import FieldBoxes


def in_fields(folder, fields, *, name="fov_name", as_text=False):
    """Rows all over fields of 200 x 150 µm at these columns and rows of a grid; a field may lack its right half."""
    rng = np.random.default_rng(1)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM}))
    tables = []
    for column, row, share in fields:
        place = rng.uniform(0, 1, (400, 2)) * (200 * share, 150) + (200 * column, 150 * row)
        tables.append(pd.DataFrame({
            "feature_name": rng.choice(["NEGR1", "NANOG", "BLANK_0001"], 400), "x_location": place[:, 0],
            "y_location": place[:, 1], "qv": 40.0, name: f"{chr(65 + row)}{column}",
        }))  # fmt: skip
    rows = pd.concat(tables).sample(frac=1, random_state=0)
    rows.to_csv(folder / "transcripts.csv", index=False) if as_text else rows.to_parquet(folder / "transcripts.parquet")
    return rows


# a ring of 3 x 3 fields whose middle was not imaged, and a region of its own of 2 x 1 far right
RING = [(column, row, 1) for column in range(3) for row in range(3) if (column, row) != (1, 1)]
REGIONS = [*RING, (6, 1, 1), (7, 1, 0.5)]


@pytest.mark.parametrize("as_text", [False, True])
def test_what_no_field_of_view_imaged_is_unmeasured(tmp_path, monkeypatch, as_text):
    monkeypatch.setattr("tario_jax.sources.xenium_rows._BATCH_ROWS", 100)
    monkeypatch.setattr("tario_jax.sources.delimited._BLOCK_BYTES", 5000)
    rows = in_fields(tmp_path, REGIONS, as_text=as_text)
    ingested, section = read(tmp_path)
    y, x = (np.indices(section.measured.shape) + 0.5) * 4
    x, y = ((at + span.min()).clip(max=span.max()) for at, span in ((x, rows.x_location), (y, rows.y_location)))
    expected = np.zeros(x.shape, bool)
    for column, row, share in REGIONS:
        expected |= (x >= 200 * column) & (x < 200 * (column + share)) & (y >= 150 * row) & (y < 150 * (row + 1))
    # exact but for outer edges, which end at the last detection; no seam between neighbours is lost
    assert not (section.measured & ~expected).any() and (section.measured & expected).sum() > 0.97 * expected.sum()
    assert section.measured[((x > 10) & (x < 590) & (y > 10) & (y < 140))].all()
    assert len(section.detections) == (rows.feature_name != "BLANK_0001").sum()
    assert "10 fields of view leave" in ingested.report.table()


def test_the_he_and_the_fields_of_view_both_bound_what_is_measured(tmp_path):
    rows = made_up(tmp_path)
    corner = rows.x_location.median(), rows.y_location.median()
    right, down = rows.x_location > corner[0], rows.y_location > corner[1]
    rows = rows.assign(fov_name=np.where(right, "B", "A") + np.where(down, "2", "1").astype(object))
    rows[~(right & down)].drop(columns="fov_name").to_parquet(tmp_path / "transcripts.parquet")
    _, whole = read(tmp_path)
    rows[~(right & down)].to_parquet(tmp_path / "transcripts.parquet")
    _, section = read(tmp_path)
    assert 0.65 < section.measured.sum() / whole.measured.sum() < 0.8 and not (section.measured & ~whole.measured).any()


@pytest.mark.parametrize("names", ["absent", "empty"])
def test_where_no_field_of_view_is_named_the_box_counts_and_the_report_says_so(tmp_path, names):
    rows = in_fields(tmp_path, REGIONS, name="fov_name" if names == "empty" else "other")
    if names == "empty":
        rows.assign(fov_name="").to_parquet(tmp_path / "transcripts.parquet")
    ingested, section = read(tmp_path)
    assert section.measured is None and "no field of view is named (column fov_name)" in ingested.report.table()


@pytest.mark.parametrize(("x_um", "y_um"), [(5.0, None), (5.0, 5.0), (None, "astray")])
def test_places_that_span_no_area_or_more_than_a_slide_are_refused(tmp_path, x_um, y_um):
    rows = in_fields(tmp_path, RING)
    rows = rows if x_um is None else rows.assign(x_location=x_um)
    if y_um == "astray":
        rows.iloc[3, list(rows).index("y_location")] = -5e7
    elif y_um is not None:
        rows["y_location"] = y_um
    rows.to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "transcripts.parquet: spans", "at most 100 mm a side")


def test_names_that_are_bytes_as_python_writes_them_are_refused(tmp_path):
    rows = in_fields(tmp_path, RING)
    rows.assign(feature_name=[f"b'{name}'" for name in rows.feature_name]).to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'feature_name' holds b'", "bytes as Python writes them")


def test_fields_of_view_of_another_type_or_encoding_are_refused(tmp_path):
    rows = in_fields(tmp_path, RING)
    rows.assign(fov_name=b"\xff").to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'fov_name'", "not UTF-8")
    rows.assign(fov_name=[[1]] * len(rows)).to_parquet(tmp_path / "transcripts.parquet")
    refused(tmp_path, "column 'fov_name'", "expected names or numbers")


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.6, "rows name no field of view (column fov_name): the box"), (0.005, "where no other row's field lies")],
)
def test_rows_of_no_field_are_told_and_where_they_are_many_the_box_counts(tmp_path, share, words):
    rows = in_fields(tmp_path, REGIONS)
    unnamed = np.random.default_rng(0).random(len(rows)) < share
    rows.assign(fov_name=rows.fov_name.mask(unnamed, None)).to_parquet(tmp_path / "transcripts.parquet")
    ingested, section = read(tmp_path)
    told = ingested.report.table()
    assert f"{unnamed.sum():,} of {len(rows):,} rows name no field of view" in told and words in told
    assert (section.measured is None) == (share > 0.5)


def test_fields_of_hardly_any_row_do_not_part_those_that_touch():
    """Two fields 1 µm apart, beside fields of one row, and of rows without a place."""
    boxes = FieldBoxes()
    boxes.add(np.repeat([0, 1], 2), np.array([[0.0, 0], [100, 100], [101, 0], [200, 100]]))
    boxes.add(np.array([2, 3, 4, 5, 5]), np.array([[500.0, 500], [600, 600], [700, 700], [np.nan, 1], [1, np.nan]]))
    low_um, high_um = boxes.grown()
    assert high_um[0, 0] == low_um[1, 0] == 100.5
    assert (boxes.rows, boxes.unnamed) == (7, 0)

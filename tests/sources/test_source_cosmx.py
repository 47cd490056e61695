"""CosMx flat files, legacy and newer: nothing lost, nothing mirrored, nothing guessed."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from whole_sections import whole_sections

from tario_jax.config import InputError
from tario_jax.sources.cosmx import read_cosmx
from tario_jax.sources.targets import CONTROL, DATE

SIDE_PX = 1000.0
WHO = {"patient_id": "P1", "cohort": "lung"}


def made_up(newer=False, detections=4000, seed=0):
    """Three FOVs in an L, detections all over them. Newer: local y points down while global y points up."""
    rng = np.random.default_rng(seed)
    fov = rng.integers(1, 4, detections)
    start = np.array([[500.0, 7000.0], [1500.0, 7000.0], [1500.0, 8000.0]])
    local = rng.uniform(0, SIDE_PX, (detections, 2))
    up = SIDE_PX - local[:, 1] if newer else local[:, 1]
    tx = pd.DataFrame({
        "fov": fov, "cell_ID": rng.integers(0, 5, detections),
        "x_global_px": start[fov - 1, 0] + local[:, 0], "y_global_px": start[fov - 1, 1] + up,
        "x_local_px": local[:, 0], "y_local_px": local[:, 1], "z": 1,
        "target": rng.choice(["NEGR1", "NANOG", "NANS", "NegPrb3", "CCL3/L1"], detections),
        "CellComp": rng.choice(["Nuclear", "Cytoplasm"], detections),
    })  # fmt: skip
    positions = pd.DataFrame({"fov": [1, 2, 3], "x_global_px": start[:, 0], "y_global_px": start[:, 1]})
    if newer:
        positions = positions.rename(columns={"fov": "FOV"})
        positions[["x_global_mm", "y_global_mm"]] = start * 0.15e-3 + 7
        tx = tx[["fov", "cell_ID", "target", "x_local_px", "y_local_px", "x_global_px", "y_global_px", "CellComp"]]
    return tx, positions


def save(folder, tx, positions, suffix=".csv"):
    tx.to_csv(folder / f"S1_tx_file{suffix}", index=False)
    positions.to_csv(folder / "S1_fov_positions_file.csv", index=False)


def read(folder, **arguments):
    ingested = read_cosmx(folder, **WHO, **arguments)
    (section,) = whole_sections(ingested)
    return ingested, section


def refused(folder, *words):
    with pytest.raises(InputError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ["NEGR1", "NANOG", "NANS", "NegPrb", "negPrb1", "Negative", "FALSECODE1", "MARCHF1"])
def test_genes_survive_the_control_filter(name):
    assert not CONTROL.match(name) and not DATE.match(name)


@pytest.mark.parametrize("name", ["NegPrb1", "NegPrb23", "Negative04", "SystemControl12", "FalseCode7", "FalseCode"])
def test_controls_are_controls(name):
    assert CONTROL.match(name)


@pytest.mark.parametrize("newer", [False, True])
def test_frame_points_down_and_starts_at_the_measured_area(tmp_path, newer):
    tx, positions = made_up(newer)
    save(tmp_path, tx, positions, ".csv.gz" if newer else ".csv")
    _, section = read(tmp_path, um_per_px=None if newer else 0.15)
    kept = tx[tx.target != "NegPrb3"]
    x_um = (kept.x_global_px - 500) * 0.15
    y_um = (9000 - kept.y_global_px) * 0.15
    np.testing.assert_allclose(section.detections.x_um_D, x_um, atol=0.15)  # the extent is observed: to a px
    np.testing.assert_allclose(section.detections.y_um_D, y_um, atol=0.15)
    np.testing.assert_array_equal(section.detections.in_nucleus_D, kept.CellComp == "Nuclear")
    assert section.width_um == pytest.approx(300, abs=0.5) and section.he is None
    # the upper left quarter of the L was never imaged, the other three were
    rows, columns = section.measured.shape
    quarters = [section.measured[: rows // 2 - 1, : columns // 2 - 1], section.measured[rows // 2 + 1 :, 1:-1]]
    assert not quarters[0].any() and quarters[1].mean() > 0.95


def test_cells_of_different_fovs_are_different_cells(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx, positions)
    _, section = read(tmp_path)
    kept = tx[tx.target != "NegPrb3"]
    pairs = pd.DataFrame({"fov": kept.fov, "id": kept.cell_ID, "cell": section.detections.cell_D})
    assert (pairs[pairs.id == 0].cell == 0).all()
    inside = pairs[pairs.id > 0]
    assert inside.groupby("cell")[["fov", "id"]].nunique().to_numpy().max() == 1
    assert inside.cell.nunique() == len(inside[["fov", "id"]].drop_duplicates())


def test_scale_comes_from_the_flag_then_mm_columns_then_the_stated_default(tmp_path):
    save(tmp_path, *made_up(newer=True))
    ingested, section = read(tmp_path)
    assert section.quality["um_per_px"] == pytest.approx(0.15) and "from the mm columns" in ingested.report.table()
    ingested, section = read(tmp_path, um_per_px=0.18)
    assert section.quality["um_per_px"] == 0.18
    assert "--um-per-px=0.18 is taken, the mm columns of S1_fov_positions_file.csv say 0.15" in ingested.report.table()
    assert "is taken" not in read(tmp_path, um_per_px=0.151)[0].report.table()
    with pytest.raises(InputError, match="--um-per-px=120: 120 µm per px; expected 0.05 to 1"):
        read(tmp_path, um_per_px=120.0)
    save(tmp_path, *made_up())
    ingested, section = read(tmp_path)
    assert section.quality["um_per_px_is_assumed"] == 1 and "the vendor's default" in ingested.report.table()


def test_dates_are_dropped_and_several_genes_reported(tmp_path):
    tx, positions = made_up()
    tx.loc[:9, "target"] = "1-Mar"
    tx.loc[10:14, "target"] = ["Sep-01", "2-Sep-2024", "01-Dec-24", "3/1/2021", "2021-03-01"]
    tx.loc[20:22, "x_local_px"] = np.nan
    save(tmp_path, tx, positions)
    ingested, section = read(tmp_path)
    tally = ingested.report.tally("detections", "S1")
    assert tally.dropped["symbol turned into a date by a spreadsheet"] == 15
    assert tally.dropped["without a place, FOV or target"] == 3
    assert tally.read == len(tx) == len(section.detections) + sum(tally.dropped.values())
    assert "1-Mar" not in ingested.panel.index and "CCL3/L1" in ingested.panel.index
    said = ingested.report.table()
    assert "1 targets name several genes" in said
    assert "01-Dec-24, 1-Mar, 2-Sep-2024, 2021-03-01, 3/1/2021, Sep-01" in said


def test_rows_without_places_and_text_that_is_no_utf_8_are_answered_in_one_line(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx.assign(x_local_px=np.nan), positions)
    refused(tmp_path, "S1_tx_file.csv", "no row has fov, local and global place")
    save(tmp_path, tx, positions)
    path = tmp_path / "S1_tx_file.csv"
    path.write_bytes(path.read_bytes().replace(b"NEGR1", b"NEGR\xe9"))
    refused(tmp_path, "S1_tx_file.csv: column 'target' is not UTF-8")


def test_a_file_that_ends_within_its_last_column_is_noted(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx, positions)
    path = tmp_path / "S1_tx_file.csv"
    assert "has no end" not in read(tmp_path)[0].report.table()
    path.write_bytes(path.read_bytes()[:-2])
    assert "S1_tx_file.csv: its last line has no end; was the file cut short?" in read(tmp_path)[0].report.table()


def test_an_fov_that_was_cut_is_not_zero_where_nothing_was_seen(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx[~((tx.fov == 3) & (tx.y_local_px > 500))], positions)
    ingested, section = read(tmp_path)
    assert section.height_um == pytest.approx(1500 * 0.12028, abs=0.5) and "1 of 3 FOVs" in ingested.report.table()


@pytest.mark.parametrize("newer", [False, True])
def test_swapped_local_and_global_columns_are_refused(tmp_path, newer):
    tx, positions = made_up(newer)
    swap = {"x_local_px": "x_global_px", "x_global_px": "x_local_px", "y_local_px": "y_global_px",
            "y_global_px": "y_local_px"}  # fmt: skip
    save(tmp_path, tx.rename(columns=swap), positions)
    refused(tmp_path, "S1_tx_file.csv", "x_", "swapped")
    only_y = {old: new for old, new in swap.items() if old.startswith("y")}
    save(tmp_path, tx.rename(columns=only_y), positions)
    refused(tmp_path, "S1_tx_file.csv", "'y_", "swapped")
    turned = {"x_local_px": "y_local_px", "y_local_px": "x_local_px"}
    save(tmp_path, tx.rename(columns=turned), positions)
    refused(tmp_path, "S1_tx_file.csv", "'x_local_px'", "x and y")


def test_negative_local_places_are_refused(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx.assign(x_local_px=tx.x_local_px - 400), positions)
    refused(tmp_path, "S1_tx_file.csv", "'x_local_px'", "below 0")


def test_fovs_shifted_by_one_field_are_refused(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx, positions.assign(x_global_px=positions.x_global_px + SIDE_PX))
    refused(tmp_path, "S1_tx_file.csv", "column 'x_global_px'", "S1_fov_positions_file.csv")
    save(tmp_path, tx, positions.assign(y_global_px=[7000.0, 8000.0, 7000.0]))
    refused(tmp_path, "column 'y_global_px'", "are FOVs shifted")


def test_missing_columns_files_and_fovs_are_named(tmp_path):
    tx, positions = made_up()
    refused(tmp_path, "no file like *_tx_file.csv")
    save(tmp_path, tx.drop(columns="target"), positions)
    refused(tmp_path, "S1_tx_file.csv", "no column 'target'")
    save(tmp_path, tx, positions[:2])
    refused(tmp_path, "S1_fov_positions_file.csv", "no FOV 3")
    save(tmp_path, tx, positions.drop(columns="y_global_px"))
    refused(tmp_path, "S1_fov_positions_file.csv", "expected fov")
    save(tmp_path, tx.assign(x_local_px=tx.x_local_px.astype(object).where(tx.index != 5, "ten")), positions)
    refused(tmp_path, "S1_tx_file.csv", "column 'x_local_px' holds 'ten'", "expected a number")
    (tmp_path / "S1_tx_file.csv").write_text("")
    refused(tmp_path, "S1_tx_file.csv", "empty file")


def test_a_file_beside_its_own_compressed_copy_is_said_to_be_that(tmp_path):
    save(tmp_path, *made_up())
    (tmp_path / "S1_tx_file.csv.gz").write_bytes(b"")
    refused(tmp_path, "S1_tx_file.csv, S1_tx_file.csv.gz", "remove one")


def test_mm_columns_that_contradict_the_px_are_refused(tmp_path):
    tx, positions = made_up(newer=True)
    save(tmp_path, tx, positions.assign(x_global_mm=positions.x_global_mm * 3))
    refused(tmp_path, "S1_fov_positions_file.csv", "mm and px disagree")


def test_positions_in_mm_alone_give_the_scale_and_a_field_off_them_is_refused(tmp_path):
    tx, positions = made_up(newer=True)
    in_mm = positions[["FOV"]].assign(x_mm=positions.x_global_mm, y_mm=positions.y_global_mm)
    save(tmp_path, tx, in_mm)
    ingested, section = read(tmp_path)
    assert section.quality["um_per_px"] == pytest.approx(0.15) and "from the mm columns" in ingested.report.table()
    in_mm.loc[2, "y_mm"] += 0.15
    save(tmp_path, tx, in_mm)
    refused(tmp_path, "S1_fov_positions_file.csv", "mm and px disagree")


def test_a_whole_transcriptome_in_many_fields_is_read_in_blocks_as_at_once(tmp_path, monkeypatch):
    """18,900 targets, 60 fields, gzip; rows without a place, a target or an FOV, and FOVs in any order."""
    rng = np.random.default_rng(0)
    tx, _ = made_up(detections=40_000)
    fov = rng.integers(1, 61, len(tx))
    start_px = np.stack([SIDE_PX * (np.arange(60) % 10), SIDE_PX * (np.arange(60) // 10)], 1) + 5000
    local_px = tx[["x_local_px", "y_local_px"]].to_numpy()
    names = [f"G{gene}" for gene in range(18_850)] + [f"Negative{one}" for one in range(50)]
    tx = tx.assign(fov=fov, x_global_px=start_px[fov - 1, 0] + local_px[:, 0],
                   y_global_px=start_px[fov - 1, 1] + local_px[:, 1],
                   target=rng.permutation(names * 3)[: len(tx)])  # fmt: skip
    tx.loc[:18_899, "target"] = names
    for rows, column in ((range(100, 110), "target"), (range(109, 120), "y_global_px"), (range(30_000, 30_005), "fov")):
        tx[column] = tx[column].where(~tx.index.isin(rows))
    positions = pd.DataFrame({"fov": range(1, 61), "x_global_px": start_px[:, 0], "y_global_px": start_px[:, 1]})
    save(tmp_path, tx.astype({"fov": "Int64"}), positions, ".csv.gz")
    ingested, whole = read(tmp_path)
    tally = ingested.report.tally("detections", "S1")
    assert tally.dropped["without a place, FOV or target"] == 25
    assert tally.read == len(tx) == tally.kept + sum(tally.dropped.values())
    genes = tx.target.dropna()[~tx.target.dropna().str.startswith("Negative")]
    assert len(ingested.panel) == genes.nunique() > 18_800 and tally.kept == len(whole.detections)
    monkeypatch.setattr("tario_jax.sources.delimited._BLOCK_BYTES", 10_000)
    blocked = read_cosmx(tmp_path, **WHO)
    (section,) = blocked.sections
    assert len(list(section.detections)) > 100
    assert blocked.panel == ingested.panel and blocked.report == ingested.report and section.quality == whole.quality
    found = section.detections.gathered()
    for field in dataclasses.fields(found):
        of_whole, of_blocks = getattr(whole.detections, field.name), getattr(found, field.name)
        np.testing.assert_allclose(of_blocks.astype(float), of_whole.astype(float), atol=1e-6)


def test_a_file_that_changes_between_the_two_passes_is_refused(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx, positions)
    (section,) = read_cosmx(tmp_path, **WHO).sections
    save(tmp_path, tx[:-5], positions)
    with pytest.raises(InputError, match="S1_tx_file.csv: changed while it was read; run it again"):
        section.detections.gathered()


def test_a_file_without_the_optional_columns_or_without_rows_is_told_apart(tmp_path):
    tx, positions = made_up()
    save(tmp_path, tx.drop(columns=["cell_ID", "CellComp", "z"]), positions)
    found = read(tmp_path)[1].detections
    assert found.cell_D is None and found.in_nucleus_D is None and len(found) == (tx.target != "NegPrb3").sum()
    save(tmp_path, tx[:0], positions)
    refused(tmp_path, "S1_tx_file.csv", "no rows")


@pytest.mark.real_data
def test_lung12_counts_by_gene_equal_a_plain_group_by(real_data):
    ingested, section = read(real_data / "cosmx_lung12")
    file = pd.read_csv(real_data / "cosmx_lung12/Lung12_tx_file.csv")
    expected = file[~file.target.str.fullmatch(r"NegPrb\d+")].groupby("target").size()
    ours = pd.Series(
        np.bincount(section.detections.gene_D, minlength=len(ingested.panel)), index=list(ingested.panel.symbols)
    )
    pd.testing.assert_series_equal(ours, expected, check_names=False, check_dtype=False)
    tally = ingested.report.tally("detections", "Lung12")
    assert tally.read == len(file) == 25_825 and tally.kept == expected.sum() == 25_550
    assert section.quality["control_detections"] == len(file) - expected.sum()
    assert section.width_um < 200 and "2 of 2 FOVs" in ingested.report.table()  # only a strip was given to us


@pytest.mark.real_data
def test_a_single_row_of_a_legacy_export_is_refused_in_one_line(real_data):
    refused(real_data / "cosmx_headers", "lung_p9s1_tx_file.csv", "1 rows")

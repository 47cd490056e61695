"""ST spots: what comes out is what the files say, and what they say wrongly is answered in one line."""

import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tario_jax.config import InputError
from tario_jax.sources.images import image_size_px
from tario_jax.sources.spots import read_spots

PITCH_PX, SIDE = 250.0, 6  # 200 µm: 0.8 µm per px
PATIENTS = (("A", "lung"),)


def write_section(folder, name="A1", seed=0):
    """6 × 6 spots on an image of noise; spot (x, y) lies at ((x + 1), (y + 1)) pitches."""
    rng = np.random.default_rng(seed)
    side_px = int(PITCH_PX * (SIDE + 1))
    Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), np.uint8)).save(folder / f"{name}.png")
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    spots = pd.DataFrame({
        "x": x, "y": y, "new_x": x + 0.02, "new_y": y - 0.01,
        "pixel_x": PITCH_PX * (x + 1), "pixel_y": PITCH_PX * (y + 1), "selected": 1,
    })  # fmt: skip
    counts = pd.DataFrame(
        rng.poisson(2.0, (len(x), 4)), index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)],
        columns=["SAMD11", "AC012345.1", "NEGR1", "TP53"],
    )  # fmt: skip
    save(folder, name, spots, counts)
    return spots, counts


def save(folder, name, spots=None, counts=None):
    if spots is not None:
        spots.to_csv(folder / f"{name}_selection.tsv", sep="\t", index=False)
    if counts is not None:
        with gzip.open(folder / f"{name}.tsv.gz", "wt") as file:
            counts.to_csv(file, sep="\t")


def refused(folder, *words, **arguments):
    with pytest.raises(InputError) as caught:
        list(read_spots(folder, patients=PATIENTS, **arguments).sections)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_counts_places_and_image_are_those_of_the_files(tmp_path):
    spots, counts = write_section(tmp_path)
    ingested = read_spots(tmp_path, patients=PATIENTS)
    (section,) = ingested.sections
    assert ingested.number == 1 and ingested.panel.symbols == ("AC012345.1", "NEGR1", "SAMD11", "TP53")
    dense = pd.DataFrame(section.spots.dense(4), index=section.spots.name_N, columns=ingested.panel.symbols)
    pd.testing.assert_frame_equal(dense[counts.columns].loc[counts.index], counts, check_dtype=False)
    assert section.he_um_per_px == pytest.approx(0.8, rel=1e-6)
    # the pixel of the stored H&E under each spot's centre is the pixel of the file that the spot file names
    whole = np.asarray(Image.open(tmp_path / "A1.png"))
    column = np.floor(section.spots.x_um_N / section.he_um_per_px + 1e-6).astype(int)
    row = np.floor(section.spots.y_um_N / section.he_um_per_px + 1e-6).astype(int)
    named = spots.set_axis([f"{a}x{b}" for a, b in zip(spots.x, spots.y, strict=True)]).loc[list(section.spots.name_N)]
    np.testing.assert_array_equal(section.he[row, column], whole[named.pixel_y.astype(int), named.pixel_x.astype(int)])
    assert section.width_um == pytest.approx(section.he.shape[1] * 0.8) and section.he.shape[1] < whole.shape[1] + 1


def test_a_misplaced_spot_does_not_bend_the_scale_and_is_counted_as_outside(tmp_path):
    spots, counts = write_section(tmp_path)
    spots.loc[7, "pixel_x"] = 99_999.0
    save(tmp_path, "A1", spots)
    ingested = read_spots(tmp_path, patients=PATIENTS)
    (section,) = ingested.sections
    assert section.he_um_per_px == pytest.approx(0.8, rel=1e-6)
    tally = ingested.report.tally("spots", "A1")
    assert (tally.read, tally.kept, tally.dropped) == (36, 35, {"outside the image": 1})
    lost = ingested.report.tally("counts", "A1")
    assert lost.read == counts.to_numpy().sum() and lost.read - lost.kept == counts.iloc[7].sum()


def test_every_count_of_the_file_is_kept_or_dropped_for_a_reason(tmp_path):
    spots, counts = write_section(tmp_path)
    spots.loc[3, "selected"] = 0
    counts.loc["0x0"] = [1, 0, 0, 0]
    counts["RARE"] = [1] + [0] * 35
    counts.loc["99x99"] = [5, 5, 5, 5, 0]
    save(tmp_path, "A1", spots, counts)
    ingested = read_spots(tmp_path, patients=PATIENTS, min_spot_total=3, min_gene_total=2)
    (section,) = ingested.sections
    spot_tally, count_tally = ingested.report.tally("spots", "A1"), ingested.report.tally("counts", "A1")
    assert count_tally.read == counts.to_numpy().sum() == count_tally.kept + sum(count_tally.dropped.values())
    assert count_tally.kept == section.spots.count_E.sum()
    assert spot_tally.dropped == {
        "not in A1_selection.tsv": 1, "not selected (outside the tissue)": 1, "fewer than 3 counts": 1,
    }  # fmt: skip
    assert count_tally.dropped["gene with fewer than 2 counts"] == 1 and "RARE" not in ingested.panel.index
    table = ingested.report.table()
    assert "not selected (outside the tissue)" in table and ingested.report.to_dict()["tallies"][0]["what"] == "spots"


def test_a_section_knows_which_genes_of_the_union_it_measured(tmp_path):
    write_section(tmp_path, "A1")
    _, counts = write_section(tmp_path, "A2", seed=1)
    save(tmp_path, "A2", counts=counts.rename(columns={"TP53": "MYC"}))
    ingested = read_spots(tmp_path, patients=PATIENTS)
    measured = {
        section.section_id: {ingested.panel.symbols[gene] for gene in np.flatnonzero(section.measured_gene_G)}
        for section in ingested.sections
    }
    assert set(ingested.panel.symbols) == measured["A1"] | measured["A2"] and ingested.number == 2
    assert measured["A1"] - measured["A2"] == {"TP53"} and measured["A2"] - measured["A1"] == {"MYC"}


def test_columns_of_one_symbol_are_summed_and_said(tmp_path):
    _, counts = write_section(tmp_path)
    counts.columns = ["SAMD11", "TP53", "NEGR1", "TP53"]
    save(tmp_path, "A1", counts=counts)
    ingested = read_spots(tmp_path, patients=PATIENTS)
    (section,) = ingested.sections
    total = section.spots.dense(3)[:, ingested.panel.index["TP53"]].sum()
    assert total == counts["TP53"].to_numpy().sum() and "1 symbols have several columns" in ingested.report.table()


def test_images_are_read_when_their_turn_comes(tmp_path):
    write_section(tmp_path, "A1")
    write_section(tmp_path, "A2", seed=1)
    sections = read_spots(tmp_path, patients=PATIENTS).sections
    (tmp_path / "A2.png").write_bytes((tmp_path / "A2.png").read_bytes()[:40_000])  # cut off after the first look
    assert next(sections).section_id == "A1"
    with pytest.raises(InputError, match=r"A2\.png: cannot be read as an image"):
        next(sections)


@pytest.mark.parametrize("content", [b"no image at all", b""])
def test_an_unreadable_image_is_refused(tmp_path, content):
    write_section(tmp_path)
    (tmp_path / "A1.png").write_bytes(content)
    refused(tmp_path, "A1.png", "cannot be read as an image")


def test_missing_files_sections_and_patients_are_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere: no such folder")
    refused(tmp_path, "no file NAME_selection.tsv")
    write_section(tmp_path)
    write_section(tmp_path, "Q1")
    refused(tmp_path, "section 'Q1' has no patient", "given: A")
    refused(tmp_path, "no section 'A7'", "found A1, Q1", sections=("A7",))
    for name in ("P1_1", "P10_1"):  # P10 is another person than P1
        write_section(tmp_path, name)
    with pytest.raises(InputError, match="'P10_1' has no patient"):
        list(read_spots(tmp_path, patients=(("P1", "BRCA"),), sections=("P1_1", "P10_1")).sections)
    (tmp_path / "A1.tsv.gz").unlink()
    refused(tmp_path, "A1{.tsv,.tsv.gz}", sections=("A1",))


def test_a_missing_column_is_named(tmp_path):
    spots, _ = write_section(tmp_path)
    save(tmp_path, "A1", spots.drop(columns="pixel_y"))
    refused(tmp_path, "A1_selection.tsv", "no column 'pixel_y'")


def test_a_table_of_no_spot_or_in_another_encoding_is_refused(tmp_path):
    _, counts = write_section(tmp_path)
    save(tmp_path, "A1", counts=counts[:0])
    refused(tmp_path, "A1.tsv.gz: holds no spot")
    text = counts.rename(columns={"NEGR1": "NÉGR1"}).to_csv(sep="\t")
    (tmp_path / "A1.tsv.gz").write_bytes(gzip.compress(text.encode("latin-1")))
    refused(tmp_path, "A1.tsv.gz: its first line is not UTF-8")


@pytest.mark.parametrize(("change", "words"), [
    ({"x": 0.4}, ("column 'x' holds 0.4", "whole numbers")), ({"y": 1e12}, ("column 'y' holds 1e+12",)),
    ({"pixel_x": np.inf}, ("column 'pixel_x'", "infinite")), ({"selected": np.nan}, ("column 'selected'", "empty")),
])  # fmt: skip
def test_spots_of_no_place_are_refused(tmp_path, change, words):
    spots, _ = write_section(tmp_path)
    spots = spots.astype(float)
    spots.loc[0, list(change)] = list(change.values())
    save(tmp_path, "A1", spots)
    refused(tmp_path, "A1_selection.tsv", *words)


def with_orientation(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


def test_an_image_that_is_to_be_shown_turned_is_refused(tmp_path):
    write_section(tmp_path)
    path = tmp_path / "A1.png"
    with_orientation(path, 0)  # of writers that know none
    assert image_size_px(path)
    with_orientation(path, 6)
    refused(tmp_path, "A1.png", "EXIF orientation is 6")
    whole, at = path.read_bytes(), path.read_bytes().index(b"eXIf") - 4
    chunk = whole[at : at + 12 + int.from_bytes(whole[at : at + 4])]
    end = whole.index(b"IEND") - 4
    path.write_bytes(whole[:at] + whole[at + len(chunk) : end] + chunk + whole[end:])  # as some tools put it, last
    refused(tmp_path, "A1.png", "EXIF orientation is 6")
    with Image.open(path) as image:
        image.save(tmp_path / "A1.jpg", exif=image.getexif())
    path.unlink()
    refused(tmp_path, "A1.jpg", "EXIF orientation is 6")


def test_swapped_pixel_columns_are_refused(tmp_path):
    spots, _ = write_section(tmp_path)
    save(tmp_path, "A1", spots.rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"}))
    refused(tmp_path, "A1_selection.tsv", "'pixel_x'", "swapped")


def test_pixels_of_another_size_of_the_image_are_refused(tmp_path):
    spots, _ = write_section(tmp_path)
    save(tmp_path, "A1", spots.assign(pixel_x=spots.pixel_x / 10, pixel_y=spots.pixel_y / 10))
    refused(tmp_path, "A1_selection.tsv", "8 µm per px", "full image")
    save(tmp_path, "A1", spots.assign(pixel_x=spots.pixel_x + 5000))
    refused(tmp_path, "A1_selection.tsv", "36 of 36 spots outside A1.png")


def test_values_that_are_not_counts_are_refused(tmp_path):
    spots, counts = write_section(tmp_path)
    save(tmp_path, "A1", counts=counts / 3)
    refused(tmp_path, "A1.tsv.gz", "expected raw counts")
    text = counts.astype(object)
    text.iloc[2, 3] = "many"
    save(tmp_path, "A1", counts=text)
    refused(tmp_path, "A1.tsv.gz", "column 'TP53' holds 'many'", "expected a number")
    save(tmp_path, "A1", counts=counts.rename(index=lambda name: name.replace("x", "_")))
    refused(tmp_path, "A1.tsv.gz", "expected rows named XxY")
    save(tmp_path, "A1", pd.concat([spots, spots.iloc[:1]]), counts)
    refused(tmp_path, "A1_selection.tsv", "1 spots stand twice")


def test_counts_without_end_and_impossible_diameters_are_refused(tmp_path):
    _, counts = write_section(tmp_path)
    for diameter_um, words in ((0.0, "--diameter-um=0"), (np.nan, "--diameter-um=nan"), (300.0, "would overlap")):
        refused(tmp_path, words, diameter_um=diameter_um)
    refused(tmp_path, "--pitch-um=-200", pitch_um=-200.0)
    counts = counts.astype(float)
    counts.iloc[3, 2] = np.inf
    save(tmp_path, "A1", counts=counts)
    refused(tmp_path, "A1.tsv.gz", "'NEGR1'", "holds inf", "expected raw counts")


@pytest.mark.real_data
def test_her2st_scale_and_totals(real_data):
    ingested = read_spots(real_data / "her2st", patients=(("C", "breast"),), sections=("C5",))
    (section,) = ingested.sections
    counts = pd.read_csv(real_data / "her2st/C5.tsv.gz", sep="\t", index_col=0)
    assert section.he_um_per_px == pytest.approx(0.690, abs=0.005) and section.patient_id == "C"
    dense = pd.DataFrame(section.spots.dense(len(ingested.panel)), section.spots.name_N, ingested.panel.symbols)
    assert (dense.sum() == counts.sum()[list(ingested.panel.symbols)]).all()
    assert ingested.report.tally("counts", "C5").kept == counts.to_numpy().sum()
    assert any(symbol.startswith("AC0") and "." in symbol for symbol in ingested.panel.symbols)  # clone names stay
    assert max(section.he.shape[:2]) < 9_000  # cut to the spots and their margin
    assert section.spots.x_um_N.min() == pytest.approx(300, abs=1.5)

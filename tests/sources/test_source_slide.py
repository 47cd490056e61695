"""Whole slides into a corpus: which level, which scale, whose tissue; nothing but tissue; in bounded memory."""

import tracemalloc

import numpy as np
import openslide
import pytest
import tifffile
from made_slides import halved, speckled, write_pyramid
from PIL import Image
from refusals import refused

from tario_jax.config import SplitConfig
from tario_jax.corpus import layout
from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import BlockImage
from tario_jax.corpus.split import split_corpus
from tario_jax.panel import Panel
from tario_jax.sources import slide
from tario_jax.sources.ingest import ingest
from tario_jax.sources.slide import averaged, read_slide
from tario_jax.sources.slide_files import opened_slide

PANEL = Panel(("EPCAM", "TP53"))
WHO = {"panel": PANEL, "patient_id": "P1", "cohort": "lung"}


def stored(path, root, **arguments):
    """The one section of a slide in a corpus, and what was said."""
    source = read_slide(path, **WHO | arguments)
    (section,) = ingest(source, root, lambda line: None).sections
    return section, source.report.table()


def area_means(image, factor):
    """In float64, rounded halves up."""
    height, width = (size // factor for size in image.shape[:2])
    cut = image[: height * factor, : width * factor].astype(np.float64)
    return np.floor(cut.reshape(height, factor, width, factor, 3).mean((1, 3)) + 0.5)


@pytest.mark.parametrize("ome", [False, True])
@pytest.mark.parametrize(("asked", "level", "um_per_px"), [(0.25, 1, 0.25), (0.5, 2, 0.5), (0.9, 2, 0.5), (1.0, 3, 1)])
def test_the_coarsest_level_that_is_not_coarser_than_asked_is_stored(ome, asked, level, um_per_px, tmp_path):
    image = speckled(402, 510)
    path = write_pyramid(tmp_path / f"S1{'.ome' * ome}.tif", image, ome=ome)
    section, table = stored(path, tmp_path / "c", he_um_per_px=asked, section_id="S1")
    for _ in range(level - 1):
        image = halved(image)
    np.testing.assert_array_equal(section.he(), image)
    assert section.he_um_per_px == pytest.approx(um_per_px)
    assert f"stored at {um_per_px:g} µm per px" in table and f"level {level} of 3, as it is" in table
    assert section.width_um == pytest.approx(510 * 0.25, rel=0.01)
    assert section.he_full_um_per_px == pytest.approx(0.25)  # what full-resolution px of gene maps are counted in


@pytest.mark.parametrize(("um_per_px", "factor"), [(0.25, 2), (0.263, 2), (0.12, 4), (0.3636, 1), (0.499, 1), (0.8, 1)])
def test_a_finer_slide_is_stored_in_area_means_and_never_coarser_than_asked(um_per_px, factor, tmp_path, monkeypatch):
    monkeypatch.setattr(slide, "_BLOCK_PX", 24)  # many blocks, so that their seams are looked at
    image = np.random.default_rng(0).integers(0, 256, (203, 309, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "S1.png")
    section, table = stored(tmp_path / "S1.png", tmp_path / "c", um_per_px=um_per_px)
    np.testing.assert_array_equal(section.he(), area_means(image, factor))
    assert section.he_um_per_px == pytest.approx(um_per_px * factor)
    assert section.width_um == pytest.approx(309 // factor * factor * um_per_px)
    assert ("coarser than the 0.5 that was asked" in table) == (um_per_px == 0.8)
    assert [finding for finding in check_corpus(Corpus.open(tmp_path / "c")) if finding.fault] == []


def test_a_slide_measures_no_gene_and_nothing_is_trained_on_it(tmp_path):
    Image.fromarray(speckled(100, 100)).save(tmp_path / "S1.png")
    section, _ = stored(tmp_path / "S1.png", tmp_path / "c", um_per_px=0.5)
    assert not section.measured_gene_G.any() and not section.has_counts
    refused(lambda: split_corpus(Corpus.open(tmp_path / "c"), SplitConfig(train=("P1",))), "no section", "'train'")


def test_the_flag_is_taken_and_a_file_that_disagrees_is_noted(tmp_path):
    path = write_pyramid(tmp_path / "S1.tif", speckled(200, 200), 1)
    section, table = stored(path, tmp_path / "a", um_per_px=0.5)
    assert section.he_um_per_px == 0.5 and "--um-per-px=0.5 is taken, the file says 0.25" in table
    assert "is taken" not in stored(path, tmp_path / "b", um_per_px=0.26)[1]  # within 5 %


@pytest.mark.parametrize(("px_per_cm", "words"), [
    (None, ("does not say its µm per px", "--um-per-px")),
    (28.346, ("352.8 µm per px", "expected 0.1 to 1.2", "--um-per-px", "--force")),  # 72 dpi
])  # fmt: skip
def test_a_scale_that_is_missing_or_cannot_be_is_refused_until_it_is_stated(px_per_cm, words, tmp_path):
    path = write_pyramid(tmp_path / "S1.tif", speckled(200, 200), 1, px_per_cm=px_per_cm and (28346, 1000))
    refused(lambda: read_slide(path, **WHO), "S1.tif", *words)
    assert stored(path, tmp_path / "c", um_per_px=0.5)[0].he_um_per_px == 0.5


def test_a_tiff_whose_resolution_has_no_unit_says_nothing(tmp_path):
    tifffile.imwrite(tmp_path / "S1.tif", speckled(200, 200), photometric="rgb", resolution=(40_000, 40_000),
                     resolutionunit="NONE")  # fmt: skip
    refused(lambda: read_slide(tmp_path / "S1.tif", **WHO), "does not say its µm per px")


def test_what_is_outside_of_plausible_scales_needs_force(tmp_path):
    Image.fromarray(speckled(100, 100)).save(tmp_path / "S1.png")
    refused(lambda: read_slide(tmp_path / "S1.png", um_per_px=2.0, **WHO), "--um-per-px: 2 µm", "0.1 to 1.2")
    section, table = stored(tmp_path / "S1.png", tmp_path / "c", um_per_px=2.0, force=True)
    assert section.he_um_per_px == 2.0 and "coarser than" in table
    for wrong in (-0.5, float("nan"), 0.0):
        refused(lambda wrong=wrong: read_slide(tmp_path / "S1.png", um_per_px=wrong, force=True, **WHO), "--um-per-px")
    refused(lambda: read_slide(tmp_path / "S1.png", um_per_px=0.5, he_um_per_px=5, **WHO), "--he-um-per-px")


def test_pixels_that_are_not_square_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "S1.tif", speckled(200, 200), photometric="rgb", resolution=(40_000, 20_000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    refused(lambda: read_slide(tmp_path / "S1.tif", **WHO), "0.25 µm per px across and 0.5 down", "--um-per-px")


# memory


def test_a_slide_is_stored_in_memory_that_does_not_grow_with_it(tmp_path, monkeypatch):
    monkeypatch.setitem(layout.CHUNKS, "he", ((256, 256, 3), (1024, 1024, 3)))
    monkeypatch.setattr(layout, "_BAND_BYTES", 1 << 20)
    width_px, peak = 1280, {}
    for height_px in (256, 2048, 8192):  # the first one loads what is loaded once
        tile, path = speckled(256, 256), tmp_path / f"{height_px}.tif"
        with tifffile.TiffWriter(path) as file:
            file.write(iter([tile] * (height_px // 256 * 5)), shape=(height_px, width_px, 3), dtype=np.uint8,
                       tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(20_000, 20_000),
                       resolutionunit="CENTIMETER")  # fmt: skip
        tracemalloc.start()
        stored(path, tmp_path / f"c{height_px}")
        peak[height_px] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[8192] < 1.1 * peak[2048] and peak[8192] < 0.5 * 8192 * width_px * 3, peak


def test_means_are_taken_of_blocks_of_bounded_size():
    asked = []

    def read(rows, columns):
        asked.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)

    assert averaged(BlockImage(40_000, 9_000, read), 4)[8192:10_000, :].shape == (1808, 2250, 3)
    assert max(asked) <= 4096**2


# nothing but tissue


def every_byte(root):
    return b"".join((Place(root) / name).read() for name in Place(root).below())


@pytest.mark.parametrize("ome", [False, True])
def test_a_label_page_and_the_words_of_a_slide_stay_behind(ome, tmp_path):
    pattern = np.array([[1, 2, 3], [5, 7, 11]], np.uint8)[np.indices((90, 120)).sum(0) % 2]
    words = {} if ome else {"description": "DOE^JANE 1961-07-04", "software": "ScannerOfDrWho"}
    path = write_pyramid(tmp_path / "S1.ome.tif" if ome else tmp_path / "S1.tif", speckled(300, 300), label=pattern,
                         ome=ome, datetime="2019:03:02 11:12:13" if not ome else None, **words)  # fmt: skip
    assert pattern.tobytes()[:60] in path.read_bytes()
    section, table = stored(path, tmp_path / "c", he_um_per_px=0.25, section_id="S1")
    np.testing.assert_array_equal(section.he(), speckled(300, 300))
    assert (section.he() >= 60).all()  # no pixel of the label, which is darker
    assert "the largest of its 2 images is read" in table
    held = every_byte(tmp_path / "c")
    for word in (b"DOE", b"JANE", b"1961", b"DrWho", b"2019", b"label", pattern.tobytes()[:60]):
        assert word not in held


def write_svs(path, image, label):
    """As Aperio's scanners do: the slide, a level of a quarter, a label; who and when stands in the description."""
    words = "Aperio Image Library v11.2.1\r\n{}x{} {} RGB|AppMag = 40|Date = 07/04/61|User = DOE^JANE|MPP = 0.2520"
    kind = {"photometric": "rgb", "metadata": None, "software": None}
    with tifffile.TiffWriter(path) as file:
        for level in (image, np.ascontiguousarray(image[::4, ::4])):
            said = words.format(image.shape[1], image.shape[0], "(256x256)")
            file.write(level, tile=(256, 256), description=said, **kind)
        said = f"Aperio Image Library v11.2.1\r\nlabel {label.shape[1]}x{label.shape[0]}"
        file.write(label, description=said, subfiletype=1, compression="lzw", predictor=True, **kind)
    return path


def test_a_40x_slide_of_a_scanner_is_stored_at_half_a_micron_without_its_label_and_words(tmp_path):
    image = np.random.default_rng(0).integers(60, 256, (803, 1001, 3), np.uint8)
    label = np.full((90, 120, 3), (1, 2, 3), np.uint8)
    path = write_svs(tmp_path / "S1.svs", image, label)
    with openslide.OpenSlide(path) as known:  # what stays behind is there
        assert list(known.associated_images) == ["label"] and known.properties["aperio.User"] == "DOE^JANE"
    section, table = stored(path, tmp_path / "c")
    np.testing.assert_array_equal(section.he(), area_means(image, 2))
    assert section.he_um_per_px == pytest.approx(0.504) and section.he_full_um_per_px == pytest.approx(0.252)
    assert "stored at 0.504 µm per px: 500 × 401 px, level 1 of 2, in means of 2 × 2 px; the file has 0.252" in table
    held = every_byte(tmp_path / "c")
    assert not any(word in held for word in (b"DOE", b"JANE", b"07/04", b"Aperio", b"label"))
    coarse, _ = stored(path, tmp_path / "d", he_um_per_px=1.0)
    np.testing.assert_array_equal(coarse.he(), image[::4, ::4])


@pytest.mark.real_data
def test_a_real_slide_is_stored_without_its_label_macro_and_words(real_data, tmp_path):
    path = real_data / "slides/CMU-1-Small-Region.svs"
    section, table = stored(path, tmp_path / "c", section_id="S1")
    with openslide.OpenSlide(path) as known:
        expected = np.asarray(known.read_region((0, 0), 0, known.dimensions).convert("RGB"))
        properties = dict(known.properties)
        others = {name: np.asarray(image.convert("RGB")) for name, image in known.associated_images.items()}
    np.testing.assert_array_equal(section.he(), expected)
    assert section.he_um_per_px == pytest.approx(0.499) and "2,220 × 2,967 px" in table
    held, pixels = every_byte(tmp_path / "c"), section.he().tobytes()
    words = {word for value in properties.values() for word in value.replace("|", "=").split("=") if len(word) >= 6}
    assert {"CMU-1", "12/29/09", "09:59:15"} & set(properties.values()) and len(words) > 15
    for word in words | {"CMU-1", "aperio", "Aperio", "label", "macro", "thumbnail"}:
        assert word.strip().encode() not in held, word
    assert sorted(others) == ["label", "macro", "thumbnail"]
    for name in ("label", "macro"):
        rows = [row.tobytes() for row in others[name][::50] if len(np.unique(row)) > 10]
        assert rows and not any(row in pixels for row in rows)


# a folder of slides


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        Image.fromarray(speckled(80, 80, number)).save(folder / name)
    write_pyramid(folder / "c d.tif", speckled(80, 80, 2), 1)
    (folder / "notes.txt").write_text("none of ours")
    (folder / "._a.png").write_bytes(b"Mac")
    return folder


def table_of(tmp_path, *lines):
    (tmp_path / "patients.tsv").write_text("\n".join("\t".join(line) for line in lines) + "\n")
    return tmp_path / "patients.tsv"


HEAD = ("file", "patient", "cohort")


def test_each_slide_of_a_folder_is_a_section_of_the_patient_that_the_table_names(folder, tmp_path):
    table = table_of(tmp_path, (*HEAD, "section"), ("a.png", "P1", "lung", "A"), ("b.png", "P2", "skin", "B"),
                     ("c d.tif", "P1", "lung", "C"))  # fmt: skip
    source = read_slide(folder, panel=PANEL, patients_file=table, um_per_px=0.5)
    corpus = ingest(source, tmp_path / "c", lambda line: None)
    assert [(s.id, s.patient, s.cohort) for s in corpus.sections] == [
        ("A", "P1", "lung"), ("B", "P2", "skin"), ("C", "P1", "lung")]  # fmt: skip
    np.testing.assert_array_equal(corpus.section("B").he(), speckled(80, 80, 1))
    tally = source.report.tally("slides")
    assert (tally.read, tally.kept) == (5, 3) and set(tally.dropped) == {".txt: not a slide", "a hidden file"}


def test_a_file_of_dicom_among_other_slides_is_refused_and_one_of_a_mac_is_not(folder):
    (folder / "._export.dcm").write_bytes(b"Mac")
    (folder / "c d.tif").unlink()
    assert read_slide(folder, um_per_px=0.5, **WHO).number == 2
    (folder / "export.dcm").write_bytes(b"DICM")
    refused(lambda: read_slide(folder, um_per_px=0.5, **WHO), "holds export.dcm of a DICOM slide and a.png", "own")


@pytest.mark.parametrize(("lines", "words"), [
    ([HEAD, ("a.png", "P1", "lung")], ("no line for b.png, c d.tif", "every slide")),
    ([HEAD, *[(name, "P1", "lung") for name in ("a.png", "b.png", "c d.tif", "z.svs")]], ("no slide z.svs",)),
    ([HEAD, ("a.png", "P1", "lung"), ("a.png", "P2", "lung")], ("line 3", "each file once")),
    ([HEAD, ("a.png", "", "lung")], ("line 2",)),
    ([("a.png", "P1", "lung")], ("first line", "file<TAB>patient<TAB>cohort")),
    ([HEAD, *[(name, "P1", "lung") for name in ("a.png", "b.png", "c d.tif")]], ("'c d'", "column 'section'")),
])  # fmt: skip
def test_a_table_that_does_not_fit_the_folder_is_refused(lines, words, folder, tmp_path):
    table = table_of(tmp_path, *lines)
    refused(lambda: read_slide(folder, panel=PANEL, patients_file=table, um_per_px=0.5), *words)


def test_two_slides_of_one_name_and_one_name_for_several_slides_are_refused(folder):
    refused(lambda: read_slide(folder, um_per_px=0.5, section_id="S1", **WHO), "--section=S1", "3 slides")
    (folder / "c d.tif").unlink()
    write_pyramid(folder / "a.tif", speckled(80, 80), 1)
    refused(lambda: read_slide(folder, um_per_px=0.5, **WHO), "a.tif and a.png", "'a'")


def test_a_slide_that_cannot_be_read_ends_the_ingest_before_anything_is_stored(folder, tmp_path):
    (folder / "z.png").write_bytes((folder / "a.png").read_bytes()[:20])
    (folder / "c d.tif").unlink()
    refused(lambda: stored(folder, tmp_path / "c", um_per_px=0.5), "z.png", "cannot be read as an image")
    assert not (tmp_path / "c").exists()


def test_an_empty_folder_and_a_missing_slide_are_refused(tmp_path):
    refused(lambda: read_slide(tmp_path, **WHO), "holds no slide", ".svs")
    refused(lambda: read_slide(tmp_path / "x.svs", **WHO), "no such slide")


def test_blocks_of_an_open_slide_are_what_the_whole_is(tmp_path):
    image = speckled(300, 410)
    with opened_slide(write_pyramid(tmp_path / "S1.tif", image)) as file:
        np.testing.assert_array_equal(file.levels[0][37:211, 100:401], image[37:211, 100:401])
        assert [level.shape for level in file.levels] == [(300, 410, 3), (150, 205, 3), (75, 103, 3)]

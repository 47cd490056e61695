"""Gene maps: every place covered once, blended without a seam, written and read without loss, never mislabelled."""

import csv
import dataclasses
import errno
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from made_reader import says_everywhere
from PIL import Image
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

import tario_jax
from tario_jax.config import MeshConfig
from tario_jax.predict.cover import fewer_rows
from tario_jax.predict.maps import VIRTUAL_BANNER, GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.tissue import read_image


@pytest.fixture(scope="module")
def constant(predictor) -> Predictor:
    """A model that says the same of every place: 0.02 detections per µm², shared out over the genes unevenly."""
    return says_everywhere(predictor, 0.02, np.arange(1, len(PANEL) + 1) / 78.0)


def section_of(tmp_path, data):
    return write_corpus(tmp_path / "c", [data]).sections[0]


def assert_constant(maps: GeneMaps) -> None:
    expected = 0.02 * maps.size_um**2 * np.arange(1, 13) / 78.0
    np.testing.assert_allclose(maps.rates_NxG, np.broadcast_to(expected, maps.rates_NxG.shape), rtol=1e-5)


# 18 µm bins, 72 µm windows: whole bins, a remainder that counts as a bin (90 % or more of it) on one side or on both,
# remainders that do not, and sections smaller than a window
SIZES = [(180, 150), (144, 144), (197, 161), (197, 150), (143, 89), (73, 300), (71, 71), (40, 30), (18, 18), (17, 90)]


@pytest.mark.parametrize(("width_um", "height_um"), SIZES)
def test_every_bin_of_a_section_is_predicted_once(constant, tmp_path, width_um, height_um):
    """Every bin of which at least nine tenths lie on the H&E, whatever the size, and no other; without a seam."""
    section = section_of(tmp_path, tiny_section("A1", "A", 0, width_um=width_um, height_um=height_um, detections=9))
    centres = [18.0 * np.arange(-(-extent // 18)) + 9.0 for extent in (width_um, height_um)]
    share = [(np.minimum(c + 9.0, extent) - (c - 9.0)) / 18.0 for c, extent in zip(centres, (width_um, height_um),
                                                                                   strict=True)]  # fmt: skip
    row, column = np.nonzero(np.outer(share[1], share[0]) >= 0.9 - 1e-6)
    expected = {(centres[0][x], centres[1][y]) for y, x in zip(row, column, strict=True)}
    for overlap in (0.0, 0.5, 0.8):
        maps = constant.predict_section(section, tissue="virtual", overlap=overlap)
        assert len(maps.x_um_N) == len(expected)
        assert set(zip(maps.x_um_N, maps.y_um_N, strict=True)) == expected
        assert_constant(maps)


@pytest.mark.parametrize("bin_um", [9.0, 12.0, 20.0, 36.0])
def test_bins_of_other_sizes_get_their_share(constant, tmp_path, bin_um):
    section = section_of(tmp_path, tiny_section("A1", "A", 0))
    maps = constant.predict_section(section, tissue="virtual", bin_um=bin_um)
    assert maps.size_um == bin_um and len(maps.x_um_N) >= int(180 / bin_um) * int(150 / bin_um)
    assert_constant(maps)


@pytest.mark.parametrize("seed", range(6))
def test_every_spot_is_predicted(constant, tmp_path, seed):
    """Spots anywhere, down to the edge of the image, on grids whose rounding could lose one."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2)
    place = [
        rng.uniform(0, [180, 150], (25, 2)),
        grid * [36.0, 36.0] + [0.1, 0.1],
        grid * 31.7 + 3.3,
        np.array([[90.3, 70.7]]),
        np.array([[0.0, 0.0], [180.0, 150.0]]),
        grid * 26.0 + rng.uniform(0, 9),
    ][seed]
    data = spot_section("A1", "A", seed, x_um=place[:, 0], y_um=place[:, 1])
    section = section_of(tmp_path, data)
    for overlap in (0.0, 0.5):
        maps = constant.predict_section(section, tissue="virtual", overlap=overlap)
        np.testing.assert_array_equal(np.stack([maps.x_um_N, maps.y_um_N], 1), place)
        assert maps.names() == [f"s{i}" for i in range(len(place))]
        assert maps.size_um == pytest.approx(np.sqrt(np.pi) * 10)  # of the area of a disc of 20 µm
        assert_constant(maps)
    assert "spots" not in vars(section)  # whose counts are large, and are not predicted from


def test_a_small_section_is_not_padded_to_whole_batches(constant, tmp_path):
    rows = {(9, 8, 1): 1, (9, 8, 4): 4, (13, 8, 1): 8, (3, 8, 1): 4, (8, 8, 1): 8, (17, 8, 1): 1, (30, 8, 1): 8,
            (2, 6, 3): 3, (1, 6, 1): 3}  # fmt: skip
    assert {of: fewer_rows(*of) for of in rows} == rows
    section = section_of(tmp_path, tiny_section("A1", "A", 0, width_um=216, height_um=216))  # 3 x 3 windows
    cover = constant.cover(section, tissue="virtual", bin_um=None, overlap=0.0)
    assert len(cover.corners) == 9
    held = [(len(windows), len(batch.bin_size_um_BxTxN)) for windows, batch in cover.batches(8, shares=1)]
    assert held == [(8, 8), (1, 1)]
    assert [len(batch.bin_size_um_BxTxN) for _, batch in cover.batches(8)] == [8, 8]


def test_the_mesh_of_training_does_not_bind_prediction(predictor, tiny_corpus):
    """A model trained on many devices predicts on those that are here."""
    config = predictor.provenance.config
    elsewhere = dataclasses.replace(config, mesh=MeshConfig(replica=2, fsdp=4, context=2, tensor=4))
    provenance = dataclasses.replace(predictor.provenance, config=elsewhere)
    moved = Predictor(provenance, predictor.parameters, predictor.calibration)
    section = tiny_corpus.section("F1")
    np.testing.assert_array_equal(
        moved.predict_section(section, tissue="virtual").rates_NxG,
        predictor.predict_section(section, tissue="virtual").rates_NxG,
    )


def test_an_image_is_predicted_as_the_section_that_holds_it(predictor, tiny_corpus):
    section = tiny_corpus.section("F1")
    of_section = predictor.predict_section(section, tissue="virtual")
    of_image = predictor.predict(section.he(), 0.5, tissue="virtual")
    np.testing.assert_array_equal(of_image.rates_NxG, of_section.rates_NxG)
    np.testing.assert_array_equal(of_image.x_um_N, of_section.x_um_N)
    alpha = np.concatenate([section.he(), np.full((*section.he().shape[:2], 1), 7, np.uint8)], -1)
    np.testing.assert_array_equal(predictor.predict(alpha, 0.5, tissue="virtual").rates_NxG, of_image.rates_NxG)
    assert np.ptp(of_image.rates_NxG.sum(1)) > 0.1 and np.isfinite(of_image.rates_NxG).all()


def test_a_virtual_model_sees_real_tissue_only_when_told_to_and_says_so(predictor, tiny_run, tiny_corpus, tmp_path):
    image = tiny_corpus.section("F1").he()[:160, :160]
    refused(lambda: predictor.predict(image, 0.5), "real tissue", "--allow-virtual-model")
    allowed = tario_jax.load(tiny_run, allow_virtual_model=True)
    maps = allowed.predict(image, 0.5)
    assert maps.banner == VIRTUAL_BANNER == maps.metadata()["banner"]
    assert maps.to_anndata().uns["tario"]["banner"] == VIRTUAL_BANNER
    maps.write_table(tmp_path / "rates.tsv")
    assert f"# banner: {VIRTUAL_BANNER}" in (tmp_path / "rates.tsv").read_text().splitlines()
    assert allowed.predict(image, 0.5, tissue="virtual").banner == ""
    real = Predictor(dataclasses.replace(predictor.provenance, trained_on="real"), predictor.parameters,
                     predictor.calibration)  # fmt: skip
    assert real.predict(image, 0.5).banner == ""


def test_wrong_input_is_answered_in_one_line(predictor, tmp_path):
    image = np.zeros((200, 200, 3), np.uint8)
    predict = predictor.predict
    refused(lambda: predict(image.astype(float), 0.5, tissue="virtual"), "float64", "expected uint8 RGB")
    refused(lambda: predict(image[..., 0], 0.5, tissue="virtual"), "(200, 200)", "expected uint8 RGB")
    refused(lambda: predict(image, 50.0, tissue="virtual"), "50 µm per px", "0.1 to 1.2", "force=True")
    refused(lambda: predict(image, -1.0, tissue="virtual"), "um_per_px is -1.0")
    refused(lambda: predict(image[:20, :20], 0.5, tissue="virtual"), "10 x 10 µm", "at least one bin")
    refused(lambda: predict(image, 0.5, tissue="mouse"), "'mouse'")
    refused(lambda: predict(image, 0.5, tissue="virtual", overlap=1.0), "overlap")
    refused(lambda: predict(image, 0.5, tissue="virtual", bin_um=100.0), "100 µm", "72 µm")
    wide = spot_section("A1", "A", 0, x_um=[90.0], y_um=[70.0], diameter_um=80.0)
    section = section_of(tmp_path, wide)
    refused(lambda: predictor.predict_section(section, tissue="virtual"), "spots of 80 µm", "72 µm")


def test_unreadable_images_are_answered_in_one_line(tmp_path):
    for name, content in (("a.png", b"no image"), ("b.tif", b"II*\0"), ("c.jpg", b""), ("d.png", b"\x89PNG\r\n\x1a\n")):
        (tmp_path / name).write_bytes(content)
        refused(lambda path=tmp_path / name: read_image(path, 0.5), str(tmp_path / name))
    refused(lambda: read_image(tmp_path / "none.png", 0.5), "none.png", "no such file")


def test_a_folder_without_a_checkpoint_is_answered_in_one_line(tmp_path, tiny_run):
    refused(lambda: tario_jax.load(tmp_path / "nowhere"), "no such workdir")
    refused(lambda: tario_jax.load(tiny_run.with_name("runn")), "no such workdir", f"did you mean {tiny_run}?")
    refused(lambda: tario_jax.load(tmp_path), "holds no checkpoints")
    (tmp_path / "checkpoints").mkdir()
    refused(lambda: tario_jax.load(tmp_path), "holds no whole checkpoint")


@pytest.fixture(scope="module")
def maps(predictor, tiny_corpus) -> GeneMaps:
    return predictor.predict_section(tiny_corpus.section("F1"), tissue="virtual")


def test_places_of_a_slide_that_is_stored_coarser_count_in_px_of_its_file(constant, tmp_path):
    pytest.importorskip("anndata")
    slide = dataclasses.replace(tiny_section("A1", "A", 0), detections=None, measured_gene_G=np.zeros(12, bool),
                                quality={"he_full_um_per_px": 0.25})  # fmt: skip
    maps = constant.predict_section(section_of(tmp_path, slide), tissue="virtual")
    assert_constant(maps)  # of H&E alone every gene is predicted
    np.testing.assert_allclose(maps.to_anndata().obsm["spatial"], np.stack([maps.x_um_N, maps.y_um_N], 1) / 0.25)


def test_anndata_holds_the_maps(maps, tmp_path):
    anndata = pytest.importorskip("anndata")
    maps.write_h5ad(tmp_path / "new" / "maps.h5ad")
    read = anndata.read_h5ad(tmp_path / "new" / "maps.h5ad")
    np.testing.assert_array_equal(read.X, maps.rates_NxG)
    assert tuple(read.var_names) == PANEL.symbols and list(read.obs_names) == maps.names()
    np.testing.assert_allclose(read.obsm["spatial"], np.stack([maps.x_um_N, maps.y_um_N], 1) / 0.5)  # full-res px
    np.testing.assert_allclose(read.obs["x_um"], maps.x_um_N)
    stored = read.uns["tario"]
    assert (stored["panel_hash"], stored["trained_on"], stored["tissue"]) == (PANEL.hash, "virtual", "virtual")
    assert stored["unit"] == "expected detections per place"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps.h5ad"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".parquet"])
def test_tables_hold_the_maps(maps, tmp_path, suffix):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / f"maps{suffix}"
    maps.write_table(path)
    if suffix == ".parquet":
        table = pandas.read_parquet(path)
        assert pq.read_schema(path).metadata[b"tario.panel_hash"].decode() == PANEL.hash
    else:
        table = pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",", comment="#")
        assert f"# panel_hash: {PANEL.hash}" in path.read_text()
    assert list(table.columns) == ["place", "x_um", "y_um", *PANEL.symbols]
    np.testing.assert_allclose(table[list(PANEL.symbols)], maps.rates_NxG, rtol=1e-5)
    np.testing.assert_allclose(table[["x_um", "y_um"]], np.stack([maps.x_um_N, maps.y_um_N], 1), atol=0.005)
    assert list(table["place"]) == maps.names()
    np.testing.assert_array_equal(maps.gene("GENE3"), maps.rates_NxG[:, 3])
    refused(lambda: maps.gene("ERBB2"), "'ERBB2' is not in the model's panel of 12 genes")
    refused(lambda: maps.write_table(tmp_path / "maps.xlsx"), ".parquet, .tsv or .csv")


@pytest.mark.parametrize("name", ["maps.h5ad", "maps.tsv", "maps.parquet"])
def test_a_disk_that_is_full_at_the_end_is_one_line_and_leaves_nothing(maps, tmp_path, monkeypatch, name):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        patched.setattr(csv, "writer", full)
        patched.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        write = maps.write_h5ad if name.endswith("h5ad") else maps.write_table
        refused(lambda: write(tmp_path / name), f"{name}: cannot be written: No space left", "make room there")
    assert not list(tmp_path.iterdir())


def test_windows_that_overlap_are_turned_otherwise_and_lie_where_they_did(predictor, tiny_corpus):
    """Each bin has the H&E of its place beneath it, whatever the turn of its window; where bins do not fit, none is."""
    section = tiny_corpus.section("F1")
    cover = predictor.cover(section, tissue="virtual", bin_um=None, overlap=0.5, turned=True)
    turns = dict(zip(cover.corners, cover._quarter_turns.tolist(), strict=True))
    assert {turns[corner] for corner in ((0, 0), (36, 0), (0, 36), (36, 36))} == {0, 1, 2, 3}
    for windows, batch in cover.batches(4):
        for row, window in enumerate(windows):
            placed = cover.placed(batch, row, window)
            patch_Sx3 = batch.he_BxTxPxYxXx3[row].reshape(-1, 81, 3).mean(1)
            patch_nxM, weight_nxM = (x[row].reshape(-1, x.shape[-1])[placed.slot_n]
                                     for x in (batch.pool_patch_BxTxNxM, batch.pool_weight_BxTxNxM))  # fmt: skip
            under = (patch_Sx3[patch_nxM] * weight_nxM[..., None]).sum(1)
            at = zip(cover.places.x_um_N[placed.number_n], cover.places.y_um_N[placed.number_n], strict=True)
            expected = [section.he_window(x - 9, y - 9, 18, 1.0).reshape(-1, 3).mean(0) for x, y in at]
            np.testing.assert_allclose(under, expected, atol=1e-3)
    odd = predictor.cover(section, tissue="virtual", bin_um=20.0, overlap=0.5, turned=True)
    assert not odd._quarter_turns.any()


def test_an_image_is_read_as_a_slide_would_be(tmp_path):
    """Transparent is white, the largest of several images is the slide, EXIF turns, and another scale is said."""
    rgba = np.full((40, 60, 4), (200, 120, 180, 255), np.uint8)
    rgba[:10, :10] = 0
    Image.fromarray(rgba).save(tmp_path / "cut.png")
    said: list[str] = []
    pixels = read_image(tmp_path / "cut.png", 0.5, said.append)
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[20, 20].tolist() == [200, 120, 180] and not said
    turned = Image.fromarray(rgba[..., :3])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 0.5, said.append).shape == (60, 40, 3) and "EXIF" in said[-1]
    label, slide = np.zeros((50, 50, 3), np.uint8), np.full((80, 90, 3), 230, np.uint8)
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(label, photometric="rgb")
        file.write(slide, photometric="rgb", resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    assert read_image(tmp_path / "two.tif", 0.5, said.append).shape == (80, 90, 3)
    assert "largest of its 2 images" in said[-2] and "--um-per-px=0.5 is taken, the file says 0.25" in said[-1]


def test_names_with_separators_stay_in_their_column(predictor, tiny_corpus, tmp_path):
    maps = predictor.predict(tiny_corpus.section("F1").he()[:160, :160], 0.5, tissue="virtual")
    named = dataclasses.replace(maps, names_N=tuple(f"Tumor, {n}" for n in range(len(maps.x_um_N))))
    named.write_table(tmp_path / "rates.csv")
    with (tmp_path / "rates.csv").open(newline="") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))
    assert {len(row) for row in rows} == {len(rows[0])} and rows[1][0] == "Tumor, 0"

"""What other programs read of a store: the same values, places and genes."""

import contextlib
import csv
import dataclasses
import json
import shutil

import anndata
import numpy as np
import pyarrow as pa
import pytest
import tifffile
from made_maps import made_validation
from PIL import Image
from refusals import refused
from tiny_tissue import tiny_section

from tario_jax.cli.main import main
from tario_jax.predict import map_exports
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.map_store import MapStore
from tario_jax.predict.signatures import read_gmt, scores
from tario_jax.predict.slide_job import Asked, predict_slide
from tario_jax.predict.table_file import SEPARATORS, write_table
from tario_jax.view.shown import Shown


@pytest.fixture(scope="module")
def store(predictor, tmp_path_factory) -> MapStore:
    folder = tmp_path_factory.mktemp("exports")
    Image.fromarray(tiny_section("slide", "P", 5, width_um=300.0, height_um=200.0).he).save(folder / "slide.png")
    asked = Asked(um_per_px=0.5, tissue="virtual", spread=True)
    return predict_slide(predictor, folder / "slide.png", folder / "slide.maps", asked, say=str)


def test_anndata_holds_the_rates_the_places_and_where_they_come_from(store, tmp_path, monkeypatch):
    monkeypatch.setattr(map_exports, "_ROWS", 16)
    map_exports.write_h5ad(store, tmp_path / "all.h5ad")
    map_exports.write_anndata_zarr(store, tmp_path / "some.zarr", ("GENE4", "GENE2"))
    of_all, some = anndata.read_h5ad(tmp_path / "all.h5ad"), anndata.read_zarr(tmp_path / "some.zarr")
    assert np.array_equal(of_all.X, store.genes(np.arange(12))) and tuple(of_all.var_names) == store.panel.symbols
    assert np.array_equal(some.X, store.genes([4, 2])) and list(some.var_names) == ["GENE4", "GENE2"]
    assert np.array_equal(some.layers["spread"], store.genes([4, 2], "spread"))
    assert np.array_equal(of_all.obsm["spatial"], np.stack([store.x_um_N, store.y_um_N], 1) / 0.5)
    assert np.allclose(of_all.obs["detections"], of_all.X.sum(1), rtol=1e-3)
    assert of_all.uns["tario"]["trained_on"] == "virtual" and of_all.uns["tario"]["bin_um"] == 18


def test_a_split_by_section_is_said_wherever_genes_are_validated(store, tmp_path, capsys):
    copied = MapStore(shutil.copytree(store.folder, tmp_path / "copy.maps"))
    table = made_validation(store.panel)
    for split_by, said in (("patient", False), ("section", True)):
        dataclasses.replace(table, about=table.about | {"split_by": split_by}).write(copied.folder / VALIDATION)
        map_exports.write_h5ad(copied, tmp_path / "x.h5ad")
        uns = anndata.read_h5ad(tmp_path / "x.h5ad").uns["tario"]
        assert uns["validation_split_by"] == split_by and ("Split by section" in uns["warnings"]) == said
        assert main(["maps", str(copied.folder)]) == 0
        assert ("Split by section" in capsys.readouterr().out) == said
        with contextlib.ExitStack() as stack:
            shown = Shown(copied.folder, {}, lambda store: [], stack, str)
            assert any("Split by section" in one for one in shown.described()["warnings"]) == said


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_set_with_a_comma_or_a_tab_in_its_name_is_one_column(tmp_path, suffix):
    names = ["x_um", "T cells, CD8", "of a\ttab", 'a "quote"']
    table = pa.table({name: np.arange(3.0) + number for number, name in enumerate(names)})
    write_table(table, tmp_path / f"scores{suffix}", {"section": "A1"})
    with (tmp_path / f"scores{suffix}").open(newline="") as file:
        assert file.readline() == "# section: A1\n"
        rows = list(csv.reader(file, delimiter=SEPARATORS[suffix]))
    assert rows[0] == names and [float(of) for of in rows[2]] == [1.0, 2.0, 3.0, 4.0]


def test_a_picture_of_channels_lies_where_the_slide_does(store, tmp_path):
    map_exports.write_ome_tiff(store, tmp_path / "two.ome.tif", ("GENE1", "GENE7"))
    with tifffile.TiffFile(tmp_path / "two.ome.tif") as file:
        channels, described = file.asarray(), file.ome_metadata
    assert 'Name="GENE7"' in described and 'PhysicalSizeX="18.0"' in described
    assert channels.shape == (2, 12, 17)  # 200 × 300 µm, the last row and column of them partly
    row_N, column_N = map_exports.grid_of(store)
    assert np.array_equal(channels[1][row_N, column_N], store.gene("GENE7"))
    assert np.isnan(channels).sum() == 2 * (channels[0].size - len(store))


def test_squares_are_where_qupath_looks_for_them(store, tmp_path):
    map_exports.write_geojson(store, tmp_path / "x.geojson", ("GENE1",))
    features = json.loads((tmp_path / "x.geojson").read_text())["features"]
    assert len(features) == len(store)
    corner_px = np.array(features[3]["geometry"]["coordinates"][0])
    assert np.allclose(corner_px[:4].mean(0), map_exports.pixels_of(store)[3])
    assert np.allclose(np.ptp(corner_px, 0), 36)
    assert features[3]["properties"]["measurements"]["GENE1"] == pytest.approx(store.gene("GENE1")[3], rel=1e-4)
    refused(lambda: map_exports.write_geojson(store, tmp_path / "y", ["GENE1"] * 5000), "at most 4,096", "--genes")


def test_a_thumbnail_shows_slide_and_gene(store, tmp_path):
    map_exports.write_thumbnail(store, tmp_path / "GENE1.png", "GENE1")
    assert np.asarray(Image.open(tmp_path / "GENE1.png")).std() > 10


@pytest.mark.filterwarnings("ignore")  # of the libraries that SpatialData imports
def test_spatialdata_opens_it(store, tmp_path):
    spatialdata = pytest.importorskip("spatialdata", reason="SpatialData is not here; pip install 'tario-jax[spatial]'")
    map_exports.write_spatialdata(store, tmp_path / "x.zarr", ("GENE1", "GENE2"))
    found = spatialdata.read_zarr(tmp_path / "x.zarr")
    assert np.array_equal(found["table"].X, store.genes([1, 2])) and len(found["bins"]) == len(store)


def test_what_stands_there_is_not_lost(store, tmp_path):
    (tmp_path / "x.zarr" / "precious").mkdir(parents=True)
    refused(lambda: map_exports.write_anndata_zarr(store, tmp_path / "x.zarr", ("GENE1",)), "is a folder already")
    assert (tmp_path / "x.zarr" / "precious").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(store, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(map_exports, "_fill", full)
    for write, name in ((map_exports.write_h5ad, "x.h5ad"), (map_exports.write_anndata_zarr, "y.zarr")):
        refused(lambda write=write, name=name: write(store, tmp_path / name, ("GENE1",)), name, "No space left", "room")
    assert list(tmp_path.iterdir()) == []


def test_scores_are_means_of_deviations(store, tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("dark\tnuclei\tGENE0\tGENE2\tGENE99\nlight\t\tGENE1\nnone\t\tOTHER\n")
    dark, light, none = signatures = read_gmt(path, store.panel)
    assert dark.missing == ("GENE99",) and dark.positions.tolist() == [0, 2] and not len(none.positions)
    found = scores(store, signatures)
    rates = store.genes(np.arange(12)).astype(np.float64)
    log = np.log2(1 + 1e4 * rates / store.total_N[:, None])
    z = (log - log.mean(0)) / log.std(0)
    assert np.allclose(found[:, 0], z[:, [0, 2]].mean(1), atol=1e-5) and np.allclose(found[:, 1], z[:, 1], atol=1e-5)
    assert np.isnan(found[:, 2]).all() and light.name == "light"
    for text, words in (("a\tb\n", "line 1"), ("a\t\tGENE1\na\t\tGENE2\n", "stands twice"), ("", "no gene set"),
                        ("a\t\tX\n", "none of its genes")):  # fmt: skip
        path.write_text(text)
        refused(lambda: read_gmt(path, store.panel), str(path), words)


def test_the_command_writes_what_it_is_asked_for(store, tmp_path, capsys):
    (tmp_path / "sets.gmt").write_text("dark\tnuclei\tGENE0\tGENE2\n")
    words = [f"--{name}={tmp_path / file}" for name, file in (
        ("h5ad", "a.h5ad"), ("geojson", "a.geojson"), ("ome-tiff", "a.ome.tif"), ("thumbnails", "pictures"),
        ("signatures", "sets.gmt"), ("scores", "scores.tsv"), ("json", "told.json"))]  # fmt: skip
    assert main(["maps", str(store.folder), "--genes=GENE1,GENE3", *words]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"a.h5ad", "a.geojson", "a.ome.tif", "pictures", "scores.tsv"} <= names
    assert json.loads((tmp_path / "told.json").read_text())["bins"] == len(store)
    lines = [line for line in (tmp_path / "scores.tsv").read_text().splitlines() if not line.startswith("#")]
    assert lines[0].split("\t") == ["x_um", "y_um", "dark"] and len(lines) == len(store) + 1
    capsys.readouterr()
    for words, answer in ((["--geojson=x.geojson"], "name them by --genes"), (["--h5ad=x.txt"], "ends in .h5ad"),
                          (["--genes=NONE", "--h5ad=x.h5ad"], "'NONE' is not among"),
                          (["--signatures=a.gmt"], "give both")):  # fmt: skip
        assert main(["maps", str(store.folder), *words]) == 2
        told = capsys.readouterr().err
        assert answer in told and told.count("\n") == 1

"""`tario predict --cells`, `tario finer` and `tario shift`: on a run of virtual patients, and what they refuse."""

import json

import numpy as np
import pytest
from PIL import Image
from test_cli import refused
from test_cli_main_job import VIRTUAL, config_file

from tario_jax.cli import main as cli

REFUSALS = [
    (("--reading=bins",), ("--reading", "--cells only")),
    (("--grow-um=3",), ("--grow-um", "--cells only")),
    (("--outlines=o.geojson",), ("--outlines", "--cells only")),
    (("--cells-unit=um",), ("--cells-unit", "--cells only")),
    (("--cells", "--bin-um=18"), ("--bin-um=18", "--cells")),
    (("--cells", "--grow-um=-1"), ("--grow-um=-1", "0 to 30")),
    (("--cells=nuclei", "--cells-unit=um"), ("--cells-unit", "--cells=nuclei")),
    (("--cells=none.geojson",), ("none.geojson", "no such file", "'nuclei', 'corpus'")),
    (("--cells=corpus",), ("--image", "'nuclei' or polygons")),
]


@pytest.mark.parametrize(("words", "answer"), REFUSALS)
def test_cells_that_cannot_be_asked_for_are_refused(tmp_path, capsys, words, answer):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "he.png")
    status = cli.main(["predict", f"--workdir={tmp_path}", f"--image={tmp_path / 'he.png'}", "--um-per-px=0.5",
                       f"--out={tmp_path / 'cells.h5ad'}", *words])  # fmt: skip
    said = capsys.readouterr().err
    assert status == 2 and said.startswith("tario: ") and said.count("\n") == 1
    assert all(word in said for word in answer)


@pytest.mark.slow
def test_cells_finer_bins_and_shifts_of_a_run(cli_tario, tmp_path):
    anndata = pytest.importorskip("anndata")
    run = tmp_path / "run"
    done = cli_tario("run", f"--config={config_file(tmp_path, VIRTUAL)}", f"--workdir={run}")
    assert done.returncode == 0, done.stderr
    section = next((run / "maps").glob("*.h5ad")).stem
    words = ("predict", f"--workdir={run}", f"--section={section}")
    done = cli_tario(*words, "--cells", f"--out={tmp_path / 'a.h5ad'}", f"--outlines={tmp_path / 'o.geojson'}")
    assert done.returncode == 0, done.stderr
    assert "outlines" in done.stdout and "expected detections per cell" in done.stdout
    found = anndata.read_h5ad(tmp_path / "a.h5ad")
    done = cli_tario(*words, f"--cells={tmp_path / 'o.geojson'}", "--grow-um=3", f"--out={tmp_path / 'b.h5ad'}")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(anndata.read_h5ad(tmp_path / "b.h5ad").X, found.X, rtol=0.05)
    done = cli_tario(*words, "--cells=corpus", "--reading=bins", f"--table={tmp_path / 'c.tsv'}")
    assert done.returncode == 0, done.stderr
    for job in ("finer", "shift"):
        tables = []
        for number in range(2):
            path = tmp_path / f"{job}{number}.json"
            done = cli_tario(job, f"--workdir={run}", f"--out={tmp_path / job}", f"--json={path}")
            assert done.returncode == 0, done.stderr
            assert f"{job}: 2/2 sections" in done.stdout and "mean r over the 10 genes" in done.stdout
            tables.append(json.loads(path.read_text()))
        assert tables[0] == tables[1] and tables[0]["ranked_on"] == "training sections"
        assert (tmp_path / job / f"{job}.txt").read_text() == tables[0]["table"] + "\n"
        assert (tmp_path / job / f"{job}.png").stat().st_size > 10_000
    refused(cli_tario("finer", f"--workdir={run}", "--config.data.bin_um=9"), "finer", "source and evaluate")

"""docs/slides.ipynb: every cell runs as it stands, on a slide and a model that are made here."""

import json

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_slides import write_pyramid
from tiny_tissue import tiny_config

from tario_jax.corpus.read import Corpus
from tario_jax.train.loop import train


@pytest.fixture(scope="module")
def folder(cli_corpus, tmp_path_factory):
    """Where the notebook finds what it names: a model of real symbols, and a slide with glass around its tissue."""
    folder, corpus = tmp_path_factory.mktemp("notebook"), Corpus.open(cli_corpus)
    train(tiny_config(), corpus, folder / "runs" / "quickstart", lambda line: None)
    tissue = corpus.sections[0].he()
    picture = np.pad(np.tile(tissue, (2, 2, 1)), ((100, 100), (100, 100), (0, 0)), constant_values=244)
    write_pyramid(folder / "slide.ome.tif", picture, ome=True, px_per_cm=1e4 / corpus.sections[0].he_um_per_px)
    return folder


@pytest.mark.slow
def test_every_cell_runs(folder, repository, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    cells = json.loads((repository / "docs" / "slides.ipynb").read_text())["cells"]
    assert len(cells) == 10 and all(cell["outputs"] for cell in cells if "anndata" in "".join(cell["source"])[:20])
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    figures = len(plt.get_fignums())
    plt.close("all")
    told = capsys.readouterr().out
    assert figures == 2 and "mm² of tissue" in told and "knows no biology" in told and "strongest in" in told
    table = anndata.read_h5ad("slide.h5ad")
    assert table.shape == (len(names["maps"]), len(names["predictor"].panel))
    assert np.array_equal(table[:, "EPCAM"].X.ravel(), names["maps"].gene("EPCAM"))

"""A slide on eight devices: a batch's windows are dealt over them, and its maps are those of one device."""

import numpy as np
import pytest
from made_slides import write_pyramid
from tiny_tissue import tiny_section

from tario_jax.predict.slide_job import Asked, predict_slide

PROGRAM = """
import sys
from pathlib import Path

import jax
import numpy as np

from tario_jax import load
from tario_jax.predict.slide_job import Asked, predict_slide

run, slide, out = map(Path, sys.argv[1:])
predictor = load(run)
rows = []
call = predictor.call
predictor.call = lambda function, *arguments: rows.append(len(arguments[0].tile_BxT.sharding.device_set)) or call(
    function, *arguments)
store = predict_slide(predictor, slide, out, Asked(everywhere=True, tissue="virtual", spread=True), say=str)
print(len(jax.devices()), max(rows), len(store))
"""


@pytest.mark.slow
def test_it_is_that_of_one_device(devices8, predictor, tiny_run, tmp_path):
    picture = tiny_section("slide", "P", 5, width_um=300.0, height_um=200.0).he
    slide = write_pyramid(tmp_path / "slide.ome.tif", picture, ome=True, px_per_cm=20_000)
    asked = Asked(everywhere=True, tissue="virtual", spread=True)
    alone = predict_slide(predictor, slide, tmp_path / "alone.maps", asked, say=str)
    told = devices8(PROGRAM, str(tiny_run), str(slide), str(tmp_path / "eight.maps"))
    assert told.split()[-3:] == ["8", "8", str(len(alone))]
    eight = type(alone)(tmp_path / "eight.maps")
    genes = np.arange(len(alone.panel))
    np.testing.assert_allclose(eight.genes(genes), alone.genes(genes), rtol=2e-3)
    np.testing.assert_allclose(eight.genes(genes, "spread"), alone.genes(genes, "spread"), rtol=2e-2, atol=1e-3)

"""A checkpoint predicts on whatever devices are there, and with the kernels that they have."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_tissue import tiny_section

from tario_jax.predict.predictor import Predictor, _prediction_mesh

ON_SIX = """
import sys
from pathlib import Path

import jax
import numpy as np

six = jax.devices()[:6]
jax.devices = lambda *_: six

from tario_jax import load

predictor = load(Path(sys.argv[1]))
maps = predictor.predict(np.load(sys.argv[2]), 0.5, tissue="virtual")
print(dict(predictor.mesh.shape))
np.save(sys.argv[3], maps.rates_NxG)
"""


@pytest.fixture(scope="module")
def picture():
    return tiny_section("image", "P", 5).he


@pytest.mark.parametrize(("devices", "replica", "fsdp"), [(1, 1, 1), (3, 3, 1), (4, 1, 4), (5, 5, 1), (6, 3, 2)])
def test_as_many_devices_over_fsdp_as_divide_the_parameters(predictor, devices, replica, fsdp):
    mesh = _prediction_mesh(predictor.built, jax.devices()[:1] * devices)
    assert dict(mesh.shape) == {"replica": replica, "fsdp": fsdp, "context": 1, "tensor": 1}


@pytest.mark.slow
def test_six_devices_predict_as_one(devices8, predictor, tiny_run, picture, tmp_path):
    np.save(tmp_path / "picture.npy", picture)
    told = devices8(ON_SIX, str(tiny_run), *(str(tmp_path / name) for name in ("picture.npy", "rates.npy")))
    assert told.split("\n")[-2] == "{'replica': 3, 'fsdp': 2, 'context': 1, 'tensor': 1}"
    alone = predictor.predict(picture, 0.5, tissue="virtual").rates_NxG
    np.testing.assert_allclose(np.load(tmp_path / "rates.npy"), alone, rtol=1e-4)


def test_a_model_trained_with_a_kernel_predicts_where_there_is_none(predictor, picture):
    stored = predictor.provenance
    config = dataclasses.replace(stored.config, model=dataclasses.replace(stored.config.model, attention="pallas"))
    other = Predictor(dataclasses.replace(stored, config=config), predictor.parameters, predictor.calibration)
    assert other.provenance.config.model.attention == "pallas"  # as it was trained
    found, expected = (each.predict(picture, 0.5, tissue="virtual").rates_NxG for each in (other, predictor))
    np.testing.assert_array_equal(found, expected)

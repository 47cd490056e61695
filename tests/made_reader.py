"""Models without training: random numbers, large enough that contents matter; or one that says the same everywhere."""

import dataclasses

import jax
import numpy as np
from tiny_tissue import PANEL

from tario_jax.config import DataConfig, MeshConfig
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.predict.predictor import Predictor, load

GROUPS = ((1, 1.0), (4, 1.0), (0, 1.0))


def made_reader(tiny_run, *, groups=GROUPS, model=None, **data) -> Predictor:
    """With the provenance of `tiny_run`, but for these fields of its config."""
    like = load(tiny_run)
    config = like.provenance.config
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, groups=groups, **data),
        model=dataclasses.replace(config.model, **(model or {})),
    )  # fmt: skip
    built = build(config.model, len(PANEL), config.data.patch_px, content=not config.data.one_shot)
    mesh = make_mesh(MeshConfig())
    parameters, calibration = jax.tree.map(np.array, built.initialise(3, mesh))
    parameters["total_weight"] *= 3.0  # totals that differ from bin to bin
    parameters["total_bias"] = np.log(np.float32(0.05))
    parameters["gene_bias"][: len(PANEL)] = np.log(np.arange(1, len(PANEL) + 1) / 78.0)
    parameters["gene_bias"][len(PANEL) :] = -30.0
    return Predictor(dataclasses.replace(like.provenance, config=config), parameters, calibration)


def data_of(predictor: Predictor, **fields) -> DataConfig:
    return dataclasses.replace(predictor.provenance.config.data, **fields)


def says_everywhere(like: Predictor, per_um2: float, share_G: np.ndarray) -> Predictor:
    """A model that says the same of every place: so many detections per µm², in these shares, up to a factor."""
    parameters, calibration = jax.device_get((like.parameters, like.calibration))
    parameters = jax.tree.map(np.zeros_like, parameters)
    parameters["gene_bias"][: len(PANEL)] = np.log(share_G)
    parameters["gene_bias"][len(PANEL) :] = -30.0
    parameters["total_bias"] = np.log(np.float32(per_um2))
    return Predictor(like.provenance, parameters, calibration)

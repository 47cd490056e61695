"""Stored features in the H&E's tokens: their axes, and that a model without them is what it was."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.nnx import traversals
from tiny_tissue import PANEL, tiny_config

from tario_jax.model.build import build
from tario_jax.model.frozen_features import CLIP_SD, SHRINKAGE, leading_axes
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.batch import empty_batch
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.calibrate import calibrate

FEATURES, AXES = 6, 4


def test_leading_axes_are_those_of_most_variance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, FEATURES)) @ rng.normal(size=(FEATURES, FEATURES))
    x = (x - x.mean(0)) / x.std(0)
    axes_FxK = leading_axes(x.T @ x / len(x), AXES)
    scores = x @ axes_FxK
    _, singular, turned = np.linalg.svd(x / np.sqrt(len(x)), full_matrices=False)
    variance = singular[:AXES] ** 2
    np.testing.assert_allclose(scores.var(0), variance / (variance + SHRINKAGE), rtol=1e-4)
    expected = x @ turned[:AXES].T / np.sqrt(variance + SHRINKAGE)
    np.testing.assert_allclose(np.abs(scores), np.abs(expected), atol=1e-3)


@pytest.fixture(scope="module")
def config():
    config = tiny_config(data={"frozen_encoder": "made"})
    return dataclasses.replace(config, model=dataclasses.replace(config.model, frozen_axes=AXES))


def made(config, frozen: int):
    built = build(config.model, len(PANEL), config.data.patch_px, content=False, frozen=frozen)
    parameters, calibration = jax.device_get(built.initialise(3, make_mesh(config.mesh)))
    return built, parameters, calibration


def test_a_model_without_them_declares_nothing_more(config):
    plain, with_them = (dict(traversals.flatten_mapping(made(config, frozen)[1])) for frozen in (0, FEATURES))
    added = set(with_them) - set(plain)
    assert added == {("he_encoder", "frozen", "into")} and set(plain) < set(with_them)


def test_calibration_standardises_them_and_tokens_change_with_them(config, tiny_corpus):
    from tario_jax.tokens.capacity import corpus_layout

    data = dataclasses.replace(config.data, frozen_encoder="")  # they are drawn here
    layout = corpus_layout(tiny_corpus.sections, data, len(PANEL))
    batch = BatchSource(tiny_corpus.sections, data, layout, steps=1)[0]
    shape = (*batch.patch_xy_um_BxTxPx2.shape[:3], FEATURES)
    rng = np.random.default_rng(1)
    batch = batch._replace(features_BxTxPxF=(5 + 3 * rng.normal(size=shape)).astype(np.float16))
    built, parameters, calibration = made(config, FEATURES)
    _, calibration = calibrate(built, parameters, calibration, [batch], list(tiny_corpus.sections), len(PANEL))
    of_them = calibration["he_encoder"]["frozen"]
    np.testing.assert_allclose(of_them["mean"], batch.features_BxTxPxF.astype(float).mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(of_them["scale"], batch.features_BxTxPxF.astype(float).std((0, 1, 2)), rtol=1e-3)
    # as of all rows at once
    all_rows = batch.features_BxTxPxF[batch.segment_BxT >= 0].reshape(-1, FEATURES).astype(np.float64)
    standard = np.clip((all_rows - of_them["mean"]) / of_them["scale"], -CLIP_SD, CLIP_SD)
    at_once = leading_axes(standard.T @ standard / len(all_rows), AXES)
    np.testing.assert_allclose(of_them["axes_FxK"], at_once, rtol=1e-5, atol=1e-6)

    def tokens(batch):
        return np.asarray(built.merge(parameters, calibration).he_encoder(batch, jnp.float32))

    features = batch.features_BxTxPxF.copy()
    features[0, 0, 0] += 1
    change = np.abs(tokens(batch._replace(features_BxTxPxF=features)) - tokens(batch)).max(-1)
    assert change[0, 0, 0] > 1e-3  # that patch alone
    change[0, 0, 0] = 0
    assert change.max() == 0
    far = batch.features_BxTxPxF.copy()
    far[0, 0, 1] = np.float16(np.inf)  # half precision overflowed
    assert np.isfinite(tokens(batch._replace(features_BxTxPxF=far))).all()


def test_padding_has_features_of_0(config, tiny_corpus):
    from tario_jax.tokens.capacity import corpus_layout

    data = dataclasses.replace(config.data, frozen_encoder="")
    layout = dataclasses.replace(corpus_layout(tiny_corpus.sections, data, len(PANEL)), frozen_features=FEATURES)
    assert (empty_batch(2, layout).features_BxTxPxF == 0).all()

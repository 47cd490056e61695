"""A model that saw bins of one side says of another side what it says of that one, and no more."""

import dataclasses

import jax
import numpy as np
import pytest
from made_reader import data_of, made_reader
from tiny_tissue import PANEL

from tario_jax.model.build import build_of
from tario_jax.tokens.batch import tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window

SIDE_UM = 18.0


@pytest.fixture(scope="module")
def models(tiny_run):
    """As it is trained, and as it is read; what it says of sides is large."""
    reader = made_reader(tiny_run, bin_um=SIDE_UM)
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(np.array, reader.parameters)
    for name in ("query_size", "content_total"):
        parameters["bin_encoder"][name][1] = rng.normal(size=parameters["bin_encoder"][name][1].shape)
    config = reader.provenance.config
    return reader, [build_of(config, len(PANEL), only_um=only_um).merge(parameters, reader.calibration)
                    for only_um in (None, SIDE_UM)]  # fmt: skip


def test_rates_at_another_side_differ_by_the_area_alone(models, tiny_corpus):
    reader, (trained, read) = models
    section, data = tiny_corpus.section("F1"), data_of(reader, rows=1)
    windows = [[read_window(section, 0.0, 0.0, data)]]
    batch = tokenise(windows, data, corpus_layout([section], data, len(PANEL)), np.ones((1, 1), int),
                     [[np.random.default_rng(0)]])  # fmt: skip
    assert set(np.unique(batch.bin_size_um_BxTxN)) <= {0.0, SIDE_UM}
    finer = batch._replace(bin_size_um_BxTxN=batch.bin_size_um_BxTxN / 2)
    asked = batch.bin_measured_BxTxN.reshape(1, -1) > 0
    of = {(model is read, at is finer): np.asarray(jax.jit(type(model).rates)(model, at))[asked]
          for model in (trained, read) for at in (batch, finer)}  # fmt: skip
    np.testing.assert_allclose(of[True, False], of[False, False], rtol=1e-5)
    np.testing.assert_allclose(of[True, True], of[True, False] / 4, rtol=1e-5)
    assert np.abs(4 * of[False, True] / np.maximum(of[False, False], 1e-9) - 1)[of[False, False] > 0].max() > 0.05


def test_contents_of_as_many_detections_a_um2_are_one(models):
    _, (trained, read) = models
    held, measured = np.zeros((1, 1, 1, trained.config.gene_dim), np.float32), np.ones((1, 1, 1), np.float32)

    def content(model, size_um):
        total = np.full((1, 1, 1), 0.2 * size_um**2 - 0.5, np.float32)
        return np.asarray(model.bin_encoder._content(held, total, np.full((1, 1, 1), size_um, np.float32), measured))

    np.testing.assert_allclose(content(read, 9.0), content(read, SIDE_UM), rtol=1e-4)
    np.testing.assert_allclose(content(read, SIDE_UM), content(trained, SIDE_UM), rtol=1e-5)
    assert np.abs(content(trained, 9.0) - content(trained, SIDE_UM)).max() > 0.1


def test_only_runs_that_saw_one_side_all_along_are_read_so(tiny_run):
    provenance = made_reader(tiny_run).provenance
    of = {sides: dataclasses.replace(provenance, sides_um=sides) for sides in ((18.0,), (18.0, 36.0), ())}
    assert [one.only_um for one in of.values()] == [18.0, None, None]
    after = {sides: of[(18.0,)].started(one.as_start("runs/a", 3)) for sides, one in of.items()}
    assert [one.only_um for one in after.values()] == [18.0, None, None]

"""What is given in place of training's rule: without a difference, nothing changes; genes are masked, not counted 0."""

import numpy as np
import pytest
from made_reader import data_of, made_reader
from tiny_tissue import PANEL

from tario_jax.model.model import Given, Tario
from tario_jax.tokens.batch import tokenise
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.window import read_window


@pytest.fixture(scope="module")
def reader(tiny_run):
    return made_reader(tiny_run, model={"pattern": ("local", "global")})


@pytest.fixture(scope="module")
def batch(reader, tiny_corpus):
    """Two windows of tissue, written in four groups."""
    section, data = tiny_corpus.section("F1"), data_of(reader, rows=2)
    windows = [[read_window(section, *corner, data)] for corner in ((0.0, 0.0), (90.0, 54.0))]
    rngs = [[np.random.default_rng(row)] for row in range(2)]
    layout = corpus_layout([section], data, len(PANEL))
    return tokenise(windows, data, layout, np.full((2, 1), 4), rngs)


def rates(reader, batch, given=None) -> np.ndarray:
    found = np.asarray(reader.call(Tario.rates, batch, given))
    return found[batch.bin_measured_BxTxN.reshape(2, -1) > 0][:, : len(PANEL)]


def as_trained(batch, **fields) -> Given:
    return Given(batch.bin_step_BxTxN - 1, batch.measured_gene_BxWxG, np.ones(2, bool))._replace(**fields)


def test_what_training_gives_changes_nothing(reader, batch):
    np.testing.assert_allclose(rates(reader, batch, as_trained(batch)), rates(reader, batch), rtol=1e-5)


def test_queries_see_what_they_may(reader, batch):
    """Of step 0 only the H&E; a later step tells them more."""
    alone = rates(reader, batch._replace(bin_step_BxTxN=np.ones_like(batch.bin_step_BxTxN)))
    none = rates(reader, batch, as_trained(batch, read_step_BxTxN=np.zeros_like(batch.bin_step_BxTxN)))
    np.testing.assert_allclose(none, alone, rtol=1e-4)
    everything = rates(reader, batch, as_trained(batch, read_step_BxTxN=np.full_like(batch.bin_step_BxTxN, 4)))
    assert np.abs(everything / alone - 1).max() > 2e-3


def test_genes_that_are_not_told_are_unknown_and_not_absent(reader, batch):
    told_G = np.arange(batch.measured_gene_BxWxG.shape[2]) % 2 == 0
    only = as_trained(batch, content_gene_BxWxG=batch.measured_gene_BxWxG & told_G)
    of_told = batch._replace(count_BxC=np.where(told_G[batch.count_gene_BxC], batch.count_BxC, 0))
    of_told_rates = rates(reader, of_told, only)
    assert np.abs(of_told_rates / rates(reader, of_told) - 1).max() > 2e-3  # the others would be counts of 0
    assert np.abs(of_told_rates / rates(reader, batch) - 1).max() > 2e-3


def test_a_row_without_he_is_blind_and_the_other_is_not(reader, batch):
    other = batch._replace(he_BxTxPxYxXx3=255 - batch.he_BxTxPxYxXx3)
    blind = as_trained(batch, he_seen_B=np.array([False, True]))
    found, turned = rates(reader, batch, blind), rates(reader, other, blind)
    first = np.arange(len(found)) < (batch.bin_measured_BxTxN[0] > 0).sum()
    np.testing.assert_array_equal(found[first], turned[first])
    assert np.abs(found / turned - 1)[~first].max() > 2e-3
    np.testing.assert_allclose(found[~first], rates(reader, batch)[~first], rtol=1e-5)

"""Bins that wait on disk: the means of a blend to the bit, and a memory that is that of a strip of the section."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import tiny_section, write_corpus

from tario_jax.evaluate.patients import embed, vectors
from tario_jax.evaluate.patients.embed import embed_corpus
from tario_jax.evaluate.patients.looks import no_look
from tario_jax.evaluate.patients.stored_bins import StoredBins
from tario_jax.evaluate.patients.vectors import PREDICTED
from tario_jax.panel import Panel
from tario_jax.predict.cover import Blend

WIDE = Panel(tuple(f"GENE{number}" for number in range(3000)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One section is twice as tall as the other."""
    sections = [tiny_section(name, name, seed, width_um=126.0, height_um=height_um)
                for seed, (name, height_um) in enumerate((("A", 288.0), ("B", 576.0)))]  # fmt: skip
    return write_corpus(tmp_path_factory.mktemp("tall") / "corpus", sections)


class Wide:
    """A model of many genes: it says a hash of where a bin lies, and of the gene."""

    def __init__(self, predictor):
        self._of, self.panel = predictor, WIDE

    def __getattr__(self, name):
        return getattr(self._of, name)

    def call_on(self, function, batch):
        xy_BxQx2 = batch.bin_xy_um_BxTxNx2.reshape(len(batch.bin_xy_um_BxTxNx2), -1, 2)
        spread_BxQ = 1.0 + np.abs(np.sin(xy_BxQx2 @ [0.3, 1.7])).astype(np.float32)
        gene_G = 0.01 * (1 + np.arange(len(WIDE), dtype=np.float32) % 7)
        state_r = np.ones(self._of.provenance.config.model.gene_dim, np.float32)
        return spread_BxQ[..., None] ** gene_G - 1, spread_BxQ[..., None] * state_r


def test_memory_does_not_grow_with_the_section(predictor, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_BINS", 16)
    monkeypatch.setattr(embed, "look_of", lambda section: no_look())  # of the H&E, which is small here
    peak, bins = {}, {}
    for name in ("A", "B", "A", "B"):  # what is loaded once counts in neither
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.embeddings"
        tracemalloc.start()
        store = embed_corpus(Wide(predictor), corpus, out, overlap=0.5, sections=(name,), say=str)
        peak[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (row,) = store.rows(PREDICTED)
        bins[name] = row.bins
    assert bins == {"A": 7 * 16, "B": 7 * 32}
    one_array = 4 * len(WIDE) * (bins["B"] - bins["A"])
    assert peak["B"] - peak["A"] < one_array / 4, (peak, one_array)


def test_a_model_that_diverged_is_not_told_as_glass(predictor, corpus, tmp_path):
    wide = Wide(predictor)
    wide.call_on = lambda function, batch: tuple(np.nan * of for of in Wide.call_on(wide, function, batch))
    out = tmp_path / "x.embeddings"
    refused(lambda: embed_corpus(wide, corpus, out, overlap=0.5, say=str), "A: the model's rates are not numbers")


def test_means_are_those_of_a_blend_to_the_bit(predictor, corpus, tmp_path):
    cover = predictor.cover(corpus.section("A"), tissue="virtual", bin_um=None, overlap=0.5, turned=True)
    blend, states, rng = Blend(len(cover), 12), Blend(len(cover), 5), np.random.default_rng(0)
    with StoredBins(cover, 12, 5, tmp_path) as stored:
        for windows, batch in cover.batches(predictor.rows):
            for row, window in enumerate(windows):
                placed = cover.placed(batch, row, window)
                values = rng.gamma(1.0, 1.0, (batch.bin_size_um_BxTxN[0].size, 1024)).astype(np.float32)
                state = rng.normal(0.0, 1.0, (len(values), 5)).astype(np.float32)
                blend.add(placed, values)
                states.add(placed, state)
                stored.add(window, placed, values, state)
        some = rng.permutation(len(cover))[:30]
        for found, whole in zip(stored.rows(some), (blend, states), strict=True):
            np.testing.assert_array_equal(found, whole.mean()[some])
        np.testing.assert_array_equal(stored.total_N, blend.mean().sum(1, dtype=np.float64))
        assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_by_its_folder(predictor, corpus, tmp_path):
    """By the real error of a disk that is full."""
    cover = predictor.cover(corpus.section("A"), tissue="virtual", bin_um=None, overlap=0.0)
    with StoredBins(cover, 12, 5, tmp_path) as stored, Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), stored._file.fileno())
        _, batch = next(cover.batches(predictor.rows))
        with pytest.raises(OSError, match="No space") as caught:
            values = np.ones((batch.bin_size_um_BxTxN[0].size, 12), np.float32)
            stored.add(0, cover.placed(batch, 0, 0), values, values[:, :5])
    assert caught.value.filename == str(tmp_path)

"""Stored features in a batch: at the middle of each patch, and with their tissue wherever a window is turned."""

import dataclasses

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_config, tiny_section, write_corpus

from tario_jax.corpus.feature_grid import grid_size, held_grid, write_grid
from tario_jax.corpus.read import Corpus
from tario_jax.tokens.batch import batch_bytes, empty_batch
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.tokens.window import read_window

PLAIN = tiny_config().data
DATA = dataclasses.replace(PLAIN, frozen_encoder="made")
PITCH = 15.0


def store_places(section, encoder: str = "made") -> None:
    """Features that say where they are: x and y in µm, and their product, of the section."""
    rows, columns = grid_size(section.width_um, section.height_um, PITCH)
    y, x = np.meshgrid((np.arange(rows) + 0.5) * PITCH, (np.arange(columns) + 0.5) * PITCH, indexing="ij")
    vectors = np.stack([x, y, x + 2 * y], -1).astype(np.float16)
    grid = held_grid({"name": encoder, "pitch_um": PITCH}, "abc", vectors)
    write_grid(section.place, encoder, section.seal_sha256, grid, vectors)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    spots = spot_section("B1", "B", 1, x_um=[60.0, 90.0, 100.0], y_um=[50.0, 60.0, 80.0])
    corpus = write_corpus(tmp_path_factory.mktemp("stored") / "corpus", [tiny_section("A1", "A", 0), spots])
    for section in corpus.sections:
        store_places(section)
    return corpus


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter_turns", range(4))
def test_a_patch_holds_the_features_of_its_tissue(corpus, quarter_turns, flip):
    for section in corpus.sections:
        corner = 40.0, 30.0
        window = read_window(section, *corner, DATA, quarter_turns=quarter_turns, flip=flip)
        seen = window.features_YxXxF.astype(float)
        # places of the patches of the window as it lies in the section, turned as its pixels are
        side = len(seen)
        along = (np.arange(side) + 0.5) * DATA.patch_um
        y, x = np.meshgrid(corner[1] + along, corner[0] + along, indexing="ij")
        places = np.stack([x, y, x + 2 * y], -1)
        if flip:
            places = places[:, ::-1]
        np.testing.assert_allclose(seen, np.rot90(places, quarter_turns), atol=0.3)


def test_tokens_hold_them_tile_by_tile(corpus):
    source = BatchSource(
        corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=3, augment=False
    )
    for t in range(3):
        batch, draws = source[t], source.draws(t)
        for row, (draw,) in enumerate(draws):
            places = batch.patch_xy_um_BxTxPx2[row].astype(float) + [draw.x_um, draw.y_um]
            low, high = PITCH / 2, np.array([180.0, 150.0]) - PITCH / 2
            inside = ((places > low) & (places < high)).all(-1)  # beyond the outermost places they are theirs
            found = batch.features_BxTxPxF[row].astype(float)
            np.testing.assert_allclose(found[inside][:, :2], places[inside], atol=0.3)
            assert inside.any()


def test_stain_jitter_does_not_reach_them(corpus):
    layout = corpus_layout(corpus.sections, DATA, len(PANEL))
    strong, none = (BatchSource(corpus.sections, dataclasses.replace(DATA, stain_jitter=jitter), layout, steps=1)[0]
                    for jitter in (0.5, 0.1))  # fmt: skip
    assert (strong.stain_mix_BxTx3x3 != none.stain_mix_BxTx3x3).any()
    np.testing.assert_array_equal(strong.features_BxTxPxF, none.features_BxTxPxF)


def test_without_an_encoder_nothing_is_added(corpus):
    layout = corpus_layout(corpus.sections, PLAIN, len(PANEL))
    batch = BatchSource(corpus.sections, PLAIN, layout, steps=1)[0]
    assert batch.features_BxTxPxF.shape[-1] == 0 and batch.features_BxTxPxF.nbytes == 0
    with_them = BatchSource(corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=1)[0]
    for name in set(batch._fields) - {"features_BxTxPxF"}:
        np.testing.assert_array_equal(getattr(batch, name), getattr(with_them, name))
    assert batch_bytes(4, layout) == sum(-(-array.nbytes // 64) * 64 for array in empty_batch(4, layout))


def test_a_section_without_them_is_named_with_its_command(corpus):
    data = dataclasses.replace(DATA, frozen_encoder="other")
    refused(lambda: corpus_layout(corpus.sections, data, len(PANEL)), "'other'", "tario encode --corpus=")

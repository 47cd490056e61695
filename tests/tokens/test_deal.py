"""Tiles dealt to ranks: the same row in another order."""

import numpy as np
import pytest
from tiny_tissue import tiny_config

from tario_jax.config import InputError
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.deal import deal
from tario_jax.tokens.pipeline import BatchSource


@pytest.fixture(scope="module")
def batch(tiny_corpus):
    data = tiny_config(data={"rows": 3, "tile_um": 36.0, "window_um": 72.0, "windows_per_row": 2,
                             "groups": ((1, 1.0), (4, 1.0))}).data  # fmt: skip
    layout = corpus_layout(tiny_corpus.sections, data, 12)
    return BatchSource(tiny_corpus.sections, data, layout, steps=1)[0]


def test_each_rank_holds_every_other_tile(batch):
    dealt = deal(batch, 4)
    tiles = batch.segment_BxT.shape[1]
    np.testing.assert_array_equal(dealt.tile_BxT[0].reshape(4, -1), np.arange(tiles).reshape(-1, 4).T)
    np.testing.assert_array_equal(dealt.window_BxT, np.take(batch.window_BxT, dealt.tile_BxT[0], axis=1))


def test_what_belongs_to_a_bin_stays_with_it(batch):
    dealt = deal(batch, 4)
    bins, genes = batch.bin_step_BxTxN.shape[1:], batch.measured_gene_BxWxG.shape[2]

    def dense(some):
        counts = np.zeros((len(some.count_BxC), bins[0] * bins[1], genes), int)
        row, entry = np.nonzero(some.count_bin_BxC >= 0)
        np.add.at(
            counts, (row, some.count_bin_BxC[row, entry], some.count_gene_BxC[row, entry]), some.count_BxC[row, entry]
        )
        return counts.reshape(len(counts), *bins, genes)

    def centres_under(some):
        flat = some.patch_xy_um_BxTxPx2.reshape(len(some.tile_BxT), -1, 2)
        return np.stack([flat[row][some.pool_patch_BxTxNxM[row]] for row in range(len(flat))])

    def centres_near(some):
        flat = some.bin_xy_um_BxTxNx2.reshape(len(some.tile_BxT), -1, 2)
        return np.stack([flat[row][some.near_bin_BxTxNxV[row]] for row in range(len(flat))])

    assert dense(batch).sum() > 100
    order = dealt.tile_BxT[0]
    np.testing.assert_array_equal(dense(dealt), dense(batch)[:, order])
    np.testing.assert_array_equal(centres_under(dealt), centres_under(batch)[:, order])
    there = (batch.near_weight_BxTxNxV > 0)[..., None]
    assert there.any((2, 3)).all()
    np.testing.assert_array_equal(centres_near(dealt) * there[:, order], (centres_near(batch) * there)[:, order])
    slots = np.where(dealt.count_bin_BxC < 0, bins[0] * bins[1], dealt.count_bin_BxC)
    assert (np.diff(slots, axis=1) >= 0).all()  # ascending, padding at the end


def test_one_rank_changes_nothing_and_unequal_shares_are_refused(batch):
    assert deal(batch, 1) is batch
    with pytest.raises(
        InputError, match=r"mesh.context=3: a row holds 8 tiles; expected a multiple: change data.tile_um"
    ):
        deal(batch, 3)

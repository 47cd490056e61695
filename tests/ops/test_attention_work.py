"""Lists of work against the rule written out, pair of tokens by pair of tokens."""

import jax
import numpy as np
import pytest

from tario_jax.ops.attention.work import block_pairs
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible

B, SQ, SK = 3, 70, 52


def random_visibility(seed):
    """Segments in runs, some of them padding, and steps that rise with some disorder."""
    rng = np.random.default_rng(seed)

    def fields(length):
        segment = np.sort(rng.integers(-1, 4, (B, length)), axis=1)
        step = np.arange(length) // rng.integers(1, 20) + rng.integers(0, rng.integers(1, 9), (B, length))
        return np.roll(segment, rng.integers(length), axis=1).astype(np.int32), step.astype(np.int32)

    return QueryVisibility(*fields(SQ)), KeyVisibility(*fields(SK))


def whole_blocks(mask_BxSqxSk, block_q, block_k):
    """[B, Q, J, block_q, block_k]; outside the lengths nothing is visible."""
    padding = [(0, 0), (0, -SQ % block_q), (0, -SK % block_k)]
    mask = np.pad(mask_BxSqxSk, padding)
    mask = mask.reshape(B, mask.shape[1] // block_q, block_q, mask.shape[2] // block_k, block_k)
    return mask.swapaxes(2, 3)


@pytest.mark.parametrize(("block_q", "block_k"), [(8, 8), (16, 4), (5, 13), (128, 16)])
def test_no_visible_pair_is_left_out_and_full_pairs_are_full(block_q, block_k):
    fulls = emptys = 0
    for seed in range(20):
        q, kv = random_visibility(seed)
        mask = whole_blocks(np.asarray(visible(q, kv)), block_q, block_k)
        pairs = jax.tree.map(np.asarray, block_pairs(q, kv, block_q, block_k))
        assert pairs.possible_BxQxJ.shape == mask.shape[:3]
        assert not mask[~pairs.possible_BxQxJ].any()
        assert mask[pairs.full_BxQxJ].all() and pairs.possible_BxQxJ[pairs.full_BxQxJ].all()
        fulls, emptys = fulls + pairs.full_BxQxJ.sum(), emptys + (~pairs.possible_BxQxJ).sum()
    assert emptys > 0 and (fulls > 0) == (block_q < 128)


def test_a_full_pair_of_blocks_is_told_so():
    ones, steps = np.ones((1, 32), np.int32), np.arange(32, dtype=np.int32)[None]
    pairs = block_pairs(QueryVisibility(ones, steps), KeyVisibility(ones, steps), 8, 8)
    np.testing.assert_array_equal(pairs.possible_BxQxJ[0], np.tri(4, dtype=bool))
    np.testing.assert_array_equal(pairs.full_BxQxJ[0], np.tri(4, k=-1, dtype=bool))


def test_other_tiles_and_padding_are_skipped():
    tile, same = np.repeat([[0, 1, 2, -1]], 8, axis=1).astype(np.int32), np.zeros((1, 32), np.int32)
    pairs = block_pairs(QueryVisibility(tile, same), KeyVisibility(tile, same), 8, 8)
    for found in pairs:
        np.testing.assert_array_equal(found[0], np.diag([True, True, True, False]))


def test_lists_hold_full_pairs_first_and_leave_out_the_empty():
    q, kv = random_visibility(3)
    pairs = block_pairs(q, kv, 8, 8)
    possible, full = (np.asarray(x) for x in pairs)
    for work, axis in ((pairs.by_queries(), 2), (pairs.by_keys(), 1)):
        other, fulls, listed = (np.asarray(x) for x in work)
        assert other.dtype == np.int32
        for b in range(B):
            for x in range(other.shape[1]):
                of = np.take(possible[b], x, axis=2 - axis), np.take(full[b], x, axis=2 - axis)
                assert set(other[b, x, : fulls[b, x]]) == set(np.flatnonzero(of[1]))
                assert set(other[b, x, : listed[b, x]]) == set(np.flatnonzero(of[0]))

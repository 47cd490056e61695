"""The visibility rule, and the blocks that it lets attention skip."""

import numpy as np

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible, visible_block_pairs


def blocked(field_BxS, block):
    return field_BxS.reshape(len(field_BxS), -1, block)


def test_rule_for_h_and_e_content_and_queries():
    # One window: two H&E tokens, contents of groups 1 and 2, queries of groups 1 and 2; then a padding token.
    q = QueryVisibility(np.array([[0, 0, 0, 0, 0, 0, -1]]), np.array([[0, 0, 1, 2, 0, 1, 9]]))
    kv = KeyVisibility(np.array([[0, 0, 0, 0, -1]]), np.array([[0, 0, 1, 2, 0]]))
    expected = [
        [1, 1, 0, 0, 0],  # H&E sees H&E, both ways
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # content of group 1 sees itself
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0],  # the query of group 1 sees no content: not its own bin's
        [1, 1, 1, 0, 0],  # the query of group 2 sees group 1, not its own
        [0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(visible(q, kv)[0], np.array(expected, bool))


def test_block_pairs_never_miss_a_visible_pair():
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = QueryVisibility(np.sort(rng.integers(-1, 4, (3, 48))), rng.integers(0, 20, (3, 48)))
        kv = KeyVisibility(np.sort(rng.integers(-1, 4, (3, 32))), rng.integers(0, 40, (3, 32)))
        pairs = visible_block_pairs(*(type(v)(*(blocked(f, 8) for f in v)) for v in (q, kv)))
        holds = np.asarray(visible(q, kv)).reshape(3, 6, 8, 4, 8).any((2, 4))
        assert not (holds & ~np.asarray(pairs)).any()


def test_block_pairs_skip_the_future_other_tiles_and_padding():
    step = np.arange(32)[None]
    tile = np.repeat([[0, 1, 2, -1]], 8, axis=1)
    same = np.zeros((1, 32), int)

    def pairs(segment, read_step, write_step):
        q = QueryVisibility(blocked(segment, 8), blocked(read_step, 8))
        return np.asarray(visible_block_pairs(q, KeyVisibility(q.segment_BxS, blocked(write_step, 8))))[0]

    np.testing.assert_array_equal(pairs(same, step, step), np.tril(np.ones((4, 4), bool)))
    np.testing.assert_array_equal(pairs(tile, same, same), np.diag([True, True, True, False]))

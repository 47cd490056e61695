"""The visibility rule."""

import numpy as np

from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible


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

"""Entries of counts, found chunk by chunk."""

import jax.numpy as jnp
import numpy as np
import pytest
from count_case import case

from tario_jax.ops.sparse_counts import ALL_GENES, Entries, SparseCounts


@pytest.mark.parametrize("chunk", (1, 8, 22))
def test_a_chunk_of_bins_visits_its_own_entries_and_holds_their_counts(chunk):
    inputs, dense = case()
    counts = SparseCounts(*(np.asarray(field, np.int32) for field in inputs["counts"]))
    padding = np.iinfo(np.int32).max
    counts = counts._replace(bin_BxC=np.where(counts.bin_BxC < 0, padding, counts.bin_BxC))
    rows, bins, genes = dense.shape
    entries = Entries.of(counts, bins, chunk)
    visited = 0
    for step, new in enumerate(range(0, bins, chunk)):
        first = min(new, bins - chunk)
        found = entries.added_to(jnp.zeros((rows, chunk, genes)), step, first, ALL_GENES)
        np.testing.assert_array_equal(found[:, new - first :], dense[:, new : first + chunk])
        assert not found[:, : new - first].any()  # those were the chunk's before
        visited += int(entries.pieces_T[step]) * entries.piece
    longest, pieces = (counts.bin_BxC < bins).sum(1).max(), -(-bins // chunk)
    assert visited <= 2 * longest + pieces * 512  # 512: the least that is looked up together

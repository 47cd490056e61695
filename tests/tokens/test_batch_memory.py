"""Memory of batches comes back when nobody refers to it any more, and never before."""

import dataclasses
import gc
import pickle
import weakref

import numpy as np
from tiny_tissue import PANEL, tiny_config

from tario_jax.tokens.batch import empty_batch
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.memory import BatchMemory
from tario_jax.tokens.pipeline import BatchSource

DATA = tiny_config().data


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_lent_again_only_when_the_last_view_is_gone(tiny_corpus):
    layout = corpus_layout(tiny_corpus.sections, DATA, len(PANEL))
    memory = BatchMemory(4, layout)
    first, second = memory.batch(), memory.batch()
    for array, shaped in zip(first, empty_batch(4, layout), strict=True):
        assert (array.shape, array.dtype, array.flags.writeable) == (shaped.shape, shaped.dtype, True)
    at = address(first.he_BxTxPxYxXx3)
    assert at != address(second.he_BxTxPxYxXx3)
    row = first.count_BxC[1]
    del first
    assert address(memory.batch().he_BxTxPxYxXx3) != at  # a row of it is still in use
    del row, array
    gc.collect()
    lent = [memory.batch() for _ in range(2)]
    assert at in {address(batch.he_BxTxPxYxXx3) for batch in lent}


def test_batches_that_are_kept_are_not_written_over(tiny_corpus):
    layout = corpus_layout(tiny_corpus.sections, DATA, len(PANEL))
    source = BatchSource(tiny_corpus.sections, DATA, layout, steps=6)
    kept = [source[t] for t in range(6)]
    copies = [[array.copy() for array in batch] for batch in kept]
    for t in range(6):
        source[t]
    for batch, copy in zip(kept, copies, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, copy, strict=True))
    again = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(a, b) for a, b in zip(again[3], kept[3], strict=True))


def test_a_window_is_let_go_before_the_next_one_is_read(tiny_corpus, monkeypatch):
    """Its memory is then what the next one is read into."""
    data = dataclasses.replace(DATA, windows_per_row=3)
    layout = corpus_layout(tiny_corpus.sections, data, len(PANEL))
    source, windows, alive = BatchSource(tiny_corpus.sections, data, layout, steps=1), [], []
    begin = source._begin

    def watched(draw):
        end = begin(draw)

        def ended():
            alive.append(sum(window() is not None for window in windows))
            window = end()
            windows.append(weakref.ref(window))
            return window

        return ended

    monkeypatch.setattr(source, "_begin", watched)
    source[0]
    assert alive == [0] * data.rows * data.windows_per_row

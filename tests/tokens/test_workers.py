"""Batches that other processes make: the same bits, bounded memory, and nothing left behind."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.config import InputError
from tario_jax.tokens import workers
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource, load_batches

DATA = tiny_config(data={"rows": 2, "windows_per_row": 2, "groups": ((1, 1.0), (3, 2.0))}).data
SHARED = Path("/dev/shm")


def shared_blocks() -> set[str]:
    return {path.name for path in SHARED.glob("psm_*")} if SHARED.exists() else set()


@pytest.fixture(scope="module")
def source(tiny_corpus):
    layout = corpus_layout(tiny_corpus.sections, DATA, len(PANEL))
    return BatchSource(tiny_corpus.sections, DATA, layout, steps=9)


def test_workers_make_the_bits_of_threads_and_leave_nothing(source):
    before = shared_blocks()
    batches = load_batches(source, first=2, prefetch=2, workers=2)
    found = [next(batches)]
    assert len(shared_blocks() - before) == 4 or not SHARED.exists()  # two ahead for each, whatever is asked for later
    found += batches
    expected = list(load_batches(source, first=2, prefetch=1))
    assert len(found) == len(expected) == 7
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert shared_blocks() == before and not multiprocessing.active_children()


def test_a_batch_stays_what_it_was_while_later_ones_are_made(source):
    batches = load_batches(source, first=0, prefetch=1, workers=1)
    first = next(batches)
    pixels = first.he_BxTxPxYxXx3.copy()
    assert len(list(batches)) == 8
    np.testing.assert_array_equal(first.he_BxTxPxYxXx3, pixels)


def test_a_workers_error_is_its_one_line(source):
    before = shared_blocks()
    small = BatchSource(source._sections, DATA, dataclasses.replace(source.layout, count_capacity=8), steps=4)
    with pytest.raises(InputError, match="more than its capacity 8"):
        next(load_batches(small, first=0, prefetch=1, workers=1))
    assert shared_blocks() == before


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        with contextlib.suppress(ProcessLookupError):  # the pool ends the others when it sees one gone
            os.kill(child.pid, signal.SIGKILL)
        child.join()


def test_killed_workers_are_started_again_and_make_the_same_batches(source):
    before, said = shared_blocks(), []
    batches = load_batches(source, first=0, prefetch=2, workers=2, say=said.append)
    found = [next(batches)]
    _kill_workers()
    found += batches
    expected = list(load_batches(source, first=0, prefetch=1))
    assert len(found) == len(expected) == 9
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    (line,) = said
    assert line.startswith("data.workers = 2: one of them was killed while batch ")
    assert line.endswith("they are started again (1 of 3 times)")
    assert shared_blocks() == before and not multiprocessing.active_children()


@pytest.mark.parametrize("killed", (*(pytest.param(one, marks=pytest.mark.slow) for one in (0, 1)), 2))
def test_one_killed_worker_of_several_keeps_nobody_waiting(source, monkeypatch, killed):
    """Workers with nothing to do wait at one lock, which the one of them that is killed may hold."""
    pools, said, found = [], [], []
    begin = workers._pool
    monkeypatch.setattr(workers, "_pool", lambda *of: pools.append(begin(*of)) or pools[-1])
    batches = load_batches(source, first=0, prefetch=1, workers=3, say=said.append)
    found.append(next(batches))
    time.sleep(1.0)  # until none has anything to do
    (pool,) = pools
    pids = sorted(pool._processes)
    os.kill(pids[killed % len(pids)], signal.SIGKILL)
    until = time.monotonic() + 60
    while not pool._broken and time.monotonic() < until:
        time.sleep(0.01)
    assert pool._broken
    rest = threading.Thread(target=lambda: found.extend(batches), daemon=True)
    rest.start()
    rest.join(60)
    assert not rest.is_alive() and len(found) == 9
    (line,) = said
    assert "they are started again (1 of 3 times)" in line


def test_workers_that_are_killed_again_and_again_end_it(source):
    before, said = shared_blocks(), []
    batches = load_batches(source, first=0, prefetch=1, workers=1, say=said.append)
    next(batches)
    with pytest.raises(InputError, match=r"data.workers = 1: .* 4 times now; .*prefetch \(now 1 batches of 0 MB"):
        for _ in range(8):
            _kill_workers()
            next(batches)
    assert len(said) == 3 and shared_blocks() == before


def test_whoever_stops_early_leaves_nothing(source):
    before = shared_blocks()
    batches = load_batches(source, first=0, prefetch=2, workers=1)
    next(batches)
    batches.close()
    assert shared_blocks() == before and not multiprocessing.active_children()

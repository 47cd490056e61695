"""Batches that are made by spawned processes, in blocks of shared memory whose number and size never change.

Grain's own worker processes give the same batches, from new blocks for every array of every batch: slower, and some
of them are still there when the process ends.
"""

import collections
import concurrent.futures.process
import multiprocessing
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Protocol

import numpy as np

from tario_jax.config import InputError
from tario_jax.tokens.batch import Batch, Layout, batch_bytes, batch_in
from tario_jax.tokens.memory import BatchMemory


class Source(Protocol):
    """What makes the batch of any step, in any process."""

    rows: range
    layout: Layout

    def __len__(self) -> int: ...

    def batch(self, t: int, into: Batch) -> Batch: ...


def batches_of_processes(source: Source, *, first: int, prefetch: int, workers: int) -> Iterator[Batch]:
    """Batches of the steps from `first` on, in their order.

    Each of `workers` processes has `prefetch` blocks to fill ahead. Raises what a worker raises, and `InputError` where
    one was killed.
    """
    size, memory = batch_bytes(len(source.rows), source.layout), BatchMemory(len(source.rows), source.layout)
    blocks = [SharedMemory(create=True, size=size) for _ in range(workers * prefetch)]
    context = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (source,))
    ahead: collections.deque[tuple[SharedMemory, concurrent.futures.Future]] = collections.deque()
    steps = iter(range(first, len(source)))

    def fill(block: SharedMemory) -> None:
        if (t := next(steps, None)) is not None:
            ahead.append((block, pool.submit(_make, t, block.name)))

    try:
        for block in blocks:
            fill(block)
        while ahead:
            block, making = ahead.popleft()
            making.result()
            # a copy: nobody can say when the last reader of a batch has done with it
            batch = memory.batch()
            for array, made in zip(batch, batch_in(block.buf, len(source.rows), source.layout), strict=True):
                np.copyto(array, made)
            del made  # a block with views of it cannot be closed
            fill(block)
            yield batch
    except concurrent.futures.process.BrokenProcessPool:
        raise InputError(
            f"data.workers = {workers}: one of them was killed, most likely for want of memory; take fewer, or a "
            f"smaller data.prefetch (now {prefetch} batches of {size / 1e6:.0f} MB each)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
        for block in blocks:
            block.close()
            block.unlink()


_SOURCE: Source
_BLOCKS: dict[str, SharedMemory] = {}


def _begin(source: Source) -> None:
    global _SOURCE
    _SOURCE = source


def _make(t: int, name: str) -> None:
    if name not in _BLOCKS:
        _BLOCKS[name] = SharedMemory(name)
    _SOURCE.batch(t, batch_in(_BLOCKS[name].buf, len(_SOURCE.rows), _SOURCE.layout))

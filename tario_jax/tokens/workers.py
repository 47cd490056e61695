"""Batches that are made by spawned processes, in blocks of shared memory whose number and size never change.

Grain's own worker processes give the same batches, from new blocks for every array of every batch: slower, and some
of them are still there when the process ends.
"""

import collections
import concurrent.futures.process
import faulthandler
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Protocol

import numpy as np

from tario_jax.config import InputError
from tario_jax.tokens.batch import Batch, Layout, batch_bytes, batch_in
from tario_jax.tokens.memory import BatchMemory

STACKS_SIGNAL = signal.SIGUSR1
"""A worker that gets it writes its stacks to its standard error."""
_STARTED_AGAIN = 3  # times between two starts, or rollbacks


class Source(Protocol):
    """What makes the batch of any step, in any process."""

    rows: range
    layout: Layout

    def __len__(self) -> int: ...

    def batch(self, t: int, into: Batch) -> Batch: ...


def batches_of_processes(source: Source, *, first: int, prefetch: int, workers: int,
                         say: Callable[[str], None] = print) -> Iterator[Batch]:  # fmt: skip
    """Batches of the steps from `first` on, in their order.

    Each of `workers` processes has `prefetch` blocks to fill ahead. Where one is killed, all are started again, and say
    so: a batch does not depend on who makes it. Raises what a worker raises, and `InputError` where they are killed
    again and again.
    """
    size, memory = batch_bytes(len(source.rows), source.layout), BatchMemory(len(source.rows), source.layout)
    blocks = [SharedMemory(create=True, size=size) for _ in range(workers * prefetch)]
    pool = _pool(source, workers)
    ahead: collections.deque[tuple[int, SharedMemory, concurrent.futures.Future]] = collections.deque()
    steps, killed = iter(range(first, len(source))), 0

    def fill(block: SharedMemory) -> None:
        if (t := next(steps, None)) is not None:
            ahead.append((t, block, _submit(pool, t, block)))

    try:
        for block in blocks:
            fill(block)
        while ahead:
            t, block, making = ahead.popleft()
            try:
                making.result()
            except concurrent.futures.process.BrokenProcessPool:
                killed += 1
                told = (f"data.workers = {workers}: one of them was killed while batch {t} was made, most likely for "
                        "want of memory")  # fmt: skip
                if killed > _STARTED_AGAIN:
                    raise InputError(
                        f"{told}, {killed} times now; take fewer, or a smaller data.prefetch (now {prefetch} batches "
                        f"of {size / 1e6:.0f} MB each)"
                    ) from None
                say(f"{told}; they are started again ({killed} of {_STARTED_AGAIN} times)")
                _end(pool)
                pool = _pool(source, workers)
                undone = [(t, block), *((t, block) for t, block, _ in ahead)]
                ahead = collections.deque((t, block, _submit(pool, t, block)) for t, block in undone)
                continue
            # a copy: nobody can say when the last reader of a batch has done with it
            batch = memory.batch()
            for array, made in zip(batch, batch_in(block.buf, len(source.rows), source.layout), strict=True):
                np.copyto(array, made)
            del made  # a block with views of it cannot be closed
            fill(block)
            yield batch
    finally:
        _end(pool)
        for block in blocks:
            block.close()
            block.unlink()


def _pool(source: Source, workers: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork of a process with running threads may hang
    return concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (source,))


def _end(pool: concurrent.futures.ProcessPoolExecutor) -> None:
    """Kills its workers first: one that was killed may have held the lock of their queue, for which the others would
    wait for ever, and `shutdown` for them; so it would for one that hangs."""
    for worker in list((pool._processes or {}).values()):
        worker.kill()
    pool.shutdown(cancel_futures=True)


def _submit(pool: concurrent.futures.ProcessPoolExecutor, t: int, block: SharedMemory) -> concurrent.futures.Future:
    try:
        return pool.submit(_make, t, block.name)
    except concurrent.futures.process.BrokenProcessPool as error:  # killed since: whoever waits for it is told
        broken: concurrent.futures.Future = concurrent.futures.Future()
        broken.set_exception(error)
        return broken


_SOURCE: Source
_BLOCKS: dict[str, SharedMemory] = {}


def _begin(source: Source) -> None:
    global _SOURCE
    _SOURCE = source
    # the process that reads the batches hears of Ctrl-C and SIGTERM too, which are sent to all: it ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed could not tell its workers."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _make(t: int, name: str) -> None:
    if name not in _BLOCKS:
        _BLOCKS[name] = SharedMemory(name)
    _SOURCE.batch(t, batch_in(_BLOCKS[name].buf, len(_SOURCE.rows), _SOURCE.layout))

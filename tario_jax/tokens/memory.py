"""Memory of batches, used again once nobody refers to the batch any more.

A fresh page costs about as much as what is written into it; a batch is nothing but large arrays of unchanging sizes.
"""

import ctypes
import weakref

import numpy as np

from tario_jax.tokens.batch import Batch, Layout, batch_bytes, batch_in

_KEPT_BYTES = 31 << 20  # just below the most that glibc learns, 32 MiB


def _keep_freed_memory() -> None:
    """Lets the allocator keep what is freed, for the whole process and up to 62 MiB an arena, of which threads have
    their own: a window's arrays are made anew for each, and giving their pages back in between takes a tenth of the
    loader's time.

    glibc learns from what is freed: from then on blocks below that size come from the heap, whose top is given back
    when twice as much is free (mallopt(3), M_MMAP_THRESHOLD). Elsewhere it does nothing.
    """
    np.empty(_KEPT_BYTES, np.uint8)  # freed at once, and no page of it is touched


class BatchMemory:
    """Lends batches. It grows to as many as were ever in use at once, and no further."""

    def __init__(self, rows: int, layout: Layout):
        self._rows, self._layout = rows, layout
        self._free: list[np.ndarray] = []
        _keep_freed_memory()

    def batch(self) -> Batch:
        """A batch that holds anything. Its memory comes back when the last of its arrays, and of their views, goes."""
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(batch_bytes(self._rows, self._layout), np.uint8)
        lease = (ctypes.c_char * len(block)).from_buffer(block)  # what the arrays refer to: numpy skips its own views
        weakref.finalize(lease, self._free.append, block).atexit = False
        return batch_in(lease, self._rows, self._layout)

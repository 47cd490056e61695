"""Memory of batches, used again once nobody refers to the batch any more.

A fresh page costs about as much as what is written into it; a batch is nothing but large arrays of unchanging sizes.
"""

import ctypes
import weakref

import numpy as np

from tario_jax.tokens.batch import Batch, Layout, batch_bytes, batch_in


class BatchMemory:
    """Lends batches. It grows to as many as were ever in use at once, and no further."""

    def __init__(self, rows: int, layout: Layout):
        self._rows, self._layout = rows, layout
        self._free: list[np.ndarray] = []

    def batch(self) -> Batch:
        """A batch that holds anything. Its memory comes back when the last of its arrays, and of their views, goes."""
        try:
            block = self._free.pop()
        except IndexError:
            block = np.empty(batch_bytes(self._rows, self._layout), np.uint8)
        lease = (ctypes.c_char * len(block)).from_buffer(block)  # what the arrays refer to: numpy skips its own views
        weakref.finalize(lease, self._free.append, block).atexit = False
        return batch_in(lease, self._rows, self._layout)

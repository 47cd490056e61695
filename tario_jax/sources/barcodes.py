"""Barcodes of spots and squares. A slide of Visium HD has eleven million, which differ in their digits only."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MOST_DIGITS = 18  # of an int64


class Barcodes:
    """N names in order: as one int64 each where they are alike but for their digits (`s_002um_00017_00203-1`), else as
    strings, which take ten times as much with what it needs to look them up."""

    def __init__(self, blocks: Iterable[pa.Array]):
        """blocks: strings, a million or so at a time."""
        keys: list[np.ndarray] = []
        names: list[pa.Array] = []
        self._form: bytes | None = None  # a name with every digit 0; None: names are held as strings
        for block in blocks:
            found = None if names else _as_numbers(block)
            if not names and found is not None and (not keys or found[0] == self._form):
                self._form, key_N = found
                keys.append(key_N)
                continue
            if not names:  # the first that is another: what was held as numbers is written out
                names, keys = [_as_names(self._form, key_N) for key_N in keys], []
                self._form = None
            names.append(block.cast(pa.string()))
        self._key_N = np.concatenate([np.zeros(0, np.int64), *keys])
        self._names = pa.chunked_array(names, pa.string())

    def __len__(self) -> int:
        return len(self._names) if self._form is None else len(self._key_N)

    def names(self, which_N: np.ndarray | slice = slice(None)) -> pa.ChunkedArray:
        """Those names as strings."""
        if self._form is not None:
            return pa.chunked_array([_as_names(self._form, self._key_N[which_N])])
        return self._names if isinstance(which_N, slice) else self._names.take(pa.array(which_N))

    def repeated(self) -> int:
        """How many stand there before already."""
        if self._form is None:
            return len(self) - pc.count_distinct(self._names).as_py()
        key_N = np.sort(self._key_N)
        return int((key_N[1:] == key_N[:-1]).sum())

    def places_in(self, others: "Barcodes") -> np.ndarray:
        """Position of each in `others`, in which none is repeated, int64 [N]; −1 for one that is not there."""
        if self._form is None or self._form != others._form:
            return pc.fill_null(pc.index_in(self.names(), value_set=others.names()), -1).to_numpy().astype(np.int64)
        order = np.argsort(others._key_N, kind="stable")
        place_N = np.minimum(np.searchsorted(others._key_N, self._key_N, sorter=order), len(order) - 1)
        place_N = order[place_N]
        place_N[others._key_N[place_N] != self._key_N] = -1
        return place_N


def _as_numbers(block: pa.Array) -> tuple[bytes, np.ndarray] | None:
    """(form, digits as int64) of names that are alike but for their digits; None of others."""
    if not len(block) or block.null_count:
        return None
    block = block.cast(pa.string())
    offset = np.frombuffer(block.buffers()[1], np.int32)[block.offset : block.offset + len(block) + 1]
    width = int(offset[1] - offset[0])
    if not width or (np.diff(offset) != width).any():
        return None
    letters_NxW = np.frombuffer(block.buffers()[2], np.uint8)[offset[0] : offset[-1]].reshape(-1, width)
    digit_NxW = (letters_NxW >= ord("0")) & (letters_NxW <= ord("9"))
    digit_W = digit_NxW[0]
    alike = (digit_NxW == digit_W).all() and (letters_NxW[:, ~digit_W] == letters_NxW[0, ~digit_W]).all()
    if not alike or not 0 < digit_W.sum() <= _MOST_DIGITS:
        return None
    key_N = np.zeros(len(block), np.int64)
    for column in np.flatnonzero(digit_W):
        key_N *= 10
        key_N += letters_NxW[:, column] - np.uint8(ord("0"))
    return np.where(digit_W, np.uint8(ord("0")), letters_NxW[0]).tobytes(), key_N


def _as_names(form: bytes, key_N: np.ndarray) -> pa.Array:
    letters_W = np.frombuffer(form, np.uint8)
    letters_NxW = np.repeat(letters_W[None], len(key_N), 0)
    rest_N = key_N.copy()
    # every 0 of the form stood for a digit: its letters are no digits
    for column in np.flatnonzero(letters_W == ord("0"))[::-1]:
        rest_N, digit_N = np.divmod(rest_N, 10)
        letters_NxW[:, column] += digit_N.astype(np.uint8)
    return pa.array([row.tobytes() for row in letters_NxW], pa.binary()).cast(pa.string())

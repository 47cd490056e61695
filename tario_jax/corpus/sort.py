"""Detections into the order of the corpus, by tile and within a tile by gene, in bounded memory.

Runs of some million detections are sorted by themselves and spilled; then one range of tiles after the other gathers
its part of every run. Detections of one tile and gene keep the order in which they came. What is small stays in memory.
"""

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.section import DetectionBlocks, Detections

RUN = 1 << 22  # detections that are sorted at once: some 60 MB, and as much again three times while they are sorted
_IN_MEMORY_BYTES = 64 << 20  # a spill becomes a file beyond that


class Spill:
    """Rows in a nameless temporary file: the system takes it back however the process ends."""

    def __init__(self, folder: Path | None, dtype: np.dtype, columns: tuple[int, ...] = ()):
        self.dtype, self._columns, self._folder = dtype, columns, folder
        self._row_bytes = dtype.itemsize * int(np.prod(columns, dtype=int))
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=folder)
        self._rows = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._rows, *self._columns)

    def append(self, rows: np.ndarray) -> None:
        """Raises `InputError` where the disk is full."""
        try:
            self._file.seek(self._rows * self._row_bytes)
            self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = self._folder or tempfile.gettempdir()
            elsewhere = "" if self._folder else " or name another folder in TMPDIR"
            raise InputError(
                f"{place}: is full after {(self._rows + len(rows)) * self._row_bytes / 1e9:.3g} GB of a temporary "
                f"file; sorting needs about 30 bytes for each detection; free that much{elsewhere}, and run it again"
            ) from None
        self._rows += len(rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self._rows)
        self._file.seek(start * self._row_bytes)
        return np.frombuffer(self._file.read((stop - start) * self._row_bytes), self.dtype).reshape(-1, *self._columns)

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def sorted_detections(
    detections: Detections | DetectionBlocks,
    genes: int,
    width_um: float,
    height_um: float,
    where: str,
    *,
    spill_into: Path | None,
) -> Iterator[tuple[dict[str, layout.Rows], np.ndarray]]:
    """The corpus's arrays of detections, and detections by gene, int64 [G]; valid within the context.

    spill_into: folder of the temporary files, about 30 bytes a detection; None is the system's own (TMPDIR). Raises
    `InputError` for a place outside of the section, a gene that is not below `genes`, or a full disk; `where` names
    the section.
    """
    side = layout.DETECTION_TILE_UM
    columns, rows = int(np.ceil(width_um / side)), int(np.ceil(height_um / side))
    totals_G = np.zeros(genes, np.int64)
    with contextlib.ExitStack() as stack:

        def spill(dtype: np.dtype, columns: tuple[int, ...] = ()) -> Spill:
            return stack.enter_context(contextlib.closing(Spill(spill_into, dtype, columns)))

        runs = None
        first_of_tile = []  # by run, the first detection of each tile in `runs`
        for records in _in_runs(_records(detections, width_um, height_um, columns, rows, totals_G, where)):
            records = records[np.argsort(_key(records), kind="stable")]
            first = 0 if runs is None else runs.shape[0]
            runs = runs or spill(records.dtype)
            runs.append(records)
            starts = np.searchsorted(records["tile"], np.arange(rows * columns + 1, dtype=np.int32))
            first_of_tile.append(starts.astype(np.int64) + first)
        starts_RxT = np.array(first_of_tile)
        offset = (starts_RxT - starts_RxT[:, :1]).sum(0)
        arrays: dict[str, layout.Rows] = {"detections/place_and_gene": spill(np.dtype(np.uint16), (3,))}
        arrays["detections/offset"] = offset
        optional = [name for name in ("nucleus", "cell") if name in runs.dtype.names]
        for name in optional:
            arrays[f"detections/{name}"] = spill(runs.dtype[name])
        for low, high in _tile_ranges(offset):
            parts = [runs[starts[low] : starts[high]] for starts in starts_RxT]
            records = np.concatenate(parts)
            records = records[np.argsort(_key(records), kind="stable")]
            for name in ("place_and_gene", *optional):
                arrays[f"detections/{name}"].append(records[name])
        yield arrays, totals_G


def check_genes(genes: np.ndarray, number: int, where: str) -> None:
    if genes.size and not 0 <= genes.min() <= genes.max() < number:
        raise InputError(f"{where}: gene numbers {genes.min()}..{genes.max()}; the panel has {number} genes")


def _records(
    detections: Detections | DetectionBlocks,
    width_um: float,
    height_um: float,
    columns: int,
    rows: int,
    totals_G: np.ndarray,
    where: str,
) -> Iterator[np.ndarray]:
    """At most `RUN` detections at a time as they are stored, with their tile; counts them in `totals_G`."""
    outside, number, side = 0, 0, layout.DETECTION_TILE_UM
    for block in detections:
        check_genes(block.gene_D, len(totals_G), where)
        totals_G += np.bincount(block.gene_D, minlength=len(totals_G))
        kind = [("tile", np.int32), ("place_and_gene", np.uint16, (3,))]
        kind += [("nucleus", np.uint8)] if block.in_nucleus_D is not None else []
        kind += [("cell", np.int32)] if block.cell_D is not None else []
        for start in range(0, max(len(block), 1), RUN):
            part = slice(start, start + RUN)
            x_um, y_um = np.asarray(block.x_um_D[part], np.float64), np.asarray(block.y_um_D[part], np.float64)
            # a place on the far edge belongs to the section: vendors' extents are those of their outermost detections
            inside = (x_um >= 0) & (x_um <= width_um) & (y_um >= 0) & (y_um <= height_um)
            number, outside = number + len(inside), outside + int((~inside).sum())
            if outside:
                continue  # nothing will be written: the rest is only counted
            column_D, row_D = (np.minimum(at // side, last - 1) for at, last in ((x_um, columns), (y_um, rows)))
            records = np.empty(len(x_um), kind)
            records["tile"] = row_D * columns + column_D
            place_and_gene = records["place_and_gene"]
            for axis, steps in enumerate((x_um - column_D * side, y_um - row_D * side)):
                place_and_gene[:, axis] = np.minimum(np.floor(steps * layout.PLACE_STEPS_PER_UM), 65535)
            place_and_gene[:, 2] = block.gene_D[part]
            if block.in_nucleus_D is not None:
                records["nucleus"] = block.in_nucleus_D[part]
            if block.cell_D is not None:
                records["cell"] = block.cell_D[part]
            yield records
    if outside:
        raise InputError(
            f"{where}: {outside} of {number} detections lie outside its {width_um:g} x {height_um:g} µm; "
            "check the unit and the origin of the places"
        )


def _in_runs(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same records, `RUN` to twice as many at once and fewer in the last; one run at least."""
    held: list[np.ndarray] = []
    number = runs = 0
    for records in parts:
        held.append(records)
        number += len(records)
        if number >= RUN:
            yield np.concatenate(held)
            held, number, runs = [], 0, runs + 1
    if number or not runs:
        yield np.concatenate(held)


def _key(records: np.ndarray) -> np.ndarray:
    return records["tile"].astype(np.int64) << 16 | records["place_and_gene"][:, 2]


def _tile_ranges(offset: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of consecutive tiles that hold at most `RUN` detections together, or of one tile alone."""
    low, tiles = 0, len(offset) - 1
    while low < tiles:
        high = max(low + 1, int(np.searchsorted(offset, offset[low] + RUN, side="right")) - 1)
        yield low, high
        low = high

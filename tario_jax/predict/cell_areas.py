"""The area of each cell: its outline grown by a few µm, as far as no other outline is nearer.

Areas are pixels of half a µm, labelled tile by tile: a tile's labels depend on outlines within the growth of it alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse
from skimage.draw import polygon as pixels_inside
from skimage.segmentation import expand_labels

from tario_jax.predict.outlines import Outlines

PX_UM = 0.5
TILE_PX = 1024


class CellTile(NamedTuple):
    """A tile of labels: int32 [rows, columns], the cell's position or −1; left_px and top_px: its corner."""

    left_px: int
    top_px: int
    label_YxX: np.ndarray


def cell_tiles(outlines: Outlines, width_um: float, height_um: float, grow_um: float,
               tile_px: int = TILE_PX) -> Iterator[CellTile]:  # fmt: skip
    """The section's labels, row by row of tiles. Where outlines overlap, the earlier one has the area."""
    margin = int(np.ceil(grow_um / PX_UM)) + 2
    columns, rows = (int(np.ceil(extent / PX_UM - 1e-6)) for extent in (width_um, height_um))
    box_Nx4 = outlines.box_um_Nx4 / PX_UM
    for top in range(0, rows, tile_px):
        for left in range(0, columns, tile_px):
            high, wide = min(tile_px, rows - top), min(tile_px, columns - left)
            label = np.zeros((high + 2 * margin, wide + 2 * margin), np.int32)
            y0, x0 = top - margin, left - margin
            near = (box_Nx4[:, 0] < x0 + label.shape[1]) & (box_Nx4[:, 2] > x0)
            near &= (box_Nx4[:, 1] < y0 + label.shape[0]) & (box_Nx4[:, 3] > y0)
            for i in np.flatnonzero(near)[::-1]:
                x, y = (outlines.polygon(i) / PX_UM - 0.5).T  # in units of px centres
                label[pixels_inside(y - y0, x - x0, label.shape)] = i + 1
            if grow_um > 0:
                label = expand_labels(label, grow_um / PX_UM)
            yield CellTile(left, top, label[margin:-margin, margin:-margin] - 1)


class CellAreas(NamedTuple):
    """What the cells cover, of N cells."""

    area_um2_N: np.ndarray  # float64
    overlap_um2_NxB: scipy.sparse.csr_array  # with bins of a grid, row by row from the section's origin
    columns: int  # of the grid


def areas_in_bins(tiles: Iterator[CellTile], cells: int, bin_um: float, columns: int, rows: int) -> CellAreas:
    """Overlap of each cell with each bin of a grid. What lies beyond the last whole bin counts to that bin."""
    keys, counts = [], []
    for tile in tiles:
        inside_Y, inside_X = np.nonzero(tile.label_YxX >= 0)
        cell_K = tile.label_YxX[inside_Y, inside_X].astype(np.int64)
        column_K, row_K = (
            np.minimum(((at + corner + 0.5) * PX_UM // bin_um).astype(np.int64), number - 1)
            for at, corner, number in ((inside_X, tile.left_px, columns), (inside_Y, tile.top_px, rows))
        )
        key, count = np.unique(cell_K * (rows * columns) + row_K * columns + column_K, return_counts=True)
        keys.append(key)
        counts.append(count)
    key_E, area_E = np.concatenate(keys), np.concatenate(counts) * PX_UM**2
    entries = (area_E, np.divmod(key_E, rows * columns))
    overlap_NxB = scipy.sparse.coo_array(entries, (cells, rows * columns)).tocsr()  # sums what several tiles hold
    return CellAreas(np.asarray(overlap_NxB.sum(1)).ravel(), overlap_NxB, columns)


def cells_at(tiles: Iterator[CellTile], x_um_D: np.ndarray, y_um_D: np.ndarray) -> np.ndarray:
    """The cell whose area holds each place, int32 [D]; −1 where none does."""
    column_D, row_D = ((place // PX_UM).astype(np.int64) for place in (x_um_D, y_um_D))
    cell_D = np.full(len(column_D), -1, np.int32)
    for tile in tiles:
        y_D, x_D = row_D - tile.top_px, column_D - tile.left_px
        here = np.flatnonzero(
            (y_D >= 0) & (y_D < tile.label_YxX.shape[0]) & (x_D >= 0) & (x_D < tile.label_YxX.shape[1])
        )
        cell_D[here] = tile.label_YxX[y_D[here], x_D[here]]
    return cell_D


def cell_counts(cell_D: np.ndarray, gene_D: np.ndarray, cells: int, genes: int) -> np.ndarray:
    """Detections by cell and gene, float32 [cells, genes]; those in no cell (−1) are left out."""
    inside = cell_D >= 0
    key_D = cell_D[inside].astype(np.int64) * genes + gene_D[inside]
    return np.bincount(key_D, minlength=cells * genes).reshape(cells, genes).astype(np.float32)

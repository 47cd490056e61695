"""Detections on grids of square bins."""

import numpy as np
import scipy.sparse
import scipy.spatial

from tario_jax.corpus.section import Detections
from tario_jax.corpus.stored_section import Section

BINS_UM = (36.0, 18.0, 9.0)  # the sides that a model of bins is read at beside each other, the largest first


def grid_counts(found: Detections, genes: int, columns: int, rows: int, pitch_um: float,
                side_um: float | None = None) -> np.ndarray:  # fmt: skip
    """Counts by bin and gene, float32 [rows·columns, G], row by row from the section's origin.

    side_um: only what lies in squares of that side in the middle of the bins is counted; the whole bins by default.
    """
    column_D, row_D = (np.floor_divide(place, pitch_um).astype(np.int64) for place in (found.x_um_D, found.y_um_D))
    inside_D = (column_D >= 0) & (column_D < columns) & (row_D >= 0) & (row_D < rows)
    if side_um is not None:
        for place in (found.x_um_D, found.y_um_D):
            inside_D &= np.abs(np.mod(place, pitch_um) - pitch_um / 2) <= side_um / 2
    key_D = (row_D[inside_D] * columns + column_D[inside_D]) * genes + found.gene_D[inside_D]
    return np.bincount(key_D, minlength=rows * columns * genes).reshape(rows * columns, genes).astype(np.float32)


def sparse_grid_counts(found: Detections, genes: int, columns: int, rows: int, pitch_um: float,
                       ) -> scipy.sparse.csr_array:  # fmt: skip
    """The whole bins of `grid_counts` as a sparse array, float32: most genes are in few bins."""
    column_D, row_D = (np.floor_divide(place, pitch_um).astype(np.int64) for place in (found.x_um_D, found.y_um_D))
    inside_D = (column_D >= 0) & (column_D < columns) & (row_D >= 0) & (row_D < rows)
    at = row_D[inside_D] * columns + column_D[inside_D], found.gene_D[inside_D].astype(np.int64)
    counts = scipy.sparse.coo_array((np.ones(int(inside_D.sum()), np.float32), at), shape=(rows * columns, genes))
    return counts.tocsr()


def area_weights(from_places: tuple[np.ndarray, np.ndarray], from_um: float,
                 to_places: tuple[np.ndarray, np.ndarray], to_um: float) -> scipy.sparse.csr_array:  # fmt: skip
    """What of each square of side `from_um` lies in squares of side `to_um`, as shares of the former: [to, from].

    Places are centres in µm. Nested squares have shares of 0 and 1. A square of `to_um` that is covered only in part
    (at an edge) has its shares scaled up to its whole area.
    """
    tree = scipy.spatial.cKDTree(np.stack(from_places, 1))
    near = tree.query_ball_point(np.stack(to_places, 1), (from_um + to_um) / 2 - 1e-6, p=np.inf)
    to = np.repeat(np.arange(len(near)), [len(found) for found in near])
    of = np.concatenate([np.asarray(found, int) for found in near]) if len(to) else np.zeros(0, int)
    share_E = np.ones(len(to))
    for a, b in zip(from_places, to_places, strict=True):
        low, high = (
            np.maximum(a[of] - from_um / 2, b[to] - to_um / 2),
            np.minimum(a[of] + from_um / 2, b[to] + to_um / 2),
        )
        share_E *= np.clip(high - low, 0.0, None) / from_um
    covered_N = np.bincount(to, share_E, minlength=len(near)) * (from_um / to_um) ** 2
    share_E = np.where(np.abs(share_E - 1) < 1e-6, 1.0, share_E) / np.where(covered_N < 1 - 1e-6, covered_N, 1.0)[to]
    return scipy.sparse.csr_array((share_E, (to, of)), shape=(len(near), len(from_places[0])))


def whole_bins(section: Section, side_um: float) -> tuple[int, int]:
    """Columns and rows of the bins of this side that lie whole on a section."""
    return int(section.width_um / side_um + 1e-6), int(section.height_um / side_um + 1e-6)


def grid_places(columns: int, rows: int, pitch_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the grid of `grid_counts`: x and y in µm, float64 [rows·columns] each."""
    row_N, column_N = np.divmod(np.arange(rows * columns), columns)
    return (column_N + 0.5) * pitch_um, (row_N + 0.5) * pitch_um

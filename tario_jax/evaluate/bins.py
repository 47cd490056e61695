"""Detections on grids of square bins."""

import numpy as np

from tario_jax.corpus.section import Detections


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


def grid_places(columns: int, rows: int, pitch_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the grid of `grid_counts`: x and y in µm, float64 [rows·columns] each."""
    row_N, column_N = np.divmod(np.arange(rows * columns), columns)
    return (column_N + 0.5) * pitch_um, (row_N + 0.5) * pitch_um

"""Which places are the same: bins, spots and cells are known by their centres."""

import numpy as np
import scipy.spatial

SAME_PLACE_UM = 0.01  # centres nearer than this are one; float32 keeps those of a slide of 100 mm to 0.004 µm


def same_places(known: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Where each asked place lies among the known ones, int [M]; −1 where none is within `SAME_PLACE_UM`.

    known, asked: x and y of centres in µm, [N] and [M] each. Of several that are within it, the nearest one counts.
    """
    known_Nx2, asked_Mx2 = (np.stack(xy_um, 1).astype(np.float64) for xy_um in (known, asked))
    _, at_M = scipy.spatial.cKDTree(known_Nx2).query(asked_Mx2, distance_upper_bound=SAME_PLACE_UM)
    return np.where(at_M < len(known_Nx2), at_M, -1)


def first_repeated(x_um_N: np.ndarray, y_um_N: np.ndarray) -> int | None:
    """The first place that is the same as one before it; None where there is none."""
    pairs_Kx2 = scipy.spatial.cKDTree(np.stack([x_um_N, y_um_N], 1)).query_pairs(SAME_PLACE_UM, output_type="ndarray")
    return int(pairs_Kx2.max(1).min()) if len(pairs_Kx2) else None

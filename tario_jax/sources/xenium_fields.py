"""Xenium's fields of view: the area that was imaged, from the places of each field's rows."""

import numpy as np

_TOUCHING = 0.1  # of a field's side: fields lie on a grid, so what was not imaged between them is as wide as a field


class FieldBoxes:
    """The box around each field's rows, over any number of batches. F fields; memory grows with them, not with rows."""

    def __init__(self):
        self.rows, self.unnamed = 0, 0  # with a place; of these, of no field
        self._low_um_2xF, self._high_um_2xF = np.zeros((2, 0)), np.zeros((2, 0))

    def __len__(self) -> int:
        return self._low_um_2xF.shape[1]

    def add(self, field_N: np.ndarray, place_um_Nx2: np.ndarray) -> None:
        """Adds rows of fields 0, 1, …; one of field −1 or without a finite place extends none."""
        finite_N = np.isfinite(place_um_Nx2).all(1)
        placed_N = (field_N >= 0) & finite_N
        self.rows += int(finite_N.sum())
        self.unnamed += int((finite_N & ~placed_N).sum())
        more = ((0, 0), (0, max(0, int(field_N.max(initial=-1)) + 1 - len(self))))
        self._low_um_2xF = np.pad(self._low_um_2xF, more, constant_values=np.inf)
        self._high_um_2xF = np.pad(self._high_um_2xF, more, constant_values=-np.inf)
        for low_um_F, high_um_F, at_um_N in zip(self._low_um_2xF, self._high_um_2xF, place_um_Nx2.T, strict=True):
            np.minimum.at(low_um_F, field_N[placed_N], at_um_N[placed_N])
            np.maximum.at(high_um_F, field_N[placed_N], at_um_N[placed_N])

    def grown(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest (x, y) of each field, [F, 2] both, drawn out to the middle of the gap to a neighbour.

        Detections end short of a field's edge. Fields touch where less than a tenth of a field's side is between them;
        an edge that has no such neighbour stays where its last row is: what lies beyond may not have been imaged.
        """
        low_um_2xF, high_um_2xF = self._low_um_2xF.copy(), self._high_um_2xF.copy()
        side_um_2xF = high_um_2xF - low_um_2xF  # 0 of a field of one row, below 0 of one of none
        touching_um_2 = [_TOUCHING * np.median(side_um_F[side_um_F > 0]) if side_um_F.max() > 0 else 0.0
                         for side_um_F in side_um_2xF]  # fmt: skip
        for axis, touching_um in enumerate(touching_um_2):
            low_um_F, high_um_F = low_um_2xF[axis].copy(), high_um_2xF[axis].copy()
            beside_FxF = (low_um_2xF[1 - axis][:, None] < high_um_2xF[1 - axis]) & (
                low_um_2xF[1 - axis] < high_um_2xF[1 - axis][:, None])  # fmt: skip
            gap_um_FxF = low_um_F - high_um_F[:, None]  # from the end of one to the start of the other
            for one, other in zip(*np.nonzero(beside_FxF & (gap_um_FxF > 0) & (gap_um_FxF < touching_um)), strict=True):
                middle_um = (high_um_F[one] + low_um_F[other]) / 2
                high_um_2xF[axis, one] = max(high_um_2xF[axis, one], middle_um)
                low_um_2xF[axis, other] = min(low_um_2xF[axis, other], middle_um)
        return low_um_2xF.T, high_um_2xF.T

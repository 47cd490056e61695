"""Nuclei that were found against cells that are known: which are the same, how many were missed, how many are none."""

import dataclasses

import numpy as np
import scipy.spatial

NEAR_UM = 4.0  # of a true centre, at most: less than the radius of most cells
_TRIED = 8  # nearest true cells of each that was found


def match_places(found_um_Nx2: np.ndarray, true_um_Kx2: np.ndarray, near_um: float = NEAR_UM) -> np.ndarray:
    """The true place that each found one is, or −1, int64 [N]: one to one, the nearest pairs first."""
    mine_N = np.full(len(found_um_Nx2), -1)
    if not len(found_um_Nx2) or not len(true_um_Kx2):
        return mine_N
    tried = min(_TRIED, len(true_um_Kx2))
    distance, near = scipy.spatial.cKDTree(true_um_Kx2).query(found_um_Nx2, k=[*range(1, tried + 1)])
    found = np.repeat(np.arange(len(mine_N)), tried)
    taken_K = np.zeros(len(true_um_Kx2), bool)
    for pair in np.argsort(distance, axis=None, kind="stable"):
        if distance.flat[pair] > near_um:
            break
        i, k = found[pair], near.flat[pair]
        if mine_N[i] < 0 and not taken_K[k]:
            mine_N[i], taken_K[k] = k, True
    return mine_N


@dataclasses.dataclass(frozen=True)
class NucleusScore:
    """How well nuclei were found in one section."""

    found: int
    true: int
    matched: int

    @classmethod
    def of(cls, match_N: np.ndarray, true: int) -> "NucleusScore":
        return cls(len(match_N), true, int((match_N >= 0).sum()))

    @property
    def recall(self) -> float:
        return self.matched / self.true if self.true else float("nan")

    @property
    def precision(self) -> float:
        return self.matched / self.found if self.found else float("nan")

    @property
    def count_error(self) -> float:
        """Found over true, less 1."""
        return self.found / self.true - 1 if self.true else float("nan")

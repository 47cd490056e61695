"""Area under the ROC curve: of all pairs of a positive and a negative patient, the share where the first scores higher.

Ties count half (Hanley & McNeil, Radiology 143:29, 1982). With groups, only pairs of patients of one group count.

Axes: P patients, B bootstrap samples.
"""

import numpy as np


def drawn_weights(patients: int, samples: int, seed: int) -> np.ndarray:
    """How often each patient is drawn in each bootstrap sample, float32 [B, P]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(patients, np.full(patients, 1 / patients), samples).astype(np.float32)


def auroc(positive_P: np.ndarray, score_P: np.ndarray, *, weight_BxP: np.ndarray | None = None,
          group_P: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """float64 [B]; weights of 1, and B = 1, where none are given. NaN where there is no pair."""
    positive_P, score_P = np.asarray(positive_P, bool), np.asarray(score_P, np.float64)
    weight_BxP = np.ones((1, len(score_P))) if weight_BxP is None else np.asarray(weight_BxP, np.float64)
    group_P = np.zeros(len(score_P), int) if group_P is None else np.asarray(group_P)
    right_B, pairs_B = np.zeros((2, len(weight_BxP)))
    for group in np.unique(group_P):
        some = np.flatnonzero(group_P == group)
        some = some[np.argsort(score_P[some], kind="stable")]
        new = np.flatnonzero(np.diff(score_P[some], prepend=-np.inf))  # where a run of equal scores begins
        if not len(some):
            continue
        weights = weight_BxP[:, some]
        above, below = (np.add.reduceat(weights * mine, new, axis=1) for mine in
                        (positive_P[some], ~positive_P[some]))  # fmt: skip
        lower = np.cumsum(below, 1) - below / 2  # negatives that a positive of this score beats
        right_B += (above * lower).sum(1)
        pairs_B += above.sum(1) * below.sum(1)
    return np.divide(right_B, pairs_B, out=np.full(len(right_B), np.nan), where=pairs_B > 0)


def macro_auroc(label_P: np.ndarray, score_PxK: np.ndarray, *, weight_BxP: np.ndarray | None = None,
                group_P: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """label: the number of each patient's class. Of two classes the AUROC of the second; of more, the mean over classes
    of each against the rest, those without pairs left out. float64 [B]."""
    if score_PxK.shape[1] == 2:
        return auroc(label_P == 1, score_PxK[:, 1] - score_PxK[:, 0], weight_BxP=weight_BxP, group_P=group_P)
    of_class = np.stack([auroc(label_P == k, score_PxK[:, k], weight_BxP=weight_BxP, group_P=group_P)
                         for k in range(score_PxK.shape[1])])  # fmt: skip
    known = np.isfinite(of_class)
    return np.where(known, of_class, 0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)

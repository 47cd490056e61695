"""Structure of a population: which mutations go together, in patients and in what is told of them, and whether patients
with two lie elsewhere than those with one.

Axes: P patients, C components, M mutations.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from tario_jax.evaluate.patients.auroc import auroc

PERMUTATIONS = 2000
_LEAST = 8  # patients of each side of a comparison
_FOLDS, _PARTITIONS = 5, 20
_HALF = 0.5  # added to each count of a table (Haldane, Ann. Hum. Genet. 20:309, 1956)


def co_occurrence(label_MxP: Mapping[str, np.ndarray], chance_MxP: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each pair's log odds ratio, with 95 % interval, and that of what was told of each patient.

    label: 1 or 0 of each patient, NaN where it is not known: such a patient is in no pair of it; chance: what probes
    told of patients they had not seen. The told ratio is that of the expected counts, sums over patients of products
    of chances: told independently of each other, chances of patients alike still go together.
    """
    found = []
    for a, b in itertools.combinations(label_MxP, 2):
        both_P = np.isfinite(label_MxP[a]) & np.isfinite(label_MxP[b])
        labels, chances = ([of[name][both_P].astype(float) for name in (a, b)] for of in (label_MxP, chance_MxP))
        real, told = _log_odds_ratio(*labels), _log_odds_ratio(*chances)
        p = stats.fisher_exact(_table(*labels)[0])[1]
        found.append({"pair": [a, b], "patients": int(both_P.sum()), "both": int((labels[0] * labels[1]).sum()),
                      "log_odds_ratio": real[0],
                      "low": real[0] - 1.96 * real[1], "high": real[0] + 1.96 * real[1], "p": float(p),
                      "told_log_odds_ratio": told[0]})  # fmt: skip
    return found


def _table(a_P: np.ndarray, b_P: np.ndarray) -> tuple[np.ndarray, int]:
    counts = np.array([[(a_P * b_P).sum(), (a_P * (1 - b_P)).sum()], [((1 - a_P) * b_P).sum(),
                                                                       ((1 - a_P) * (1 - b_P)).sum()]])  # fmt: skip
    return counts, len(a_P)


def _log_odds_ratio(a_P: np.ndarray, b_P: np.ndarray) -> tuple[float, float]:
    """With its standard error."""
    counts = _table(a_P, b_P)[0] + _HALF
    ratio = counts[0, 0] * counts[1, 1] / (counts[0, 1] * counts[1, 0])
    return float(np.log(ratio)), float(np.sqrt((1 / counts).sum()))


def two_against_one(place_PxC: np.ndarray, first_P: np.ndarray, second_P: np.ndarray, group_P: np.ndarray, *,
                    permutations: int = PERMUTATIONS, seed: int = 0) -> dict[str, Any] | None:  # fmt: skip
    """Whether patients with both mutations lie elsewhere than those with the first alone.

    place: in the space; group: patients are compared, and the second mutation is dealt anew, within groups alone (of
    cancer type, or site), so that no group is taken for a genotype. The distance is that between the means, each
    direction in standard deviations of the patients with the first; p: share of permutations at least as far. The axis
    from one mean to the other orders patients: `auroc` is that of both against the first alone, each patient on the
    axis of the other folds, over pairs of one fold and one group, mean over partitions: on the axis of all others, a
    patient would lie away from the mean that it is missing from, and noise tell worse than chance. None where fewer
    than eight patients are on a side.
    """
    some = np.flatnonzero(first_P)
    both_n, group_n = second_P[some], group_P[some]
    varied = [group for group in np.unique(group_n) if 0 < both_n[group_n == group].sum() < (group_n == group).sum()]
    some = some[np.isin(group_n, varied)]
    both_n, group_n = second_P[some], group_P[some]
    if min(both_n.sum(), (~both_n).sum()) < _LEAST:
        return None
    place_nxC = place_PxC[some].astype(np.float64)
    for group in varied:
        place_nxC[group_n == group] -= place_nxC[group_n == group].mean(0)
    place_nxC /= np.maximum(place_nxC.std(0), 1e-9)
    rng = np.random.default_rng(seed)
    real = _distance(place_nxC, both_n)
    drawn = np.array([_distance(place_nxC, _dealt(both_n, group_n, rng)) for _ in range(permutations)])
    score_n, area = _on_axes(place_nxC, both_n, group_n, rng)
    return {"both": int(both_n.sum()), "first_alone": int((~both_n).sum()), "distance": real,
            "distance_of_permutations": float(drawn.mean()), "permutations": permutations,
            "p": float((1 + (drawn >= real).sum()) / (1 + permutations)),
            "auroc": area, "score": score_n.tolist(),
            "has_both": both_n.tolist()}  # fmt: skip


def _distance(place_nxC: np.ndarray, both_n: np.ndarray) -> float:
    return float(np.linalg.norm(place_nxC[both_n].mean(0) - place_nxC[~both_n].mean(0)))


def _dealt(both_n: np.ndarray, group_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    dealt = both_n.copy()
    for group in np.unique(group_n):
        mine = np.flatnonzero(group_n == group)
        dealt[mine] = both_n[rng.permutation(mine)]
    return dealt


def _on_axes(place_nxC: np.ndarray, both_n: np.ndarray, group_n: np.ndarray,
             rng: np.random.Generator) -> tuple[np.ndarray, float]:  # fmt: skip
    """Where each patient lies on the axes of folds that it is not in, from the middle on, [n]; and the AUROC."""
    score_RxN, areas = np.full((_PARTITIONS, len(both_n)), np.nan), []
    for score_n in score_RxN:
        fold_n = _folds(both_n, group_n, rng)
        for fold in range(_FOLDS):
            told, train = fold_n == fold, fold_n != fold
            if 0 < both_n[train].sum() < train.sum():
                end_C, start_C = (place_nxC[train & side].mean(0) for side in (both_n, ~both_n))
                axis_C = (end_C - start_C) / max(float(np.linalg.norm(end_C - start_C)), 1e-9)
                score_n[told] = (place_nxC[told] - (start_C + end_C) / 2) @ axis_C
        known = np.isfinite(score_n)
        areas.append(auroc(both_n[known], score_n[known], group_P=(group_n * _FOLDS + fold_n)[known])[0])
    return np.nanmean(score_RxN, 0), float(np.nanmean(areas))


def _folds(both_n: np.ndarray, group_n: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each group's patients of both sides are dealt to the same folds: else few would be in a pair."""
    fold_n = np.zeros(len(both_n), int)
    for group in np.unique(group_n):
        first = rng.integers(_FOLDS)
        for side in (both_n, ~both_n):
            mine = rng.permutation(np.flatnonzero((group_n == group) & side))
            fold_n[mine] = (first + np.arange(len(mine))) % _FOLDS
    return fold_n

"""Two configurations, gene by gene: on how many is the second one better, and is that more than a seed does?

The unit is the patient: intervals draw patients, all of a patient's sections along. Genes are not independent, and are
never drawn. What two seeds of one configuration do to the same fraction stands beside it.
"""

import itertools

import numpy as np

from tario_jax.evaluate.curve import VALUES_AT_ONCE
from tario_jax.evaluate.intervals import ends, patient_resampling
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.scaling.measures import FORMS, Ranking, RunScores

DECILES = 10
_MATCHED = (10, 50, 100, 200, 500, 1000, 2000, 5000)


def compare_genes(
    before: list[RunScores], after: list[RunScores], ranking: Ranking, samples: int, seed: int
) -> dict[str, dict]:
    """{form: what the change from one configuration to another does to r}; both as their seeds, at least one each.

    better: of "genes" that are defined in both, the "n" on which `after` has the higher mean r over sections, and the
    fraction with its patient interval, all as means over the pairs of seeds (range: over those pairs). null: the larger
    of the fractions better and worse between two seeds of one configuration, each pair; of the same checkpoints read in
    two ways (same_checkpoints) there is none: chance is a half. difference: mean over ranked
    genes; by_class and by_decile: the same by gene class and by tenth of the ranking; top: r at matched top-k.
    """
    forms = [form for form in FORMS if all(form in one.r_SxG for one in (*before, *after))]
    rng = np.random.default_rng(seed)
    weights_BxS = patient_resampling(list(after[0].patients), samples, rng).weights_BxS
    return {form: _of_form(before, after, form, ranking, weights_BxS) for form in forms}


def _of_form(
    before: list[RunScores], after: list[RunScores], form: str, ranking: Ranking, weights_BxS: np.ndarray
) -> dict:
    r_before_KxG, r_after_KxG = (
        np.stack([mean_defined(one.r_SxG[form]) for one in several]) for several in (before, after)
    )
    pairs, same = _pairs(before, after)
    fractions = [fraction_better(r_before_KxG[i], r_after_KxG[j]) for i, j in pairs]
    fraction = float(np.mean(fractions))  # NaN where no gene is defined in both
    sampled = _resampled(before, after, form, ranking, weights_BxS)
    genes = int((np.isfinite(r_before_KxG).all(0) & np.isfinite(r_after_KxG).all(0)).sum())
    difference_G = mean_defined(r_after_KxG) - mean_defined(r_before_KxG)
    groups = _groups(after[0], ranking)
    null_G = [] if same else [_null_differences(r_KxG) for r_KxG in (r_before_KxG, r_after_KxG)]
    of_group = {name: {
        "genes": int(np.isfinite(difference_G[members]).sum()),
        "better": fraction_better(mean_defined(r_before_KxG)[members], mean_defined(r_after_KxG)[members]),
        **_mean_with_ends(difference_G[members], sampled["groups"][name]),
        "null": [float(mean_defined(one_G[members])) for several in null_G for one_G in several],
    } for name, members in groups.items()}  # fmt: skip
    return {
        "better": {
            "genes": genes, "fraction": fraction, "n": round(fraction * genes) if genes else 0,
            "range": [min(fractions), max(fractions)], "pairs_of_seeds": len(pairs),
            **_spread_about(fraction, sampled["fraction"]),
            "same_checkpoints": same,
            "null": {name: [] if same else _null_fractions(r_KxG)
                     for name, r_KxG in (("before", r_before_KxG), ("after", r_after_KxG))},
        },
        "difference": of_group.pop("ranked genes"),
        "by_class": {name.removeprefix("class "): of_group[name] for name in of_group if name.startswith("class ")},
        "by_decile": [of_group[name] for name in of_group if name.startswith("decile ")],
        "top": _matched(r_before_KxG, r_after_KxG, ranking),
    }  # fmt: skip


def _pairs(before: list[RunScores], after: list[RunScores]) -> tuple[list[tuple[int, int]], bool]:
    """Which seed is held against which: all against all; but the same checkpoints, read in two ways, each against
    itself, and no seed lies between them (True)."""
    names = [[one.checkpoint for one in several] for several in (before, after)]
    if sorted(names[0]) == sorted(names[1]) and len(set(names[0])) == len(names[0]):
        return [(i, names[1].index(name)) for i, name in enumerate(names[0])], True
    return list(itertools.product(range(len(before)), range(len(after)))), False


def fraction_better(before_G: np.ndarray, after_G: np.ndarray) -> float:
    """Share of the genes defined in both on which `after` is higher; equal ones are not. NaN where there is none."""
    both_G = np.isfinite(before_G) & np.isfinite(after_G)
    return float((after_G[both_G] > before_G[both_G]).mean()) if both_G.any() else float("nan")


def _null_fractions(r_KxG: np.ndarray) -> list[float]:
    """Between every two seeds: which of them comes first means nothing, so the larger of the two ways counts."""
    return [max(fraction_better(a_G, b_G), fraction_better(b_G, a_G)) for a_G, b_G in itertools.combinations(r_KxG, 2)]


def _null_differences(r_KxG: np.ndarray) -> list[np.ndarray]:
    return [b_G - a_G for a_G, b_G in itertools.combinations(r_KxG, 2)]


def _groups(scores: RunScores, ranking: Ranking) -> dict[str, np.ndarray]:
    """{name: positions of its ranked genes}."""
    class_G = np.asarray(scores.gene_class)
    named = sorted({name for name in class_G[ranking.order].tolist() if name})
    found = {"ranked genes": ranking.order}
    found |= {f"class {name}": ranking.order[class_G[ranking.order] == name] for name in named}
    if len(ranking.order) >= DECILES:
        found |= {f"decile {n}": part for n, part in enumerate(np.array_split(ranking.order, DECILES), 1)}
    return found


def _resampled(before, after, form: str, ranking: Ranking, weights_BxS: np.ndarray) -> dict:
    """The fraction better and the mean difference by group, in every sample of patients.

    A few samples at a time: [samples, genes] of a whole transcriptome would be gigabytes. Sections are summed up to
    patients once, since those are what is drawn.
    """
    groups = _groups(after[0], ranking)
    first_P, patient_S = np.unique(np.asarray(after[0].patients), return_index=True, return_inverse=True)[1:]
    weights_BxP = weights_BxS[:, first_P]
    sums_before, sums_after = (
        [_by_patient(one.r_SxG[form], patient_S) for one in several] for several in (before, after)
    )
    fraction, means = [], {name: [] for name in groups}
    at_once = max(1, VALUES_AT_ONCE // len(after[0].symbols))
    for start in range(0, len(weights_BxP), at_once):
        some_BxP = weights_BxP[start : start + at_once]
        r_before, r_after = ([_mean(some_BxP, *sums) for sums in several] for several in (sums_before, sums_after))
        of_pairs = [_fractions(r_before[i], r_after[j]) for i, j in _pairs(before, after)[0]]
        fraction.append(np.mean(of_pairs, axis=0))
        difference_BxG = mean_defined(np.stack(r_after)) - mean_defined(np.stack(r_before))
        for name, members in groups.items():
            means[name].append(mean_defined(difference_BxG[:, members].T))
    return {"fraction": np.concatenate(fraction), "groups": {name: np.concatenate(one) for name, one in means.items()}}


def _by_patient(r_SxG: np.ndarray, patient_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of r over a patient's sections, and the number of those where it is defined, both [P, G]."""
    member_PxS = (np.arange(patient_S.max() + 1)[:, None] == patient_S).astype(np.float64)
    defined_SxG = np.isfinite(r_SxG)
    return member_PxS @ np.where(defined_SxG, r_SxG, 0.0), member_PxS @ defined_SxG


def _mean(weights_BxP: np.ndarray, sum_PxG: np.ndarray, number_PxG: np.ndarray) -> np.ndarray:
    number_BxG = weights_BxP @ number_PxG
    return np.divide(weights_BxP @ sum_PxG, number_BxG, out=np.full_like(number_BxG, np.nan), where=number_BxG > 0)


def _fractions(before_BxG: np.ndarray, after_BxG: np.ndarray) -> np.ndarray:
    both_BxG = np.isfinite(before_BxG) & np.isfinite(after_BxG)
    number_B = both_BxG.sum(1)
    return np.where(number_B > 0, ((after_BxG > before_BxG) & both_BxG).sum(1) / np.maximum(number_B, 1), np.nan)


def _matched(r_before_KxG: np.ndarray, r_after_KxG: np.ndarray, ranking: Ranking) -> list[dict]:
    """Mean r over the same k genes of highest Moran's I, of each seed."""
    sizes = sorted({k for k in (*_MATCHED, len(ranking.top)) if k <= len(ranking.order)} | {len(ranking.order)})
    return [{"k": k, **{name: [float(mean_defined(r_G[ranking.order[:k]])) for r_G in r_KxG]
                        for name, r_KxG in (("before", r_before_KxG), ("after", r_after_KxG))}}
            for k in sizes]  # fmt: skip


def _mean_with_ends(values_G: np.ndarray, samples_B: np.ndarray) -> dict[str, float]:
    return {"mean": float(mean_defined(values_G)), **ends(samples_B)}


def _spread_about(fraction: float, samples_B: np.ndarray) -> dict[str, float]:
    """Ends of the samples about their own mean, laid around the fraction.

    Drawing patients adds their noise once more, which takes every sample's fraction nearer to a half: the samples' own
    ends would often leave out the fraction itself. Their mean is told too.
    """
    mean = float(np.mean(samples_B))
    laid = {name: float(np.clip(end + fraction - mean, 0.0, 1.0)) for name, end in ends(samples_B).items()}
    return laid | {"resampled_mean": mean}

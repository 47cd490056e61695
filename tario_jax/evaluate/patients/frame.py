"""A cohort as a frame of reference: where a patient stands in it, what makes neighbours alike, how outcomes go with it.

Every share has its interval: Wilson's (J. Am. Stat. Assoc. 22:209, 1927) of patients counted, Student's of two means.
What is read here describes a cohort; nothing in it is an advice on a treatment.

Axes: P entries of an index, G genes, n patients that are compared.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.neighbours import Query
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.tables import says_nothing
from tario_jax.evaluate.patients.vectors import PREDICTED, Embedded
from tario_jax.predict.signatures import Signature

_LEAST_DEVIATION = 1e-4
_MOST_GENES = 10  # of those that differ most
LEAST_COMPARED = 4  # patients of each side of a difference, and of those that a query is ranked among
_RARE = 0.025


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where a query stands among the patients of a cohort."""

    of: str  # gene or signature
    deviations: float  # from the cohort's mean, in its standard deviations
    percentile: float  # share of its patients below, those at the same value by half
    low: float  # 95 %, of those below
    high: float  # and of those not above
    patients: int

    @property
    def unusual(self) -> bool:
        """Beyond all but one in forty on a side, and not by chance of who was counted."""
        return self.high < _RARE or self.low > 1 - _RARE


def patients_to_tell() -> int:
    """Fewest of whom a query that lies beyond all of them is called unusual."""
    return next(number for number in itertools.count(1) if share_interval(0, number)[1] < _RARE)


def share_interval(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval."""
    found = stats.binomtest(count, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def standings(index: PatientIndex, query: Query, cohort: str, genes: Sequence[str],
              signatures: Sequence[Signature], symbols: Sequence[str]) -> list[Standing]:  # fmt: skip
    """Of genes, then of signatures: a signature's level is the mean of its genes, each in standard deviations of the
    cohort. Among patients of the query's own kind, since what was measured spreads more than what is predicted; the
    query's own patient is not counted. A gene that fewer than LEAST_COMPARED of them have is left out."""
    everyone = np.flatnonzero((index.kind_P == query.kind) & (index.cohort_P == cohort))
    others_P = index.name_P[everyone] != query.patient
    if others_P.sum() < LEAST_COMPARED or not (genes or signatures):
        return []
    level_G = query.level_G()
    place = {symbol: at for at, symbol in enumerate(symbols)}
    cache: dict[int, np.ndarray] = {}

    def scaled(gene: int) -> tuple[np.ndarray, float]:
        if gene not in cache:
            cache[gene] = index.levels(gene, everyone).astype(np.float64)
        known = cache[gene][np.isfinite(cache[gene])]
        if len(known) < LEAST_COMPARED:
            return np.full(int(others_P.sum()), np.nan), np.nan
        mean, deviation = known.mean(), max(float(known.std(ddof=1)), _LEAST_DEVIATION)
        return (cache[gene][others_P] - mean) / deviation, (float(level_G[gene]) - mean) / deviation

    found = []
    sets = [(symbol, [place[symbol]]) for symbol in genes]
    sets += [(one.name, one.positions.tolist()) for one in signatures if len(one.positions)]
    for name, positions in sets:
        others, own = zip(*(scaled(gene) for gene in positions), strict=True)
        other_n, value = np.mean(others, 0), float(np.mean(own))
        other_n = other_n[np.isfinite(other_n)]  # of whom all of its genes are known
        if len(other_n) < LEAST_COMPARED or not np.isfinite(value):
            continue
        below, not_above = int((other_n < value).sum()), int((other_n <= value).sum())  # many have none of a rare gene
        low, high = share_interval(below, len(other_n))[0], share_interval(not_above, len(other_n))[1]
        spread = max(float(other_n.std(ddof=1)), _LEAST_DEVIATION)
        found.append(Standing(name, (value - float(other_n.mean())) / spread, (below + not_above) / 2 / len(other_n),
                              low, high, len(other_n)))  # fmt: skip
    return found


def alike_genes(index: PatientIndex, query: Query, entries: np.ndarray, cohort: str, symbols: Sequence[str],
                number: int = 10) -> list[dict[str, Any]]:  # fmt: skip
    """Genes in which the query and its neighbours leave the cohort on the same side: by the product of their
    deviations, each within ±4 and among patients of its own kind (predicted or measured), largest first; `part` is its
    share of the sum over all genes."""
    scales = {kind: index.scale(kind, cohort) for kind in {query.kind, *index.kind_P[entries].tolist()}}

    def deviations(level_G: np.ndarray, kind: str) -> np.ndarray:
        mean_G, deviation_G = scales[kind]
        return np.clip((level_G - mean_G) / np.where(deviation_G > _LEAST_DEVIATION, deviation_G, np.inf), -4, 4)

    own_G = deviations(query.level_G(), query.kind)
    theirs_G = np.mean([deviations(index.level_G(int(one)), str(index.kind_P[one])) for one in entries], 0)
    both_G = np.nan_to_num(own_G * theirs_G, nan=0.0)
    order = np.argsort(-both_G, kind="stable")[:number]
    whole = float(np.abs(both_G).sum()) or 1.0
    return [{"gene": symbols[g], "query": round(float(own_G[g]), 2), "neighbours": round(float(theirs_G[g]), 2),
             "part": float(both_G[g]) / whole} for g in order if both_G[g] > 0]  # fmt: skip


def regions_of(store: EmbeddingStore, index: PatientIndex, entry: int) -> list[Embedded]:
    """Squares of a patient's sections that have rows of their own."""
    return store.rows(str(index.kind_P[entry]), regions=True, patients={str(index.name_P[entry])},
                      parts=index.parts_of(entry), vectors=("expression",))  # fmt: skip


def alike_regions(index: PatientIndex, own: Sequence[Embedded], theirs: Sequence[Embedded],
                  number: int = 3) -> list[dict[str, Any]]:  # fmt: skip
    """Squares of two patients that are nearest to each other in the space, each square once."""
    if not own or not theirs:
        return []
    place = [index.space.placed(rows[0].kind, np.stack([row.expression_G for row in rows])) for rows in (own, theirs)]
    distance = np.linalg.norm(place[0][:, None].astype(np.float64) - place[1][None], axis=2)
    found = []
    for _ in range(min(number, len(own), len(theirs))):
        a, b = np.unravel_index(distance.argmin(), distance.shape)
        found.append({"section": own[a].section, "corner_um": own[a].region, "other_section": theirs[b].section,
                      "other_corner_um": theirs[b].region, "distance": round(float(distance[a, b]), 3)})  # fmt: skip
        distance[a], distance[:, b] = np.inf, np.inf
    return found


def outcome_shares(value_n: Sequence[str], value_P: Sequence[str]) -> list[dict[str, Any]]:
    """How often each value of a column is among neighbours, against the cohort it is taken from.

    p: hypergeometric, two-sided by doubling: so many or more (so few or fewer) among as many patients drawn by chance.
    """
    known_n, known_P = ([value for value in values if not says_nothing(value)] for values in (value_n, value_P))
    found = []
    for value in sorted(set(known_P)):
        mine, of = known_n.count(value), len(known_n)
        everyone, all_of = known_P.count(value), len(known_P)
        low, high = share_interval(mine, of) if of else (0.0, 1.0)
        chance = stats.hypergeom(all_of, everyone, of)
        p = min(1.0, 2 * min(float(chance.sf(mine - 1)), float(chance.cdf(mine)))) if of else 1.0
        found.append({"value": value, "neighbours": mine, "of": of, "share": mine / of if of else None, "low": low,
                      "high": high, "cohort_share": everyone / all_of, "cohort": all_of, "p": p})  # fmt: skip
    return found


def differences(index: PatientIndex, entries: np.ndarray, yes_n: np.ndarray, cohort: str,
                signatures: Sequence[Signature], symbols: Sequence[str],
                query: Query) -> dict[str, Any] | None:  # fmt: skip
    """How patients with an outcome differ from those without, and on which side the query lies.

    Of each signature, and of the genes that differ most, the difference of means in standard deviations of the cohort
    with Welch's 95 % interval and a false discovery rate over all genes, over all signatures (Benjamini & Hochberg);
    `query` is where the query stands between the means: 0 at those without, 1 at those with, in deviations of its own
    kind where it is a measured one among predicted ones. None for too few.
    """
    if min(yes_n.sum(), (~yes_n).sum()) < LEAST_COMPARED:
        return None
    (mean_G, deviation_G), (own_mean_G, own_deviation_G) = (index.scale(kind, cohort)
                                                            for kind in (PREDICTED, query.kind))  # fmt: skip
    varies_G = np.minimum(deviation_G, own_deviation_G) > _LEAST_DEVIATION
    scale_G, own_scale_G = (np.where(varies_G, of_G, np.inf) for of_G in (deviation_G, own_deviation_G))
    level_nxG = np.stack([(index.level_G(int(entry)) - mean_G) / scale_G for entry in entries])
    own_G = (query.level_G() - own_mean_G) / own_scale_G
    used_G = varies_G & np.isfinite(level_nxG).all(0) & np.isfinite(own_G)
    if not used_G.any():  # as of the one measured patient of a cohort
        return None
    kept = [one for one in signatures if len(one.positions) and used_G[one.positions].all()]
    found = {"with": int(yes_n.sum()), "without": int((~yes_n).sum())}
    genes = _compared(level_nxG[:, used_G], own_G[used_G], yes_n, [s for s, used in zip(symbols, used_G, strict=True)
                                                                   if used])  # fmt: skip
    found["genes"] = sorted(genes, key=lambda one: one["p"])[:_MOST_GENES]
    if kept:
        score_nxS = np.stack([level_nxG[:, one.positions].mean(1) for one in kept], 1)
        own_S = np.array([own_G[one.positions].mean() for one in kept])
        found["signatures"] = sorted(_compared(score_nxS, own_S, yes_n, [one.name for one in kept]),
                                     key=lambda one: one["p"])  # fmt: skip
    return found


def _compared(value_nxF: np.ndarray, own_F: np.ndarray, yes_n: np.ndarray, names: Sequence[str]) -> list[dict]:
    test = stats.ttest_ind(value_nxF[yes_n], value_nxF[~yes_n], equal_var=False)
    p_F = np.nan_to_num(test.pvalue, nan=1.0)
    q_F = stats.false_discovery_control(p_F)
    limits = test.confidence_interval(0.95)
    with_F, without_F = value_nxF[yes_n].mean(0), value_nxF[~yes_n].mean(0)
    gap_F = with_F - without_F
    side_F = np.divide(own_F - without_F, gap_F, out=np.full(len(gap_F), np.nan), where=np.abs(gap_F) > 1e-9)
    return [{"name": name, "difference": float(gap_F[f]), "low": float(limits.low[f]), "high": float(limits.high[f]),
             "p": float(p_F[f]), "false_discovery_rate": float(q_F[f]), "query": float(side_F[f])}
            for f, name in enumerate(names)]  # fmt: skip

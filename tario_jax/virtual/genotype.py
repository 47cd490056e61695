"""Mutations of NSCLC patients: how often, together with what, and what they change.

EGFR and KRAS nearly exclude each other, STK11 goes with KRAS, RBM10 with nothing. A mutation shows in the H&E only
through traits of the tissue that others have for other reasons, and through the site, which some mutations draw
patients to; RBM10 shows nowhere.
"""

import functools
import itertools

import numpy as np

from tario_jax.virtual.diagnoses import NSCLC

MUTATIONS = ("EGFR", "KRAS", "STK11", "PTEN", "RBM10")
# mutation -> shift of a patient's trait or unseen level, in standard deviations of the other patients
EFFECTS = {
    "EGFR": {"grade": -0.7, "immune": -0.45, "vascularity": 0.35, "metabolism": -0.3},
    "KRAS": {"immune": 0.7, "immune_border": 0.55, "fibrosis": 0.45, "interferon": 0.4},
    "STK11": {"immune": -0.95, "immune_border": -0.75, "fibrosis": -0.45, "metabolism": 0.6},
    "PTEN": {"grade": 0.95, "vascularity": -0.6, "stress": 0.5},
    "RBM10": {"subclone": 1.2},
}  # fmt: skip
TRAIT_LIMIT = 2.5  # standard deviations at which traits end, before the shifts
SITES = ("site_a", "site_b", "site_c", "site_d", "site_e", "site_f")
# log odds of a site, by the mutation that draws patients there
SITE_OF = {"EGFR": ("site_b", 0.9), "KRAS": ("site_c", 0.7), "STK11": ("site_d", 0.9), "PTEN": ("site_e", 0.9)}
FEMALE = {"BRCA": 0.99, "OV": 1.0, "PRAD": 0.0}
FEMALE_ELSEWHERE = 0.48
SMOKER = {"LUAD": 0.75, "LUSC": 0.93}
SMOKER_ELSEWHERE = 0.35


def female_share(cohort: str) -> float:
    return FEMALE.get(cohort, FEMALE_ELSEWHERE)


def smoker_share(cohort: str) -> float:
    return SMOKER.get(cohort, SMOKER_ELSEWHERE)


def logistic(odds: float) -> float:
    """The probability that goes with these log odds."""
    return float(1 / (1 + np.exp(-odds)))


def _chance(name: str, cohort: str, female: bool, smoker: bool, earlier: dict[str, bool]) -> float:
    """Probability of a mutation, given those that come before it in MUTATIONS."""
    adeno = cohort == "LUAD"
    if name == "EGFR":
        return logistic(-2.1 + 1.3 * (not smoker) + 0.4 * female) if adeno else 0.04
    if name == "KRAS":
        if earlier["EGFR"]:
            return 0.02
        return logistic(-1.2 + 0.9 * smoker) if adeno else 0.08
    if name == "STK11":
        return (0.32 if earlier["KRAS"] else 0.09) if adeno else 0.04
    return {"PTEN": 0.06 if adeno else 0.17, "RBM10": 0.2}[name]


def draw_genotype(cohort: str, female: bool, smoker: bool, rng: np.random.Generator) -> dict[str, bool]:
    """The patient's mutations, by MUTATIONS; empty outside NSCLC."""
    chance_M = rng.random(len(MUTATIONS))
    found: dict[str, bool] = {}
    if cohort in NSCLC:
        for name, chance in zip(MUTATIONS, chance_M, strict=True):
            found[name] = bool(chance < _chance(name, cohort, female, smoker, found))
    return found


def shifts(mutated: dict[str, bool], names: tuple[str, ...]) -> np.ndarray:
    """What these mutations add to each of the named traits or levels, float64 [len(names)]."""
    total = np.zeros(len(names))
    for mutation, effects in EFFECTS.items():
        if mutated.get(mutation, False):
            total += [effects.get(name, 0.0) for name in names]
    return total


def site_chances(mutated: dict[str, bool]) -> np.ndarray:
    """Probability of each site of treatment, by SITES, float64 [len(SITES)]."""
    odds = np.zeros(len(SITES))
    for name, (site, pull) in SITE_OF.items():
        odds[SITES.index(site)] += pull * mutated.get(name, False)
    return np.exp(odds) / np.exp(odds).sum()


@functools.cache
def _prior(cohort: str) -> tuple[tuple[tuple[bool, ...], float], ...]:
    """Every genotype of a cancer type, by MUTATIONS, with its probability over women and men, smokers and not."""
    found = []
    for chosen in itertools.product((False, True), repeat=len(MUTATIONS)):
        prior = 0.0
        for female, smoker in itertools.product((False, True), repeat=2):
            weight = female_share(cohort) if female else 1 - female_share(cohort)
            weight *= smoker_share(cohort) if smoker else 1 - smoker_share(cohort)
            for m, name in enumerate(MUTATIONS):
                chance = _chance(name, cohort, female, smoker, dict(zip(MUTATIONS[:m], chosen, strict=False)))
                weight *= chance if chosen[m] else 1 - chance
            prior += weight
        found.append((chosen, prior))
    return tuple(found)


def posterior(cohort: str, trait_R: np.ndarray, traits: tuple[str, ...],
              site: str) -> list[tuple[dict[str, bool], float]]:  # fmt: skip
    """Every genotype with its probability, given the cancer type, the traits that the tissue shows (N(0, 1) within
    TRAIT_LIMIT but for the shifts) and the site. One entry without mutations outside NSCLC."""
    if cohort not in NSCLC:
        return [({}, 1.0)]
    found = []
    for chosen, prior in _prior(cohort):
        mutated = dict(zip(MUTATIONS, chosen, strict=True))
        residual_R = trait_R - shifts(mutated, traits)
        possible = bool((np.abs(residual_R) <= TRAIT_LIMIT).all())
        likely = possible * float(np.exp(-0.5 * (residual_R**2).sum())) * site_chances(mutated)[SITES.index(site)]
        found.append((mutated, prior * likely))
    total = sum(weight for _, weight in found)
    return [(mutated, weight / total) for mutated, weight in found]

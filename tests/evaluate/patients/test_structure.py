"""Population structure: odds ratios by hand, and a permutation test that finds what is there and nothing else."""

import numpy as np
import pytest
from scipy import stats

from tario_jax.evaluate.patients.structure import co_occurrence, two_against_one


def test_log_odds_ratios_are_those_of_the_table():
    a = np.array([1] * 30 + [0] * 70, bool)
    b = np.array([1] * 20 + [0] * 10 + [1] * 10 + [0] * 60, bool)
    (found,) = co_occurrence({"A": a, "B": b}, {"A": a.astype(float), "B": b.astype(float)})
    assert found["both"] == 20 and found["log_odds_ratio"] == pytest.approx(np.log(20.5 * 60.5 / (10.5 * 10.5)))
    assert found["told_log_odds_ratio"] == pytest.approx(found["log_odds_ratio"])
    assert found["p"] == pytest.approx(stats.fisher_exact([[20, 10], [10, 60]])[1])
    assert found["low"] < found["log_odds_ratio"] < found["high"]
    (even,) = co_occurrence({"A": a, "B": b}, {"A": np.full(100, 0.3), "B": np.full(100, 0.3)})
    assert abs(even["told_log_odds_ratio"]) < 0.02
    unknown = np.concatenate([np.where(a, 1.0, 0.0), np.full(20, np.nan)]), np.concatenate([b, b[:20]]).astype(float)
    (known,) = co_occurrence(dict(zip("AB", unknown, strict=True)), dict(zip("AB", unknown, strict=True)))
    assert known == found and known["patients"] == 100  # of whom both are known


def places(shift: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    first, second = rng.random(400) < 0.5, rng.random(400) < 0.3
    group = rng.integers(0, 3, 400)
    place = rng.normal(0, [3, 1, 1, 0.5, 0.2], (400, 5)) + 4.0 * group[:, None]
    place[second, 3] += shift
    return place.astype(np.float32), first, second, group


def test_patients_with_both_lie_elsewhere_where_they_do():
    found = two_against_one(*places(0.8), permutations=300)
    assert found["p"] < 0.01 and found["auroc"] > 0.75 and found["distance"] > 2 * found["distance_of_permutations"]
    first, second = places(0.8)[1:3]
    assert (found["both"], found["first_alone"]) == ((first & second).sum(), (first & ~second).sum())


def test_where_they_do_not_p_is_even():
    p = [two_against_one(*places(0.0, seed), permutations=99)["p"] for seed in range(30)]
    assert np.mean(np.array(p) < 0.1) < 0.3 and 0.3 < np.mean(p) < 0.7


def test_noise_is_ordered_by_chance():
    """Few with both against many, in many directions: each on the axis of all others it was 0.29, in groups 0.62."""
    rng = np.random.default_rng(7)
    for both, patients, groups in ((8, 48, 1), (15, 60, 5)):
        area = []
        for _ in range(24):
            place, second = rng.normal(0, 1, (patients, 1000)), np.arange(patients) < both
            found = two_against_one(place, np.ones(patients, bool), second, np.arange(patients) % groups,
                                    permutations=1)  # fmt: skip
            area.append(found["auroc"])
        assert abs(np.mean(area) - 0.5) < 2 * np.std(area) / np.sqrt(24), np.mean(area)
    assert two_against_one(*places(0.3), permutations=2) == two_against_one(*places(0.3), permutations=2)


def test_a_group_is_not_taken_for_a_genotype():
    """The second mutation is more frequent in one site, whose patients lie elsewhere."""
    place, first, _, group = places(0.0)
    second = np.random.default_rng(1).random(400) < np.where(group == 2, 0.7, 0.1)
    assert two_against_one(place, first, second, np.zeros(400, int), permutations=200)["p"] < 0.01
    assert two_against_one(place, first, second, group, permutations=200)["p"] > 0.02


def test_too_few_are_not_compared():
    place, first, second, group = places(0.0)
    second[np.flatnonzero(first & second)[5:]] = False
    assert two_against_one(place, first, second, group) is None

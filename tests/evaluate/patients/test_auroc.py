"""AUROC against scikit-learn and by counting pairs."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tario_jax.evaluate.patients.auroc import auroc, drawn_weights, macro_auroc


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    positive = rng.random(80) < 0.3
    score = np.round(rng.normal(positive * 0.8, 1.0), 1)  # with ties
    return positive, score, rng.integers(0, 4, 80)


def test_it_is_that_of_scikit_learn_with_ties_and_weights(made):
    positive, score, _ = made
    weights = drawn_weights(80, 5, 1)
    assert weights.sum(1).tolist() == [80.0] * 5
    expected = [roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(auroc(positive, score, weight_BxP=weights), expected, atol=1e-6)
    assert auroc(positive, score)[0] == pytest.approx(roc_auc_score(positive, score))
    assert auroc(positive, -score)[0] == pytest.approx(1 - roc_auc_score(positive, score))


def test_within_groups_only_pairs_of_one_group_count(made):
    positive, score, group = made
    pairs = [(a, b) for a, b in itertools.permutations(range(80), 2)
             if positive[a] and not positive[b] and group[a] == group[b]]  # fmt: skip
    expected = np.mean([(score[a] > score[b]) + 0.5 * (score[a] == score[b]) for a, b in pairs])
    assert auroc(positive, score, group_P=group)[0] == pytest.approx(expected)
    shifted = score + 100 * group  # what a group adds to all of its patients is not in it
    assert auroc(positive, shifted, group_P=group)[0] == pytest.approx(expected, abs=0.02)
    assert np.isnan(auroc(positive, score, group_P=np.arange(80))[0])


def test_of_several_classes_it_is_the_mean_against_the_rest(made):
    _, _, label = made
    chance = np.random.default_rng(1).dirichlet([1, 1, 1, 1], 80) + 0.3 * (label[:, None] == np.arange(4))
    expected = np.mean([roc_auc_score(label == k, chance[:, k]) for k in range(4)])
    assert macro_auroc(label, np.log(chance))[0] == pytest.approx(expected)
    two = np.stack([1 - chance[:, 0], chance[:, 0]], 1)
    assert macro_auroc((label == 0).astype(int), two)[0] == pytest.approx(roc_auc_score(label == 0, chance[:, 0]))

"""Who is unlike the training patients: distances by hand, unseen classes found, and few others with them."""

import numpy as np
import pytest
from refusals import refused
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from tario_jax.evaluate.patients.unlike import described

RNG = np.random.default_rng(0)
MEANS = {"a": np.array([0, 0, 0, 0.0]), "b": np.array([6, 0, 0, 0.0]), "c": np.array([0, 6, 0, 0.0])}


def drawn(number: int, mean, rng) -> np.ndarray:
    mix = np.array([[1, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0], [0, 0, 0, 0.2]])
    return rng.normal(0, 1, (number, 4)) @ mix + mean


@pytest.fixture(scope="module")
def reference():
    features = np.concatenate([drawn(100, mean, RNG) for mean in MEANS.values()])
    return features, np.repeat(list(MEANS), 100), described(features, np.repeat(list(MEANS), 100))


def test_distances_are_those_of_mahalanobis_to_the_nearest_class(reference):
    features, names, found = reference
    scaled = (features - features.mean(0)) / features.std(0)
    means = {name: scaled[names == name].mean(0) for name in MEANS}
    within = np.concatenate([scaled[names == name] - mean for name, mean in means.items()])
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(within).covariance_)
    expected = [min(mahalanobis(one, mean, inverse) for mean in means.values()) for one in scaled[::37]]
    np.testing.assert_allclose(found.distance(features[::37]), expected, rtol=1e-6)
    assert np.mean(np.array(found.nearest(features)) == names) > 0.97


def test_an_unseen_class_is_found_and_few_others(reference):
    *_, found = reference
    rng = np.random.default_rng(7)
    new = np.concatenate([drawn(200, mean, rng) for mean in MEANS.values()])
    assert found.unlike(new).mean() < 0.06
    assert found.unlike(drawn(100, [6, 6, 0, 0], rng)).mean() > 0.8  # between the classes that are known
    assert found.unlike(drawn(100, [0, 0, 0, 2.0], rng)).mean() > 0.9  # along what hardly varies within them


def test_rare_classes_and_few_patients():
    features = np.concatenate([drawn(60, MEANS["a"], RNG), drawn(2, MEANS["b"], RNG)])
    assert described(features, np.array(["a"] * 60 + ["b"] * 2)).class_K == ("a",)
    refused(lambda: described(features[:30], np.array(["a"] * 30)), "30 patients", "at least 40")

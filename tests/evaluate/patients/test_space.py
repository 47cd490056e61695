"""The space of patients: places by hand in float64, neighbours by brute force, and what does not belong together."""

import time

import numpy as np
import pytest
from refusals import refused

from tario_jax.evaluate.patients.space import Space, fitted, nearest, nearest_of_each, read_space
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED, Patients

ALIKE = {"panel_hash": "p", "checkpoint": "c"}
GENES, PATIENTS = 40, 30


def patients(expression_PxG: np.ndarray) -> Patients:
    number = len(expression_PxG)
    nothing = np.zeros((number, 1))
    return Patients(np.array([f"P{at:02d}" for at in range(number)]), np.array(["LUAD"] * number),
                    np.zeros(number, bool), expression_PxG.astype(np.float32), *[nothing] * 5)  # fmt: skip


@pytest.fixture(scope="module")
def expression() -> np.ndarray:
    """Three directions, and noise."""
    rng = np.random.default_rng(0)
    along = rng.normal(0, [3.0, 2.0, 1.0], (PATIENTS, 3))
    return 5 + along @ rng.normal(0, 1, (3, GENES)) + rng.normal(0, 0.05, (PATIENTS, GENES))


@pytest.fixture(scope="module")
def space(expression) -> Space:
    known = fitted(patients(expression), 3, **ALIKE)
    return known.with_kind(MEASURED, patients(2 * expression + 1), patients(expression))


def test_places_are_those_of_the_principal_components(space, expression):
    centred = expression - expression.mean(0)
    _, singular, right = np.linalg.svd(centred, full_matrices=False)
    placed = space.placed(PREDICTED, expression)
    expected = centred @ right[:3].T
    np.testing.assert_allclose(np.abs(placed), np.abs(expected), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(space.deviation_C, singular[:3] / np.sqrt(PATIENTS - 1), rtol=1e-5)
    np.testing.assert_allclose(placed.mean(0), 0, atol=1e-4)
    measured = space.placed(MEASURED, 2 * expression + 1)  # by its own mean, and as the predicted ones vary
    np.testing.assert_allclose(measured, placed, rtol=1e-2, atol=1e-2)


def test_few_pairs_fit_no_map(expression):
    known = fitted(patients(expression), 3, **ALIKE)
    few = known.with_kind(MEASURED, patients(2 * expression[:5] + 1), patients(expression[:5]))
    mean = expression[:5].mean(0)  # of the same patients: they lie as far from the others as they were predicted
    centred = 2 * (expression[:5] - mean) + mean - expression.mean(0)
    expected = centred @ known.component_CxG.T.astype(float)
    np.testing.assert_allclose(few.placed(MEASURED, 2 * expression[:5] + 1), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(few.placed(PREDICTED, expression), known.placed(PREDICTED, expression))
    assert few.identity != known.identity


def test_a_gene_that_no_measured_patient_has_says_nothing(expression):
    lacking = 2 * expression + 1
    lacking[:, 5] = np.nan
    space = fitted(patients(expression), 3, **ALIKE).with_kind(MEASURED, patients(lacking), patients(expression))
    assert np.isfinite(space.placed(MEASURED, lacking)).all()


def test_the_nearest_of_each(monkeypatch):
    rng = np.random.default_rng(1)
    place = rng.normal(0, 1, (57, 4)).astype(np.float32)
    monkeypatch.setattr("tario_jax.evaluate.patients.space._AT_ONCE", 10)
    distance = np.linalg.norm(place[None].astype(float) - place[:, None], axis=2) + np.diag(np.full(57, np.inf))
    np.testing.assert_allclose(nearest_of_each(place, np.array([3, 11, 56])), distance.min(1)[[3, 11, 56]], rtol=1e-4)


def test_an_unknown_gene_is_at_its_mean_and_one_of_a_few_is_not_used(space, expression):
    lacking = expression[:2].copy()
    lacking[0, 4] = np.nan
    at_mean = expression[:2].copy()
    at_mean[0, 4] = expression[:, 4].mean()
    np.testing.assert_allclose(space.placed(PREDICTED, lacking), space.placed(PREDICTED, at_mean), rtol=1e-4, atol=1e-4)
    some = expression.copy()
    some[3, 7] = np.nan
    found = fitted(patients(some), 3, **ALIKE)
    assert (found.component_CxG[:, 7] == 0).all() and (found.mean_KxG[:, 7] == 0).all()
    assert (found.component_CxG[:, 8] != 0).any() and np.isfinite(found.placed(PREDICTED, some)).all()


def test_it_is_kept_and_read_again(space, tmp_path, expression):
    path = tmp_path / "space.npz"
    space.write(path)
    again = read_space(path)
    assert np.array_equal(again.placed(PREDICTED, expression), space.placed(PREDICTED, expression))
    assert (again.panel_hash, again.checkpoint, again.kinds) == ("p", "c", (PREDICTED, MEASURED))
    path.write_bytes(path.read_bytes()[:200])
    refused(lambda: read_space(path), "damaged")
    refused(lambda: read_space(tmp_path / "none.npz"), "no such space")
    np.savez(path, version=9)
    refused(lambda: read_space(path), "version 9")


def test_neighbours_are_the_nearest(monkeypatch):
    rng = np.random.default_rng(1)
    place, query = rng.normal(0, 1, (57, 4)).astype(np.float32), rng.normal(0, 1, (6, 4)).astype(np.float32)
    place[30] = place[3]  # a tie
    monkeypatch.setattr("tario_jax.evaluate.patients.space._AT_ONCE", 10)  # over several blocks
    distance = np.linalg.norm(place[None].astype(float) - query[:, None], axis=2)
    distance[:, [5, 40]] = np.inf
    expected = np.argsort(distance, 1, kind="stable")[:, :7]
    found = nearest(place, query, 7, without_P=(5, 40))
    np.testing.assert_array_equal(found.index_Qxn, expected)
    np.testing.assert_allclose(found.distance_Qxn, np.take_along_axis(distance, expected, 1), rtol=1e-4)
    of_itself = nearest(place, place[3:4], 2)
    assert of_itself.index_Qxn[0].tolist() == [3, 30] and of_itself.distance_Qxn[0, 0] < 1e-3
    assert nearest(place[:3], query, 7).index_Qxn.shape == (6, 3)


def test_100_000_patients_are_searched_at_once():
    rng = np.random.default_rng(2)
    place = rng.normal(0, 1, (100_000, 50)).astype(np.float32)
    nearest(place, place[:1], 5)
    began = time.perf_counter()
    found = nearest(place, place[77:78], 5)
    assert found.index_Qxn[0, 0] == 77 and time.perf_counter() - began < 1.0  # the claim is 0.1 s, on a quiet machine


def test_what_cannot_be_is_refused(space, expression):
    refused(lambda: fitted(patients(expression[:3]), 2, **ALIKE), "3 patients", "at least 5")
    nothing = np.full((6, GENES), np.nan)
    refused(lambda: fitted(patients(nothing), 2, **ALIKE), "no gene is known")
    refused(lambda: space.placed(PREDICTED, expression[:, :9]), "9 genes", "40")
    alone = fitted(patients(expression), 2, **ALIKE)
    refused(lambda: alone.placed(MEASURED, expression), "--measured")

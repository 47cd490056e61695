"""Places are the same within a stated tolerance, whatever the precision and the origin of their centres."""

import numpy as np
import pytest
from refusals import refused

from tario_jax.panel import Panel
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.same_places import SAME_PLACE_UM, first_repeated, same_places


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("origin_um", [0.0, 0.005, 37.125, 81_234.565])
def test_a_grid_is_found_from_any_origin_in_either_precision(dtype, origin_um):
    row, column = np.divmod(np.random.default_rng(0).permutation(30 * 20), 30)
    known = origin_um + 9.0 * column + 4.5, origin_um + 9.0 * row + 4.5
    shuffled = np.random.default_rng(1).permutation(600)[:400]
    asked = [um_N[shuffled].astype(dtype) for um_N in known]
    np.testing.assert_array_equal(same_places(known, asked), shuffled)
    np.testing.assert_array_equal(same_places([um_N.astype(dtype) for um_N in known], asked), shuffled)


def test_a_place_beside_all_that_are_known_is_none():
    known = np.array([5.0, 14.0]), np.array([5.0, 5.0])
    asked = np.array([5.0, 5.0, 14.0 + 0.9 * SAME_PLACE_UM, 9.5]), np.array([5.0, 5.0 + 1.1 * SAME_PLACE_UM, 5.0, 5.0])
    assert same_places(known, asked).tolist() == [0, -1, 1, -1]
    assert same_places((np.zeros(0), np.zeros(0)), asked).tolist() == [-1] * 4
    assert same_places(known, (np.zeros(0), np.zeros(0))).tolist() == []


def test_of_two_that_are_nearer_than_the_tolerance_each_is_found():
    x_um_N, y_um_N = np.array([5.0, 5.0 + 0.4 * SAME_PLACE_UM, 14.0]), np.array([5.0, 5.0, 5.0])
    assert same_places((x_um_N, y_um_N), (x_um_N[::-1], y_um_N)).tolist() == [2, 1, 0]


@pytest.mark.parametrize("x_um", [5.0, 5.0049, 5.0149])  # on both sides of where a rounded centre would change
def test_the_first_that_repeats_one_before_it(x_um):
    x_um_N = np.array([x_um, 14.0, 23.0, 14.0, x_um + 0.4 * SAME_PLACE_UM])
    assert first_repeated(x_um_N, np.full(5, 7.0)) == 3
    assert first_repeated(x_um_N[[0, 1, 4]], np.full(3, 7.0)) == 2
    assert first_repeated(x_um_N[:3], np.full(3, 7.0)) is None


def test_rows_of_maps_are_asked_by_place_and_one_that_is_not_there_is_refused():
    x_um_N, y_um_N = np.array([18.0, 54.0, 90.0]), np.array([18.0, 18.0, 18.0])
    maps = GeneMaps("S1", Panel(("A",)), x_um_N, y_um_N, 36.0, np.zeros((3, 1), np.float32), 0.5, "virtual", "virtual")
    assert maps.rows_at(np.array([90.0, 18.0], np.float32), np.array([18.0, 18.0])).tolist() == [2, 0]
    beside_um_N = x_um_N + np.array([0.0, 9.0, 0.0])
    refused(lambda: maps.rows_at(beside_um_N, y_um_N), "S1", "no place at 63, 18 µm", "predict the same bins")

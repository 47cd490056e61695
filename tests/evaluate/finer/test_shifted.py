"""Shifted counts against moved detections, and sparse correlations against dense ones."""

import numpy as np
import pytest

from tario_jax.corpus.section import Detections
from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.finer.shifted import Prediction, count_shifted, directions
from tario_jax.evaluate.metrics import composition, expected_composition, pearson_by_gene

GENES, COLUMNS, ROWS, BIN_UM = 7, 6, 5, 9.0


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    gene = rng.choice(GENES - 1, 900, p=[0.4, 0.3, 0.15, 0.1, 0.04, 0.01]).astype(np.int32)  # the last is never seen
    return Detections(rng.uniform(0, 60, 900), rng.uniform(0, 50, 900), gene)


def dense(counted, bins: int) -> np.ndarray:
    values = np.zeros((bins, GENES))
    np.add.at(values, (counted.bin_E, counted.gene_E), counted.count_E)
    return values


def test_directions_are_even_and_of_length_one():
    ways = directions(8)
    np.testing.assert_allclose(np.hypot(*ways.T), 1)
    np.testing.assert_allclose(ways.sum(0), 0, atol=1e-12)
    assert len({tuple(way.round(6)) for way in ways}) == 8


@pytest.mark.parametrize("shift", [(0.0, 0.0), (9.0, 0.0), (-3.3, 7.1), (100.0, 0.0)])
def test_counts_are_those_of_detections_that_were_moved(found, shift):
    kept = np.array([0, 3, 8, 9, 17, 29])
    counted = count_shifted(found, np.array(shift), BIN_UM, COLUMNS, ROWS, kept, GENES)
    moved = Detections(found.x_um_D + shift[0], found.y_um_D + shift[1], found.gene_D)
    expected = grid_counts(moved, GENES, COLUMNS, ROWS, BIN_UM)[kept]
    np.testing.assert_array_equal(dense(counted, len(kept)), expected)
    np.testing.assert_array_equal(counted.total_N, expected.sum(1))
    some = np.array([4, 0, 2])
    part = counted.of(some)
    np.testing.assert_array_equal(part.total_N, expected[:, some].sum(1))
    again = np.zeros((len(kept), 3))
    np.add.at(again, (part.bin_E, part.gene_E), part.count_E)
    np.testing.assert_array_equal(again, expected[:, some])


@pytest.mark.parametrize("least_total", [1.0, 28.0, 1e9])
def test_correlations_are_those_of_whole_arrays(found, least_total):
    rng = np.random.default_rng(1)
    kept = np.arange(COLUMNS * ROWS)
    rates = rng.gamma(2.0, 0.5, (len(kept), GENES)).astype(np.float32) + 50
    rates[:, 2] = 3.0  # a prediction that says nothing
    counted = count_shifted(found, np.array([2.0, 1.0]), BIN_UM, COLUMNS, ROWS, kept, GENES)
    counts = dense(counted, len(kept))
    of_counts, of_composition = Prediction(rates).correlations(counted, least_total)
    expected = pearson_by_gene(counts, rates)
    np.testing.assert_allclose(of_counts, expected, atol=1e-6)
    assert of_counts[2] == 0 and np.isnan(of_counts[-1])
    total, among = counts.sum(1), counts.sum(1) >= least_total
    of_some = Prediction(rates, np.arange(GENES) != 5).correlations(counted, least_total)
    np.testing.assert_array_equal(of_some[0], of_counts)
    told = expected_composition(rates, np.delete(rates, 5, 1).sum(1))[among]
    expected = pearson_by_gene(composition(counts[among], total[among]), told)
    np.testing.assert_allclose(of_some[1], expected, atol=1e-4)
    of_rates = expected_composition(rates, rates.sum(1))
    expected = pearson_by_gene(composition(counts[among], total[among]), of_rates[among])
    np.testing.assert_allclose(of_composition, expected, atol=1e-4)  # composition of a float32 prediction
    assert least_total < 1e9 or np.isnan(of_composition).all()
    if least_total == 28.0:
        assert 2 < among.sum() < len(kept)

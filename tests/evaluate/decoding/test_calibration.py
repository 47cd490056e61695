"""Scores of predicted distributions against sums, integrals and simulations written out in float64."""

import numpy as np
import pytest
import scipy.stats

from tario_jax.evaluate.decoding.calibration import (
    LEVELS,
    coverage,
    crps_mixture,
    crps_poisson,
    crps_samples,
    randomised_pit,
)

RATES = np.array([0.0, 1e-6, 0.02, 0.7, 3.3, 40.0, 900.0])
COUNTS = np.array([0, 1, 2, 5, 38, 950])


def crps_oracle(count: int, rates) -> float:
    """Σ_n (F(n) − [n >= count])², with scipy's distribution function, well beyond both."""
    n = np.arange(3000)
    up_to = np.mean([scipy.stats.poisson.cdf(n, rate) for rate in np.atleast_1d(rates)], axis=0)
    return float(((up_to - (n >= count)) ** 2).sum())


def test_crps_of_a_poisson_is_the_sum_over_its_distribution():
    expected = [[crps_oracle(count, rate) for rate in RATES] for count in COUNTS]
    np.testing.assert_allclose(crps_poisson(COUNTS[:, None], RATES), expected, rtol=1e-8, atol=1e-9)
    repeated = np.broadcast_to(RATES, (3, len(COUNTS), len(RATES)))
    counts = np.broadcast_to(COUNTS[:, None], repeated.shape[1:])
    np.testing.assert_allclose(crps_mixture(counts, repeated), expected, rtol=1e-8, atol=1e-9)


def test_crps_of_a_mixture_is_the_sum_over_its_distribution():
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.6, 4.0, (5, 4, 3))
    counts = rng.poisson(rates.mean(0) * 2)
    expected = [[crps_oracle(counts[i, j], rates[:, i, j]) for j in range(3)] for i in range(4)]
    np.testing.assert_allclose(crps_mixture(counts, rates), expected, rtol=1e-9)
    # a mixture is another distribution than the Poisson of its mean
    assert np.abs(crps_poisson(counts, rates.mean(0)) - expected).max() > 0.05


def test_crps_of_draws_is_that_of_pairs_and_has_no_bias():
    rng = np.random.default_rng(1)
    drawn, counts = rng.poisson(3.0, (6, 5, 4)), rng.poisson(3.0, (5, 4))
    pairs = np.abs(drawn[:, None] - drawn[None]).sum((0, 1)) / (2 * 6 * 5)
    np.testing.assert_allclose(crps_samples(counts, drawn), np.abs(drawn - counts).mean(0) - pairs)
    many = crps_samples(np.full(200_000, 4), rng.poisson(3.0, (2, 200_000))).mean()
    assert many == pytest.approx(crps_poisson(4, 3.0), abs=0.01)
    assert np.isnan(crps_samples(counts, drawn[:1])).all()


def test_counts_of_the_distribution_itself_are_covered_as_often_as_the_level_says():
    rng = np.random.default_rng(2)
    rates = rng.gamma(0.5, 2.0, (4, 100_000, 1))  # most counts 0: intervals without randomising would be far too wide
    counts = rng.poisson(rates[rng.integers(4, size=100_000), np.arange(100_000)])
    pit = randomised_pit(counts, rates, rng)
    assert scipy.stats.kstest(pit[:, 0], "uniform").pvalue > 1e-3
    for level in LEVELS:
        assert coverage(pit, level)[0] == pytest.approx(level, abs=0.006)
    # what is surer than it may be covers less; what is less sure covers more
    narrow = randomised_pit(counts, rates.mean(0, keepdims=True), rng)
    assert coverage(narrow, 0.8)[0] < 0.75
    wide = randomised_pit(rng.poisson(rates.mean(0)), rates, rng)
    assert coverage(wide, 0.8)[0] > 0.85


def test_pit_lies_between_the_steps_of_the_distribution():
    rates, counts = np.array([[0.4], [2.0]]), np.array([3])
    pit = randomised_pit(np.repeat(counts, 5000), np.repeat(rates, 5000, 1), np.random.default_rng(3))
    low, high = (scipy.stats.poisson.cdf(n, rates).mean() for n in (2, 3))
    assert low <= pit.min() < low + 0.01 and high - 0.01 < pit.max() <= high

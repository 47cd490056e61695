"""The scatter of counts around rates: found again from counts that scatter so, and scored against scipy."""

import numpy as np
import pytest
import scipy.stats

from tario_jax.evaluate.decoding.calibration import LEVELS, coverage, crps_mixture, randomised_pit
from tario_jax.evaluate.decoding.spread import POISSON, Spread, fit_spread, log_probability


def scattered(rates, spread: Spread, rng):
    sizes = spread.sizes(rates)
    return rng.poisson(rates if sizes is None else rng.gamma(sizes, rates / sizes))


def test_probabilities_are_scipys_and_have_the_variance_that_is_said():
    spread, rates, n = Spread(0.4, 0.2), np.array([0.05, 0.9, 6.0, 70.0]), np.arange(2000)
    sizes = spread.sizes(rates)
    for rate, size in zip(rates, sizes, strict=True):
        found = np.exp(log_probability(n, np.array(rate), np.array(size)))
        np.testing.assert_allclose(found, scipy.stats.nbinom.pmf(n, size, size / (size + rate)), rtol=1e-9, atol=1e-300)
        mean = (n * found).sum()
        assert mean == pytest.approx(rate) and ((n - mean) ** 2 * found).sum() == pytest.approx(
            rate * 1.4 + 0.2 * rate**2
        )
    assert Spread().sizes(rates) is None
    np.testing.assert_allclose(np.exp(log_probability(3, rates, None)), scipy.stats.poisson.pmf(3, rates))


@pytest.mark.parametrize("spread", [Spread(0.5, 0.15), Spread(0.05, 0.4), Spread(0.8, 0.0)])
def test_it_is_found_again(spread):
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.5, 6.0, 300_000)
    found = fit_spread(scattered(rates, spread, rng), rates[None], rng)
    assert found.bursts == pytest.approx(spread.bursts, abs=0.03)
    assert found.uncertain == pytest.approx(spread.uncertain, abs=0.02)


def test_around_a_mixture_only_what_the_mixture_leaves_is_found():
    rng, spread = np.random.default_rng(5), Spread(0.4, 0.1)
    rates = rng.gamma(4.0, 1.0, (4, 100_000)) * rng.gamma(0.6, 1.0, 100_000)
    counts = scattered(rates[rng.integers(4, size=100_000), np.arange(100_000)], spread, rng)
    found, of_mean = fit_spread(counts, rates, rng), fit_spread(counts, rates.mean(0, keepdims=True), rng)
    assert found == pytest.approx(spread, abs=0.04) and of_mean.uncertain > spread.uncertain + 0.1


def test_of_poisson_counts_next_to_nothing_is_found():
    rng = np.random.default_rng(1)
    rates = rng.gamma(0.5, 6.0, 100_000)
    found = fit_spread(rng.poisson(rates), rates[None], rng)
    assert max(found) < 0.02
    assert fit_spread(np.full(5, np.nan), np.ones((1, 5)), rng) == POISSON


def test_with_its_spread_a_distribution_covers_as_often_as_it_says_and_without_too_little():
    rng, spread = np.random.default_rng(2), Spread(0.5, 0.3)
    rates = rng.gamma(0.6, 4.0, (3, 60_000, 1))
    counts = scattered(rates[rng.integers(3, size=60_000), np.arange(60_000)], spread, rng)
    pit = randomised_pit(counts, rates, rng, spread)
    assert scipy.stats.kstest(pit[:, 0], "uniform").pvalue > 1e-3
    bare = randomised_pit(counts, rates, rng)
    for level in LEVELS:
        assert coverage(pit, level)[0] == pytest.approx(level, abs=0.008)
        assert coverage(bare, level)[0] < level - 0.02
    some = slice(0, 3000)
    assert crps_mixture(counts[some], rates[:, some], spread).mean() < crps_mixture(counts[some], rates[:, some]).mean()


def test_crps_of_a_mixture_of_negative_binomials_is_the_sum_over_its_distribution():
    rng, spread = np.random.default_rng(3), Spread(0.3, 0.5)
    rates = rng.gamma(0.6, 4.0, (4, 5))
    counts, n = rng.poisson(4.0, 5), np.arange(4000)
    expected = []
    for rate_S, count in zip(rates.T, counts, strict=True):
        sizes = spread.sizes(rate_S)
        up_to = np.mean([scipy.stats.nbinom.cdf(n, r, r / (r + m)) for r, m in zip(sizes, rate_S, strict=True)], axis=0)
        expected.append(((up_to - (n >= count)) ** 2).sum())
    np.testing.assert_allclose(crps_mixture(counts, rates, spread), expected, rtol=1e-6)

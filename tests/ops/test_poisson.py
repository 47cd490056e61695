"""Draws of Poisson counts against scipy's distribution, at rates on both sides of where the way to draw changes."""

import jax
import numpy as np
import pytest
import scipy.stats

from tario_jax.ops.poisson import draw_poisson

DRAWS = 40_000


RATES = np.array([0.0, 1e-4, 0.03, 0.7, 3.0, 12.0, 23.9, 24.1, 60.0, 300.0], np.float32)
draw = jax.jit(draw_poisson)


@pytest.fixture(scope="module")
def drawn():
    """Two rows of bins with rates from 0 to 300, each drawn many times."""
    keys = jax.random.split(jax.random.key(0), 2)
    return np.asarray(draw(keys, np.broadcast_to(RATES, (2, DRAWS, len(RATES)))))


def test_counts_have_the_distribution_of_scipy(drawn):
    counts_2xDxR = drawn
    assert (counts_2xDxR == np.floor(counts_2xDxR)).all() and (counts_2xDxR[:, :, 0] == 0).all()
    for rate, counts in zip(RATES[1:], counts_2xDxR.reshape(2 * DRAWS, -1)[:, 1:].T, strict=True):
        # classes of some probability each, by quantiles of the distribution itself
        edges = np.unique(scipy.stats.poisson.ppf([0.001, *np.linspace(0, 1, 12)[1:-1], 0.999, 0.9998], rate))
        share = np.diff(np.concatenate([[0], scipy.stats.poisson.cdf(edges, rate), [1]]))
        found = np.bincount(np.searchsorted(edges, counts), minlength=len(share))
        kept = share * len(counts) > 5
        chi2 = ((found - share * len(counts))[kept] ** 2 / (share * len(counts))[kept]).sum()
        assert chi2 < scipy.stats.chi2.ppf(1 - 1e-5, max(kept.sum() - 1, 1)), rate
        assert counts.max() <= scipy.stats.poisson.isf(1e-9, rate) + 1, rate


def test_a_row_depends_on_its_own_key_alone(drawn):
    keys = jax.random.split(jax.random.key(0), 2)[::-1]
    small = np.where(RATES < 24, RATES, 0)  # no large one anywhere: the other branch
    turned = np.asarray(draw(keys, np.broadcast_to(small, (2, DRAWS, len(RATES)))))
    np.testing.assert_array_equal(turned[::-1, :, RATES < 24], drawn[:, :, RATES < 24])
    assert np.abs(np.corrcoef(drawn[0, :, 4], drawn[1, :, 4])[0, 1]) < 0.03

"""How far counts scatter around predicted rates: a negative binomial whose two numbers are fitted to validation tissue.

A count with predicted rate m has mean m and variance m (1 + bursts) + uncertain · m²: detections come in bursts, and
rates are not known (a cell's depth, and all that the prediction misses). Both are learnt by maximum likelihood from
patients that are neither of training nor held out; 0 and 0 is Poisson. Rates are what they are: they are not moved.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

_LEAST, _MOST = 1e-4, 1e2
_MOST_FITTED = 1 << 20  # counts: two numbers need no more


class Spread(NamedTuple):
    """Of counts around rates, both numbers at least 0."""

    bursts: float = 0.0
    uncertain: float = 0.0

    def sizes(self, rates: np.ndarray) -> np.ndarray | None:
        """The number r of the negative binomial of variance m + m² / r at each rate; None: Poisson."""
        if not any(self):
            return None
        rates = np.asarray(rates, np.float64)
        return rates / np.maximum(self.bursts + self.uncertain * rates, 1e-12)


POISSON = Spread()


def fit_spread(counts_N: np.ndarray, rates_SxN: np.ndarray, rng: np.random.Generator) -> Spread:
    """Of maximum likelihood, where a count follows the mixture of its S rates with equal weights.

    Counts that are NaN are left out, as are those of a rate of 0; where there are too many, some are drawn.
    """
    counts_N, rates_SxN = np.asarray(counts_N, np.float64), np.asarray(rates_SxN, np.float64)
    kept = np.flatnonzero(np.isfinite(counts_N) & (rates_SxN > 0).all(0))
    most = _MOST_FITTED // len(rates_SxN)
    if len(kept) > most:
        kept = np.sort(rng.choice(kept, most, replace=False))
    counts, rates = counts_N[kept], rates_SxN[:, kept]
    if not len(kept):
        return POISSON

    def nats_of(sizes: np.ndarray | None) -> float:
        each_SxN = log_probability(counts, rates, sizes)
        return -float((scipy.special.logsumexp(each_SxN, axis=0) - np.log(len(rates))).mean())

    def nats(log_spread: np.ndarray) -> float:
        return nats_of(Spread(*np.exp(log_spread)).sizes(rates))

    bounds = [(np.log(_LEAST), np.log(_MOST))] * 2
    found = scipy.optimize.minimize(nats, np.log([0.3, 0.1]), method="L-BFGS-B", bounds=bounds)
    spread = Spread(*(float(value) if value > 1.01 * _LEAST else 0.0 for value in np.exp(found.x)))
    return spread if found.fun < nats_of(None) else POISSON


def log_probability(n, rates: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """Of n counts at each rate: Poisson without sizes, else negative binomial of variance m + m² / size."""
    if sizes is None:
        return scipy.special.xlogy(n, rates) - rates - scipy.special.gammaln(np.add(n, 1.0))
    sizes = np.maximum(sizes, 1e-12)
    share = rates / (rates + sizes)  # of the mean in mean and size
    of_n = scipy.special.gammaln(n + sizes) - scipy.special.gammaln(sizes) - scipy.special.gammaln(np.add(n, 1.0))
    return of_n + sizes * np.log1p(-share) + scipy.special.xlogy(n, share)

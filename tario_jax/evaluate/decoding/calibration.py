"""How well a predicted distribution of counts fits what was measured: CRPS, and coverage of central intervals.

A distribution is Poisson with a predicted rate, or the mixture with equal weights that S samples of rates give, of
Poisson distributions or of negative binomials (spread.py). Plain functions on arrays; counts are whole numbers of at
least 0, rates at least 0.
"""

import numpy as np
import scipy.special

from tario_jax.evaluate.decoding.spread import POISSON, Spread, log_probability

LEVELS = (0.5, 0.8, 0.95)  # of central intervals


def crps_poisson(counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of Poisson(rate) at each count, in counts; 0 is best. Shapes broadcast.

    E|X − y| − E|X − X'| / 2 in closed form (Wei & Held, TEST 23, 2014, 787–805):
    (y − λ)(2 F(y) − 1) + 2 λ f(y) − λ exp(−2λ) (I0(2λ) + I1(2λ)).
    """
    y, rate = np.broadcast_arrays(np.asarray(counts, np.float64), np.asarray(rates, np.float64))
    up_to, at = scipy.special.pdtr(y, rate), np.exp(log_probability(y, rate, None))
    spread = rate * (scipy.special.i0e(2 * rate) + scipy.special.i1e(2 * rate))
    return (y - rate) * (2 * up_to - 1) + 2 * rate * at - spread


def crps_mixture(counts: np.ndarray, rates_Sx___: np.ndarray, spread: Spread = POISSON) -> np.ndarray:
    """The same of a mixture of distributions, whose rates lie along the first axis: Σ_n (F(n) − [n >= count])².

    The sum ends where what is left of F is beyond 1e-9.
    """
    y, rates_Sx___ = np.asarray(counts, np.float64), np.asarray(rates_Sx___, np.float64)
    score, n = np.zeros(y.size), 0
    left, y_N, rates_SxN = np.arange(y.size), y.ravel(), rates_Sx___.reshape(len(rates_Sx___), -1)
    sizes_SxN = spread.sizes(rates_SxN)
    up_to_N, log_SxN = np.zeros(y.size), log_probability(0, rates_SxN, sizes_SxN)
    while len(left):
        up_to_N += np.exp(log_SxN).mean(0)
        score[left] += (up_to_N - (n >= y_N)) ** 2
        with np.errstate(divide="ignore"):  # a rate of 0
            if sizes_SxN is None:
                log_SxN += np.log(rates_SxN / (n + 1))
            else:
                log_SxN += np.log((n + sizes_SxN) / (n + 1) * rates_SxN / np.maximum(rates_SxN + sizes_SxN, 1e-300))
        n += 1
        goes_on = (n <= y_N) | (up_to_N < 1 - 1e-9)
        if np.count_nonzero(goes_on) < 0.8 * len(left):  # most counts are small: their sums are done early
            left, y_N, up_to_N = left[goes_on], y_N[goes_on], up_to_N[goes_on]
            rates_SxN, log_SxN = rates_SxN[:, goes_on], log_SxN[:, goes_on]
            sizes_SxN = None if sizes_SxN is None else sizes_SxN[:, goes_on]
        elif not goes_on.any():
            break
    return score.reshape(y.shape)


def crps_samples(counts: np.ndarray, drawn_Sx___: np.ndarray) -> np.ndarray:
    """The same estimated from S >= 2 draws of the count, without bias: mean |x − y| − Σ |x − x'| / (2 S (S − 1)).

    Ferro, Q. J. R. Meteorol. Soc. 140 (2014) 1917–1923. NaN for one draw. A single estimate may be below 0.
    """
    drawn_Sx___ = np.sort(np.asarray(drawn_Sx___, np.float64), axis=0)
    samples = len(drawn_Sx___)
    if samples < 2:
        return np.full(drawn_Sx___.shape[1:], np.nan)
    away = np.abs(drawn_Sx___ - counts).mean(0)
    # of sorted draws, the sum of |x − x'| over ordered pairs is 2 Σ_i (2 i − S + 1) x_i, i from 0
    between = 2 * np.tensordot(2 * np.arange(samples) - samples + 1.0, drawn_Sx___, 1)
    return away - between / (2 * samples * (samples - 1))


def randomised_pit(counts: np.ndarray, rates_Sx___: np.ndarray, rng: np.random.Generator,
                   spread: Spread = POISSON) -> np.ndarray:  # fmt: skip
    """F(y − 1) + u f(y) with u uniform on [0, 1): uniform itself if the counts follow the mixture.

    Without u, intervals of counts could only be too wide. Czado, Gneiting & Held, Biometrics 65 (2009) 1254–1261.
    """
    y = np.asarray(counts, np.float64)
    rates_Sx___ = np.asarray(rates_Sx___, np.float64)
    sizes = spread.sizes(rates_Sx___)
    before = np.maximum(y - 1, 0)
    if sizes is None:
        below = scipy.special.pdtr(before, rates_Sx___)
    else:  # the regularised incomplete beta function; without a rate all is at 0
        share = sizes / np.maximum(rates_Sx___ + sizes, 1e-300)
        below = np.where(rates_Sx___ > 0, scipy.special.betainc(np.maximum(sizes, 1e-12), before + 1, share), 1.0)
    below = np.where(y > 0, below, 0.0).mean(0)
    return below + rng.random(y.shape) * np.exp(log_probability(y, rates_Sx___, sizes)).mean(0)


def coverage(pit: np.ndarray, level: float) -> np.ndarray:
    """Share of counts within the central interval of this level, of pit [N, …] along its first axis: […]; the level
    itself is best."""
    return (np.abs(pit - 0.5) <= level / 2).mean(0)

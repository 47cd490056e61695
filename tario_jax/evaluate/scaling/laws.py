"""Scaling laws: L(x) = E + A / x^a, and L(N, D) = E + A / N^a + B / D^b. Plain functions on arrays.

As in the replication of Chinchilla by Besiroglu et al. 2024 (arXiv:2404.10102): log L̂ is a log-sum-exp of
log E, log A − a log N and log B − b log D; the Huber loss of its residuals, with a knee at 1e-3, is summed, not
averaged, and minimised by L-BFGS from a grid of starts. Sizes are divided by their geometric mean within the fit.
"""

import dataclasses

import numpy as np
from scipy.optimize import minimize

from tario_jax.evaluate.blas import one_thread

KNEE = 1e-3  # of the Huber loss, in log L
LARGEST_EXPONENT = 4.0
_FLOOR_SHARES = (0.3, 0.7, 0.9, 0.98)  # starts: E over the smallest L
_EXPONENTS = (0.1, 0.3, 0.7, 1.5)
_FIRST_ITERATIONS, _GO_ON, _ITERATIONS = 30, 4, 500  # of every start; how many go on from there, and how far
_LEAST = 1e-9  # of a term, over the smallest L


@dataclasses.dataclass(frozen=True)
class Law:
    """L(x) = floor + Σ scale_i / x_i^exponent_i; one term an axis."""

    floor: float  # E
    scales: tuple[float, ...]  # A, B
    exponents: tuple[float, ...]  # a, b
    huber: float  # what was minimised: Σ Huber(log L̂ − log L)

    def __call__(self, sizes_RxT: np.ndarray) -> np.ndarray:
        """L of each row of sizes, [R]; a vector is one axis."""
        sizes_RxT = _table(sizes_RxT)
        return self.floor + (np.array(self.scales) * sizes_RxT ** -np.array(self.exponents)).sum(1)

    @property
    def text(self) -> str:
        terms = [f"{scale:.3g} / {letter}^{exponent:.3g}" for scale, letter, exponent in
                 zip(self.scales, "x" if len(self.scales) == 1 else "ND", self.exponents, strict=True)]  # fmt: skip
        return " + ".join([f"{self.floor:.4g}", *terms])


def huber(residual: np.ndarray) -> np.ndarray:
    """Half the square up to the knee, a line beyond it."""
    size = np.abs(residual)
    return np.where(size <= KNEE, 0.5 * size**2, KNEE * (size - 0.5 * KNEE))


def fit(sizes_RxT: np.ndarray, losses_R: np.ndarray, near: Law | None = None) -> Law:
    """The law that fits R runs best. near: start from this one only (for a bootstrap's samples).

    sizes: [R] for one axis, [R, 2] for two, above 0; losses above 0. Raises `ValueError` where they are not.
    """
    sizes_RxT, losses_R = _table(sizes_RxT), np.asarray(losses_R, np.float64)
    if not (len(losses_R) and (sizes_RxT > 0).all() and (losses_R > 0).all() and np.isfinite(sizes_RxT).all()):
        raise ValueError("a law is fitted to sizes and losses above 0")
    middle_T, unit = np.exp(np.log(sizes_RxT).mean(0)), losses_R.min()
    log_size_RxT, log_loss_R = np.log(sizes_RxT / middle_T), np.log(losses_R / unit)
    terms = sizes_RxT.shape[1]
    highest = float(log_loss_R.max()) + 1.0  # no term lies above all losses at the middle of the sizes
    bounds = [(np.log(_LEAST), highest)] * (1 + terms) + [(0.0, LARGEST_EXPONENT)] * terms
    starts = _starts(log_loss_R, terms) if near is None else [_as_start(near, middle_T, unit)]

    def descend(start: np.ndarray, iterations: int):
        options = {"maxiter": iterations, "ftol": 1e-12, "gtol": 1e-7}
        return minimize(_objective, start, (log_size_RxT, log_loss_R), "L-BFGS-B", True, bounds=bounds, options=options)

    with one_thread():
        begun = [descend(start, _FIRST_ITERATIONS) for start in starts]
        begun.sort(key=lambda one: one.fun)
        best = min((descend(one.x, _ITERATIONS) for one in begun[:_GO_ON]), key=lambda one: one.fun)
    logs, exponents = np.exp(best.x[: 1 + terms]), best.x[1 + terms :]
    return Law(float(unit * logs[0]), tuple(float(v) for v in unit * logs[1:] * middle_T**exponents),
               tuple(map(float, exponents)), float(best.fun * KNEE**2))  # fmt: skip


def bootstrap(
    sizes_RxT: np.ndarray, losses_R: np.ndarray, law: Law, samples: int, rng: np.random.Generator
) -> dict[str, list[float] | int]:
    """95 % intervals of a law's constants: runs are drawn with replacement.

    A sample that holds fewer sizes of an axis than a term has constants tells nothing, and is drawn again; how many
    were is returned as "drawn_again".
    """
    sizes_RxT, losses_R = _table(sizes_RxT), np.asarray(losses_R, np.float64)
    rows, found, again = len(losses_R), [], 0
    while len(found) < samples:
        drawn = rng.integers(rows, size=rows)
        if min(len(np.unique(column)) for column in sizes_RxT[drawn].T) < 3:
            again += 1
            if again > 100 * samples:
                break
            continue
        found.append(fit(sizes_RxT[drawn], losses_R[drawn], near=law))
    names = ("E", "A", "a") if sizes_RxT.shape[1] == 1 else ("E", "A", "B", "a", "b")
    values = np.array([[one.floor, *one.scales, *one.exponents] for one in found]).reshape(len(found), len(names))
    ends = {name: [float(end) for end in np.percentile(column, (2.5, 97.5))] if len(found) else None
            for name, column in zip(names, values.T, strict=True)}  # fmt: skip
    return {**ends, "samples": len(found), "drawn_again": again}


def _table(sizes: np.ndarray) -> np.ndarray:
    sizes = np.asarray(sizes, np.float64)
    return sizes[:, None] if sizes.ndim == 1 else sizes


def _objective(theta: np.ndarray, log_size_RxT: np.ndarray, log_loss_R: np.ndarray) -> tuple[float, np.ndarray]:
    """Σ Huber in units of KNEE², and its gradient. theta: log E, log A …, a …

    Sizes lie around 1 and exponents are bounded: no term overflows, and the sum of exponentials is taken as it stands.
    """
    terms = log_size_RxT.shape[1]
    floor = np.exp(theta[0])
    term_RxT = np.exp(theta[1 : 1 + terms] - theta[1 + terms :] * log_size_RxT)
    sum_R = floor + term_RxT.sum(1)
    residual_R = (np.log(sum_R) - log_loss_R) / KNEE
    slope_R = np.minimum(np.maximum(residual_R, -1.0), 1.0)
    value = slope_R @ (residual_R - 0.5 * slope_R)
    by_sum_R = slope_R / (KNEE * sum_R)
    gradient = np.empty_like(theta)
    gradient[0] = floor * by_sum_R.sum()
    gradient[1 : 1 + terms] = by_sum_R @ term_RxT
    gradient[1 + terms :] = -by_sum_R @ (term_RxT * log_size_RxT)
    return float(value), gradient


def _starts(log_loss_R: np.ndarray, terms: int) -> list[np.ndarray]:
    """Of every share of the floor and every exponent; terms share what lies above the floor at the middle."""
    middle = float(np.exp(np.median(log_loss_R)))
    starts = []
    for floor in _FLOOR_SHARES:
        above = np.log(max(middle - floor, 1e-3) / terms)
        for exponents in np.array(np.meshgrid(*[_EXPONENTS] * terms)).reshape(terms, -1).T:
            starts.append(np.concatenate([[np.log(floor)], np.full(terms, above), exponents]))
    return starts


def _as_start(law: Law, middle_T: np.ndarray, unit: float) -> np.ndarray:
    exponents = np.array(law.exponents)
    parts = np.concatenate([[law.floor], np.array(law.scales) * middle_T**-exponents]) / unit
    return np.concatenate([np.log(np.maximum(parts, _LEAST)), exponents])

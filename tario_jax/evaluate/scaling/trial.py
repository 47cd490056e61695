"""Whether a law holds: it is fitted without the largest runs, and has to predict them.

The rule, for each axis: fitted without the runs of the largest size, the law must predict each configuration of that
size, the mean over its seeds, within two seed standard deviations; and a law without that axis (a constant, where there
is one axis only), fitted to the sizes in between, must not predict their mean: else runs of more than the smallest size
do not differ by more than seeds do, and there is nothing that a law could describe. At least four sizes, and
replicates, or nothing is fitted.
"""

import dataclasses

import numpy as np

from tario_jax.evaluate.scaling.laws import LARGEST_EXPONENT, Law, bootstrap, fit

LEAST_SIZES = 4
DEVIATIONS = 2.0


@dataclasses.dataclass(frozen=True)
class HeldBack:
    """The largest runs of one axis, held against laws that have not seen them.

    found, predicted: of the configuration that the law misses most, the mean over its seeds (of a single axis there is
    one only); mean: over all those runs, beside what a law without this axis predicts.
    """

    axis: str
    size: float
    runs: int
    found: float
    predicted: float
    mean: float
    without_axis: float

    def error(self, seed_sd: float) -> float:
        """Of the prediction, in seed standard deviations."""
        return abs(self.predicted - self.found) / seed_sd

    def flatness(self, seed_sd: float) -> float:
        return abs(self.without_axis - self.mean) / seed_sd


@dataclasses.dataclass(frozen=True)
class Trial:
    """A law over runs, and what became of it."""

    verdict: str  # "accepted", "refused" or "not fitted"
    why: str  # a clause; empty where accepted
    seed_sd: float | None = None  # pooled over replicates
    seed_degrees: int = 0  # of freedom
    law: Law | None = None  # of all runs
    held_back: tuple[HeldBack, ...] = ()
    residuals: tuple[float, ...] = ()  # found − law, by run
    intervals: dict | None = None  # of the constants, where accepted

    @property
    def accepted(self) -> bool:
        return self.verdict == "accepted"


def seed_deviation(values_R: np.ndarray, group_R: list) -> tuple[float | None, int]:
    """(standard deviation between replicates, pooled over groups; its degrees of freedom). None without replicates."""
    values_R, groups = np.asarray(values_R, np.float64), np.unique(np.asarray(group_R), return_inverse=True)[1]
    number_K = np.bincount(groups)
    mean_K = np.bincount(groups, values_R) / number_K
    degrees = int((number_K - 1).sum())
    return (None if not degrees else float(np.sqrt(((values_R - mean_K[groups]) ** 2).sum() / degrees))), degrees


def try_law(
    sizes: dict[str, np.ndarray], losses_R: np.ndarray, group_R: list, samples: int, rng: np.random.Generator
) -> Trial:
    """Fits a law over the axes of `sizes` (name: size of each run, [R]) and applies the rule.

    group_R: which runs are replicates of each other. samples: of the bootstrap over runs, for a law that is accepted.
    """
    losses_R = np.asarray(losses_R, np.float64)
    sd, degrees = seed_deviation(losses_R, group_R)
    numbers = {name: len(np.unique(size_R)) for name, size_R in sizes.items()}
    lacking = [f"{number} sizes ({name}), at least {LEAST_SIZES} are needed"
               for name, number in numbers.items() if number < LEAST_SIZES]  # fmt: skip
    lacking += _unidentified(sizes)
    lacking += ["no two runs differ in their seeds only, so nothing tells how far a law may miss"] if sd is None else []
    if not np.isfinite(losses_R).all() or (losses_R <= 0).any():
        lacking.append("a value is missing, or not above 0")
    if lacking:
        return Trial("not fitted", "; ".join(lacking), sd, degrees)
    table_RxT = np.stack([np.asarray(size_R, np.float64) for size_R in sizes.values()], 1)
    law = fit(table_RxT, losses_R)
    residuals = tuple(map(float, losses_R - law(table_RxT)))
    held_back = tuple(_hold_back(axis, name, table_RxT, losses_R, group_R) for axis, name in enumerate(sizes))
    fitted = Trial("accepted", "", sd, degrees, law, held_back, residuals)
    if why := "; ".join(filter(None, (_fault(one, sd) for one in held_back))) or _at_bound(law):
        return dataclasses.replace(fitted, verdict="refused", why=why)
    return dataclasses.replace(fitted, intervals=bootstrap(table_RxT, losses_R, law, samples, rng))


def _unidentified(sizes: dict[str, np.ndarray]) -> list[str]:
    """Axes that are left with too few sizes when the largest of another one is held back: a cross of two sweeps is no
    grid, and says nothing of both at once."""
    found = []
    for held, held_R in sizes.items():
        for name, size_R in sizes.items():
            number = len(np.unique(size_R[held_R < held_R.max()]))
            if name != held and number < LEAST_SIZES - 1:
                found.append(f"without the largest ({held}) {number} sizes ({name}) are left, at least "
                             f"{LEAST_SIZES - 1} are needed: a grid")  # fmt: skip
    return found


def _hold_back(axis: int, name: str, table_RxT: np.ndarray, losses_R: np.ndarray, group_R: list) -> HeldBack:
    size_R = table_RxT[:, axis]
    largest_R, smallest_R = size_R == size_R.max(), size_R == size_R.min()
    others = np.delete(table_RxT, axis, 1)
    between_R = ~largest_R & ~smallest_R
    if others.shape[1]:
        without = fit(others[between_R], losses_R[between_R])(others[largest_R]).mean()
    else:
        without = np.mean([losses_R[size_R == size].mean() for size in np.unique(size_R[between_R])])
    predicted_R = fit(table_RxT[~largest_R], losses_R[~largest_R])(table_RxT)
    number_R = np.unique(np.asarray(group_R), return_inverse=True)[1]
    several = [largest_R & (number_R == number) for number in np.unique(number_R[largest_R])]
    pairs = [(float(losses_R[own_R].mean()), float(predicted_R[own_R].mean())) for own_R in several]
    found, predicted = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    return HeldBack(name, float(size_R.max()), int(largest_R.sum()), found, predicted,
                    float(losses_R[largest_R].mean()), float(without))  # fmt: skip


def _fault(held: HeldBack, sd: float) -> str:
    """Why the largest runs speak against the law; empty where they do not. Seeds that are equal allow nothing."""
    allowed = DEVIATIONS * sd
    if abs(held.predicted - held.found) > allowed:
        return (f"without the largest ({held.axis} {_number(held.size)}) it predicts {held.predicted:.4f} there; found "
                f"{held.found:.4f}, {_times(held.predicted - held.found, sd)} seed sd of {sd:.2g} away")  # fmt: skip
    if abs(held.without_axis - held.mean) <= allowed:
        return (f"no trend beyond the smallest: what knows nothing of {held.axis} predicts {held.without_axis:.4f} for "
                f"the largest; found {held.mean:.4f}, within {DEVIATIONS:g} seed sd of {sd:.2g}")  # fmt: skip
    return ""


def _number(size: float) -> str:
    return f"{size:,.0f}" if 100 <= size < 1e7 else f"{size:.3g}"


def _times(difference: float, sd: float) -> str:
    return f"{abs(difference) / sd:.1f}" if sd > 0 else "infinitely many"


def _at_bound(law: Law) -> str:
    if max(law.exponents) >= LARGEST_EXPONENT - 1e-6:
        return f"an exponent of {LARGEST_EXPONENT:g} or more is a step, not a law"
    return ""

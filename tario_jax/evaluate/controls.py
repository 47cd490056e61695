"""What a model must beat: fitted on training sections, predicted for held-out ones."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import scipy.spatial

from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.moments import FORMS, Direct, FromRates, Line, Measured, Rows
from tario_jax.evaluate.ridge import Ridge, RidgeFit, Scaler, Spread, fit_scaler, folds_of


@dataclasses.dataclass(frozen=True)
class Lines:
    """Per-gene lines value = intercept + slope · u, where u is one number a bin."""

    slope_G: np.ndarray
    intercept_G: np.ndarray


class LineFit:
    """Least squares from the sums of bins that come part by part; of a gene only those that measured it."""

    def __init__(self, genes: int):
        self._number_G, self._u_G, self._uu_G, self._y_G, self._uy_G = (np.zeros(genes) for _ in range(5))

    def add(self, u_N: np.ndarray, y_G: np.ndarray, uy_G: np.ndarray, measured_G: np.ndarray) -> None:
        """Some bins of u, with Σy and Σuy over them, which are 0 of genes that were not measured."""
        self._number_G += len(u_N) * measured_G
        self._u_G += u_N.sum() * measured_G
        self._uu_G += (u_N * u_N).sum() * measured_G
        self._y_G += y_G
        self._uy_G += uy_G

    def solve(self) -> Lines:
        number_G = np.maximum(self._number_G, 1.0)
        spread_G = self._uu_G - self._u_G**2 / number_G
        varies_G = spread_G > 1e-10 * self._uu_G
        together_G = self._uy_G - self._u_G * self._y_G / number_G
        slope_G = np.where(varies_G, together_G / np.where(varies_G, spread_G, 1.0), 0.0)
        return Lines(slope_G, (self._y_G - slope_G * self._u_G) / number_G)


@dataclasses.dataclass(frozen=True)
class Density:
    """Lines by form on the log of a density, which is held below `floor`, 1 % of the density's mean in training."""

    lines: dict[str, Lines]
    floor: float


@dataclasses.dataclass(frozen=True)
class Fitting:
    """A training section. Its counts and features [N, F] are read when they are asked for, and not kept."""

    read: Callable[[], tuple[Measured, np.ndarray]]
    spread: Spread
    total_N: np.ndarray
    nuclear_density_N: np.ndarray
    group: str  # patient, or section: what must not be on both sides of a fold of the ridge


@dataclasses.dataclass(frozen=True)
class Controls:
    """All that was fitted on training sections."""

    mean_composition_G: np.ndarray
    nuclear_density: Density
    true_total: Density
    ridge: dict[str, Ridge]  # by form
    ridge_total: Ridge
    total_floor: float

    def ridge_derived(self, features_NxF: np.ndarray) -> FromRates:
        """Ridge fitted to counts, of which composition and residuals follow."""
        total_N = np.maximum(self.ridge_total(features_NxF)[:, 0], self.total_floor)
        return FromRates(lambda rows: np.maximum(self.ridge["counts"](features_NxF[rows]), 0.0), total_N)

    def ridge_direct(self, features_NxF: np.ndarray) -> Direct:
        """Ridge fitted to each form by itself."""
        return {form: _rows(self.ridge[form], features_NxF) for form in FORMS}


def controls_to_arrays(controls: Controls) -> Arrays:
    """For a file."""
    scaler = controls.ridge_total.scaler
    arrays = {"mean_composition": controls.mean_composition_G, "total_floor": np.array(controls.total_floor),
              "scaler_mean": scaler.mean_F, "scaler_sd": scaler.sd_F}  # fmt: skip
    for name in ("nuclear_density", "true_total"):
        density = getattr(controls, name)
        arrays[f"{name}/floor"] = np.array(density.floor)
        for form, lines in density.lines.items():
            arrays |= {f"{name}/{form}/slope": lines.slope_G, f"{name}/{form}/intercept": lines.intercept_G}
    for name, ridge in {**controls.ridge, "total": controls.ridge_total}.items():
        arrays |= {f"ridge/{name}/slope": ridge.slope_FxG, f"ridge/{name}/intercept": ridge.intercept_G,
                   f"ridge/{name}/alpha": np.array(ridge.alpha)}  # fmt: skip
    return arrays


def controls_from_arrays(arrays: Arrays) -> Controls:
    """The inverse of `controls_to_arrays`, to the bit."""
    scaler = Scaler(arrays["scaler_mean"], arrays["scaler_sd"])
    densities = {
        name: Density({form: Lines(arrays[f"{name}/{form}/slope"], arrays[f"{name}/{form}/intercept"])
                       for form in FORMS[1:]}, float(arrays[f"{name}/floor"]))
        for name in ("nuclear_density", "true_total")
    }  # fmt: skip
    ridges = {name: Ridge(scaler, arrays[f"ridge/{name}/slope"], arrays[f"ridge/{name}/intercept"],
                          float(arrays[f"ridge/{name}/alpha"])) for name in (*FORMS, "total")}  # fmt: skip
    return Controls(arrays["mean_composition"], **densities, ridge={form: ridges[form] for form in FORMS},
                    ridge_total=ridges["total"], total_floor=float(arrays["total_floor"]))  # fmt: skip


def from_density(density: Density, density_N: np.ndarray, mean_composition_G: np.ndarray) -> Direct:
    """density × mean composition; for the other forms the per-gene lines on its log."""
    log_N = np.log(np.maximum(np.asarray(density_N, np.float64), density.floor))
    counts = density_counts(density_N, mean_composition_G)
    return counts | {form: Line(log_N, lines.slope_G, lines.intercept_G) for form, lines in density.lines.items()}


def density_counts(density_N: np.ndarray, mean_composition_G: np.ndarray) -> dict[str, Line]:
    """density × mean composition, for r alone: a gene that no training section saw has the density itself. No r depends
    on a factor, and with one of 0 all that the density tells of such a gene would count as skill."""
    factor_G = np.where(mean_composition_G > 0, mean_composition_G, 1.0)
    return {"counts": Line(np.asarray(density_N, np.float64), factor_G, np.zeros(len(factor_G)))}


def _rows(of: Callable[[np.ndarray], np.ndarray], given: np.ndarray) -> Rows:
    return lambda rows: of(given[rows])


def fit_controls(sections: list[Fitting], tuned_on_G: np.ndarray,
                 say: Callable[[int], None] = lambda done: None) -> Controls:  # fmt: skip
    """Fits every control on training sections, one after the other.

    tuned_on_G: positions (among the genes under evaluation) over which the ridge's alpha is chosen; say(done) after
    each section.
    """
    scaler = fit_scaler([section.spread for section in sections])
    densities = {
        "nuclear_density": [s.nuclear_density_N for s in sections],
        "true_total": [s.total_N for s in sections],
    }
    floors = {name: floor_of(density_S) for name, density_S in densities.items()}
    total_ridge, every = RidgeFit(scaler, 1, np.array([0])), np.ones(1, bool)
    ridges: dict[str, RidgeFit] = {}
    lines: dict[str, dict[str, LineFit]] = {}
    count_G = weight_G = 0.0
    folds = folds_of([section.group for section in sections])
    for number, (section, fold) in enumerate(zip(sections, folds, strict=True)):
        measured, features_NxF = section.read()
        genes = len(measured.measured_G)
        if not ridges:
            ridges = {form: RidgeFit(scaler, genes, tuned_on_G) for form in FORMS}
            lines = {name: {form: LineFit(genes) for form in FORMS[1:]} for name in densities}
        # A gene's share is taken over the sections that measured it.
        count_G = count_G + measured.sums()[0]
        weight_G = weight_G + measured.total_N.sum() * measured.measured_G
        log_N = {name: np.log(np.maximum(np.asarray(densities[name][number], np.float64), floors[name]))
                 for name in densities}  # fmt: skip
        z_NxF = scaler(features_NxF)
        given_NxK = np.column_stack([z_NxF, np.ones(len(measured)), *log_N.values()])
        with concurrent.futures.ThreadPoolExecutor(len(FORMS)) as pool:
            products = pool.map(functools.partial(measured.products, given_NxF=given_NxK), FORMS)
        for (form, ridge), products_KxG in zip(ridges.items(), products, strict=True):
            bins = measured.bins(form)
            if not len(bins):  # none with counts enough
                continue
            cross_FxG, (sum_G, *with_log) = np.split(products_KxG, [z_NxF.shape[1]])
            ridge.add_products(z_NxF[bins], sum_G, cross_FxG, measured.measured_G, fold)
            if form in FORMS[1:]:
                for (name, of_N), with_log_G in zip(log_N.items(), with_log, strict=True):
                    lines[name][form].add(of_N[bins], sum_G, with_log_G, measured.measured_G)
            tuned_NxT = measured.of(ridge.tuned).dense(form, bins)
            ridge.add_tuning(features_NxF[bins], tuned_NxT, measured.measured_G, fold)
        total_ridge.add(features_NxF, section.total_N[:, None], every, fold)
        total_ridge.add_tuning(features_NxF, section.total_N[:, None], every, fold)
        say(number + 1)
    fitted = {name: Density({form: fit.solve() for form, fit in forms.items()}, floors[name])
              for name, forms in lines.items()}  # fmt: skip
    return Controls(
        count_G / np.maximum(weight_G, 1e-300), fitted["nuclear_density"], fitted["true_total"],
        {form: ridge.solve() for form, ridge in ridges.items()}, total_ridge.solve(), floors["true_total"],
    )  # fmt: skip


def floor_of(density_S: list[np.ndarray]) -> float:
    """1 % of the mean over all bins."""
    return max(0.01 * float(np.concatenate(density_S).mean()), 1e-6)


def fit_density(sections: list[tuple[Measured, np.ndarray]]) -> Density | None:
    """The lines of a density that is known on some training sections; None where on none.

    sections: of each its counts, and the density of its bins, [N].
    """
    if not sections:
        return None
    floor = floor_of([density_N for _, density_N in sections])
    fits = {form: LineFit(len(sections[0][0].measured_G)) for form in FORMS[1:]}
    for measured, density_N in sections:
        log_N = np.log(np.maximum(density_N, floor))
        for form, fit in fits.items():
            sums_2xG = measured.products(form, np.column_stack([np.ones(len(measured)), log_N]))
            fit.add(log_N[measured.bins(form)], *sums_2xG, measured.measured_G)
    return Density({form: fit.solve() for form, fit in fits.items()}, floor)


def displaced(x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, layout: str, pitches: int) -> list[np.ndarray]:
    """For each of four directions the position of the bin that lies `pitches` away, int [N]; −1 where there is none.

    x_um_N, y_um_N: centres of the bins, [N]; layout: "square" or "spots".
    Spots are not on an exact lattice: the nearest within half a pitch is taken; bins must match to a quarter.
    """
    places_Nx2 = np.stack([x_um_N, y_um_N], 1).astype(np.float64)
    tree = scipy.spatial.cKDTree(places_Nx2)
    reach_um = pitch_um * (0.25 if layout == "square" else 0.5)
    found = []
    for step in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        target_Nx2 = places_Nx2 + np.array(step) * pitches * pitch_um
        distance_N, index_N = tree.query(target_Nx2, distance_upper_bound=reach_um)
        found.append(np.where(np.isfinite(distance_N), index_N, -1))
    return found


def turned(x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, rng: np.random.Generator) -> np.ndarray:
    """A random turn (30°–330°) and flip of the section about its middle: the bin that each bin then reads, int
    [N], or −1.

    Unlike a permutation this keeps the neighbourhood of every bin, so the spread of r over runs is that of maps as
    smooth as these. Where fewer than half of the bins would meet another (a thin section), bins are permuted.
    """
    places_Nx2 = np.stack([x_um_N - x_um_N.mean(), y_um_N - y_um_N.mean()], 1).astype(np.float64)
    angle = np.deg2rad(rng.uniform(30.0, 330.0))
    turn_2x2 = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    flip_2 = np.array([rng.choice([-1.0, 1.0]), 1.0])
    distance_N, index_N = scipy.spatial.cKDTree(places_Nx2).query((places_Nx2 * flip_2) @ turn_2x2)
    met_N = distance_N <= 0.75 * pitch_um
    if met_N.sum() < max(len(met_N) / 2, 2):
        return rng.permutation(len(met_N))
    return np.where(met_N, index_N, -1)

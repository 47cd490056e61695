"""What a model must beat: fitted on training sections, predicted for held-out ones.

A prediction is a dict by form: `counts`, `composition`, `residual`, each [bins, genes], or None where it is constant
by construction (its r is 0) or cannot be made (no training section carries what it needs).
"""

import dataclasses

import numpy as np
import scipy.spatial

from tario_jax.evaluate.metrics import composition, pearson_residuals
from tario_jax.evaluate.ridge import Ridge, Scaler, fit_ridge, fit_scaler

FORMS = ("counts", "composition", "residual")
Prediction = dict[str, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A section's measured values, reduced to the genes under evaluation.

    x_NxG by form, NaN for genes that the section did not measure; composition and residual hold only the bins
    `kept_N` (positions) with enough counts. Totals are over every gene that the section measured.
    """

    counts_NxG: np.ndarray
    total_N: np.ndarray
    kept_N: np.ndarray
    measured_G: np.ndarray
    x: dict[str, np.ndarray]

    def bins(self, form: str) -> np.ndarray:
        """Positions of the bins that a form compares."""
        return np.arange(len(self.total_N)) if form == "counts" else self.kept_N


def measure(counts_NxP: np.ndarray, measured_P: np.ndarray, genes: np.ndarray, min_total: int) -> Measured:
    """The three forms of a section's counts, [N, P] over the whole panel, for `genes` (positions in the panel)."""
    total_N = counts_NxP[:, measured_P].sum(1, dtype=np.float64)
    kept_N = np.flatnonzero(total_N >= max(min_total, 1))
    measured_G = measured_P[genes]
    counts_NxG = np.where(measured_G, counts_NxP[:, genes], 0).astype(np.float64)
    kept_counts_NxG, kept_total_N = counts_NxG[kept_N], total_N[kept_N]
    x = {
        "counts": counts_NxG,
        "composition": composition(kept_counts_NxG, kept_total_N),
        "residual": pearson_residuals(kept_counts_NxG, kept_total_N),
    }
    if not measured_G.all():
        x = {form: np.where(measured_G, values_NxG, np.nan) for form, values_NxG in x.items()}
    return Measured(counts_NxG, total_N, kept_N, measured_G, x)


def from_rates(rates_NxG: np.ndarray, total_N: np.ndarray) -> Prediction:
    """The three forms of predicted counts; composition and residual follow from the rates and their own total."""
    return {
        "counts": rates_NxG,
        "composition": composition(rates_NxG, total_N),
        "residual": pearson_residuals(rates_NxG, total_N),
    }


@dataclasses.dataclass(frozen=True)
class Lines:
    """Per-gene lines value = intercept + slope · u, where u is one number a bin."""

    slope_G: np.ndarray
    intercept_G: np.ndarray

    def __call__(self, u_N: np.ndarray) -> np.ndarray:
        return self.intercept_G + u_N[:, None] * self.slope_G


def fit_lines(u_S: list[np.ndarray], y_S: list[np.ndarray]) -> Lines:
    """Least squares over the bins of all sections; a section whose column is NaN (not measured) is left out of it."""
    genes = y_S[0].shape[1]
    number_G, u_G, uu_G, y_G, uy_G = (np.zeros(genes) for _ in range(5))
    for u_N, y_NxG in zip(u_S, y_S, strict=True):
        seen_G = np.isfinite(y_NxG).all(0)
        y_NxG = np.where(seen_G, y_NxG, 0.0)
        number_G += len(u_N) * seen_G
        u_G += u_N.sum() * seen_G
        uu_G += (u_N * u_N).sum() * seen_G
        y_G += y_NxG.sum(0)
        uy_G += u_N @ y_NxG
    number_G = np.maximum(number_G, 1.0)
    spread_G = uu_G - u_G**2 / number_G
    varies_G = spread_G > 1e-10 * uu_G
    slope_G = np.where(varies_G, (uy_G - u_G * y_G / number_G) / np.where(varies_G, spread_G, 1.0), 0.0)
    return Lines(slope_G, (y_G - slope_G * u_G) / number_G)


@dataclasses.dataclass(frozen=True)
class Controls:
    """All that was fitted on training sections.

    `lines[name]` are per-gene lines by form on the log of that density; a density without training values is absent.
    `floor[name]` is 1 % of its training mean: below it the log is held.
    """

    mean_composition_G: np.ndarray
    lines: dict[str, dict[str, Lines]]
    floor: dict[str, float]
    ridge: dict[str, Ridge]
    ridge_total: Ridge
    total_floor: float

    def density(self, name: str, density_N: np.ndarray) -> Prediction:
        """density × mean composition; for the other forms the per-gene lines on its log."""
        prediction: Prediction = {"counts": np.asarray(density_N, np.float64)[:, None] * self.mean_composition_G}
        for form in FORMS[1:]:
            lines = self.lines.get(name, {}).get(form)
            prediction[form] = None if lines is None else lines(np.log(np.maximum(density_N, self.floor[name])))
        return prediction

    def ridge_derived(self, features_NxF: np.ndarray) -> tuple[Prediction, np.ndarray]:
        """Ridge fitted to counts, its composition and residuals derived from them, and its predicted total [N]."""
        rates_NxG = np.maximum(self.ridge["counts"](features_NxF), 0.0)
        total_N = np.maximum(self.ridge_total(features_NxF)[:, 0], self.total_floor)
        return from_rates(rates_NxG, total_N), total_N

    def ridge_direct(self, features_NxF: np.ndarray) -> Prediction:
        """Ridge fitted to each form directly."""
        return {form: self.ridge[form](features_NxF) for form in FORMS}


def fit_controls(
    measured_S: list[Measured],
    features_S: list[np.ndarray],
    densities_S: dict[str, list[np.ndarray | None]],
    groups_S: list[str],
    tuned_on_G: np.ndarray,
) -> Controls:
    """Fits every control on training sections.

    densities_S: for each density (own total, nuclear, true total) one value a bin by section, None where a section
    has none. groups_S: what must not be on both sides of a fold of the ridge. tuned_on_G: positions (among the genes
    under evaluation) over which the ridge's alpha is chosen.
    """
    # A gene's share is taken over the sections that measured it.
    total_G = sum(m.total_N.sum() * m.measured_G for m in measured_S)
    mean_composition_G = sum(m.counts_NxG.sum(0) for m in measured_S) / np.maximum(total_G, 1e-300)
    lines, floor = {}, {}
    for name, density_S in densities_S.items():
        given = [s for s, density_N in enumerate(density_S) if density_N is not None]
        if not given:
            continue
        mean = float(np.concatenate([density_S[s] for s in given]).mean())
        floor[name] = max(0.01 * mean, 1e-6)
        u_S = [np.log(np.maximum(density_S[s][measured_S[s].kept_N], floor[name])) for s in given]
        lines[name] = {form: fit_lines(u_S, [measured_S[s].x[form] for s in given]) for form in FORMS[1:]}
    scaler = fit_scaler(features_S)
    ridge = {
        form: _fit_measured(
            [f[m.bins(form)] for f, m in zip(features_S, measured_S, strict=True)],
            [m.x[form] for m in measured_S], measured_S, groups_S, tuned_on_G, scaler,
        )
        for form in FORMS
    }  # fmt: skip
    totals_S = [m.total_N[:, None] for m in measured_S]
    ridge_total = fit_ridge(features_S, totals_S, groups_S, np.array([0]), scaler)
    total_floor = 0.01 * float(np.concatenate(totals_S).mean())
    return Controls(mean_composition_G, lines, floor, ridge, ridge_total, total_floor)


def _fit_measured(features_S, targets_S, measured_S, groups_S, tuned_on_G, scaler: Scaler) -> Ridge:
    """A ridge whose every gene is fitted on the sections that measured it (one fit for each set of such sections)."""
    measured_SxG = np.stack([m.measured_G for m in measured_S])
    genes, features = measured_SxG.shape[1], len(scaler.mean_F)
    # Genes that no training section measured have no prediction: NaN counts as missing, r = 0.
    slope_FxG, intercept_G, alpha = np.zeros((features, genes)), np.full(genes, np.nan), float("nan")
    patterns, which_G = np.unique(measured_SxG, axis=1, return_inverse=True)
    tuned_G = np.isin(np.arange(genes), tuned_on_G)
    for k, pattern_S in enumerate(patterns.T):
        columns = np.flatnonzero(which_G.ravel() == k)
        # A section all of whose bins are too empty for this form has nothing to fit.
        sections = [s for s in np.flatnonzero(pattern_S) if len(features_S[s])]
        if not sections:
            continue
        tuned = np.flatnonzero(tuned_G[columns])
        fitted = fit_ridge(
            [features_S[s] for s in sections],
            [targets_S[s][:, columns] for s in sections],
            [groups_S[s] for s in sections],
            tuned if len(tuned) else np.arange(min(len(columns), 100)),
            scaler,
        )
        slope_FxG[:, columns], intercept_G[columns], alpha = fitted.slope_FxG, fitted.intercept_G, fitted.alpha
    return Ridge(scaler, slope_FxG, intercept_G, alpha)


def displaced(x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, layout: str, pitches: int) -> list[np.ndarray]:
    """For each of four directions the position of the bin that lies `pitches` away, −1 where there is none.

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
    """A random turn (30°–330°) and flip of the section about its middle: the bin that each bin then reads, or −1.

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

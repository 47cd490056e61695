"""Ridge regression of all genes at once on stain and texture features.

Sections are summarised once as sums of products; every fold and every alpha is then a difference of sums and one
eigendecomposition, so that nothing is fitted twice, and no bins are held but those of the section that is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tario_jax.evaluate.metrics import correlation, mean_defined

ALPHAS = np.geomspace(3.0, 1e5, 8)  # on features of unit variance, times bins: from nearly free to nearly flat
FOLDS = 5
TUNED_GENES = 100  # alpha is one number: more genes would not move it
CLIP_SD = 5.0  # features further out than any training bin are held here, not extrapolated


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Standardises features as on the training bins."""

    mean_F: np.ndarray
    sd_F: np.ndarray

    def __call__(self, features_NxF: np.ndarray) -> np.ndarray:
        return np.clip((features_NxF - self.mean_F) / self.sd_F, -CLIP_SD, CLIP_SD)


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A fitted ridge: prediction = intercept_G + scaler(features) @ slope_FxG."""

    scaler: Scaler
    slope_FxG: np.ndarray
    intercept_G: np.ndarray
    alpha: float

    def __call__(self, features_NxF: np.ndarray) -> np.ndarray:
        return self.intercept_G + self.scaler(features_NxF) @ self.slope_FxG


class Spread(NamedTuple):
    """Number of some bins, their mean features and the sums of squares about it."""

    number: int
    mean_F: np.ndarray
    squares_F: np.ndarray

    @classmethod
    def of(cls, features_NxF: np.ndarray) -> "Spread":
        mean_F = features_NxF.sum(0, dtype=np.float64) / max(len(features_NxF), 1)
        return cls(len(features_NxF), mean_F, ((features_NxF - mean_F) ** 2).sum(0))

    @classmethod
    def merged(cls, spread_S: Sequence["Spread"]) -> "Spread":
        """Of all of their bins together."""
        number = sum(of.number for of in spread_S)
        mean_F = sum(of.number * of.mean_F for of in spread_S) / number
        # about means of their own: differences of sums of squares would lose a small deviation beside a large mean
        squares_F = sum(of.squares_F + of.number * (of.mean_F - mean_F) ** 2 for of in spread_S)
        return cls(number, mean_F, squares_F)

    @property
    def sd_F(self) -> np.ndarray:
        return np.sqrt(self.squares_F / self.number)


class Tuning(NamedTuple):
    """What r of any ridge within a section follows from, of T genes: means, and sums of products about them."""

    mask: bytes  # the genes that it measured
    fold: int
    number: int
    mean_F: np.ndarray
    mean_T: np.ndarray
    gram_FxF: np.ndarray
    cross_FxT: np.ndarray
    squares_T: np.ndarray

    def r(self, slope_FxT: np.ndarray, at_F: np.ndarray, mean_T: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """`pearson_by_gene` of the section's targets of some genes with mean + (z − at) @ slope."""
        predicted_T = mean_T + (self.mean_F - at_F) @ slope_FxT
        return correlation(
            self.squares_T[genes],
            np.einsum("ft,ft->t", slope_FxT, self.gram_FxF @ slope_FxT),
            np.einsum("ft,ft->t", slope_FxT, self.cross_FxT[:, genes]),
            self.number * self.mean_T[genes] ** 2,
            self.number * predicted_T**2,
        )


def fit_scaler(spread_S: list[Spread]) -> Scaler:
    """Mean and standard deviation over all training bins; a constant feature gets scale 1, so it stays 0."""
    every = Spread.merged(spread_S)
    return Scaler(every.mean_F, np.where(every.sd_F > 1e-8, every.sd_F, 1.0))


class RidgeFit:
    """A closed-form ridge with an unpenalised intercept, min |Y − Xb|² + alpha |b|², from bins that come part by part.

    Every gene is fitted on the sections that measured it. alpha is the one of highest mean r within held-out sections,
    over the genes `tuned_on_G`: what the report measures, so the control is as strong as it can honestly be. Sections
    come with a fold; with a single fold there is nothing to hold out and alpha is the number of bins (shrinks each
    unit-variance feature by half).
    """

    def __init__(self, scaler: Scaler, genes: int, tuned_on_G: np.ndarray):
        self._scaler, self._genes = scaler, genes
        number = min(len(tuned_on_G), TUNED_GENES)
        self._tuned_T = tuned_on_G[np.linspace(0, len(tuned_on_G) - 1, number).round().astype(int)]
        self._sums: dict[tuple[bytes, int], list[np.ndarray]] = {}  # by the genes that were measured, and fold
        self._tuning: list[Tuning] = []  # a section each

    def add(self, features_NxF: np.ndarray, targets_NxG: np.ndarray, measured_G: np.ndarray, fold: int) -> None:
        """Bins of a section; what the targets of unmeasured genes are is of no effect."""
        z_NxF, y_NxG = self._scaler(features_NxF), np.where(measured_G, targets_NxG, 0.0)
        # float32 sums over 1e5 bins would lose the small eigenvalues
        self.add_products(z_NxF, y_NxG.sum(0, dtype=np.float64), z_NxF.T @ y_NxG.astype(np.float64), measured_G, fold)

    def add_products(self, z_NxF: np.ndarray, sum_G: np.ndarray, cross_FxG: np.ndarray, measured_G: np.ndarray,
                     fold: int) -> None:  # fmt: skip
        """Bins of a section whose targets y are known by their sums: Σy and zᵀy, float64, with z the scaled features;
        0 of genes that were not measured."""
        part = [np.array(len(z_NxF)), z_NxF.sum(0), sum_G, z_NxF.T @ z_NxF, cross_FxG]
        kept = self._sums.setdefault((np.asarray(measured_G, bool).tobytes(), fold), part)
        if kept is not part:
            for of, more in zip(kept, part, strict=True):
                of += more

    def add_tuning(self, features_NxF: np.ndarray, tuned_NxT: np.ndarray, measured_G: np.ndarray, fold: int) -> None:
        """A whole section's targets of the genes `tuned`, on which each alpha is tried."""
        z_NxF, y_NxT = self._scaler(features_NxF), np.where(measured_G[self._tuned_T], tuned_NxT, 0.0)
        mean_F, mean_T = (of.sum(0) / max(len(of), 1) for of in (z_NxF, y_NxT))
        z_NxF, y_NxT = z_NxF - mean_F, y_NxT - mean_T
        self._tuning.append(Tuning(np.asarray(measured_G, bool).tobytes(), fold, len(z_NxF), mean_F, mean_T,
                                   z_NxF.T @ z_NxF, z_NxF.T @ y_NxT, (y_NxT**2).sum(0)))  # fmt: skip

    @property
    def tuned(self) -> np.ndarray:
        """Positions of the genes on which alpha is chosen."""
        return self._tuned_T

    def solve(self) -> Ridge:
        """Genes that no section measured have no prediction: NaN counts as missing, r = 0."""
        features = len(self._scaler.mean_F)
        slope_FxG, intercept_G = np.zeros((features, self._genes)), np.full(self._genes, np.nan)
        masks = sorted({mask for mask, _ in self._sums})
        measured_MxG = np.array([np.frombuffer(mask, bool) for mask in masks]).reshape(len(masks), self._genes)
        patterns, which_G = np.unique(measured_MxG, axis=1, return_inverse=True)
        sizes = np.bincount(which_G.ravel(), minlength=patterns.shape[1])
        chosen = float("nan")
        for k in np.argsort(-sizes, kind="stable"):  # the alpha of most genes serves those without a tuned one
            own = {mask for mask, has in zip(masks, patterns[:, k], strict=True) if has}
            if not own:
                continue
            columns = np.flatnonzero(which_G.ravel() == k)
            tuned_T = np.flatnonzero(np.isin(self._tuned_T, columns))
            alpha = self._alpha(own, tuned_T) if len(tuned_T) or np.isnan(chosen) else chosen
            mean_F, mean_G, values_F, vectors_FxF, cross_FxG = _decompose(self._of(own, None), columns)
            slope_FxG[:, columns] = vectors_FxF @ (cross_FxG / (values_F + alpha)[:, None])
            intercept_G[columns] = mean_G - mean_F @ slope_FxG[:, columns]
            chosen = alpha if np.isnan(chosen) else chosen
        return Ridge(self._scaler, slope_FxG, intercept_G, float(chosen))

    def _of(self, masks: set[bytes], left_out: int | None) -> list[list[np.ndarray]]:
        return [part for (mask, fold), part in sorted(self._sums.items()) if mask in masks and fold != left_out]

    def _alpha(self, masks: set[bytes], tuned_T: np.ndarray) -> float:
        folds = sorted({fold for mask, fold in self._sums if mask in masks})
        if len(folds) < 2 or not len(tuned_T):
            return float(sum(part[0] for part in self._of(masks, None)))
        r = []
        for fold in folds:
            fitted = _decompose(self._of(masks, fold), self._tuned_T[tuned_T])
            mean_F, mean_T, values_F, vectors_FxF, cross_FxT = fitted
            slope_AxFxT = [vectors_FxF @ (cross_FxT / (values_F + alpha)[:, None]) for alpha in ALPHAS]
            r += [[mean_defined(section.r(slope_FxT, mean_F, mean_T, tuned_T)) for slope_FxT in slope_AxFxT]
                  for section in self._tuning if section.mask in masks and section.fold == fold]  # fmt: skip
        mean_A = mean_defined(np.array(r)) if r else np.full(len(ALPHAS), np.nan)
        return float(ALPHAS[np.nanargmax(mean_A)]) if np.isfinite(mean_A).any() else float(ALPHAS[-1])


def folds_of(groups_S: list[str]) -> list[int]:
    """The fold of each section: no group (patient, or section) is in two."""
    fold_of = {name: k % FOLDS for k, name in enumerate(sorted(set(groups_S)))}
    return [fold_of[group] for group in groups_S]


def fit_ridge(
    features_S: list[np.ndarray],
    targets_S: list[np.ndarray],
    groups_S: list[str],
    tuned_on_G: np.ndarray,
    scaler: Scaler,
) -> Ridge:
    """`RidgeFit` of whole sections that all measured every gene: features [N, F] and targets [N, G], all finite."""
    genes = targets_S[0].shape[1]
    fit, every_G = RidgeFit(scaler, genes, tuned_on_G), np.ones(genes, bool)
    for features_NxF, targets_NxG, fold in zip(features_S, targets_S, folds_of(groups_S), strict=True):
        fit.add(features_NxF, targets_NxG, every_G, fold)
        fit.add_tuning(features_NxF, targets_NxG[:, fit.tuned], every_G, fold)
    return fit.solve()


def _decompose(parts: list[list[np.ndarray]], genes: np.ndarray) -> tuple:
    """Centred Gram matrix of some sums as eigenvalues and vectors, and the cross product in that basis."""
    number = sum(part[0] for part in parts)
    mean_F = sum(part[1] for part in parts) / number
    mean_G = sum(part[2][genes] for part in parts) / number
    gram_FxF = sum(part[3] for part in parts) - number * np.outer(mean_F, mean_F)
    cross_FxG = sum(part[4][:, genes] for part in parts) - number * np.outer(mean_F, mean_G)
    values_F, vectors_FxF = np.linalg.eigh(gram_FxF)
    return mean_F, mean_G, np.maximum(values_F, 0.0), vectors_FxF, vectors_FxF.T @ cross_FxG

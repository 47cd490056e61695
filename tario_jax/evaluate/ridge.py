"""Ridge regression of all genes at once on stain and texture features.

Sections are summarised once as sums of products; every fold and every alpha is then a difference of sums and one
eigendecomposition, so that nothing is fitted twice and no array of all bins × all genes exists.
"""

import dataclasses

import numpy as np

from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene

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


def fit_scaler(features_S: list[np.ndarray]) -> Scaler:
    """Mean and standard deviation over all training bins; a constant feature gets scale 1, so it stays 0."""
    features_NxF = np.concatenate(features_S).astype(np.float64)
    sd_F = features_NxF.std(0)
    return Scaler(features_NxF.mean(0), np.where(sd_F > 1e-8, sd_F, 1.0))


def fit_ridge(
    features_S: list[np.ndarray],
    targets_S: list[np.ndarray],
    groups_S: list[str],
    tuned_on_G: np.ndarray,
    scaler: Scaler,
) -> Ridge:
    """Closed-form ridge with an unpenalised intercept, min |Y − Xb|² + alpha |b|².

    features_S: [N, F] and targets_S: [N, G] by section, all finite. groups_S: patient (or section) of each section;
    no group is on both sides of a fold. alpha is the one of highest mean r within held-out sections, over the genes
    tuned_on_G: what the report measures, so the control is as strong as it can honestly be. With a single group there
    is nothing to hold out and alpha is the number of bins (shrinks each unit-variance feature by half).
    """
    z_S = [scaler(features_NxF) for features_NxF in features_S]
    sums_S = [_sums(z_NxF, y_NxG) for z_NxF, y_NxG in zip(z_S, targets_S, strict=True)]
    names = sorted(set(groups_S))
    if len(names) < 2:
        alpha = float(sum(len(z_NxF) for z_NxF in z_S))
    else:
        alpha = _choose_alpha(z_S, targets_S, sums_S, groups_S, names, tuned_on_G)
    mean_F, mean_G, values_F, vectors_FxF, cross_FxG = _decompose(sums_S)
    slope_FxG = vectors_FxF @ (cross_FxG / (values_F + alpha)[:, None])
    return Ridge(scaler, slope_FxG, mean_G - mean_F @ slope_FxG, float(alpha))


def _sums(z_NxF: np.ndarray, y_NxG: np.ndarray) -> tuple:
    # One copy in float64 a section: float32 sums over 1e5 bins would lose the small eigenvalues.
    y_NxG = np.asarray(y_NxG, np.float64)
    return len(z_NxF), z_NxF.sum(0), y_NxG.sum(0), z_NxF.T @ z_NxF, z_NxF.T @ y_NxG


def _decompose(sums_S: list[tuple], genes: np.ndarray | slice = slice(None)) -> tuple:
    """Centred Gram matrix of the sections as eigenvalues and vectors, and the cross product in that basis."""
    number = sum(part[0] for part in sums_S)
    mean_F = sum(part[1] for part in sums_S) / number
    mean_G = sum(part[2][genes] for part in sums_S) / number
    gram_FxF = sum(part[3] for part in sums_S) - number * np.outer(mean_F, mean_F)
    cross_FxG = sum(part[4][:, genes] for part in sums_S) - number * np.outer(mean_F, mean_G)
    values_F, vectors_FxF = np.linalg.eigh(gram_FxF)
    return mean_F, mean_G, np.maximum(values_F, 0.0), vectors_FxF, vectors_FxF.T @ cross_FxG


def _choose_alpha(z_S, targets_S, sums_S, groups_S, names, genes) -> float:
    genes = genes[np.linspace(0, len(genes) - 1, min(len(genes), TUNED_GENES)).round().astype(int)]
    fold_of = {name: k % FOLDS for k, name in enumerate(names)}
    fold_S = np.array([fold_of[group] for group in groups_S])
    r_SxA = np.full((len(z_S), len(ALPHAS)), np.nan)
    for fold in np.unique(fold_S):
        fitted = _decompose([part for part, other in zip(sums_S, fold_S, strict=True) if other != fold], genes)
        mean_F, mean_G, values_F, vectors_FxF, cross_FxG = fitted
        slope_AxFxG = (cross_FxG / (values_F + ALPHAS[:, None])[:, :, None]).astype(np.float32)
        for section in np.flatnonzero(fold_S == fold):
            turned_NxF = ((z_S[section] - mean_F) @ vectors_FxF).astype(np.float32)
            y_NxG = targets_S[section][:, genes]
            for k in range(len(ALPHAS)):
                r_SxA[section, k] = mean_defined(pearson_by_gene(y_NxG, mean_G + turned_NxF @ slope_AxFxG[k]))
    mean_A = mean_defined(r_SxA)
    return float(ALPHAS[np.nanargmax(mean_A)]) if np.isfinite(mean_A).any() else float(ALPHAS[-1])

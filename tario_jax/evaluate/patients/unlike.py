"""Patients unlike those that a model was trained on: in what their tissue is, and in how it was scanned.

A reference of patients with known classes (diagnosis, or scanner) is described by the mean of each class and one
covariance within classes; a patient's distance is that of Mahalanobis to the nearest class (Lee et al., NeurIPS 2018,
arXiv 1807.03888), the covariance shrunk (Ledoit & Wolf, J. Multivar. Anal. 88:365, 2004). The limit is what the stated
share of the reference stays under, each patient measured without itself.

Axes: P patients, F features, C components, K classes.
"""

import dataclasses

import numpy as np

from tario_jax.config import InputError

TOLD = 0.975  # of the reference lie within the limit; two such limits leave 5 % at most
COMPONENTS = 24
_LEAST = 4  # patients of a class that has a mean of its own
_FOLDS = 10


@dataclasses.dataclass(frozen=True)
class Reference:
    """Made by `described`."""

    middle_F: np.ndarray
    scale_F: np.ndarray
    component_CxF: np.ndarray
    class_K: tuple[str, ...]
    mean_KxC: np.ndarray
    root_CxC: np.ndarray  # places times this have unit covariance within classes
    limit: float

    def distance(self, features_PxF: np.ndarray) -> np.ndarray:
        """To the nearest class, float64 [P]."""
        return self._to_each(features_PxF).min(1)

    def nearest(self, features_PxF: np.ndarray) -> list[str]:
        return [self.class_K[k] for k in self._to_each(features_PxF).argmin(1)]

    def unlike(self, features_PxF: np.ndarray) -> np.ndarray:
        """bool [P]."""
        return self.distance(features_PxF) > self.limit

    def _to_each(self, features_PxF: np.ndarray) -> np.ndarray:
        place_PxC = ((features_PxF - self.middle_F) / self.scale_F) @ self.component_CxF.T
        gap_PxKxC = (place_PxC[:, None] - self.mean_KxC[None]) @ self.root_CxC
        return np.sqrt((gap_PxKxC**2).sum(2))


def described(features_PxF: np.ndarray, class_P: np.ndarray, *, components: int = COMPONENTS, told: float = TOLD,
              seed: int = 0) -> Reference:  # fmt: skip
    """class: str [P]; classes of fewer than four patients have no mean of their own. Raises `InputError` for fewer than
    forty patients."""
    features_PxF = np.asarray(features_PxF, np.float64)
    if len(features_PxF) < 40:
        raise InputError(f"a reference of {len(features_PxF)} patients; expected at least 40, to tell who is unlike them")
    fold_P = np.random.default_rng(seed).permutation(len(features_PxF)) % _FOLDS
    distance_P = np.concatenate([
        _fitted(features_PxF[fold_P != fold], class_P[fold_P != fold], components).distance(features_PxF[fold_P == fold])
        for fold in range(_FOLDS)
    ])  # fmt: skip
    whole = _fitted(features_PxF, class_P, components)
    return dataclasses.replace(whole, limit=float(np.quantile(distance_P, told)))


def _fitted(features_PxF: np.ndarray, class_P: np.ndarray, components: int) -> Reference:
    from sklearn.covariance import LedoitWolf
    from sklearn.decomposition import PCA

    middle_F, scale_F = features_PxF.mean(0), np.maximum(features_PxF.std(0), 1e-9)
    scaled_PxF = (features_PxF - middle_F) / scale_F
    number = min(components, scaled_PxF.shape[1], len(scaled_PxF) - 1)
    found = PCA(number, svd_solver="full").fit(scaled_PxF)
    place_PxC = scaled_PxF @ found.components_.T
    names, counts = np.unique(class_P, return_counts=True)
    kept = [str(name) for name, count in zip(names, counts, strict=True) if count >= _LEAST] or [""]
    members = [class_P == name if name else np.ones(len(class_P), bool) for name in kept]
    mean_KxC = np.stack([place_PxC[mine].mean(0) for mine in members])
    within = np.concatenate([place_PxC[mine] - mean for mine, mean in zip(members, mean_KxC, strict=True)])
    covariance = LedoitWolf(assume_centered=True).fit(within).covariance_
    values, vectors = np.linalg.eigh(covariance)
    root_CxC = vectors / np.sqrt(np.maximum(values, 1e-12))
    return Reference(middle_F, scale_F, found.components_, tuple(kept), mean_KxC, root_CxC, np.inf)

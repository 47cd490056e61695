"""The map of all patients: t-SNE of their places in the space, with clusters; new ones are placed, and no one moves.

t-SNE (van der Maaten & Hinton, JMLR 9:2579, 2008) as openTSNE computes it, started from the principal components, so
that the whole keeps its shape (Kobak & Berens, Nature Communications 10:5416, 2019). Distances on the map mean little
beyond who is near whom; neighbours are found in the space.

Axes: P patients, R reference patients, C components, K clusters.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse

from tario_jax.config import InputError
from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.kept_arrays import read_arrays, write_arrays
from tario_jax.evaluate.patients.space import nearest
from tario_jax.evaluate.patients.tables import not_known
from tario_jax.evaluate.patients.vectors import PREDICTED

REFERENCE = 10_000  # patients whose map is computed, at most; all others are placed on it
FORMAT_VERSION = 1
_PERPLEXITY, _PERPLEXITY_OF_NEW = 30, 5
_CLUSTERS = (2, 24)
_JUDGED = 2000  # patients that a number of clusters is chosen by
_PLACED_AT_ONCE = 2000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Atlas:
    """Made by `atlas_of`."""

    space: str  # its axes
    reference_RxC: np.ndarray  # places in the space
    xy_Rx2: np.ndarray
    centre_KxC: np.ndarray  # of the clusters

    def placed(self, place_PxC: np.ndarray) -> np.ndarray:
        """On the map, float64 [P, 2]: those that it was computed of where they lie, each other as if it came alone."""
        from openTSNE import TSNEEmbedding

        own = {place.tobytes(): at for at, place in enumerate(self.reference_RxC)}
        at_P = np.array([own.get(place.tobytes(), -1) for place in place_PxC.astype(self.reference_RxC.dtype)], int)
        found_Px2 = self.xy_Rx2[at_P]
        others = np.flatnonzero(at_P < 0)
        if not len(others):
            return found_Px2
        reference = TSNEEmbedding(self.xy_Rx2.copy(), _affinities(self.reference_RxC), random_state=_SEED, n_jobs=1,
                                  negative_gradient_method="fft")  # fmt: skip
        perplexity = min(_PERPLEXITY_OF_NEW, (len(self.xy_Rx2) - 1) / 3)
        for first in range(0, len(others), _PLACED_AT_ONCE):
            some = others[first : first + _PLACED_AT_ONCE]
            found_Px2[some] = np.asarray(reference.transform(place_PxC[some], perplexity=perplexity), np.float64)
        return found_Px2

    def cluster(self, place_PxC: np.ndarray) -> np.ndarray:
        """Number of the nearest cluster's centre."""
        return nearest(self.centre_KxC, place_PxC, 1).index_Qxn[:, 0]


def _affinities(reference_RxC: np.ndarray):
    """Of new places to those of the map, by exact neighbours: nothing but the places has to be kept."""
    from openTSNE.affinity import Affinities, joint_probabilities_nn

    class Exact(Affinities):
        n_samples = len(reference_RxC)

        def __init__(self):
            super().__init__()
            self.P = scipy.sparse.csr_array((self.n_samples, self.n_samples))  # the map is there: nothing pulls

        def to_new(self, data, perplexity, return_distances=False):
            number = max(min(25, self.n_samples), min(int(3 * perplexity), self.n_samples - 1))
            found = nearest(reference_RxC, data, number)
            near, far = found.index_Qxn, found.distance_Qxn.astype(np.float64)
            shares = joint_probabilities_nn(near, far, [perplexity], symmetrize=False, normalization="point-wise",
                                            n_reference_samples=self.n_samples)  # fmt: skip
            return (shares, near, far) if return_distances else shares

    return Exact()


def atlas_of(index: PatientIndex, *, fit_again: bool = False, say: Callable[[str], None] = str) -> Atlas:
    """That which is kept, if it is of this space; a new one of its predicted patients else.

    Raises `InputError` for too few patients.
    """
    path = index.folder / "atlas.npz"
    held = None if fit_again else _read(path)
    if held is not None and held.space == index.space.axes:
        return held
    from openTSNE import TSNE

    predicted = index.of_kind(PREDICTED)
    predicted = predicted[np.argsort(index.name_P[predicted], kind="stable")]
    chosen = predicted[np.linspace(0, len(predicted) - 1, min(REFERENCE, len(predicted))).round().astype(int)]
    place_RxC = index.place_PxC[chosen]
    if len(place_RxC) < 10:
        raise InputError(f"a map of {len(place_RxC)} patients; expected at least 10")
    perplexity = min(_PERPLEXITY, (len(place_RxC) - 1) / 3)
    say(f"atlas: a map of {len(place_RxC)} of {len(predicted)} patients is computed")
    start_Rx2 = place_RxC[:, :2] / max(float(place_RxC[:, 0].std()), 1e-9) * 1e-4
    method = "bh" if len(place_RxC) < 3000 else "fft"
    found = TSNE(perplexity=perplexity, initialization=start_Rx2.astype(np.float64), random_state=_SEED, n_jobs=1,
                 neighbors="exact", negative_gradient_method=method).fit(place_RxC.astype(np.float64))  # fmt: skip
    xy_Rx2 = np.array(found, np.float64)
    xy_Rx2 -= (xy_Rx2.max(0) + xy_Rx2.min(0)) / 2
    atlas = Atlas(index.space.axes, place_RxC, xy_Rx2, _clusters(place_RxC))
    write_arrays(path, FORMAT_VERSION, **vars(atlas))
    return atlas


def _clusters(place_PxC: np.ndarray) -> np.ndarray:
    """Centres of as many clusters as part patients best, by the silhouette (Rousseeuw, 1987), the largest first."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    place_PxC = place_PxC.astype(np.float64)
    judged = place_PxC[np.linspace(0, len(place_PxC) - 1, min(_JUDGED, len(place_PxC))).round().astype(int)]
    best, kept = -np.inf, None
    for number in range(_CLUSTERS[0], min(_CLUSTERS[1], len(judged) // 3) + 1):
        if len(np.unique(judged, axis=0)) < number:
            raise InputError(f"a map of patients of whom {len(judged)} lie at fewer than {number} places: this model "
                             "tells them not apart")  # fmt: skip
        found = KMeans(number, n_init=5, random_state=_SEED).fit(judged)
        score = silhouette_score(judged, found.labels_)
        if score > best + 1e-9:
            best, kept = score, found
    return kept.cluster_centers_[np.argsort(-np.bincount(kept.labels_), kind="stable")]


def agreement(cluster_P: np.ndarray, value_P: np.ndarray) -> float:
    """Adjusted Rand index of clusters with the values of a column, of patients of whom it is known; NaN for none."""
    from sklearn.metrics import adjusted_rand_score

    known_P = ~not_known(value_P)
    return float(adjusted_rand_score(value_P[known_P], cluster_P[known_P])) if known_P.any() else np.nan


def _read(path: Path) -> Atlas | None:
    held = read_arrays(path, FORMAT_VERSION, tuple(field.name for field in dataclasses.fields(Atlas)))
    return None if held is None else Atlas(**held | {"space": str(held["space"])})

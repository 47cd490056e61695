"""Patients unlike those that a model was trained on: in what is predicted of their tissue, and in how it was scanned.

A reference of patients is described by the mean of each class and one covariance within them; a patient's distance is
that of Mahalanobis to the nearest class (Lee et al., NeurIPS 2018, arXiv 1807.03888), the covariance shrunk (Ledoit &
Wolf, J. Multivar. Anal. 88:365, 2004). Tissue is a place in the space, its classes the cohorts; scanning is what lens,
camera and file format left in the H&E, without classes. A limit is what a stated share of the reference stays under,
each patient measured without itself: of the tissue 99 %, of the scanner 96 %, so that 5 % at most lie beyond either. A
slide is one section, which varies more than a patient of several, and is held against single sections.

Axes: P patients, F features, K classes.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.patients.index import PatientIndex
from tario_jax.evaluate.patients.kept_arrays import read_arrays, write_arrays
from tario_jax.evaluate.patients.neighbours import Query
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED

WITHIN = {"tissue": 0.99, "scanner": 0.96}  # share of the reference within each limit
LEAST = 40  # patients of a reference
_LEAST_OF_CLASS = 4
_FOLDS = 10
_MOST = 4000
_READ = 1000  # patients whose sections are read one by one, at most
_REFERENCES = ("tissue", "scanner", "section_tissue", "section_scanner")
FORMAT_VERSION = 5


@dataclasses.dataclass(frozen=True)
class Reference:
    """Made by `described`."""

    class_K: np.ndarray  # str
    mean_KxF: np.ndarray
    root_FxF: np.ndarray  # features times this have unit covariance within classes
    limit: float

    def distance(self, features_PxF: np.ndarray) -> np.ndarray:
        """To the nearest class, float64 [P]."""
        return self._to_each(features_PxF).min(1)

    def nearest(self, features_PxF: np.ndarray) -> np.ndarray:
        """Name of the nearest class, str [P]."""
        return self.class_K[self._to_each(features_PxF).argmin(1)]

    def unlike(self, features_PxF: np.ndarray) -> np.ndarray:
        """bool [P]; not where features are not known."""
        return self.distance(features_PxF) > self.limit

    def _to_each(self, features_PxF: np.ndarray) -> np.ndarray:
        gap_KxPxF = (np.asarray(features_PxF, np.float64)[None] - self.mean_KxF[:, None]) @ self.root_FxF
        return np.sqrt((gap_KxPxF**2).sum(2)).T


def described(features_PxF: np.ndarray, class_P: np.ndarray, *, within: float,
              group_P: np.ndarray | None = None) -> Reference:  # fmt: skip
    """class: str [P]; classes of fewer than four patients have no mean of their own. group: rows of one patient, which
    are measured without each other. Raises `InputError` for fewer than LEAST rows."""
    features_PxF = np.asarray(features_PxF, np.float64)
    if len(features_PxF) < LEAST:
        raise InputError(f"a reference of {len(features_PxF)} patients; expected at least {LEAST}, to tell who is "
                         "unlike them")  # fmt: skip
    group_P = np.arange(len(features_PxF)) if group_P is None else group_P
    fold_P = (np.random.default_rng(0).permutation(int(group_P.max()) + 1) % _FOLDS)[group_P]
    distance_P = np.concatenate([
        _fitted(features_PxF[fold_P != fold], class_P[fold_P != fold]).distance(features_PxF[fold_P == fold])
        for fold in range(_FOLDS)
    ])  # fmt: skip
    whole = _fitted(features_PxF, class_P)
    return dataclasses.replace(whole, limit=float(np.quantile(distance_P, within)))


def _fitted(features_PxF: np.ndarray, class_P: np.ndarray) -> Reference:
    from sklearn.covariance import LedoitWolf

    names, counts = np.unique(class_P, return_counts=True)
    kept = [name for name, count in zip(names, counts, strict=True) if count >= _LEAST_OF_CLASS]
    members = [class_P == name for name in kept] or [np.ones(len(class_P), bool)]
    mean_KxF = np.stack([features_PxF[mine].mean(0) for mine in members])
    within = np.concatenate([features_PxF[mine] - mean for mine, mean in zip(members, mean_KxF, strict=True)])
    scale_F = np.maximum(within.std(0), 1e-9)  # shrinking is towards the same variance of all features
    values, vectors = np.linalg.eigh(LedoitWolf(assume_centered=True).fit(within / scale_F).covariance_)
    root_FxF = vectors / np.sqrt(np.maximum(values, 1e-12)) / scale_F[:, None]
    return Reference(np.array(kept or [""]), mean_KxF, root_FxF, np.inf)


@dataclasses.dataclass(frozen=True)
class Unlike:
    """Both references of an index. Made by `unlike_of`."""

    of: str  # digest of the patients of training, as they are held
    patients: int
    tissue: Reference
    scanner: Reference
    section_tissue: Reference  # of single sections: they vary more than patients of several
    section_scanner: Reference
    um_per_px: float  # of the H&E of those sections, the median

    def told(self, query: Query) -> dict[str, dict[str, object]]:
        """Of a patient, or of a slide, which is one section; scanner is missing where its H&E is not known."""
        of_patient = query.entry is not None
        found = {"tissue": _one(self.tissue if of_patient else self.section_tissue, query.place_C)}
        if query.acquisition_A is not None and np.isfinite(query.acquisition_A).all():
            found["scanner"] = _one(self.scanner if of_patient else self.section_scanner, query.acquisition_A)
        return found


def _one(reference: Reference, features_F: np.ndarray) -> dict[str, object]:
    distance = float(reference.distance(features_F[None])[0])
    return {"distance": distance, "limit": reference.limit, "unlike": distance > reference.limit,
            "nearest": str(reference.nearest(features_F[None])[0])}  # fmt: skip


def unlike_of(index: PatientIndex, store: EmbeddingStore) -> Unlike | None:
    """Of the patients that the model was trained on, as far as they are in the index; kept beside it. None where they,
    or those whose look is known, are fewer than LEAST: embed the run's own corpus to have them."""
    path = index.folder / "unlike.npz"
    held = _read(path)
    trained = np.flatnonzero((index.kind_P == PREDICTED) & index.seen_P)
    trained = trained[np.argsort(index.name_P[trained], kind="stable")]
    if len(trained) < LEAST:
        return None
    trained = trained[np.linspace(0, len(trained) - 1, min(_MOST, len(trained))).round().astype(int)]
    each = trained[np.linspace(0, len(trained) - 1, min(_READ, len(trained))).astype(int)]  # section by section
    if min(np.isfinite(index.acquisition_PxA[some]).all(1).sum() for some in (trained, each)) < LEAST:
        return None  # the H&E of the others is too small to have a look
    of = _digest(index, trained)
    if held is not None and held.of == of:
        return held
    found = Unlike(
        of, len(trained),
        described(index.place_PxC[trained], index.cohort_P[trained], within=WITHIN["tissue"]),
        _of_scanners(index.acquisition_PxA[trained]),
        *_of_sections(index, store, each),
    )  # fmt: skip
    parts = {f"{name}_{field}": values for name in _REFERENCES
             for field, values in vars(getattr(found, name)).items()}  # fmt: skip
    write_arrays(path, FORMAT_VERSION, of=found.of, patients=found.patients, um_per_px=found.um_per_px, **parts)
    return found


def _digest(index: PatientIndex, entries: np.ndarray) -> str:
    """Patients that were embedded again are others, though they are as many and in the same space."""
    found = hashlib.sha256(repr((index.space.axes, index.name_P[entries].tolist(),
                                 index.cohort_P[entries].tolist())).encode())  # fmt: skip
    for values in (index.place_PxC, index.acquisition_PxA):
        found.update(np.ascontiguousarray(values[entries]).tobytes())
    return found.hexdigest()


def _of_scanners(acquisition_PxA: np.ndarray) -> Reference:
    """Of those of whom it is known."""
    acquisition_PxA = acquisition_PxA[np.isfinite(acquisition_PxA).all(1)]
    return described(acquisition_PxA, np.full(len(acquisition_PxA), ""), within=WITHIN["scanner"])


def _of_sections(index: PatientIndex, store: EmbeddingStore,
                 trained: np.ndarray) -> tuple[Reference, Reference, float]:  # fmt: skip
    """Of tissue and of scanner, each section of these patients by itself; µm per px of their H&E."""
    parts = {part for entry in trained for part in index.parts_of(int(entry))}
    rows = store.rows(PREDICTED, patients=set(index.name_P[trained].tolist()), parts=parts,
                      vectors=("expression", "acquisition"))  # fmt: skip
    place_RxC = index.space.placed(PREDICTED, np.stack([row.expression_G for row in rows]))
    whose = np.unique([row.patient for row in rows], return_inverse=True)[1]
    acquisition_RxA = np.stack([row.acquisition_A for row in rows])
    known = np.isfinite(acquisition_RxA).all(1)
    whose_known = np.unique(whose[known], return_inverse=True)[1]
    return (
        described(place_RxC, np.array([row.cohort for row in rows]), within=WITHIN["tissue"], group_P=whose),
        described(acquisition_RxA[known], np.full(known.sum(), ""), within=WITHIN["scanner"], group_P=whose_known),
        float(np.median(np.array([row.um_per_px for row in rows])[known])),
    )


def _read(path: Path) -> Unlike | None:
    fields = [field.name for field in dataclasses.fields(Reference)]
    names = [f"{name}_{field}" for name in _REFERENCES for field in fields]
    held = read_arrays(path, FORMAT_VERSION, ("of", "patients", "um_per_px", *names))
    if held is None:
        return None
    of = ({field: held[f"{name}_{field}"] for field in fields} for name in _REFERENCES)
    references = (Reference(**one | {"limit": float(one["limit"])}) for one in of)
    return Unlike(str(held["of"]), int(held["patients"]), *references, float(held["um_per_px"]))

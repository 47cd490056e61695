"""One space for all patients: principal components of their predicted expression, and who is near whom in it.

Components are fitted on reference patients and kept, so that others are placed in the same space without moving anyone.
Measured expression is placed by its own mean, for an assay has its own levels of genes, and by the linear map that
brings what was measured of reference patients nearest to what was predicted of them: predicted tissue varies less.

Axes: P patients, Q queries, G genes, C components, n neighbours.
"""

import dataclasses
import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.patients.kept_arrays import write_arrays
from tario_jax.evaluate.patients.vectors import PREDICTED, Patients
from tario_jax.whole_file import UNREADABLE

FORMAT_VERSION = 2
LEAST_PATIENTS = 5
PAIRS = 2  # patients of both kinds a component, from which a linear map is fitted
_AT_ONCE = 8192  # patients of a block of distances
_QUERIES = 512


class Neighbours(NamedTuple):
    """Of each query the nearest places, the nearest first."""

    index_Qxn: np.ndarray
    distance_Qxn: np.ndarray  # float32


@dataclasses.dataclass(frozen=True)
class Space:
    """Made by `fitted`."""

    panel_hash: str
    checkpoint: str
    reference: int  # patients that it was fitted on; 0: not known
    kinds: tuple[str, ...]  # predicted first
    mean_KxG: np.ndarray  # of each kind, over reference patients; 0 where a gene is not used
    component_CxG: np.ndarray  # orthonormal rows
    deviation_C: np.ndarray  # of reference patients along each
    turn_KxCxC: np.ndarray  # what is placed by the components is multiplied by; the identity for predicted patients

    @property
    def identity(self) -> str:
        """Tells it from all others that place anyone elsewhere."""
        arrays = self.mean_KxG, self.component_CxG, self.turn_KxCxC
        content = [repr((self.panel_hash, self.checkpoint, self.kinds)).encode(), *(of.tobytes() for of in arrays)]
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    @property
    def axes(self) -> str:
        """The same for all that place predicted patients alike: what is made of those stays when other kinds come."""
        content = [repr((self.panel_hash, self.checkpoint)).encode(), self.mean_KxG[0].tobytes(),
                   self.component_CxG.tobytes()]  # fmt: skip
        return hashlib.sha256(b"".join(content)).hexdigest()[:16]

    def placed(self, kind: str, expression_QxG: np.ndarray) -> np.ndarray:
        """Float32 [Q, C]. A gene that is not known counts as at its mean. Raises `InputError` for another panel."""
        if kind not in self.kinds:
            raise InputError(f"the space knows {' and '.join(self.kinds)} patients; {kind} ones need reference "
                             "patients of their kind: embed those with --measured, and fit it again")  # fmt: skip
        if expression_QxG.shape[1] != self.mean_KxG.shape[1]:
            raise InputError(f"expression of {expression_QxG.shape[1]} genes; the space is of {self.mean_KxG.shape[1]}")
        number = self.kinds.index(kind)
        centred = np.nan_to_num(expression_QxG - self.mean_KxG[number], nan=0.0)
        return (centred @ self.component_CxG.T @ self.turn_KxCxC[number]).astype(np.float32)

    def with_kind(self, kind: str, patients: Patients, same: Patients) -> "Space":
        """Knows patients of another kind too; same: the same ones, predicted. No one that has a place moves."""
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a gene that none of them has
            mean_G = np.nanmean(patients.expression_PxG.astype(np.float64), 0)
        mean_G = np.where(np.isfinite(mean_G), mean_G, 0.0)
        # what is the mean of these patients is not that of the reference: they lie where they lie as predicted
        beside_G = np.nan_to_num(same.expression_PxG.astype(np.float64).mean(0) - self.mean_KxG[0], nan=0.0)
        mean_G = (mean_G - np.where(self.mean_KxG[0] != 0, beside_G, 0.0)).astype(np.float32)
        identity = np.eye(len(self.component_CxG), dtype=np.float32)
        known = dataclasses.replace(self, kinds=(*self.kinds, kind), mean_KxG=np.stack([*self.mean_KxG, mean_G]),
                                    turn_KxCxC=np.stack([*self.turn_KxCxC, identity]))  # fmt: skip
        turn = _turn(known.placed(kind, patients.expression_PxG), self.placed(PREDICTED, same.expression_PxG))
        return dataclasses.replace(known, turn_KxCxC=np.stack([*self.turn_KxCxC, turn]))

    def write(self, path: Path) -> None:
        """NumPy's .npz; the file is absent or whole."""
        write_arrays(path, FORMAT_VERSION, panel_hash=self.panel_hash, checkpoint=self.checkpoint,
                     reference=self.reference, kinds=np.array(self.kinds), mean=self.mean_KxG,
                     component=self.component_CxG, deviation=self.deviation_C, turn=self.turn_KxCxC)  # fmt: skip


def read_space(path: Path) -> Space:
    """Raises `InputError` where it is none, or of another version."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as held:
            version = int(held["version"])
            if version == FORMAT_VERSION:
                return Space(str(held["panel_hash"]), str(held["checkpoint"]), int(held.get("reference", 0)),
                             tuple(held["kinds"].tolist()), held["mean"], held["component"], held["deviation"],
                             held["turn"])  # fmt: skip
    except FileNotFoundError:
        raise InputError(f"{path}: no such space of patients") from None
    except (*UNREADABLE, TypeError):
        raise InputError(f"{path}: is no space of patients, or damaged; fit it again") from None
    raise InputError(f"{path}: is of version {version}; this tario reads {FORMAT_VERSION}; fit it again")


def fitted(reference: Patients, components: int, *, panel_hash: str, checkpoint: str, seed: int = 0) -> Space:
    """reference: predicted patients; components: at most one less than these.

    Genes that one of them lacks are not used. Raises `InputError` for fewer than LEAST_PATIENTS.
    """
    from sklearn.decomposition import PCA

    expression_PxG = reference.expression_PxG.astype(np.float64)
    if len(expression_PxG) < LEAST_PATIENTS:
        raise InputError(f"a space of {len(expression_PxG)} patients; expected at least {LEAST_PATIENTS}")
    known_G = np.isfinite(expression_PxG).all(0)
    if not known_G.any():
        raise InputError("a space of patients: no gene is known of all of them; leave out those of other panels")
    number = min(components, len(expression_PxG) - 1, int(known_G.sum()))
    solver = "full" if min(expression_PxG.shape) <= 1000 else "randomized"
    found = PCA(number, svd_solver=solver, random_state=seed).fit(expression_PxG[:, known_G])
    component_CxG = np.zeros((number, len(known_G)), np.float32)
    component_CxG[:, known_G] = found.components_
    mean_G = np.where(known_G, expression_PxG.mean(0), 0.0).astype(np.float32)
    return Space(panel_hash, checkpoint, len(expression_PxG), (PREDICTED,), mean_G[None], component_CxG,
                 np.sqrt(found.explained_variance_), np.eye(number, dtype=np.float32)[None])  # fmt: skip


def _turn(place_PxC: np.ndarray, wanted_PxC: np.ndarray) -> np.ndarray:
    """[C, C]: ridge regression, as strong as tells best of those left out one by one; the identity for few patients."""
    from sklearn.linear_model import RidgeCV

    components = place_PxC.shape[1]
    if len(place_PxC) < PAIRS * components:
        return np.eye(components, dtype=np.float32)
    strength = float((place_PxC.astype(np.float64) ** 2).sum()) / components
    found = RidgeCV(strength * np.logspace(-5, 1, 13), fit_intercept=False, alpha_per_target=True).fit(
        place_PxC.astype(np.float64), wanted_PxC.astype(np.float64))  # fmt: skip
    return found.coef_.T.astype(np.float32)


def nearest(place_PxC: np.ndarray, query_QxC: np.ndarray, number: int, *, without_P: Sequence[int] = ()) -> Neighbours:
    """Euclidean, exact; ties by their place. without: patients that are no neighbours, as the query itself."""
    if len(query_QxC) > _QUERIES:
        parts = [nearest(place_PxC, query_QxC[first : first + _QUERIES], number, without_P=without_P)
                 for first in range(0, len(query_QxC), _QUERIES)]  # fmt: skip
        return Neighbours(*(np.concatenate(of) for of in zip(*parts, strict=True)))
    best_QxN = np.zeros((len(query_QxC), 0), np.int64)
    distance_QxN = np.zeros((len(query_QxC), 0))
    query_QxC = query_QxC.astype(np.float64)
    left_out = np.zeros(len(place_PxC), bool)
    left_out[list(without_P)] = True
    for first in range(0, len(place_PxC), _AT_ONCE):
        block_PxC = place_PxC[first : first + _AT_ONCE].astype(np.float64)
        squares_QxP = (query_QxC**2).sum(1)[:, None] - 2 * query_QxC @ block_PxC.T + (block_PxC**2).sum(1)
        squares_QxP[:, left_out[first : first + _AT_ONCE]] = np.inf
        distance_QxN = np.concatenate([distance_QxN, squares_QxP], 1)
        index_P = np.arange(first, first + len(block_PxC))
        best_QxN = np.concatenate([best_QxN, np.broadcast_to(index_P, squares_QxP.shape)], 1)
        order = np.argsort(distance_QxN, 1, kind="stable")[:, :number]
        best_QxN, distance_QxN = (np.take_along_axis(of, order, 1) for of in (best_QxN, distance_QxN))
    known = int((~left_out).sum())
    return Neighbours(best_QxN[:, :known], np.sqrt(np.maximum(distance_QxN[:, :known], 0)).astype(np.float32))


def nearest_of_each(place_PxC: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Of some of the P places (their numbers, [n]) the distance to the nearest other, float32 [n]."""
    found, place_PxC = np.full(len(some), np.inf), place_PxC.astype(np.float64)
    squares_P = (place_PxC**2).sum(1)
    for first in range(0, len(some), 256):
        mine = some[first : first + 256]
        for start in range(0, len(place_PxC), _AT_ONCE):
            block = place_PxC[start : start + _AT_ONCE]
            squares_QxP = squares_P[mine, None] - 2 * (place_PxC[mine] @ block.T) + squares_P[start : start + _AT_ONCE]
            own = (mine >= start) & (mine < start + len(block))
            squares_QxP[np.flatnonzero(own), mine[own] - start] = np.inf
            found[first : first + 256] = np.minimum(found[first : first + 256], squares_QxP.min(1))
    return np.sqrt(np.maximum(found, 0)).astype(np.float32)

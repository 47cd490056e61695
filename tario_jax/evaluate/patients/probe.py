"""Linear probes of patients' vectors: what a straight line through them tells of an outcome.

Nested cross-validation by patient: outer folds are told by probes that never saw them; how strong the penalty is is
chosen within the others, by log loss; where it does not tell them better than the shares of the classes by more than
a standard error, these are told, since a line through noise tells other patients worse than chance (the rule of one
standard error: Breiman et al., Classification and Regression Trees, 1984, section 3.4.3). Logistic regression of
principal components that keep their spread: what hardly varies between patients counts for little, which on few
patients tells more than components that all weigh the same.

Axes: P patients, F features, C components, K classes, L folds.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_expit, log_softmax
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from tario_jax.config import InputError

COMPONENTS = 100  # at most
PENALTIES = tuple(np.logspace(-6, 0.5, 14).tolist())  # scikit-learn's C: the inverse of the strength
_LEAST_GAIN = 1e-3  # nats over all patients, by which a weaker penalty has to tell them better


class Fold(NamedTuple):
    train: np.ndarray  # numbers of patients
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]  # positions in train


class Told(NamedTuple):
    """Each patient's by the probe of the other folds.

    evidence: what the features add to the shares of the classes among the patients that a probe was fitted on. Those
    differ from fold to fold, and are lower where a class is frequent among the patients that are told: patients of
    several folds are compared by evidence, or probes that know nothing would be worse than chance. Of more than two
    classes that does not suffice, since what is told of one class depends on all: they are compared within folds.
    """

    log_PxK: np.ndarray  # probabilities
    evidence_PxK: np.ndarray


@dataclasses.dataclass(frozen=True)
class Folds:
    """Who is told by whom: the same for every set of features, so that their differences are paired."""

    folds_L: tuple[Fold, ...]

    def log_share(self, label_P: np.ndarray, classes: int) -> np.ndarray:
        """Of each class among those that tell of each patient, [P, K]."""
        found = np.zeros((len(label_P), classes))
        for fold in self.folds_L:
            found[fold.test] = np.log(np.bincount(label_P[fold.train], minlength=classes) / len(fold.train))
        return found

    @property
    def number_P(self) -> np.ndarray:
        """Number of the fold that each patient is told in."""
        found = np.zeros(sum(len(fold.test) for fold in self.folds_L), int)
        for number, fold in enumerate(self.folds_L):
            found[fold.test] = number
        return found


def dealt_anew(label_P: np.ndarray, group_P: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels that say nothing but what the group tells: each group keeps its share of each class."""
    dealt_P = label_P.copy()
    for group in np.unique(group_P):
        dealt_P[group_P == group] = rng.permutation(label_P[group_P == group])
    return dealt_P


def folds_of(label_P: np.ndarray, outer: int, inner: int, seed: int) -> Folds:
    """Each class is spread evenly. label: the number of each patient's class; inner: fewer where a class has fewer
    patients to train on. Raises `InputError` where that are fewer than two."""
    found = []
    least = int(np.unique(label_P, return_counts=True)[1].min())
    if least < outer or least - -(-least // outer) < 2:
        raise InputError(f"a class of {least} patients in {outer} folds: expected at least two to train on in each; "
                         "give fewer --folds, or leave the class out")  # fmt: skip
    for train, test in StratifiedKFold(outer, shuffle=True, random_state=seed).split(label_P, label_P):
        few = int(np.unique(label_P[train], return_counts=True)[1].min())
        within = StratifiedKFold(min(inner, few), shuffle=True, random_state=seed + 1)
        found.append(Fold(train, test, tuple(within.split(train, label_P[train]))))
    return Folds(tuple(found))


class Prepared:
    """Features as each fold's probe sees them: scaled, and by principal components, of its training patients alone."""

    def __init__(self, features_PxF: np.ndarray, folds: Folds, seed: int, *, beside_PxF: np.ndarray | None = None):
        """beside: further features that no component stands for, such as groups, and that are hardly penalised."""
        self.folds = folds
        beside_PxF = np.zeros((len(features_PxF), 0)) if beside_PxF is None else beside_PxF
        self.components_L: list[np.ndarray] = []  # of all patients, [P, C]
        features_PxF = np.asarray(features_PxF, np.float64)
        for fold in folds.folds_L:
            place_PxC = _components(features_PxF, fold.train, seed)
            beside = beside_PxF * np.sqrt(place_PxC.shape[1])
            self.components_L.append(np.concatenate([beside, place_PxC], 1))

    def told(self, label_P: np.ndarray, classes: int) -> "Told":
        log_PxK = np.zeros((len(label_P), classes))
        for fold, place_PxC in zip(self.folds.folds_L, self.components_L, strict=True):
            log_PxK[fold.test] = _one(place_PxC[fold.train], label_P[fold.train], fold.inner, place_PxC[fold.test],
                                      classes)  # fmt: skip
        return Told(log_PxK, log_PxK - self.folds.log_share(label_P, classes))


def _components(features_PxF: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """Principal components of scaled features, of which training patients have a mean square of 1 over all components.
    One of 0 where no feature varies."""
    varied = features_PxF[:, features_PxF[train].std(0) > 1e-9]
    if not varied.shape[1]:
        return np.zeros((len(features_PxF), 1))
    scale = StandardScaler().fit(varied[train])
    solver = "full" if min(len(train), varied.shape[1]) <= 300 else "randomized"
    number = min(COMPONENTS, varied.shape[1], len(train) - 1)
    found = PCA(number, svd_solver=solver, random_state=seed).fit(scale.transform(varied[train]))
    place_PxC = found.transform(scale.transform(varied))
    return place_PxC / np.sqrt((place_PxC[train] ** 2).mean())


def _one(train_PxC: np.ndarray, label_P: np.ndarray, inner: Sequence[tuple[np.ndarray, np.ndarray]],
         test_PxC: np.ndarray, classes: int) -> np.ndarray:  # fmt: skip
    """Log probabilities of the test patients, [P, K], by the penalty that tells the inner folds best, or the shares."""

    def loss_of(penalty: float | None) -> np.ndarray:
        """Of each patient, told by the other inner folds, in nats, [P]."""
        loss_P = np.zeros(len(label_P))
        for some, others in inner:
            log_PxK = _log_probability(train_PxC[some], label_P[some], penalty, train_PxC[others], classes)
            loss_P[others] = -log_PxK[np.arange(len(others)), label_P[others]]
        return loss_P

    best, best_P = None, np.full(len(label_P), np.inf)
    for penalty in PENALTIES:
        loss_P = loss_of(penalty)
        if loss_P.sum() < best_P.sum() - _LEAST_GAIN:
            best, best_P = penalty, loss_P
    gain_P = loss_of(None) - best_P
    error = gain_P.std() * np.sqrt(len(gain_P))  # standard error of the sum
    return _log_probability(train_PxC, label_P, best if gain_P.sum() > error else None, test_PxC, classes)


def _log_probability(train_PxC: np.ndarray, label_P: np.ndarray, penalty: float | None,
                     test_PxC: np.ndarray, classes: int) -> np.ndarray:  # fmt: skip
    """penalty: None for the shares of the classes, of everyone alike. A class that is not among the training patients
    has the least probability that there is; where there is one class alone, as labels that are shuffled may have it in
    a small fold, it is told of everyone."""
    share_K = np.bincount(label_P, minlength=classes) / len(label_P)
    if penalty is None or share_K.max() == 1:
        return np.tile(np.log(np.maximum(share_K, 1e-9)), (len(test_PxC), 1))
    solver = {"solver": "newton-cholesky"} if classes == 2 else {"solver": "lbfgs", "tol": 1e-3}
    with config_context(skip_parameter_validation=True):  # it takes a third of the time of a fit to so few
        model = LogisticRegression(C=penalty, max_iter=5000, **solver).fit(train_PxC, label_P)
    odds_Pxk = test_PxC @ model.coef_.T + model.intercept_  # of two classes one column
    two = odds_Pxk.shape[1] == 1
    log_Pxk = log_expit(np.concatenate([-odds_Pxk, odds_Pxk], 1)) if two else log_softmax(odds_Pxk, axis=1)
    found_PxK = np.full((len(test_PxC), classes), np.log(1e-9))
    found_PxK[:, model.classes_] = np.maximum(log_Pxk, np.log(1e-9))
    return found_PxK

"""What can be decoded of an outcome, and how much of it a confounder gives: a column of the patients' table, told from
the model's vectors, from stain and texture, from cancer type and site alone, and by shuffled labels.

Axes: P patients, F features, K classes, B bootstrap samples.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from tario_jax.config import InputError
from tario_jax.evaluate.blas import one_thread
from tario_jax.evaluate.patients.auroc import auroc, drawn_weights, interval, macro_auroc
from tario_jax.evaluate.patients.probe import Folds, Prepared, Told, folds_of

VECTORS, LOOKS = "vectors", "stain and texture"
_UNKNOWN = ("", "nan", "none", "unknown", "na", "n/a")
_CALIBRATION_BINS = 10


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a column is decoded."""

    folds: int = 5
    inner: int = 3
    shuffles: int = 20
    bootstraps: int = 1000
    seed: int = 0
    vectors: tuple[str, ...] = ("log_expression", "state")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A column, of the patients of whom it is known. Made by `outcome_of`."""

    column: str
    classes: tuple[str, ...]
    index_n: np.ndarray  # of those patients
    label_n: np.ndarray  # number of the class of each
    left_out: dict[str, int]  # patients by the value of a class that is too small; "": not known

    @property
    def counts(self) -> dict[str, int]:
        return dict(zip(self.classes, np.bincount(self.label_n, minlength=len(self.classes)).tolist(), strict=True))


def outcome_of(column: str, value_P: np.ndarray, setting: Setting) -> Outcome:
    """value: str, of each patient. Classes of fewer than two patients a fold are left out; of two, that which says yes
    is the second. Raises `InputError` where fewer than two are left."""
    known_P = np.array([value.strip().lower() not in _UNKNOWN for value in value_P])
    names, counts = np.unique(value_P[known_P], return_counts=True)
    kept = [str(name) for name, count in zip(names, counts, strict=True) if count >= 2 * setting.folds]
    if len(kept) < 2:
        told = ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True)) or "none"
        raise InputError(f"column {column!r}: a probe needs two classes of at least {2 * setting.folds} patients; "
                         f"these are {told}")  # fmt: skip
    if len(kept) == 2 and kept[0].lower() in ("true", "yes", "1"):
        kept.reverse()
    place = {name: at for at, name in enumerate(kept)}
    index_n = np.flatnonzero([value in place for value in value_P.tolist()])
    label_n = np.array([place[value] for value in value_P[index_n].tolist()])
    small = {str(name): int(count) for name, count in zip(names, counts, strict=True) if str(name) not in place}
    unknown = {"": int((~known_P).sum())} if not known_P.all() else {}
    return Outcome(column, tuple(kept), index_n, label_n, unknown | small)


def one_hot(value_P: np.ndarray) -> np.ndarray:
    """float64 [P, values]."""
    names = np.unique(value_P)
    return (value_P[:, None] == names[None]).astype(np.float64)


def decoded(
    outcome: Outcome, features: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray], setting: Setting,
    *, reachable_PxF: np.ndarray | None = None, further: Mapping[str, Callable[[Folds], Told]] | None = None,
    say: Callable[[str], None] = str,
) -> dict[str, Any]:  # fmt: skip
    """features: VECTORS and LOOKS, [P, F] of all patients; groups: columns that may confound, str [P] each; reachable:
    what the H&E can tell at best, where the truth is known; further: others that tell of the outcome's patients, given
    who is told by whom.

    All AUROCs are of the same folds and the same bootstrap samples of patients.
    """
    with one_thread():
        return _decoded(outcome, features, groups, setting, reachable_PxF, further or {}, say)


def _decoded(outcome, features, groups, setting, reachable_PxF, further, say) -> dict[str, Any]:
    label_n, some, classes = outcome.label_n, outcome.index_n, len(outcome.classes)
    groups = {name: values[some] for name, values in groups.items() if name != outcome.column}
    groups = {name: values for name, values in groups.items() if len(np.unique(values)) > 1}
    folds = folds_of(label_n, setting.folds, setting.inner, setting.seed)
    weight_BxP = drawn_weights(len(some), setting.bootstraps, setting.seed)
    prepared = {name: Prepared(of_PxF[some], folds, setting.seed) for name, of_PxF in features.items()}
    alone = {name: one_hot(values) for name, values in groups.items()}
    if len(alone) > 1:
        alone[" and ".join(alone)] = np.concatenate(list(alone.values()), 1)
    prepared |= {f"{name} alone": Prepared(of_PxF, folds, setting.seed) for name, of_PxF in alone.items()}
    if alone:
        whole = next(reversed(alone))
        prepared[f"{VECTORS}, {whole}"] = Prepared(features[VECTORS][some], folds, setting.seed,
                                                   beside_PxF=alone[whole])  # fmt: skip
    if reachable_PxF is not None:
        prepared["reachable"] = Prepared(reachable_PxF[some], folds, setting.seed)
    told = {name: one.told(label_n, classes) for name, one in prepared.items()}
    told |= {name: one(folds) for name, one in further.items()}
    log_nxK, evidence = told[VECTORS].log_PxK, {name: of.evidence_PxK for name, of in told.items()}
    say(f"{outcome.column}: {len(told)} sets of features told {len(some)} patients")
    compared = _Compared(label_n, evidence, folds.number_P, weight_BxP)
    result: dict[str, Any] = {
        "column": outcome.column, "classes": outcome.counts, "patients": len(some), "left_out": outcome.left_out,
        "auroc": {name: compared.told(name) for name in evidence}, "within": _within(compared, groups),
        "null": _null(prepared[VECTORS], label_n, classes, folds, setting),
        "calibration": _calibration(log_nxK, label_n), "by_class": _by_class(compared, outcome.classes),
        "accuracy": float((log_nxK.argmax(1) == label_n).mean()),
        "told": {"index": some.tolist(), "label": label_n.tolist(), "probability": np.exp(log_nxK).tolist()},
        "above": {name: compared.difference(VECTORS, name) for name in evidence
                  if name not in (VECTORS, "reachable") and not name.startswith(f"{VECTORS},")},
    }  # fmt: skip
    if alone:
        result["beside_confounders"] = {"of": whole} | compared.difference(f"{VECTORS}, {whole}", f"{whole} alone")
    result["lead"] = _lead(result, groups)
    if reachable_PxF is not None:
        result["way"] = _ways(compared, groups)
    return result


@dataclasses.dataclass(frozen=True)
class _Compared:
    """AUROCs of one outcome, all over the same patients and the same draws of them."""

    label_n: np.ndarray
    evidence: Mapping[str, np.ndarray]  # [n, K]
    fold_n: np.ndarray
    weight_Bxn: np.ndarray

    def _auroc(self, name: str, group_n: np.ndarray | None, weight_Bxn: np.ndarray | None) -> np.ndarray:
        return compare(self.label_n, self.evidence[name], self.fold_n, group_n, weight_Bxn)

    def value(self, name: str, group_n: np.ndarray | None = None) -> float:
        return float(self._auroc(name, group_n, None)[0])

    def sample(self, name: str, group_n: np.ndarray | None = None) -> np.ndarray:
        """float64 [B]."""
        return self._auroc(name, group_n, self.weight_Bxn)

    def told(self, name: str, group_n: np.ndarray | None = None) -> dict[str, float]:
        return _told(self.value(name, group_n), self.sample(name, group_n))

    def difference(self, name: str, other: str) -> dict[str, float]:
        return _told(self.value(name) - self.value(other), self.sample(name) - self.sample(other))


def compare(label_n: np.ndarray, evidence_nxK: np.ndarray, fold_n: np.ndarray, group_n: np.ndarray | None = None,
            weight_Bxn: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """float64 [B]: over pairs of one group; of more than two classes also of one fold."""
    if evidence_nxK.shape[1] > 2:
        group_n = fold_n if group_n is None else joined({"fold": fold_n, "group": group_n})
    return macro_auroc(label_n, evidence_nxK, weight_BxP=weight_Bxn, group_P=group_n)


def _told(value: float, sample_B: np.ndarray) -> dict[str, float]:
    low, high = interval(sample_B)
    return {"value": value, "low": low, "high": high}


def _within(compared: _Compared, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """AUROC over pairs of one group: what the group itself tells is not in it."""
    return {
        key: {name: compared.told(name, group) for name in compared.evidence
              if not name.endswith(" alone") and "," not in name}
        for key, group in _keys(groups).items()
    }  # fmt: skip


def _keys(groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each, and all of them together."""
    return dict(groups) | ({" and ".join(groups): joined(groups)} if len(groups) > 1 else {})


def joined(groups: Mapping[str, np.ndarray]) -> np.ndarray:
    """Patients alike in all of them are alike: int [P]."""
    return np.unique(np.stack([values.astype(str) for values in groups.values()], 1), axis=0, return_inverse=True)[1]


def _null(prepared: Prepared, label_n: np.ndarray, classes: int, folds: Folds,
          setting: Setting) -> dict[str, float] | None:  # fmt: skip
    """AUROC of labels that say nothing. p: share of them, and of the real one, that reach the real one's."""
    if not setting.shuffles:
        return None
    rng = np.random.default_rng(setting.seed)

    def of(label_n: np.ndarray) -> float:
        return float(compare(label_n, prepared.told(label_n, classes).evidence_PxK, folds.number_P)[0])

    real, found = of(label_n), [of(folds.shuffled(label_n, rng)) for _ in range(setting.shuffles)]
    return {"mean": float(np.mean(found)), "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else np.nan,
            "lowest": min(found), "highest": max(found), "shuffles": len(found),
            "p": (1 + sum(one >= real for one in found)) / (1 + len(found))}  # fmt: skip


def _calibration(log_nxK: np.ndarray, label_n: np.ndarray) -> dict[str, Any]:
    """Whether patients who are given 30 % are such in 30 % of cases: each class a statement for itself.

    slope and intercept: of a logistic regression of what was on the log odds that were told (1 and 0 are perfect; Cox,
    Biometrika 45:562, 1958); brier beside that of the classes' shares; error: expected calibration error over ten
    bins of equal count.
    """
    chance_nxK = np.exp(log_nxK) / np.exp(log_nxK).sum(1, keepdims=True)
    if chance_nxK.shape[1] == 2:
        chance, was = chance_nxK[:, 1], label_n == 1
    else:
        chance, was = chance_nxK.ravel(), (label_n[:, None] == np.arange(chance_nxK.shape[1])).ravel()
    odds = np.log(np.clip(chance, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(chance, 1e-6, 1 - 1e-6))
    line = LogisticRegression(C=np.inf, solver="newton-cholesky").fit(odds[:, None], was)
    order = np.argsort(chance, kind="stable")
    bins = [{"told": float(chance[some].mean()), "was": float(was[some].mean()), "number": len(some)}
            for some in np.array_split(order, _CALIBRATION_BINS) if len(some)]  # fmt: skip
    error = sum(one["number"] * abs(one["told"] - one["was"]) for one in bins) / len(chance)
    shares = np.bincount(label_n, minlength=chance_nxK.shape[1]) / len(label_n)
    brier = float(((chance_nxK - (label_n[:, None] == np.arange(len(shares)))) ** 2).sum(1).mean())
    return {"slope": float(line.coef_[0, 0]), "intercept": float(line.intercept_[0]), "error": float(error),
            "brier": brier, "brier_of_shares": float(1 - (shares**2).sum()), "bins": bins}  # fmt: skip


def _by_class(compared: _Compared, classes: tuple[str, ...]) -> dict[str, Any]:
    """Each against the rest, where there are more than two."""
    if len(classes) == 2:
        return {}
    found = {}
    for k, name in enumerate(classes):
        value, sample = (auroc(compared.label_n == k, compared.evidence[VECTORS][:, k], group_P=compared.fold_n,
                               weight_BxP=weights) for weights in (None, compared.weight_Bxn))  # fmt: skip
        found[name] = _told(float(value[0]), sample)
    return found


def _lead(result: dict[str, Any], groups) -> dict[str, Any]:
    """The figure to report: within those groups that tell of the outcome by themselves, else of all patients."""
    confounding = [name for name in groups if result["auroc"][f"{name} alone"]["low"] > 0.5]
    name = " and ".join(name for name in groups if name in confounding)
    if name and name in result["within"]:
        return {"how": f"within {name}", "confounded": confounding} | result["within"][name][VECTORS]
    return {"how": "of all patients", "confounded": []} | result["auroc"][VECTORS]


def _ways(compared: _Compared, groups: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of the way from 0.5 to the AUROC that is reachable, on the same patients, by the same pairs."""
    keys = {"of all patients": None} | {f"within {name}": values for name, values in _keys(groups).items()}
    return {
        key: _told((compared.value(VECTORS, group) - 0.5) / (compared.value("reachable", group) - 0.5),
                   (compared.sample(VECTORS, group) - 0.5) / (compared.sample("reachable", group) - 0.5))
        for key, group in keys.items()
    }  # fmt: skip

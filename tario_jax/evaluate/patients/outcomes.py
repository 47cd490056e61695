"""What can be decoded of an outcome, and how much of it a confounder gives: a column of the patients' table, told from
the model's vectors, from stain and texture, from cancer type and site alone, and by shuffled labels.

Axes: P patients, F features, K classes, B bootstrap samples.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from tario_jax.config import InputError
from tario_jax.evaluate.blas import one_thread
from tario_jax.evaluate.intervals import ends
from tario_jax.evaluate.patients.auroc import auroc, drawn_weights, macro_auroc
from tario_jax.evaluate.patients.probe import Folds, Prepared, Told, dealt_anew, folds_of
from tario_jax.evaluate.patients.tables import not_known

VECTORS, LOOKS = "vectors", "stain and texture"
YES, NO = ("true", "yes", "1"), ("false", "no", "0")
_CALIBRATION_BINS = 10


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a column is decoded."""

    folds: int = 5
    repeats: int = 3  # partitions into folds, over which AUROCs are averaged
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
    known_P = ~not_known(value_P)
    names, counts = np.unique(value_P[known_P], return_counts=True)
    kept = [str(name) for name, count in zip(names, counts, strict=True) if count >= 2 * setting.folds]
    if len(kept) < 2:
        shown = [f"{name}: {count}" for name, count in zip(names[:6], counts[:6], strict=True)]
        told = ", ".join(shown) + (", …" if len(names) > 6 else "") or "none"
        raise InputError(f"column {column!r}: a probe needs two classes of at least {2 * setting.folds} patients; "
                         f"these are {told}")  # fmt: skip
    if len(kept) == 2 and kept[0].lower() in YES:
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


@one_thread()
def decoded(
    outcome: Outcome, features: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray], setting: Setting, *,
    known: Sequence[str] = (), reachable_PxF: np.ndarray | None = None,
    further: Mapping[str, Callable[[Folds], Told]] | None = None, say: Callable[[str], None] = str,
) -> dict[str, Any]:  # fmt: skip
    """features: VECTORS and LOOKS, [P, F] of all patients; groups: columns that may confound, str [P] each; known: some
    of them that are part of what is asked, as the cancer type, and do not decide what is reported; reachable: what the
    H&E can tell at best, where the truth is known; further: others that tell of the outcome's patients, given who is
    told by whom.

    All AUROCs are of the same folds and the same bootstrap samples of patients.
    """
    label_n, some, classes = outcome.label_n, outcome.index_n, len(outcome.classes)
    groups = {name: values[some] for name, values in groups.items() if name != outcome.column}
    groups = {name: values for name, values in groups.items() if len(np.unique(values)) > 1}
    parts = [folds_of(label_n, setting.folds, setting.inner, setting.seed + 1000 * number)
             for number in range(setting.repeats)]  # fmt: skip
    weight_BxP = drawn_weights(len(some), setting.bootstraps, setting.seed)
    values = {name: of_PxF[some] for name, of_PxF in features.items()}
    alone = {name: one_hot(values) for name, values in groups.items()}
    if len(alone) > 1:
        alone[" and ".join(alone)] = np.concatenate(list(alone.values()), 1)
    values |= {f"{name} alone": of_PxF for name, of_PxF in alone.items()}
    beside = {}
    if alone:
        whole = next(reversed(alone))
        values[f"{VECTORS}, {whole}"], beside = values[VECTORS], {f"{VECTORS}, {whole}": alone[whole]}
    if reachable_PxF is not None:
        values["reachable"] = reachable_PxF[some]
    prepared = [{name: Prepared(of_PxF, folds, setting.seed, beside_PxF=beside.get(name))
                 for name, of_PxF in values.items()} for folds in parts]  # fmt: skip
    told = {name: [part[name].told(label_n, classes) for part in prepared] for name in values}
    told |= {name: [one(parts[0])] for name, one in (further or {}).items()}  # costs too much to be repeated
    log_nxK = np.log(np.mean([np.exp(one.log_PxK) for one in told[VECTORS]], 0))
    evidence = {name: [one.evidence_PxK for one in of] for name, of in told.items()}
    say(f"{outcome.column}: {len(told)} sets of features told {len(some)} patients")
    compared = _Compared(label_n, evidence, [folds.number_P for folds in parts], weight_BxP)
    confounding = _confounding(compared, groups, known)
    keys = _keys(groups, confounding)
    pairs_n = keys.get(" and ".join(confounding))
    told_n = np.any([of.any(1) for of in evidence[VECTORS]], 0)
    dealt_n = joined({name: groups[name] for name in confounding}) if confounding else parts[0].number_P
    result: dict[str, Any] = {
        "column": outcome.column, "classes": outcome.counts, "patients": len(some), "left_out": outcome.left_out,
        "auroc": {name: compared.auroc_of(name) for name in evidence}, "within": _within(compared, keys),
        "null": _null(prepared[0][VECTORS], label_n, classes, parts[0], pairs_n, dealt_n, setting),
        "calibration": _calibration(log_nxK, label_n, told_n),
        "by_shares": float(np.mean([~of.any(1) for of in evidence[VECTORS]])),
        "by_class": _by_class(compared, outcome.classes),
        "accuracy": float((log_nxK.argmax(1) == label_n).mean()),
        "told": {"index": some.tolist(), "label": label_n.tolist(), "probability": np.exp(log_nxK).tolist()},
        "above": {name: compared.difference(VECTORS, name) for name in evidence
                  if name not in (VECTORS, "reachable") and not name.startswith(f"{VECTORS},")},
    }  # fmt: skip
    if alone:
        result["beside_confounders"] = {"of": whole} | compared.difference(f"{VECTORS}, {whole}", f"{whole} alone")
    result["lead"] = _lead(result, confounding) | {"patients": _compared_patients(label_n, pairs_n)}
    if reachable_PxF is not None:
        result["way"] = _ways(compared, keys)
    return result


@dataclasses.dataclass(frozen=True)
class _Compared:
    """AUROCs of one outcome, all over the same patients and the same draws of them: means over partitions."""

    label_n: np.ndarray
    evidence: Mapping[str, Sequence[np.ndarray]]  # [n, K] of each partition into folds
    fold_n: Sequence[np.ndarray]  # of each
    weight_Bxn: np.ndarray

    def _auroc(self, name: str, group_n: np.ndarray | None, weight_Bxn: np.ndarray | None,
               parts: int | None = None) -> np.ndarray:  # fmt: skip
        return np.mean([compare(self.label_n, one, fold_n, group_n, weight_Bxn)
                        for one, fold_n in zip(self.evidence[name][:parts], self.fold_n, strict=False)], 0)  # fmt: skip

    def value(self, name: str, group_n: np.ndarray | None = None, parts: int | None = None) -> float:
        return float(self._auroc(name, group_n, None, parts)[0])

    def sample(self, name: str, group_n: np.ndarray | None = None, parts: int | None = None) -> np.ndarray:
        """float64 [B]. parts: of the first partitions alone."""
        return self._auroc(name, group_n, self.weight_Bxn, parts)

    def auroc_of(self, name: str, group_n: np.ndarray | None = None) -> dict[str, float]:
        return _with_ends(self.value(name, group_n), self.sample(name, group_n))

    def difference(self, name: str, other: str) -> dict[str, float]:
        """Over the partitions that both have told in."""
        parts = min(len(self.evidence[name]), len(self.evidence[other]))
        return _with_ends(self.value(name, None, parts) - self.value(other, None, parts),
                          self.sample(name, None, parts) - self.sample(other, None, parts))  # fmt: skip


def compare(label_n: np.ndarray, evidence_nxK: np.ndarray, fold_n: np.ndarray, group_n: np.ndarray | None = None,
            weight_Bxn: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """float64 [B]: over pairs of one group; of more than two classes also of one fold."""
    if evidence_nxK.shape[1] > 2:
        group_n = fold_n if group_n is None else joined({"fold": fold_n, "group": group_n})
    return macro_auroc(label_n, evidence_nxK, weight_BxP=weight_Bxn, group_P=group_n)


def _with_ends(value: float, sample_B: np.ndarray) -> dict[str, float]:
    return {"value": value, **ends(sample_B)}


def _within(compared: _Compared, keys: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """AUROC over pairs of one group: what the group itself tells is not in it."""
    return {
        key: {name: compared.auroc_of(name, group) for name in compared.evidence
              if not name.endswith(" alone") and "," not in name}
        for key, group in keys.items()
    }  # fmt: skip


def _keys(groups: Mapping[str, np.ndarray], confounding: Sequence[str]) -> dict[str, np.ndarray]:
    """Whose pairs are compared, int [P] each: of each group, of all of them together, and of those that confound."""
    kept = {" and ".join(names): names for names in (*([name] for name in groups), list(groups), list(confounding))
            if names}  # fmt: skip
    return {key: alike({name: groups[name] for name in names}) for key, names in kept.items()}


def alike(groups: Mapping[str, np.ndarray]) -> np.ndarray:
    """As `joined`, but of whom one is not known is like no one: int [P]."""
    group_P = joined(groups)
    unknown_P = np.any([not_known(values) for values in groups.values()], 0)
    return np.where(unknown_P, group_P.max() + 1 + np.arange(len(group_P)), group_P)


def joined(groups: Mapping[str, np.ndarray]) -> np.ndarray:
    """Patients alike in all of them are alike: int [P]."""
    return np.unique(np.stack([values.astype(str) for values in groups.values()], 1), axis=0, return_inverse=True)[1]


def _null(prepared: Prepared, label_n: np.ndarray, classes: int, folds: Folds, group_n: np.ndarray | None,
          dealt_n: np.ndarray, setting: Setting) -> dict[str, float] | None:  # fmt: skip
    """AUROC of labels that say nothing, over pairs of one group. dealt: groups within which labels are dealt anew, so
    that what they tell of the label is as it was. p: share of them, and of the real one, that reach the real one's; NaN
    where there is no pair."""
    if not setting.shuffles:
        return None
    rng = np.random.default_rng(setting.seed)

    def of(label_n: np.ndarray) -> float:
        return float(compare(label_n, prepared.told(label_n, classes).evidence_PxK, folds.number_P, group_n)[0])

    real = of(label_n)
    found = [of(dealt_anew(label_n, dealt_n, rng)) for _ in range(setting.shuffles)]
    return {
        "mean": float(np.mean(found)),
        "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else np.nan,
        "lowest": min(found),
        "highest": max(found),
        "shuffles": len(found),
        "p": (1 + sum(one >= real for one in found)) / (1 + len(found)) if np.isfinite(real) else np.nan,
    }


def _calibration(log_nxK: np.ndarray, label_n: np.ndarray, told_n: np.ndarray) -> dict[str, Any]:
    """Whether patients who are given 30 % are such in 30 % of cases: each class a statement for itself.

    slope and intercept: of a logistic regression of what was on the log odds that were told (1 and 0 are perfect; Cox,
    Biometrika 45:562, 1958), of patients of whom more than the shares was told, NaN where that are none; brier
    beside that of the classes' shares; error: expected calibration error over ten bins of equal count.
    """
    chance_nxK = np.exp(log_nxK) / np.exp(log_nxK).sum(1, keepdims=True)
    if chance_nxK.shape[1] == 2:
        chance, was, told = chance_nxK[:, 1], label_n == 1, told_n
    else:
        told = np.repeat(told_n, chance_nxK.shape[1])
        chance, was = chance_nxK.ravel(), (label_n[:, None] == np.arange(chance_nxK.shape[1])).ravel()
    odds = np.log(np.clip(chance, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(chance, 1e-6, 1 - 1e-6))
    slope, intercept = np.nan, np.nan
    if len(np.unique(was[told])) == 2:
        line = LogisticRegression(C=np.inf, solver="newton-cholesky").fit(odds[told, None], was[told])
        slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    order = np.argsort(chance, kind="stable")
    bins = [{"told": float(chance[some].mean()), "was": float(was[some].mean()), "number": len(some)}
            for some in np.array_split(order, _CALIBRATION_BINS) if len(some)]  # fmt: skip
    error = sum(one["number"] * abs(one["told"] - one["was"]) for one in bins) / len(chance)
    shares = np.bincount(label_n, minlength=chance_nxK.shape[1]) / len(label_n)
    brier = float(((chance_nxK - (label_n[:, None] == np.arange(len(shares)))) ** 2).sum(1).mean())
    return {"slope": slope, "intercept": intercept, "error": float(error),
            "brier": brier, "brier_of_shares": float(1 - (shares**2).sum()), "bins": bins}  # fmt: skip


def interval_text(told: Mapping[str, float | None] | None, digits: int = 3, signed: bool = False) -> str:
    """A figure with its interval; None for NaN, as JSON has it."""
    if told is None or told["value"] is None or not np.isfinite(told["value"]):
        return "–"
    value, low, high = (f"{told[name]:{'+' if signed else ''}.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def null_text(null: Mapping[str, float | None]) -> str:
    return f"{line_text(null['mean'], 3)} ± {line_text(null['deviation'], 3)}"


def line_text(value: float | None, digits: int = 2) -> str:
    """None is what JSON makes of NaN."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def _by_class(compared: _Compared, classes: tuple[str, ...]) -> dict[str, Any]:
    """Each against the rest, where there are more than two."""
    if len(classes) == 2:
        return {}
    found = {}
    for k, name in enumerate(classes):
        value, sample = (
            np.mean([auroc(compared.label_n == k, one[:, k], group_P=fold_n, weight_BxP=weights)
                     for one, fold_n in zip(compared.evidence[VECTORS], compared.fold_n, strict=True)], 0)
            for weights in (None, compared.weight_Bxn)
        )  # fmt: skip
        found[name] = _with_ends(float(value[0]), sample)
    return found


def _confounding(compared: _Compared, groups: Mapping[str, np.ndarray], known: Sequence[str]) -> list[str]:
    """Those that tell of the outcome by themselves, of patients of whom they are known."""
    found = []
    for name, value_P in groups.items():
        pairs_P = np.where(not_known(value_P), np.arange(len(value_P)), -1)
        if name not in known and compared.auroc_of(f"{name} alone", pairs_P)["low"] > 0.5:
            found.append(name)
    return found


def _compared_patients(label_n: np.ndarray, group_n: np.ndarray | None) -> int:
    """Those who are in a pair of one group, and differ."""
    if group_n is None:
        return len(label_n)
    return sum(int((group_n == group).sum()) for group in np.unique(group_n)
               if len(np.unique(label_n[group_n == group])) > 1)  # fmt: skip


def lead_text(one: Mapping[str, Any]) -> str:
    """Over which pairs the AUROC is that is reported."""
    lead = one["lead"]
    return lead["how"] if lead["patients"] == one["patients"] else f"{lead['how']}, {lead['patients']:,} patients"


def _lead(result: dict[str, Any], confounding: Sequence[str]) -> dict[str, Any]:
    """The figure to report: within all groups that confound, else of all patients."""
    if confounding:
        name = " and ".join(confounding)
        return {"how": f"within {name}", "confounded": list(confounding)} | result["within"][name][VECTORS]
    return {"how": "of all patients", "confounded": []} | result["auroc"][VECTORS]


def _ways(compared: _Compared, keys: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """How much of the way from 0.5 to the AUROC that is reachable, on the same patients, by the same pairs; None where
    what is reachable is not above 0.5: there is no way then."""
    found: dict[str, Any] = {}
    for key, group in {"of all patients": None, **{f"within {name}": values for name, values in keys.items()}}.items():
        reachable = compared.auroc_of("reachable", group)
        found[key] = None if not reachable["low"] > 0.5 else _with_ends(
            (compared.value(VECTORS, group) - 0.5) / (reachable["value"] - 0.5),
            (compared.sample(VECTORS, group) - 0.5) / (compared.sample("reachable", group) - 0.5))  # fmt: skip
    return found

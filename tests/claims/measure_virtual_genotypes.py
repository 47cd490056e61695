"""AUROC of each mutation and of response, from V and from T in bulk: `measure_virtual_genotypes.py OUT.json`.

NSCLC patients beyond those of any training cohort; a logistic regression on principal components of log composition,
five folds by patient. `pooled` compares all patients, and adeno- against squamous carcinoma carries some of it;
`within` takes each cancer type's mean out of the features and compares patients of one type only. Beside them: what the
cancer type alone tells, and the exact posterior given type, traits and site, which no probe of V can beat.
"""

import concurrent.futures
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tario_jax.virtual.diagnoses import NSCLC
from tario_jax.virtual.genotype import MUTATIONS, posterior
from tario_jax.virtual.patients import FIRST_NUMBER, TRAITS, Patient, cohort_of, draw_patient
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import Settings, bulk_rates

PATIENTS = 1000  # of NSCLC
FIRST = FIRST_NUMBER["held_out"] + 1000
COMPONENTS = 40
BOOTSTRAPS = 200  # of patients, for the standard deviations of the AUROC from V


def bulk(number: int) -> tuple[np.ndarray, np.ndarray]:
    """T and V of a patient's two regions together, log composition [2, G] each stacked."""
    settings = Settings(panel="curated")
    patient = draw_patient(number, settings.seed)
    total = sum(np.stack(bulk_rates(patient, region_of(patient, name, settings.section_um), settings))
                for name in ("core", "border"))  # fmt: skip
    return np.log1p(1e4 * total / total.sum(1, keepdims=True))


def chance_of(patient: Patient, name: str) -> float:
    """Probability of a mutation given all that is known of a patient; rounding noise does not order patients."""
    genotypes = posterior(patient.cohort, patient.trait_R, TRAITS, patient.site)
    return round(sum(chance for mutated, chance in genotypes if mutated[name]), 9)


def told(values_PxG: np.ndarray, labels_P: np.ndarray) -> np.ndarray:
    """Cross-validated log odds of a linear probe, [P]."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probe = make_pipeline(
        StandardScaler(), PCA(COMPONENTS, random_state=0), StandardScaler(),
        LogisticRegressionCV(Cs=6, cv=3, scoring="roc_auc", max_iter=500, use_legacy_attributes=False, l1_ratios=(0,)),
    )  # fmt: skip
    return cross_val_predict(probe, values_PxG, labels_P, cv=folds, method="decision_function")


def auroc_within(labels_P: np.ndarray, score_P: np.ndarray, group_P: np.ndarray) -> float:
    """AUROC over the pairs of patients of one group."""
    right, pairs = 0.0, 0.0
    for group in np.unique(group_P):
        mine = group_P == group
        number = float(labels_P[mine].sum() * (~labels_P[mine]).sum())
        if number:
            right, pairs = right + number * roc_auc_score(labels_P[mine], score_P[mine]), pairs + number
    return right / pairs


def centred(values_PxG: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """The values less their group's mean."""
    out = values_PxG.copy()
    for group in np.unique(group_P):
        out[group_P == group] -= out[group_P == group].mean(0)
    return out


def main() -> None:
    numbers = [k for k in range(FIRST, FIRST + 10 * PATIENTS) if cohort_of(k) in NSCLC][:PATIENTS]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        values_PxMxG = []
        for done, value in enumerate(pool.map(bulk, numbers, chunksize=4), 1):
            values_PxMxG.append(value)
            if done % 50 == 0:
                print(f"genotypes: {done}/{PATIENTS} patients", flush=True)
    values_PxMxG = np.stack(values_PxMxG)
    patients = [draw_patient(number, 0) for number in numbers]
    type_P = np.array([patient.cohort for patient in patients])
    treated_P = np.array([patient.treated for patient in patients])
    labels = {name: np.array([patient.mutated[name] for patient in patients]) for name in MUTATIONS}
    labels["response"] = np.array([bool(patient.responded) for patient in patients])
    result: dict[str, dict[str, float]] = {}
    for name, labels_P in labels.items():
        some = treated_P if name == "response" else np.ones(PATIENTS, bool)
        kind_P, labels_P = type_P[some], labels_P[some]
        row = {"share": float(labels_P.mean())}
        for m, of in enumerate(("true", "reachable")):
            values_PxG = values_PxMxG[some, m]
            pooled_P, within_P = told(values_PxG, labels_P), told(centred(values_PxG, kind_P), labels_P)
            row[f"{of}_pooled"] = float(roc_auc_score(labels_P, pooled_P))
            row[f"{of}_within"] = auroc_within(labels_P, within_P, kind_P)
        drawn = np.random.default_rng(0).integers(len(labels_P), size=(BOOTSTRAPS, len(labels_P)))
        row["pooled_sd"] = float(np.std([roc_auc_score(labels_P[some], pooled_P[some]) for some in drawn]))
        row["within_sd"] = float(np.std([auroc_within(labels_P[some], within_P[some], kind_P[some]) for some in drawn]))
        rate_of = {kind: labels_P[kind_P == kind].mean() for kind in NSCLC}
        row["type_only"] = float(roc_auc_score(labels_P, [rate_of[kind] for kind in kind_P]))
        if name in MUTATIONS:
            known_P = np.array([chance_of(patient, name) for patient in patients])
            row["posterior_pooled"] = float(roc_auc_score(labels_P, known_P))
            row["posterior_within"] = auroc_within(labels_P, known_P, kind_P)
        result[name] = row
    visible = [result[name] for name in MUTATIONS[:-1]]
    result |= {
        "lowest_visible": min(row["reachable_within"] for row in visible),
        "highest_visible": max(row[f"reachable_{how}"] for row in visible for how in ("pooled", "within")),
        "invisible_off": max(abs(result[MUTATIONS[-1]][f"reachable_{how}"] - 0.5) for how in ("pooled", "within")),
    }
    columns = ("share", "type_only", "true_pooled", "reachable_pooled", "pooled_sd", "posterior_pooled", "true_within",
               "reachable_within", "within_sd", "posterior_within")  # fmt: skip
    rows = [f"AUROC, {PATIENTS:,} NSCLC patients", f"{'':<10}" + "".join(f"{name:>18}" for name in columns)]
    rows += [f"{name:<10}" + "".join(f"{result[name].get(column, np.nan):>18.3f}" for column in columns)
             for name in labels]  # fmt: skip
    result["table"] = "\n".join(rows)
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

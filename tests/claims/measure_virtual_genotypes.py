"""AUROC of each mutation and of response, from V and from T in bulk: `measure_virtual_genotypes.py OUT.json`.

Patients beyond those of any training cohort; a logistic regression on principal components of log composition, five
folds by patient. V is all that a reader of the H&E could know.
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
from tario_jax.virtual.genotype import MUTATIONS
from tario_jax.virtual.patients import FIRST_NUMBER, cohort_of, draw_patient
from tario_jax.virtual.rates import DEPTHS
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import Settings, bulk_rates

PATIENTS = 1000  # of NSCLC
FIRST = FIRST_NUMBER["held_out"] + 1000
COMPONENTS = 40


def bulk(number: int) -> tuple[np.ndarray, np.ndarray]:
    """T and V of a patient's two regions together, log composition [2, G] each stacked."""
    settings = Settings(panel="curated")
    patient = draw_patient(number, settings.seed)
    total = sum(np.stack(bulk_rates(patient, region_of(patient, name, settings.section_um), settings))
                for name in ("core", "border"))  # fmt: skip
    return np.log1p(1e4 * total / total.sum(1, keepdims=True))


def auroc(values_PxG: np.ndarray, labels_P: np.ndarray) -> float:
    """Cross-validated AUROC of a linear probe."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probe = make_pipeline(
        StandardScaler(), PCA(COMPONENTS, random_state=0), StandardScaler(),
        LogisticRegressionCV(Cs=6, cv=3, scoring="roc_auc", max_iter=500, use_legacy_attributes=False, l1_ratios=(0,)),
    )  # fmt: skip
    told_P = cross_val_predict(probe, values_PxG, labels_P, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels_P, told_P))


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
    labels = {name: np.array([patient.mutated[name] for patient in patients]) for name in MUTATIONS}
    treated_P = np.array([patient.treated for patient in patients])
    response = np.array([bool(patient.responded) for patient in patients])
    result: dict[str, dict[str, float]] = {}
    for name, labels_P in labels.items():
        result[name] = {of: auroc(values_PxMxG[:, m], labels_P) for m, of in enumerate(("true", "reachable"))}
        result[name]["share"] = float(labels_P.mean())
    result["response"] = {of: auroc(values_PxMxG[treated_P, m], response[treated_P])
                          for m, of in enumerate(("true", "reachable"))}  # fmt: skip
    result["response"]["share"] = float(response[treated_P].mean())
    visible = [result[name]["reachable"] for name in MUTATIONS[:-1]]
    result |= {"lowest_visible": min(visible), "highest_visible": max(visible),
               "invisible_off": abs(result[MUTATIONS[-1]]["reachable"] - 0.5)}  # fmt: skip
    print(f"{'':<10}{'true':>8}{'V':>8}{'share':>8}   of {PATIENTS} NSCLC patients, depth {DEPTHS['default']:.0f}")
    for name in (*MUTATIONS, "response"):
        row = result[name]
        print(f"{name:<10}{row['true']:>8.3f}{row['reachable']:>8.3f}{row['share']:>8.2f}")
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

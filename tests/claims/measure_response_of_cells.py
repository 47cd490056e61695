"""What true cells tell of response: `measure_response_of_cells.py OUT.json`.

The treated among the NSCLC patients of measure_patients.py, on the same sections: the probe of V, which knows each
patient's traits, beside the same probe of the cells as they were drawn, counted by look: of all of the tissue, and by
their distance to the nearest tumour cell. Nothing is painted or predicted: a model of the H&E that finds every cell,
and counts as these do, tells no more.
"""

import concurrent.futures
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import scipy.spatial
from sklearn.metrics import roc_auc_score

from tario_jax.evaluate.patients.probe import Prepared, folds_of
from tario_jax.virtual.kinds import LOOKS, TUMOUR
from tario_jax.virtual.patients import cohort_split, draw_patient, patient_number
from tario_jax.virtual.regions import region_of
from tario_jax.virtual.section import Settings, bulk_rates, draw_tissue

SETTINGS = Settings(section_um=1024.0, panel="curated")
AFTER, PATIENTS = 213, 1000  # held-out patients of measure_patients.py
EDGES_UM = (0, 15, 30, 45, 70, 100, 150, np.inf)  # of distances to the nearest tumour cell
SEEDS = 3  # of folds


def of_patient(name: str) -> tuple[np.ndarray, np.ndarray]:
    """V of both sections, log composition [G], and cells by section, distance and look, [2, E, L]."""
    patient = draw_patient(patient_number(name), SETTINGS.seed)
    total_G, cells_2xExL = 0.0, np.zeros((2, len(EDGES_UM) - 1, len(LOOKS)))
    for cells_ExL, name_of_region in zip(cells_2xExL, ("core", "border"), strict=True):
        region = region_of(patient, name_of_region, SETTINGS.section_um)
        total_G += bulk_rates(patient, region, SETTINGS)[1]
        _, cells = draw_tissue(patient, region, SETTINGS)
        place_Nx2 = np.stack([cells.x_um_N, cells.y_um_N], 1)
        tumour_N = cells.look_N == TUMOUR
        away_um_N = np.full(len(cells), 1e6)
        if tumour_N.any():
            away_um_N = scipy.spatial.cKDTree(place_Nx2[tumour_N]).query(place_Nx2)[0]
        np.add.at(cells_ExL, (np.digitize(away_um_N, EDGES_UM) - 1, cells.look_N), 1)
    return np.log1p(1e4 * total_G / total_G.sum()), cells_2xExL


def auroc(features_PxF: np.ndarray, responded_P: np.ndarray) -> float:
    found = []
    for seed in range(SEEDS):
        folds = folds_of(responded_P, 10, 5, seed)
        evidence_PxK = Prepared(features_PxF, folds, seed).told(responded_P, 2).evidence_PxK
        found.append(roc_auc_score(responded_P, evidence_PxK[:, 1] - evidence_PxK[:, 0]))
    return float(np.mean(found))


def log_shares(cells: np.ndarray) -> np.ndarray:
    """Of looks, the last axis; half a cell is added to each."""
    flat = np.log((cells + 0.5) / (cells.sum(-1, keepdims=True) + 0.5 * cells.shape[-1]))
    return flat.reshape(len(cells), -1)


def main() -> None:
    further = list(cohort_split(0, 0, AFTER + PATIENTS, ("LUAD", "LUSC")))[AFTER:]
    patients = [patient for name in further if (patient := draw_patient(patient_number(name), SETTINGS.seed)).treated]
    responded_P = np.array([patient.responded for patient in patients], int)
    found = []
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for one in pool.map(of_patient, [patient.id for patient in patients], chunksize=4):
            found.append(one)
            if len(found) % 50 == 0:
                print(f"{len(found)}/{len(patients)} patients", flush=True)
    reachable_PxG, cells_Px2xExL = (np.stack(of) for of in zip(*found, strict=True))
    aurocs = {name: auroc(features, responded_P) for name, features in {
        "V": reachable_PxG,
        "cells by look": log_shares(cells_Px2xExL.sum((1, 2))),
        "cells by look, each section": log_shares(cells_Px2xExL.sum(2)),
        "cells by look and distance to tumour": log_shares(cells_Px2xExL.sum(1)),
        "cells by look and distance to tumour, each section": log_shares(cells_Px2xExL),
    }.items()}  # fmt: skip
    ways = {name: (value - 0.5) / (aurocs["V"] - 0.5) for name, value in aurocs.items()}
    lines = [f"response of {len(patients)} treated NSCLC patients, two sections of {SETTINGS.section_um:g} µm each",
             f"{'probe of':52}{'AUROC':>7}{'way to V':>10}",
             *(f"{name:52}{value:7.3f}{ways[name]:10.2f}" for name, value in aurocs.items())]  # fmt: skip
    result = {"patients": len(patients), "aurocs": aurocs, "ways": ways, "way_by_look": ways["cells by look"],
              "most": max(way for name, way in ways.items() if name != "V"), "table": "\n".join(lines)}  # fmt: skip
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

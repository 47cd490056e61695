"""Tables that outlive a report: what maps carry of each gene, and what other runs are held against this one by."""

import json
from typing import Any

import numpy as np

from tario_jax.config import DataConfig
from tario_jax.evaluate import noise
from tario_jax.evaluate.bulk import pool
from tario_jax.evaluate.intervals import lower_by_patient
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.score_file import ScoreTable
from tario_jax.evaluate.summary import Context
from tario_jax.predict.gene_validation import ALL, GeneValidation

_KEPT_METHODS = (
    "model",
    "own_density",
    "nuclear_density",
    "ridge",
    "ridge_direct",
    "reachable",
    "true_rate",
)


def gene_validation(context: Context, symbols: np.ndarray, about: dict[str, Any]) -> GeneValidation:
    """Per gene and cohort: held-out r, that of the density control, the low end of their difference, and the ceiling.

    Where the held-out sections are of one patient, nothing can be said of others: no gene is validated.
    """
    density = context.of("own_density", "counts")
    rows = {ALL: np.arange(len(context.section_ids)), **context.cohorts}
    patients_C, columns = [], {name: [] for name in ("r", "density_r", "low", "ceiling")}
    nothing_G = np.full(len(symbols), np.nan)
    for own in rows.values():
        patients = [context.patients[s] for s in own]
        patients_C.append(len(set(patients)))
        model_SxG = context.of("model", "counts").r_SxG[own]
        columns["r"].append(mean_defined(model_SxG))
        columns["ceiling"].append(noise.root(mean_defined(context.rho_SxG[own])))
        if density is None:
            columns["density_r"].append(nothing_G)
            columns["low"].append(nothing_G)
            continue
        excess_SxG = model_SxG - density.r_SxG[own]
        columns["density_r"].append(mean_defined(density.r_SxG[own]))
        columns["low"].append(lower_by_patient(excess_SxG, patients))
    stacked = (np.stack(values) for values in columns.values())
    return GeneValidation(tuple(symbols.tolist()), tuple(rows), np.array(patients_C), *stacked, about)


def score_table(context: Context, symbols: np.ndarray, gene_class: np.ndarray, *, bin_um: float, read_um: float,
                min_measured: float, corpus_seal: str, checkpoint: str, ranked_on: str,
                split_by: str = "patient") -> ScoreTable:  # fmt: skip
    """Scores of every gene under evaluation; gene_class: of each, "" where none is known. min_measured: share of a bin
    that had to be measured."""
    settings = {name: getattr(context.config, name) for name in ("min_total", "overlap")}
    if min_measured != DataConfig.min_measured:  # which bins count
        settings["min_measured"] = min_measured
    if split_by != "patient":  # which says that nothing is known of new patients
        settings["split_by"] = split_by
    ranked_G = np.isin(np.arange(len(symbols)), context.ranking.order)
    detections_S = context.stack("detections")
    nats = (context.stack(name) / np.maximum(detections_S, 1) for name in ("gene_nats", "total_nats"))
    cohort_of = {str(arrays["patient"]): str(arrays["cohort"]) for arrays in context.arrays_S}
    patients = tuple(sorted(cohort_of))
    pooled = [part for name in ("measured", "model")
              for part in pool(context.arrays_S, name, list(patients), one_panel=context.one_panel)]  # fmt: skip
    return ScoreTable(
        bin_um, read_um, corpus_seal, checkpoint, ranked_on, json.dumps(settings), context.section_ids,
        tuple(context.patients),
        tuple(str(arrays["cohort"]) for arrays in context.arrays_S), tuple(symbols.tolist()),
        tuple(gene_class.tolist()),
        np.where(ranked_G, context.ranking.moran_G, np.nan), context.rho_SxG, *nats, detections_S,
        {(method, form): scores.r_SxG for method in _KEPT_METHODS
         for form, scores in context.scores.get(method, {}).items()},
        patients, tuple(cohort_of[patient] for patient in patients), *pooled,
    )  # fmt: skip

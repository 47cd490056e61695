"""Tables that outlive a report: what maps carry of each gene, and what other runs are held against this one by."""

from typing import Any

import numpy as np

from tario_jax.evaluate import noise
from tario_jax.evaluate.bulk import pool
from tario_jax.evaluate.intervals import lower_ends, patient_resampling, resample
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.score_file import ScoreTable
from tario_jax.evaluate.summary import Context, rows_of
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
_GENES_AT_ONCE = 512  # [samples, genes] of a whole transcriptome would be gigabytes


def gene_validation(context: Context, symbols: np.ndarray, about: dict[str, Any]) -> GeneValidation:
    """Per gene and cohort: held-out r, that of the density control, the low end of their difference, and the ceiling.

    Where the held-out sections are of one patient, nothing can be said of others: no gene is validated.
    """
    genes, density = len(symbols), context.of("own_density", "counts")
    rows = {ALL: np.arange(len(context.section_ids)), **context.cohorts}
    patients_C, columns = [], {name: [] for name in ("r", "density_r", "low", "ceiling")}
    nothing_G = np.full(genes, np.nan)
    for own in rows.values():
        patients = [context.patients[s] for s in own]
        patients_C.append(len(set(patients)))
        model = rows_of(context.of("model", "counts"), own)
        columns["r"].append(model.by_gene)
        columns["ceiling"].append(noise.root(mean_defined(context.rho_SxG[own])))
        low_G = nothing_G.copy()
        if density is not None:
            columns["density_r"].append(rows_of(density, own).by_gene)
            if len(set(patients)) > 1:
                resampling = patient_resampling(patients, context.config.bootstraps,
                                                np.random.default_rng(context.config.seed))  # fmt: skip
                for first in range(0, genes, _GENES_AT_ONCE):
                    some = np.arange(first, min(first + _GENES_AT_ONCE, genes))
                    excess_BxG = resample(model, some, resampling) - resample(rows_of(density, own), some, resampling)
                    low_G[some] = lower_ends(excess_BxG)
        else:
            columns["density_r"].append(nothing_G)
        columns["low"].append(low_G)
    stacked = (np.stack(values) for values in columns.values())
    return GeneValidation(tuple(symbols.tolist()), tuple(rows), np.array(patients_C), *stacked, about)


def score_table(context: Context, symbols: np.ndarray, gene_class: np.ndarray, *, bin_um: float, read_um: float,
                corpus_seal: str, checkpoint: str) -> ScoreTable:  # fmt: skip
    """Scores of every gene under evaluation; gene_class: of each, "" where none is known."""
    ranked_G = np.isin(np.arange(len(symbols)), context.ranking.order)
    detections_S = context.stack("detections")
    nats = (context.stack(name) / np.maximum(detections_S, 1) for name in ("gene_nats", "total_nats"))
    cohort_of = {str(arrays["patient"]): str(arrays["cohort"]) for arrays in context.arrays_S}
    patients = tuple(sorted(cohort_of))
    pooled = [part for name in ("measured", "model") for part in pool(context.arrays_S, name, list(patients))]
    return ScoreTable(
        bin_um, read_um, corpus_seal, checkpoint, context.section_ids, tuple(context.patients),
        tuple(str(arrays["cohort"]) for arrays in context.arrays_S), tuple(symbols.tolist()),
        tuple(gene_class.tolist()),
        np.where(ranked_G, context.ranking.moran_G, np.nan), context.rho_SxG, *nats, detections_S,
        {(method, form): scores.r_SxG for method in _KEPT_METHODS
         for form, scores in context.scores.get(method, {}).items()},
        patients, tuple(cohort_of[patient] for patient in patients), *pooled,
    )  # fmt: skip

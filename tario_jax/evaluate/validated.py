"""The validation table, from the scores of an evaluation."""

from typing import Any

import numpy as np

from tario_jax.evaluate import noise
from tario_jax.evaluate.intervals import lower_ends, patient_resampling, resample
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.summary import Context, rows_of
from tario_jax.predict.gene_validation import ALL, GeneValidation

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

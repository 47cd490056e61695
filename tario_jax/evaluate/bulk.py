"""Bulk correlation: does the prediction order the patients of a cohort by a gene's expression?"""

from collections.abc import Sequence

import numpy as np

from tario_jax.evaluate.intervals import block_correlation, ends
from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene

MIN_PATIENTS = 10


def log_cpm(values_PxG: np.ndarray, total_P: np.ndarray) -> np.ndarray:
    """log1p of values per million of the patient's total, [patients, G]."""
    scale_P = np.where(total_P > 0, 1e6 / np.where(total_P > 0, total_P, 1.0), 0.0)
    return np.log1p(np.maximum(values_PxG, 0.0) * scale_P[:, None])


def pool(arrays_S: Sequence[Arrays], name: str, patients: list[str], *,
         one_panel: bool) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Mean value a bin by patient and gene [P, G], and the mean total a bin [P], from sums of sections.

    A gene that a section did not measure is pooled over the patient's other sections; NaN where none did. one_panel:
    all sections measured the same genes, and the total is over every one of them. Where they did not, a total over its
    own genes would tell patients apart by their panels: it is over the genes under evaluation that all of them
    measured.
    """
    values_PxG, total_P = [], []
    common_G = np.all([arrays["measured"] for arrays in arrays_S], axis=0)
    for patient in patients:
        own = [arrays for arrays in arrays_S if arrays["patient"] == patient]
        bins_G = sum(arrays["number"] * arrays["measured"] for arrays in own)
        sum_G = sum(arrays[f"bulk/{name}"] * arrays["measured"] for arrays in own)
        values_PxG.append(np.where(bins_G > 0, sum_G / np.maximum(bins_G, 1), np.nan))
        bins = sum(int(arrays["number"]) for arrays in own)
        whole = sum(float(arrays[f"bulk_total/{name}"]) for arrays in own) / max(bins, 1)
        total_P.append(whole if one_panel else float(values_PxG[-1][common_G].sum()))
    return np.stack(values_PxG), np.array(total_P)


def bulk_report(
    truth: tuple[np.ndarray, np.ndarray],
    predicted: dict[str, tuple[np.ndarray, np.ndarray]],
    mean_composition_G: np.ndarray,
    cohort_mean: dict[str, np.ndarray],
    cohort_P: list[str],
    samples: int,
    rng: np.random.Generator,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Bulk r by cohort with its controls, and r by gene (log-CPM) for each estimable cohort.

    truth and each of predicted: (values_PxG, total_P) from `pool`. cohort_mean: the training patients' mean
    composition by cohort. Pearson across patients per gene, within a cohort of at least 10; mean over genes whose
    truth varies. Controls: total only (predicted total × mean composition; constant in log-CPM, so 0 there) and the
    cohort's mean (constant within a cohort, 0 by definition). Intervals: bootstrap over the cohort's patients.
    """
    cohort_P = np.asarray(cohort_P)
    every = np.arange(len(cohort_P))
    report: dict = {"min_patients": MIN_PATIENTS, "by_cohort": {}, "form_of_headline": "log_cpm"}
    by_gene, estimable = {}, []
    for cohort in sorted(set(cohort_P.tolist())):
        rows = np.flatnonzero(cohort_P == cohort)
        entry: dict = {"patients": len(rows)}
        if len(rows) < MIN_PATIENTS:
            entry["not_estimable"] = f"{len(rows)} held-out patients; at least {MIN_PATIENTS} are needed"
        else:
            weights_BxP = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), samples).astype(np.float64)
            for form in ("counts", "log_cpm"):
                x_PxG = _form(truth, form)[rows]
                entry[form] = {"mean_predictor": {"r": 0.0}}
                for method, values in predicted.items():
                    p_PxG = _form(values, form)[rows]
                    r_G = pearson_by_gene(x_PxG, p_PxG)
                    entry[form][method] = {"r": _mean(r_G), **_interval(x_PxG, p_PxG, weights_BxP)}
                    if form == "log_cpm":
                        by_gene[f"{cohort}/{method}"] = r_G
                    if method == "model":
                        total_PxG = values[1][rows, None] * mean_composition_G
                        total_r = 0.0 if form == "log_cpm" else _mean(pearson_by_gene(x_PxG, total_PxG))
                        entry[form]["total_only"] = {"r": total_r}
                        entry[form]["undefined_genes"] = int(np.isnan(r_G).sum())
            estimable.append(entry)
        report["by_cohort"][cohort] = entry
    for form in ("counts", "log_cpm"):
        report[form] = {
            method: float(np.mean([entry[form][method]["r"] for entry in estimable])) if estimable else None
            for method in (*predicted, "total_only", "mean_predictor")
        }
    if len(every) >= MIN_PATIENTS:
        cohort_PxG = np.stack([cohort_mean.get(cohort, mean_composition_G) for cohort in cohort_P])
        report["pooled"] = {
            "patients": len(every), "note": "across cohorts: cancer type alone gives much of it",
            **{
                form: {
                    **{m: _mean(pearson_by_gene(_form(truth, form), _form(v, form))) for m, v in predicted.items()},
                    "cohort_mean": _mean(pearson_by_gene(
                        _form(truth, form),
                        _form((cohort_PxG * 1e4, np.full(len(every), 1e4)), form),
                    )),
                }
                for form in ("counts", "log_cpm")
            },
        }  # fmt: skip
    x_PxG = _form(truth, "log_cpm")
    mean_PxG = _form((np.tile(mean_composition_G, (len(every), 1)), np.ones(len(every))), "log_cpm")
    report["per_patient_across_genes"] = {
        "note": "easy: a constant model is near it; read beside the mean predictor",
        **{method: _across_genes(x_PxG, _form(values, "log_cpm")) for method, values in predicted.items()},
        "mean_predictor": _across_genes(x_PxG, mean_PxG),
    }
    return report, by_gene


def _form(values: tuple[np.ndarray, np.ndarray], form: str) -> np.ndarray:
    return values[0] if form == "counts" else log_cpm(*values)


def _mean(r_G: np.ndarray) -> float:
    return float(mean_defined(r_G))


def _interval(x_PxG: np.ndarray, p_PxG: np.ndarray, weights_BxP: np.ndarray) -> dict[str, float]:
    each_P = np.arange(len(x_PxG))
    seen_G = np.isfinite(x_PxG).all(0)
    x_PxG, p_PxG = x_PxG[:, seen_G], p_PxG[:, seen_G]
    # In parts: [samples, G] for a whole transcriptome would be gigabytes.
    part = max(1, 1_000_000 // max(x_PxG.shape[1], 1))
    means = [
        mean_defined(block_correlation(x_PxG, p_PxG, each_P, weights_BxP[start : start + part]).T)
        for start in range(0, len(weights_BxP), part)
    ]
    return ends(np.concatenate(means))


def _across_genes(x_PxG: np.ndarray, p_PxG: np.ndarray) -> float:
    both_G = np.isfinite(x_PxG).all(0)
    p_PxG = np.where(np.isfinite(p_PxG), p_PxG, 0.0)
    return _mean(pearson_by_gene(x_PxG[:, both_G].T, p_PxG[:, both_G].T))

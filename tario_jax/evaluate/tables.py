"""The evaluation of one model on held-out sections: every number of the report, beside its controls."""

import dataclasses
from typing import Any, Literal

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.evaluate import noise
from tario_jax.evaluate.bulk import bulk_report, log_cpm, pool
from tario_jax.evaluate.comparison import rates_of, score_methods, score_shuffled
from tario_jax.evaluate.controls import FORMS, Controls, fit_controls, measure
from tario_jax.evaluate.intervals import Resampling, block_resampling, blocks, patient_resampling
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.ranking import candidate_genes, rank_genes
from tario_jax.evaluate.summary import Context, by_cohort, curves, rows_of, set_reports


@dataclasses.dataclass(frozen=True)
class SectionBins:
    """A section on its bins or spots; N places, G genes of the panel.

    Rates and truths are expected detections per bin. A section without rates_NxG has no prediction: r = 0 where it
    is held out, and no part in the density lines where it is for training.
    """

    section_id: str
    patient_id: str
    cohort: str
    x_um_N: np.ndarray  # centres
    y_um_N: np.ndarray
    pitch_um: float  # between neighbouring places
    layout: Literal["square", "spots"]
    counts_NxG: np.ndarray  # float32, measured
    features_NxF: np.ndarray  # of the surroundings, from features.section_features
    nuclear_density_N: np.ndarray
    measured_gene_G: np.ndarray  # bool
    rates_NxG: np.ndarray | None = None  # predicted
    true_rate_NxG: np.ndarray | None = None  # T, virtual tissue only
    reachable_NxG: np.ndarray | None = None  # V, virtual tissue only

    def __len__(self) -> int:
        return len(self.x_um_N)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """`report` is plain JSON values; `genes` are columns of one table, a row a gene under evaluation (NaN: undefined).

    `examples` are (section_id, symbol) for triptychs: the genes of highest training Moran's I, each in the held-out
    section where its r is the median one, so that the pictures show neither the best nor the worst. `bulk` holds the
    patients' pooled log-CPM (measured and predicted [P, G] over the genes of `genes`) and their cohorts.
    """

    report: dict[str, Any]
    genes: dict[str, np.ndarray]
    examples: tuple[tuple[str, str], ...]
    bulk: dict[str, Any]


def evaluate(
    train: list[SectionBins],
    held_out: list[SectionBins],
    symbols: tuple[str, ...],
    config: EvaluateConfig,
    *,
    trained_on: str,
    corpus_kind: str,
    split_by: str,
) -> Evaluation:
    """Everything that is measured on held-out sections, with all controls and intervals.

    `train` fits the controls and ranks the genes; without it genes are ranked on the held-out truth (the report says
    so) and the controls that need training are null. Raises `InputError` where no held-out section has
    `config.min_bins` bins, or a patient is on both sides of a split by patient.
    """
    if split_by == "patient":
        shared = sorted({s.patient_id for s in train} & {s.patient_id for s in held_out})
        if shared:
            raise InputError(f"split: patient {shared[0]!r} is in training and held out; expected one side only")
    kept = [section for section in held_out if len(section) >= config.min_bins]
    if not kept:
        most = max((len(section) for section in held_out), default=0)
        raise InputError(f"evaluate.min_bins is {config.min_bins}; the largest of {len(held_out)} held-out sections "
                         f"has {most} bins; take smaller bins or lower evaluate.min_bins")  # fmt: skip
    fitting = [section for section in train if len(section) >= config.min_bins]
    ranking_on = fitting or kept
    genes, rankable_G = candidate_genes(
        [s.counts_NxG for s in ranking_on], [s.measured_gene_G for s in ranking_on],
        config.min_detected, config.mean_genes,
    )  # fmt: skip
    usable = np.any([s.measured_gene_G for s in kept], axis=0)[genes]
    genes, rankable_G = genes[usable], rankable_G[usable]
    if not len(genes):
        raise InputError("evaluate: no gene was seen in training bins and measured in held-out sections; "
                         "check that both are of one panel")  # fmt: skip
    train_measured = [measure(s.counts_NxG, s.measured_gene_G, genes, config.min_total) for s in fitting]
    measured = [measure(s.counts_NxG, s.measured_gene_G, genes, config.min_total) for s in kept]
    ranking = rank_genes(
        ranking_on, train_measured if fitting else measured, rankable_G, config.top_genes, config.mean_genes
    )
    in_sets = np.unique(np.concatenate(list(ranking.sets.values())))
    controls = None
    if fitting:
        controls = fit_controls(
            train_measured,
            [s.features_NxF for s in fitting],
            {
                "own_density": [None if s.rates_NxG is None else rates_of(s, genes, s.rates_NxG)[1] for s in fitting],
                "nuclear_density": [s.nuclear_density_N for s in fitting],
                "true_total": [m.total_N for m in train_measured],
            },
            [s.patient_id if split_by == "patient" else s.section_id for s in fitting],
            in_sets,
        )
    rng = np.random.default_rng(config.seed)
    resampling = _resampling(kept, config, rng)
    scores = score_methods(kept, measured, genes, controls, resampling)
    context = Context(config, kept, measured, genes, in_sets, ranking, scores, resampling)
    chosen = np.asarray(symbols)[genes]
    bulk, bulk_r, pooled = _bulk(context, fitting, train_measured, controls, rng)
    shuffled = score_shuffled(kept, measured, genes, in_sets, config.shuffles, rng)
    sets = set_reports(context, chosen, shuffled, rng)
    report = {
        "headline": _headline(sets, bulk),
        "trained_on": trained_on,
        "corpus_kind": corpus_kind,
        "split_by": split_by,
        "ranked_on": "training sections" if fitting else "held-out sections",
        "interval": {
            "kind": resampling.name, "level": 0.95, "samples": config.bootstraps, "patients": resampling.patients,
            "note": _interval_note(resampling, kept, config),
        },
        "composition": {
            "scale": "log1p of values scaled to 1e4 a bin", "min_total": config.min_total,
            "of_the_model": "of its rates; 'model_expected' is the expectation of log1p under its Poisson rates",
            "residual": "Pearson residuals given the bin's total, on the bins of the composition form",
        },
        "sections": {
            "train": len(fitting), "held_out": len(kept), "held_out_patients": len({s.patient_id for s in kept}),
            "train_patients": len({s.patient_id for s in fitting}), "held_out_bins": sum(map(len, kept)),
        },
        "genes": {
            "panel": len(symbols), "evaluated": len(genes), "rankable": len(ranking.order),
            "min_detected": config.min_detected, "top_genes": config.top_genes, "mean_genes": config.mean_genes,
        },
        "skipped": _skipped(train, held_out, fitting, kept, measured, scores, config),
        "ridge": None if controls is None else {
            "features": len(controls.ridge_total.scaler.mean_F),
            "alpha": {form: controls.ridge[form].alpha for form in FORMS},
            "folds_over": "patients" if split_by == "patient" else "sections",
        },
        "sets": sets,
        "by_cohort": by_cohort(context, rng),
        "curve": curves(context, rng),
        "bulk": bulk,
    }  # fmt: skip
    table = _gene_table(context, chosen, bulk_r)
    return Evaluation(plain(report), table, _examples(context, chosen), {**pooled, "symbols": chosen})


def _resampling(sections: list[SectionBins], config: EvaluateConfig, rng: np.random.Generator) -> Resampling:
    """Patients where there are several, else blocks within the sections of the one patient."""
    if len({section.patient_id for section in sections}) > 1:
        return patient_resampling([section.patient_id for section in sections], config.bootstraps, rng)
    block_S = [
        blocks(s.x_um_N, s.y_um_N, config.block_um if s.layout == "square" else 3 * s.pitch_um) for s in sections
    ]
    return block_resampling(block_S, config.bootstraps, rng)


def _interval_note(resampling: Resampling, sections: list[SectionBins], config: EvaluateConfig) -> str:
    if resampling.by == "block":
        size = f"{config.block_um:g} µm" if sections[0].layout == "square" else "3 × 3 spots"
        number = sum(int(block_N.max()) + 1 for block_N in resampling.block_S)
        few = f"; {number} blocks: a rough one, few blocks" if number < 10 else f", {number} in all"
        return f"one held-out patient: blocks of {size} within the section{few}; says nothing about other patients"
    few = "; few patients: the interval is a rough one" if resampling.patients < 10 else ""
    return f"patients drawn with replacement{few}"


def _bulk(context: Context, fitting, train_measured, controls: Controls | None, rng) -> tuple[dict, dict, dict]:
    sections, measured = context.sections, context.measured
    patient_S = [section.patient_id for section in sections]
    patients = sorted(set(patient_S))
    cohort_of = {section.patient_id: section.cohort for section in sections}

    def pooled(values_S, total_S):
        return pool(values_S, total_S, patient_S, patients)

    truth = pooled([m.x["counts"] for m in measured], [m.total_N for m in measured])
    predicted = {}
    rates_S = [rates_of(s, context.genes, s.rates_NxG) for s in sections]
    predicted["model"] = pooled([rates for rates, _ in rates_S], [total for _, total in rates_S])
    mean_G, cohort_mean = np.nan_to_num(truth[0].sum(0) / max(truth[1].sum(), 1e-300)), {}
    if controls is not None:
        mean_G = controls.mean_composition_G
        ridge_S = [controls.ridge_derived(s.features_NxF) for s in sections]
        predicted["ridge"] = pooled([made["counts"] for made, _ in ridge_S], [total for _, total in ridge_S])
        for cohort in {section.cohort for section in fitting}:
            own = [m for s, m in zip(fitting, train_measured, strict=True) if s.cohort == cohort]
            total = sum(m.total_N.sum() for m in own)
            cohort_mean[cohort] = sum(m.counts_NxG.sum(0) for m in own) / max(total, 1e-300)
    cohort_P = [cohort_of[patient] for patient in patients]
    report, by_gene = bulk_report(truth, predicted, mean_G, cohort_mean, cohort_P, context.config.bootstraps, rng)
    values = {"measured_PxG": log_cpm(*truth), "predicted_PxG": log_cpm(*predicted["model"])}
    return report, by_gene, {**values, "patients": patients, "cohorts": cohort_P}


def _headline(sets: dict, bulk: dict) -> dict[str, Any]:
    def of(method: str, form: str) -> float | None:
        return sets["top_moran"]["methods"].get(method, {}).get(form, {}).get("mean_r")

    share = sets["top_moran"]["share_of_reachable"]
    return {
        "spatial_r_top100": of("model", "counts"),
        "share_of_reachable_top100": share["counts"]["share"] if share and "counts" in share else None,
        "ridge_r_top100": of("ridge", "counts"),
        "density_r_top100": of("nuclear_density", "counts"),
        "composition_r_top100": of("model", "composition"),
        "ridge_composition_r_top100": of("ridge_direct", "composition"),
        "bulk_r": bulk["log_cpm"].get("model"),
        "ridge_bulk_r": bulk["log_cpm"].get("ridge"),
        "seconds": None,
        "own_density_r_top100": of("own_density", "counts"),
        "genes": sets["top_moran"]["genes"],
    }


def _skipped(train, held_out, fitting, kept, measured, scores, config) -> dict[str, Any]:
    few = [section for section in (*train, *held_out) if len(section) < config.min_bins]
    model_r_SxG = scores["model"]["counts"].r_SxG
    return {
        "min_bins": config.min_bins,
        "sections": [{"section_id": section.section_id, "bins": len(section)} for section in few],
        "held_out_sections": len(held_out) - len(kept),
        "train_sections": len(train) - len(fitting),
        "bins_below_min_total": int(sum(len(m.total_N) - len(m.kept_N) for m in measured)),
        "sections_without_prediction": [s.section_id for s in kept if s.rates_NxG is None],
        "constant_genes": int(np.isnan(model_r_SxG).all(0).sum()),
        "constant_gene_sections": int(np.isnan(model_r_SxG).sum()),
    }


def _gene_table(context: Context, symbols: np.ndarray, bulk_r: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row a gene: how it ranks, and how well it was predicted, over all held-out sections and by cohort."""
    ranking = context.ranking
    table = {
        "symbol": symbols, "mean_count": ranking.mean_G, "moran_i": ranking.moran_G, "moran_c": ranking.moran_c_G,
        "ceiling": noise.root(mean_defined(context.rho_SxG)),
    }  # fmt: skip
    for method in ("model", "own_density", "nuclear_density", "ridge", "ridge_direct", "reachable"):
        for form in FORMS:
            scores = context.of(method, form)
            if scores is not None and not (method == "ridge_direct" and form == "counts"):
                table[f"{method}_{form}_r"] = scores.by_gene
    for cohort, rows in context.cohorts.items():
        for method in ("model", "own_density"):
            scores = context.of(method, "counts")
            if scores is not None:
                table[f"{method}_counts_r/{cohort}"] = rows_of(scores, rows).by_gene
    table |= {f"bulk_r/{key.removesuffix('/model')}": r_G for key, r_G in bulk_r.items() if key.endswith("/model")}
    return table


def _examples(context: Context, symbols: np.ndarray) -> tuple[tuple[str, str], ...]:
    chosen = []
    r_SxG = context.of("model", "counts").r_SxG
    for gene in context.ranking.sets["top_moran"][: context.config.examples]:
        defined = np.flatnonzero(np.isfinite(r_SxG[:, gene]))
        if len(defined):
            by_r = defined[np.argsort(r_SxG[defined, gene], kind="stable")]
            chosen.append((context.sections[by_r[(len(by_r) - 1) // 2]].section_id, str(symbols[gene])))
    return tuple(chosen)


def plain(value: Any) -> Any:
    """JSON values: numpy scalars and arrays become Python's, NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    return value

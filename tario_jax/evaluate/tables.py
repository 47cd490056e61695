"""The evaluation of one model on held-out sections: every number of the report, beside its controls."""

import dataclasses
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.evaluate import noise
from tario_jax.evaluate.bulk import bulk_report, log_cpm, pool
from tario_jax.evaluate.controls import Controls
from tario_jax.evaluate.intervals import Resampling, block_resampling, patient_resampling
from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moments import FORMS
from tario_jax.evaluate.ranking import candidate_genes, rank_genes
from tario_jax.evaluate.section_bins import SectionSource
from tario_jax.evaluate.section_scores import Plan, section_blocks
from tario_jax.evaluate.section_work import ALONE, Work, ranking_standings, score_sections, standings_of
from tario_jax.evaluate.summary import Context, by_cohort, curves, rows_of, scores_of, set_reports


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
    context: Context


def evaluate(
    train: list[SectionSource],
    held_out: list[SectionSource],
    symbols: tuple[str, ...],
    config: EvaluateConfig,
    *,
    trained_on: str,
    corpus_kind: str,
    split_by: str,
    null_genes: np.ndarray | None = None,
    ranked_on: list[SectionSource] | None = None,
    work: Work = ALONE,
) -> Evaluation:
    """Everything that is measured on held-out sections, with all controls and intervals.

    `train` fits the controls and ranks the genes; without it genes are ranked on the held-out truth (the report says
    so) and the controls that need training are null. null_genes: positions in the panel of genes that nothing can tell
    of, whose composition is kept for `null_class`. ranked_on: sections on which genes are chosen and ranked in place of
    `train`: runs that learnt from different patients of one training side are then compared on the same genes. Raises
    `InputError` where no held-out section has `config.min_bins` bins, or a patient is on both sides of a split by
    patient.
    """
    if split_by == "patient":
        shared = sorted({s.patient_id for s in train} & {s.patient_id for s in held_out})
        if shared:
            raise InputError(f"split: patient {shared[0]!r} is in training and held out; expected one side only")
    ranking_side = train if ranked_on is None else ranked_on
    if config.ranked_on == "held_out":
        ranking_side = []
    every = {section.section_id: section for section in (*train, *ranking_side, *held_out)}
    standings = standings_of(list(every.values()), config, work)
    bins = {name: int(arrays["bins"]) for name, arrays in standings.items()}
    kept = [section for section in held_out if bins[section.section_id] >= config.min_bins]
    if not kept:
        most = max((bins[section.section_id] for section in held_out), default=0)
        raise InputError(f"evaluate.min_bins is {config.min_bins}; the largest of {len(held_out)} held-out sections "
                         f"has {most} bins; take smaller bins or lower evaluate.min_bins")  # fmt: skip
    fitting = [section for section in train if bins[section.section_id] >= config.min_bins]
    ranking_on, ranked_by = _ranking_on(ranking_side, kept, standings, config, work)
    genes, rankable_G = _candidates(ranking_on, np.any([standings[s.section_id]["measured"] for s in kept], axis=0),
                                    config)  # fmt: skip
    ranking = rank_genes(ranking_on, genes, rankable_G, config.top_genes, config.mean_genes)
    in_sets = np.unique(np.concatenate(list(ranking.sets.values())))
    by_block = len({section.patient_id for section in kept}) == 1
    plan = Plan(config, genes, in_sets, by_block, None, null_genes)
    arrays_S, controls = score_sections(fitting, kept, plan, split_by, work)

    rng = np.random.default_rng(config.seed)
    resampling, note = _resampling(kept, by_block, config, rng)
    ids = tuple(section.section_id for section in kept)
    one_panel = len({standings[name]["measured"].tobytes() for name in ids}) == 1
    scores = scores_of(arrays_S, in_sets, by_block)
    context = Context(config, genes, in_sets, ranking, ids, arrays_S, scores, resampling, one_panel)
    chosen = np.asarray(symbols)[genes]
    bulk, bulk_r, pooled = _bulk(context, fitting, standings, controls, rng)
    sets = set_reports(context, chosen)
    report = {
        "headline": _headline(sets, bulk),
        "trained_on": trained_on,
        "corpus_kind": corpus_kind,
        "split_by": split_by,
        "ranked_on": ranked_by,
        "ranking_sections": len(ranking_on),
        "interval": {
            "kind": resampling.name, "level": 0.95, "samples": config.bootstraps,
            "patients": resampling.patients, "note": note,
        },
        "composition": {
            "scale": "log1p of values scaled to 1e4 a bin", "min_total": config.min_total,
            "of_the_model": "expectation of log1p over Poisson counts; 'model_rates': log1p of the rates themselves",
            "residual": "Pearson residuals given the bin's total, on the bins of the composition form",
        },
        "sections": {
            "train": len(fitting), "held_out": len(kept), "held_out_patients": len({s.patient_id for s in kept}),
            "train_patients": len({s.patient_id for s in fitting}),
            "held_out_bins": sum(bins[s.section_id] for s in kept),
        },
        "genes": {
            "panel": len(symbols), "evaluated": len(genes), "rankable": len(ranking.order),
            "min_detected": config.min_detected, "top_genes": config.top_genes, "mean_genes": config.mean_genes,
        },
        "nats_per_detection": _nats(context),
        "skipped": _skipped(train, held_out, fitting, context, bins),
        "ridge": None if controls is None else _ridge(controls, split_by),
        "sets": sets,
        "by_cohort": by_cohort(context, rng),
        "curve": curves(context, rng),
        "bulk": bulk,
    }  # fmt: skip
    table = _gene_table(context, chosen, bulk_r)
    return Evaluation(plain(report), table, _examples(context, chosen), {**pooled, "symbols": chosen}, context)


def _candidates(ranking_on: list[Arrays], measured_P: np.ndarray,
                config: EvaluateConfig) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Positions in the panel of the G genes under evaluation, and whether each can be ranked, bool [G].

    measured_P: whether a held-out section measured each gene of the panel.
    """
    genes, rankable_G = candidate_genes(ranking_on, config.min_detected, config.mean_genes)
    usable_G = measured_P[genes]
    genes, rankable_G = genes[usable_G], rankable_G[usable_G]
    if len(genes) and not rankable_G.any():
        raise InputError(f"evaluate.min_detected is {config.min_detected:g}: no gene is seen in so large a share "
                         "of the bins; lower it")  # fmt: skip
    if not len(genes):
        raise InputError("evaluate: no gene was seen in training bins and measured in held-out sections; "
                         "check that both are of one panel")  # fmt: skip
    return genes, rankable_G


def _ranking_on(ranking_side: list[SectionSource], kept: list[SectionSource], standings: dict[str, Arrays],
                config: EvaluateConfig, work: Work) -> tuple[list[Arrays], str]:  # fmt: skip
    """Standings on which genes are ranked, and what sections they are of. Moran's I is of bins of its own, of which a
    section must have enough; where none has, it must of those under evaluation, as every section of `kept` does."""
    for sections, name in ((ranking_side, "training sections"), (kept, "held-out sections")):
        ranked = ranking_standings(sections, standings, config, work)
        for counted in (ranked, [standings[section.section_id] for section in sections]):
            enough = [one for one, of in zip(ranked, counted, strict=True) if of["bins"] >= config.min_bins]
            if enough:
                return enough, name
    raise ValueError("no section that is kept has evaluate.min_bins bins")


def _resampling(sections: list[SectionSource], by_block: bool, config: EvaluateConfig,
                rng: np.random.Generator) -> tuple[Resampling, str]:  # fmt: skip
    """Patients where there are several, else blocks within the sections of the one patient; and what to say of it."""
    if not by_block:
        resampling = patient_resampling([section.patient_id for section in sections], config.bootstraps, rng)
        few = "; few patients: the interval is a rough one" if resampling.patients < 10 else ""
        return resampling, f"patients drawn with replacement{few}"
    bins = [section.measured() for section in sections]
    block_S, side_S = zip(*(section_blocks(section, config) for section in bins), strict=True)
    number = sum(int(block_N.max()) + 1 for block_N in block_S)
    size = "3 × 3 spots"
    if bins[0].layout == "square":
        size = " or ".join(f"{side_um:g}" for side_um in sorted(set(side_S))) + " µm"
    few = f"; {number} blocks: a rough one, few blocks" if number < 10 else f", {number} in all"
    return block_resampling(list(block_S), config.bootstraps, rng), (
        f"one held-out patient: blocks of {size} within the section{few}; says nothing about other patients"
    )


def _ridge(controls: Controls, split_by: str) -> dict[str, Any]:
    return {
        "features": len(controls.ridge_total.scaler.mean_F),
        "alpha": {form: controls.ridge[form].alpha for form in FORMS},
        "folds_over": "patients" if split_by == "patient" else "sections",
    }


def _nats(context: Context) -> dict[str, float]:
    """Of the counts under the predicted rates: of the multinomial over genes, and of the bins' totals."""
    gene_S, total_S, detections_S = (context.stack(name) for name in ("gene_nats", "total_nats", "detections"))
    finite_S = np.isfinite(gene_S)
    detections = max(float(detections_S[finite_S].sum()), 1.0)
    return {"genes": float(gene_S[finite_S].sum() / detections) if finite_S.any() else float("nan"),
            "totals": float(total_S[finite_S].sum() / detections) if finite_S.any() else float("nan")}  # fmt: skip


def _bulk(context: Context, fitting: list[SectionSource], standings: dict[str, Arrays], controls: Controls | None,
          rng: np.random.Generator) -> tuple[dict, dict, dict]:  # fmt: skip
    cohort_of = {str(arrays["patient"]): str(arrays["cohort"]) for arrays in context.arrays_S}
    patients = sorted(cohort_of)
    methods = [name for name in ("model", "ridge", "reachable")
               if all(f"bulk/{name}" in arrays for arrays in context.arrays_S)]  # fmt: skip
    truth, *of_methods = (pool(context.arrays_S, name, patients, one_panel=context.one_panel)
                          for name in ("measured", *methods))  # fmt: skip
    predicted = dict(zip(methods, of_methods, strict=True))
    mean_G, cohort_mean = np.nan_to_num(np.nansum(truth[0], 0) / max(truth[1].sum(), 1e-300)), {}
    if controls is not None:
        mean_G = controls.mean_composition_G
        for cohort in {section.cohort for section in fitting}:
            own = [standings[s.section_id] for s in fitting if s.cohort == cohort]
            # a gene's share is of the detections of sections that measured it
            total_G = sum(arrays["sum"].sum() * arrays["measured"][context.genes] for arrays in own)
            cohort_mean[cohort] = sum(arrays["sum"][context.genes] for arrays in own) / np.maximum(total_G, 1e-300)
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


def _skipped(train: list[SectionSource], held_out: list[SectionSource], fitting: list[SectionSource], context: Context,
             bins: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    config = context.config
    few = [section.section_id for section in (*train, *held_out) if bins[section.section_id] < config.min_bins]
    model_r_SxG = context.of("model", "counts").r_SxG
    unpredicted = [name for name, arrays in zip(context.section_ids, context.arrays_S, strict=True)
                   if not arrays["predicted"]]  # fmt: skip
    return {
        "min_bins": config.min_bins,
        "sections": [{"section_id": name, "bins": bins[name]} for name in few],
        "held_out_sections": len(held_out) - len(context.section_ids),
        "train_sections": len(train) - len(fitting),
        "bins_below_min_total": int(context.stack("left_out").sum()),
        "sections_without_prediction": unpredicted,
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
            chosen.append((context.section_ids[by_r[(len(by_r) - 1) // 2]], str(symbols[gene])))
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

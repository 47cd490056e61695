"""Scores summarised: by gene set, by cohort, and along the curve, each with its interval."""

import dataclasses
import functools
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig
from tario_jax.evaluate import noise
from tario_jax.evaluate.curve import curve, curve_interval, curve_sizes
from tario_jax.evaluate.intervals import (
    Resampling,
    Scores,
    ends,
    lower_by_patient,
    lower_ends,
    patient_resampling,
    resample,
    weighted_mean,
)
from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moments import FORMS
from tario_jax.evaluate.ranking import Ranking
from tario_jax.evaluate.section_scores import unpack

MethodScores = dict[str, dict[str, Scores]]

CURVE_METHODS = ("model", "ridge", "own_density", "nuclear_density", "reachable")
DIFFERENCES = (
    ("model", "own_density"), ("model", "nuclear_density"), ("model", "ridge"), ("model", "ridge_direct"),
    ("model", "displaced_1"), ("model", "displaced_2"),
)  # fmt: skip
IN_PLACE = {"displaced_1": "in_place_1", "displaced_2": "in_place_2"}  # the model over the bins of these
BY_GENE = ("model", "own_density", "ridge", "neighbours")  # methods whose samples are also needed gene by gene


@dataclasses.dataclass(frozen=True)
class Context:
    """What every part of the report is made from; positions of genes are among `genes`, sections are held-out ones."""

    config: EvaluateConfig
    genes: np.ndarray  # positions in the panel
    in_sets: np.ndarray
    ranking: Ranking
    section_ids: tuple[str, ...]
    arrays_S: tuple[Arrays, ...]  # what section_scores found, controls and model
    scores: MethodScores
    resampling: Resampling
    one_panel: bool = True  # the sections measured the same genes, all of them

    @functools.cached_property
    def rho_SxG(self) -> np.ndarray:
        return self.stack("rho")

    @property
    def patients(self) -> list[str]:
        """Of each section."""
        return [str(arrays["patient"]) for arrays in self.arrays_S]

    @functools.cached_property
    def cohorts(self) -> dict[str, np.ndarray]:
        """Positions of the held-out sections of each cohort."""
        of_section = [str(arrays["cohort"]) for arrays in self.arrays_S]
        return {name: np.flatnonzero([cohort == name for cohort in of_section]) for name in sorted(set(of_section))}

    def of(self, method: str, form: str) -> Scores | None:
        return self.scores.get(method, {}).get(form)

    def stack(self, name: str) -> np.ndarray:
        """Arrays of that name of all sections, one above the other."""
        return np.stack([arrays[name] for arrays in self.arrays_S])

    def resampled_reliability(self) -> np.ndarray:
        """Section mean of rho of the genes in sets in every sample, unclipped, [B, I]."""
        if self.resampling.by == "patient":
            return weighted_mean(self.rho_SxG[:, self.in_sets], self.resampling.weights_BxS)
        rho_SxBxI = [noise.resampled_reliability(unpack(arrays, "model/counts")[0], weights_BxK)
                     for arrays, weights_BxK in zip(self.arrays_S, self.resampling.weights_S, strict=True)]  # fmt: skip
        return mean_defined(np.stack(rho_SxBxI))


def scores_of(arrays_S: list[Arrays], in_sets: np.ndarray, by_block: bool) -> MethodScores:
    """Scores by method and form. A method that only some sections allow (a truth that one section lacks) is left out:
    it has no mean to compare."""
    scores: MethodScores = {}
    for name in dict.fromkeys(name for arrays in arrays_S for name in arrays):
        kind, *of = name.split("/")
        if kind not in ("r", "r_sets") or not all(name in arrays for arrays in arrays_S):
            continue
        method, form = of
        r_SxG = np.stack([arrays[name] for arrays in arrays_S])
        if kind == "r_sets":
            wide_SxG = np.full((len(arrays_S), len(arrays_S[0]["measured"])), np.nan)
            wide_SxG[:, in_sets] = r_SxG
            r_SxG = wide_SxG
        sums_S = tuple(unpack(arrays, f"{method}/{form}") for arrays in arrays_S) if by_block else None
        scores.setdefault(method, {})[form] = Scores(r_SxG, sums_S, in_sets if by_block else None)
    return scores


@dataclasses.dataclass(frozen=True)
class _GeneSet:
    """One gene set in the samples b of the resampling; I genes of it."""

    genes: np.ndarray  # [I] positions among the evaluated genes
    own: np.ndarray  # [I] positions among the genes in any set
    samples: dict[tuple[str, str], np.ndarray]  # mean r over the set by method and form, [B]
    by_gene_BxI: dict[str, np.ndarray]  # r in counts by method of BY_GENE
    rho_BxI: np.ndarray  # reliability, unclipped
    thinned: dict[str, dict[str, float]]  # by form, the ceiling from halves of the counts
    shuffled_RxI: dict[str, np.ndarray]  # by form, r with bins shuffled, of R runs


def set_reports(context: Context, symbols: np.ndarray) -> dict[str, Any]:
    """Every gene set with all methods, forms, intervals and paired differences. Genes of several are resampled once.

    symbols: str [G] of the evaluated genes.
    """
    in_sets, resampling = context.in_sets, context.resampling
    columns = {name: np.searchsorted(in_sets, genes) for name, genes in context.ranking.sets.items()}
    samples: dict[str, dict[tuple[str, str], np.ndarray]] = {name: {} for name in columns}  # mean r over the set, [B]
    by_gene_BxI: dict[str, np.ndarray] = {}
    by_halves: dict[str, np.ndarray] = {}
    for method, forms in context.scores.items():
        for form, scores in forms.items():
            r_BxI = resample(scores, in_sets, resampling)
            if method == "halves":
                by_halves[form] = r_BxI
                continue
            if form == "counts" and method in BY_GENE:
                by_gene_BxI[method] = r_BxI
            for name, own in columns.items():
                samples[name][method, form] = mean_defined(r_BxI[:, own].T)
    rho_BxI = context.resampled_reliability()
    shuffled = {form: mean_defined(context.stack(f"shuffled/{form}")) for form in FORMS}  # [runs, I]
    reports = {}
    for name, own in columns.items():
        thinned = {
            form: _estimate(
                mean_defined(noise.ceiling_from_halves(context.of("halves", form).by_gene[in_sets[own]])),
                mean_defined(noise.ceiling_from_halves(by_halves[form][:, own]).T),
            )
            for form in FORMS
        }
        genes = _GeneSet(
            context.ranking.sets[name], own, samples[name],
            {method: r_BxI[:, own] for method, r_BxI in by_gene_BxI.items()}, rho_BxI[:, own], thinned,
            {form: shuffled[form][:, own] for form in FORMS},
        )  # fmt: skip
        reports[name] = _set_report(context, genes, symbols)
    return reports


def _set_report(context: Context, of: _GeneSet, symbols: np.ndarray) -> dict[str, Any]:
    genes, samples = of.genes, of.samples
    methods: dict[str, dict[str, Any]] = {}
    for (method, form), samples_B in samples.items():
        value = mean_defined(context.of(method, form).by_gene[genes])
        methods.setdefault(method, {})[form] = _estimate(value, samples_B)
    methods["mean_composition"] = {form: {"mean_r": 0.0, "low": 0.0, "high": 0.0} for form in FORMS}
    methods["shuffled"] = {
        form: {"mean_r": float(runs.mean()), "sd": float(runs.std(ddof=1)), "runs": len(runs)}
        for form, runs in ((form, mean_defined(of.shuffled_RxI[form].T)) for form in FORMS)
    }
    rho_G = mean_defined(context.rho_SxG[:, genes])
    counts = _estimate(mean_defined(noise.root(rho_G)), mean_defined(noise.root(of.rho_BxI).T))
    methods["ceiling"] = {**of.thinned, "counts": counts}
    differences = {
        f"{first}_minus_{second}": {
            form: _estimate(
                methods[own][form]["mean_r"] - methods[second][form]["mean_r"],
                samples[own, form] - samples[second, form],
            )
            for form in FORMS
            if (own, form) in samples and (second, form) in samples
        }
        for first, second in DIFFERENCES
        for own in (IN_PLACE.get(second, first),)
    }
    model = {form: context.of("model", form) for form in FORMS}
    return {
        "genes": len(genes),
        "symbols": symbols[genes].tolist(),
        "undefined_genes": {form: int(np.isnan(model[form].by_gene[genes]).sum()) for form in FORMS},
        "undefined_gene_sections": {form: int(np.isnan(model[form].r_SxG[:, genes]).sum()) for form in FORMS},
        "methods": methods,
        "differences": {key: value for key, value in differences.items() if value},
        "share_of_reachable": _share(methods, samples),
        "ceiling_check": {
            "thinned_counts": of.thinned["counts"],
            "null": {
                null: float(mean_defined(noise.root(mean_defined(context.stack(f"null/{null}")[:, of.own]))))
                for null in ("flat", "depth_only")
            },
            "note": "shot noise only; ceilings of composition and residual come from binomial thinning",
        },
        "nearer_than_measurement": {
            "note": "share of genes with r(P, X) > rho; counts, shot noise only; 'neighbours' is the measurement "
                    "smoothed over neighbours, the bin itself left out",
            **{
                method: _nearer_than_measurement(context, method, genes, of.by_gene_BxI[method], of.rho_BxI)
                for method in BY_GENE
                if method in of.by_gene_BxI
            },
        },
        "nearer_truth": _nearer_truth(context, of.own),
        "excess_over_own_density": _excess(context, genes, of.by_gene_BxI),
    }  # fmt: skip


def _estimate(value: float, samples_B: np.ndarray) -> dict[str, float]:
    return {"mean_r": float(value), **ends(samples_B)}


def _share(methods: dict, samples: dict) -> dict | None:
    """Ratio of the means over genes of r(P, X) and r(V, X), by form; virtual tissue only."""
    if "reachable" not in methods:
        return None
    return {
        form: {
            "share": methods["model"][form]["mean_r"] / methods["reachable"][form]["mean_r"],
            **ends(samples["model", form] / samples["reachable", form]),
        }
        for form in FORMS
        if methods["reachable"].get(form) and methods["reachable"][form]["mean_r"] > 0
    }


def _low_ends(context: Context, values_SxG: np.ndarray, samples_BxG: np.ndarray) -> np.ndarray:
    """Of the interval of each gene's mean over sections: a t interval over patients, or, of one patient, percentiles
    over blocks of tissue."""
    if context.resampling.by == "block":
        return lower_ends(samples_BxG)
    return lower_by_patient(values_SxG, context.patients)


def _nearer_than_measurement(context: Context, method: str, genes: np.ndarray, r_BxG: np.ndarray,
                             rho_BxG: np.ndarray) -> dict[str, float]:  # fmt: skip
    scores, rho_SxG = context.of(method, "counts"), context.rho_SxG[:, genes]
    square_G = mean_defined(rho_SxG)
    rho_G = noise.root(square_G)
    # about the mean reliability, whose root is taken: that of one section alone is far from straight
    slope_G = np.divide(0.5, rho_G, out=np.zeros_like(rho_G), where=rho_G > 0)
    about_SxG = scores.r_SxG[:, genes] - rho_G - slope_G * (rho_SxG - square_G)
    low_G = _low_ends(context, about_SxG, r_BxG - noise.root(rho_BxG))
    return noise.nearer_than_measurement(scores.by_gene[genes] - rho_G, low_G)


def _nearer_truth(context: Context, own: np.ndarray) -> dict | None:
    """What the test r(P, X) > rho stands for, seen: r with the true rate by gene, counts; virtual tissue only."""
    true = context.of("true_rate", "counts")
    if true is None or not len(own):
        return None
    measured_G = mean_defined(true.r_SxG[:, context.in_sets[own]])
    found = {"measured": {"r": float(mean_defined(measured_G))}}
    for name in ("model", "own_density", "neighbours"):
        told_G = mean_defined(context.stack(f"truth/{name}")[:, own])
        found[name] = {"r": float(mean_defined(told_G)), "share_nearer": float(np.mean(told_G > measured_G))}
    return found


def _excess(context: Context, genes: np.ndarray, by_gene_BxG: dict[str, np.ndarray]) -> dict | None:
    """r(model) − r(own density) by gene of the set, counts: where it is not above 0 the model has learnt depth."""
    density = context.of("own_density", "counts")
    if density is None:
        return None
    excess_G = context.of("model", "counts").by_gene[genes] - density.by_gene[genes]
    defined_G = np.isfinite(excess_G)
    excess_SxG = context.of("model", "counts").r_SxG[:, genes] - density.r_SxG[:, genes]
    low_G = _low_ends(context, excess_SxG, by_gene_BxG["model"] - by_gene_BxG["own_density"])
    quantiles = np.percentile(excess_G[defined_G], (5, 25, 50, 75, 95)) if defined_G.any() else [np.nan] * 5
    return {
        "quantiles": dict(zip(("5", "25", "50", "75", "95"), map(float, quantiles), strict=True)),
        "share_above_0": float(np.mean(excess_G[defined_G] > 0)) if defined_G.any() else float("nan"),
        "share_interval_above_0": float(np.mean(low_G[defined_G] > 0)) if defined_G.any() else float("nan"),
    }


def rows_of(scores: Scores, rows: np.ndarray) -> Scores:
    """Of some sections alone; rows: their positions."""
    sums_S = None if scores.sums_S is None else tuple(scores.sums_S[s] for s in rows)
    return Scores(scores.r_SxG[rows], sums_S, scores.columns)


def _cohort_resampling(context: Context, rows: np.ndarray, rng: np.random.Generator) -> Resampling:
    """Within one cohort. A cohort with a single patient among several has no interval: its ends are NaN."""
    if context.resampling.by == "block":
        return context.resampling  # one patient: its cohort is everything
    return patient_resampling([context.patients[s] for s in rows], context.config.bootstraps, rng)


def by_cohort(context: Context, rng: np.random.Generator) -> dict[str, Any]:
    genes = context.ranking.sets["top_moran"]
    report = {}
    for cohort, rows in context.cohorts.items():
        resampling = _cohort_resampling(context, rows, rng)
        methods: dict[str, dict[str, Any]] = {}
        for method, forms in context.scores.items():
            for form, scores in forms.items() if method != "halves" else ():
                part = rows_of(scores, rows)
                value = mean_defined(part.by_gene[genes])
                single = resampling.by == "patient" and resampling.patients < 2
                samples_B = np.array([np.nan]) if single else mean_defined(resample(part, genes, resampling).T)
                methods.setdefault(method, {})[form] = _estimate(value, samples_B)
        methods["ceiling"] = {
            "counts": {"mean_r": float(mean_defined(noise.root(mean_defined(context.rho_SxG[rows][:, genes]))))}
        }
        report[cohort] = {"sections": len(rows), "patients": resampling.patients, "methods": methods}
    return report


def curves(context: Context, rng: np.random.Generator) -> dict[str, Any]:
    """Curves over k in counts, for all held-out sections and by cohort; intervals for the model."""
    order = context.ranking.order
    if not len(order):
        return {"k": [], "cohorts": {}}
    sizes_K = curve_sizes(len(order))
    groups = {"all": np.arange(len(context.section_ids)), **context.cohorts}
    report = {}
    for cohort, rows in groups.items():
        resampling = context.resampling if cohort == "all" else _cohort_resampling(context, rows, rng)
        lines = {}
        for method in CURVE_METHODS:
            scores = context.of(method, "counts")
            if scores is None:
                continue
            part = rows_of(scores, rows)
            lines[method] = {"mean_r": curve(part.by_gene, order, sizes_K).tolist()}
            if method == "model" and (resampling.by == "block" or resampling.patients > 1):
                if resampling.by == "block":  # of every gene, not of those in sets alone
                    sums_S = tuple(unpack(context.arrays_S[s], "model_whole/counts") for s in rows)
                    part = Scores(part.r_SxG, sums_S, np.arange(part.r_SxG.shape[1]))
                low_K, high_K = curve_interval(part, order, sizes_K, resampling)
                lines[method] |= {"low": low_K.tolist(), "high": high_K.tolist()}
        root_G = noise.root(mean_defined(context.rho_SxG[rows]))
        lines["ceiling"] = {"mean_r": curve(root_G, order, sizes_K).tolist()}
        report[cohort] = {"sections": len(rows), "patients": resampling.patients, "methods": lines}
    return {"k": sizes_K.tolist(), "ranked_by": "Moran's I of counts", "cohorts": report}

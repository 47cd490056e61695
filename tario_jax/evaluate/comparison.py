"""Scores of the model and of every control on the same bins of the held-out sections."""

import numpy as np

from tario_jax.evaluate.controls import FORMS, Controls, Measured, Prediction, displaced, from_rates, turned
from tario_jax.evaluate.intervals import Pair, Resampling, Scores
from tario_jax.evaluate.metrics import expected_composition, mean_defined, pearson_by_gene
from tario_jax.evaluate.moran import neighbour_weights

MethodScores = dict[str, dict[str, Scores | None]]


def rates_of(section, genes: np.ndarray, rates_NxP: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rates of `genes` [N, G] and their total over every gene that the section measured [N].

    A missing or non-finite prediction is 0: a constant, so its r is 0.
    """
    if rates_NxP is None:
        return np.zeros((len(section), len(genes))), np.zeros(len(section))
    whole_NxP = np.nan_to_num(rates_NxP[:, section.measured_gene_G], nan=0.0, posinf=0.0, neginf=0.0)
    chosen_NxG = np.nan_to_num(rates_NxP[:, genes], nan=0.0, posinf=0.0, neginf=0.0)
    return chosen_NxG.astype(np.float64), whole_NxP.sum(1, dtype=np.float64)


def predictions(section, measured: Measured, genes: np.ndarray, controls: Controls | None) -> dict[str, Prediction]:
    """Every method's prediction for one held-out section, on all of its bins."""
    rates_NxG, total_N = rates_of(section, genes, section.rates_NxG)
    weights_NxN = neighbour_weights(section.x_um_N, section.y_um_N, section.pitch_um, section.layout)
    made: dict[str, Prediction] = {
        "model": from_rates(rates_NxG, total_N),
        "model_expected": {"composition": expected_composition(rates_NxG, total_N)},
        "neighbours": {"counts": weights_NxN @ measured.counts_NxG},
    }
    for name, truth_NxP in (("reachable", section.reachable_NxG), ("true_rate", section.true_rate_NxG)):
        if truth_NxP is not None:
            made[name] = from_rates(*rates_of(section, genes, truth_NxP))
    if controls is not None:
        made["own_density"] = controls.density("own_density", total_N)
        made["nuclear_density"] = controls.density("nuclear_density", section.nuclear_density_N)
        made["true_total"] = controls.density("true_total", measured.total_N)
        made["ridge"], _ = controls.ridge_derived(section.features_NxF)
        made["ridge_direct"] = controls.ridge_direct(section.features_NxF)
    return made


def score_methods(
    sections: list, measured_S: list[Measured], genes: np.ndarray, controls: Controls | None, resampling: Resampling
) -> MethodScores:
    """r by method, form, section and gene. `displaced_1` and `displaced_2` are the model's rates read one and two
    bins away, averaged over the four directions. None: the method cannot be made in that form."""
    r: dict[tuple[str, str], list[np.ndarray]] = {}
    pairs: dict[tuple[str, str], list[tuple[Pair, ...]]] = {}

    def add(method: str, form: str, several: list[Pair]) -> None:
        by_pair = np.stack([pearson_by_gene(pair.x_NxG, pair.p_NxG) for pair in several])
        r.setdefault((method, form), []).append(mean_defined(by_pair))
        if resampling.by == "block":
            pairs.setdefault((method, form), []).append(tuple(several))

    for section, measured in zip(sections, measured_S, strict=True):
        made = predictions(section, measured, genes, controls)
        for method, prediction in made.items():
            for form, values_NxG in prediction.items():
                if values_NxG is not None:
                    bins = measured.bins(form)
                    add(method, form, [Pair(measured.x[form], values_NxG[bins], bins)])
        for pitches in (1, 2):
            sources = displaced(section.x_um_N, section.y_um_N, section.pitch_um, section.layout, pitches)
            for form in FORMS:
                several = [_read_at(measured, made["model"][form], form, source_N) for source_N in sources]
                add(f"displaced_{pitches}", form, several)
    scores: MethodScores = {}
    for (method, form), r_S in r.items():
        # A method that only some sections allow (a truth that one section lacks) has no mean to compare.
        whole = len(r_S) == len(sections)
        kept = tuple(pairs[method, form]) if resampling.by == "block" else None
        scores.setdefault(method, {})[form] = Scores(np.stack(r_S), kept) if whole else None
    return scores


def score_shuffled(
    sections: list, measured_S: list[Measured], genes: np.ndarray, columns: np.ndarray, runs: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:  # fmt: skip
    """r of the model against turned and flipped targets: by form, mean over sections, [runs, len(columns)]."""
    r = {form: np.full((runs, len(sections), len(columns)), np.nan) for form in FORMS}
    for s, (section, measured) in enumerate(zip(sections, measured_S, strict=True)):
        model = from_rates(*rates_of(section, genes, section.rates_NxG))
        model = {form: values_NxG[:, columns] for form, values_NxG in model.items()}
        few = Measured(measured.counts_NxG, measured.total_N, measured.kept_N, measured.measured_G,
                       {form: values_NxG[:, columns] for form, values_NxG in measured.x.items()})  # fmt: skip
        for run in range(runs):
            source_N = turned(section.x_um_N, section.y_um_N, section.pitch_um, rng)
            for form in FORMS:
                pair = _read_at(few, model[form], form, source_N)
                r[form][run, s] = pearson_by_gene(pair.x_NxG, pair.p_NxG)
    return {form: np.stack([mean_defined(r_SxG) for r_SxG in values]) for form, values in r.items()}


def _read_at(measured: Measured, values_NxG: np.ndarray, form: str, source_N: np.ndarray) -> Pair:
    """Each compared bin with the prediction of the bin `source_N` names; bins without one (−1) are left out."""
    bins = measured.bins(form)
    there = source_N[bins] >= 0
    return Pair(measured.x[form][there], values_NxG[source_N[bins][there]], bins[there])

"""All that is measured of one held-out section: plain arrays, which the report of all sections is made from.

Names: `r/<method>/<form>` is r by gene, [G], and `r_sets/…` of the genes in some gene set only, [I]. Where blocks of
tissue are resampled, `sums/<method>/<form>` holds the sums by block, [several, 7, K, I], and `bins/…` the numbers of
bins, [several, K].
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable

import numpy as np

from tario_jax.config import EvaluateConfig
from tario_jax.evaluate import noise
from tario_jax.evaluate.controls import Controls, Density, displaced, from_density, turned
from tario_jax.evaluate.intervals import blocks
from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import composition, expected_composition, mean_defined, pearson_by_gene
from tario_jax.evaluate.moments import FORMS, Direct, FromRates, Measured, Sums, measure, section_sums
from tario_jax.evaluate.moran import neighbour_weights
from tario_jax.evaluate.section_bins import SectionBins, Truth

MOST_BLOCKS = 400  # of a section: with more of them the sums by block would outgrow the memory
_PARTS = ("x", "p", "xx", "pp", "xp", "scale_x", "scale_p")
_TINY = 1e-12  # detections: a rate of 0 where something was detected would cost infinitely many nats


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured: G genes (positions in the panel), I of them (positions among those) in gene sets."""

    config: EvaluateConfig
    genes: np.ndarray
    in_sets: np.ndarray
    by_block: bool  # one patient: blocks of tissue are resampled
    controls: Controls | None  # None: there are no training sections
    null_genes: np.ndarray | None = None  # positions in the panel

    def measure(self, section: SectionBins) -> Measured:
        return measure(section.counts, section.measured_gene_P, self.genes, self.config.min_total)

    def rng(self, section: SectionBins, purpose: str) -> np.random.Generator:
        """Of one section: what is drawn for it does not depend on which others there are."""
        return np.random.default_rng([self.config.seed, zlib.crc32(f"{section.section_id} {purpose}".encode())])


def rates_of(section: SectionBins, genes: np.ndarray, rates_NxP: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rates of `genes` [N, G] and their total over every gene that the section measured [N].

    A missing or non-finite prediction is 0: a constant, so its r is 0.
    """
    if rates_NxP is None:
        return np.zeros((len(section), len(genes)), np.float32), np.zeros(len(section))
    if not np.isfinite(rates_NxP).all():
        rates_NxP = np.nan_to_num(rates_NxP, nan=0.0, posinf=0.0, neginf=0.0)
    measured_P = section.measured_gene_P
    whole_NxP = rates_NxP if measured_P.all() else rates_NxP[:, measured_P]
    chosen_NxG = rates_NxP if len(genes) == rates_NxP.shape[1] else rates_NxP[:, genes]
    return chosen_NxG, whole_NxP.sum(1, dtype=np.float64)


def score_measurement(section: SectionBins, truth: Callable[[], Truth] | None, plan: Plan) -> Arrays:
    """What depends neither on the model nor on training: noise, neighbours, and on virtual tissue the truth.

    `true_rates` [N, I] is T there.
    """
    measured, in_sets = plan.measure(section), plan.in_sets
    weights_NxN = neighbour_weights(*section.where)
    made: dict[str, FromRates | Direct] = {
        "neighbours": {"counts": lambda rows: (weights_NxN[rows] @ measured.counts).toarray()}
    }
    arrays: Arrays = {
        "patient": np.array(section.patient_id), "cohort": np.array(section.cohort), "number": np.array(len(section)),
        "left_out": np.array(len(section) - len(measured.kept_N)), "measured": measured.measured_G,
        "rho": noise.section_reliability(measured),
    }  # fmt: skip
    _add_bulk(arrays, "measured", measured.counts.sum(0), measured.total_N)
    if truth is not None:
        for name, rates_NxP in zip(("true_rate", "reachable"), truth(), strict=True):
            rates_NxG, total_N = rates_of(section, plan.genes, rates_NxP)
            made[name] = FromRates(_rows(rates_NxG), total_N)
            _add_bulk(arrays, name, rates_NxG.sum(0, dtype=np.float64), total_N)
            if name == "true_rate":
                arrays["true_rates"] = rates_NxG[:, in_sets].astype(np.float32)
        arrays["truth/neighbours"] = pearson_by_gene(
            arrays["true_rates"], (weights_NxN @ measured.counts[:, in_sets]).toarray()
        )
    _add_scores(arrays, measured, made, plan, section)
    few, block_N = measured.of(in_sets), _blocks(section, plan)
    for form, several in noise.thinned(few, plan.rng(section, "halves"), block_N).items():
        _add_sets(arrays, "halves", form, several, plan)
    nulls = noise.null_reliabilities(few, plan.rng(section, "nulls"))
    return arrays | {f"null/{name}": rho_I for name, rho_I in nulls.items()}


def score_controls(section: SectionBins, plan: Plan) -> Arrays:
    """Everything that was fitted on training sections."""
    measured, controls = plan.measure(section), plan.controls
    mean_G = controls.mean_composition_G
    made: dict[str, FromRates | Direct] = {
        "nuclear_density": from_density(controls.nuclear_density, section.nuclear_density_N, mean_G),
        "true_total": from_density(controls.true_total, measured.total_N, mean_G),
        "ridge": controls.ridge_derived(section.features_NxF),
        "ridge_direct": controls.ridge_direct(section.features_NxF),
    }
    arrays: Arrays = {}
    told_G = sum((made["ridge"].rates(rows).sum(0) for rows in _strips(len(section), len(plan.genes))), 0.0)
    _add_bulk(arrays, "ridge", told_G, made["ridge"].total_N)
    _add_scores(arrays, measured, made, plan, section)
    return arrays


def score_model(section: SectionBins, rates_NxP: np.ndarray | None, density: Density | None,
                true_NxI: np.ndarray | None, plan: Plan) -> Arrays:  # fmt: skip
    """Everything that depends on the model. density: its own density control, where it could be fitted."""
    measured, in_sets = plan.measure(section), plan.in_sets
    rates_NxG, total_N = rates_of(section, plan.genes, rates_NxP)
    made: dict[str, FromRates | Direct] = {"model": FromRates(_rows(rates_NxG), total_N)}
    if plan.controls is not None:
        mean_G = plan.controls.mean_composition_G
        made["own_density"] = {"counts": lambda rows: total_N[rows, None] * mean_G}
        if density is not None:
            made["own_density"] = from_density(density, total_N, mean_G)
    arrays: Arrays = {"predicted": np.array(rates_NxP is not None)}
    _add_bulk(arrays, "model", rates_NxG.sum(0, dtype=np.float64), total_N)
    arrays |= _nats(section, rates_NxP)
    _add_scores(arrays, measured, made, plan, section)

    few, rates_NxI, block_N = measured.of(in_sets), np.ascontiguousarray(rates_NxG[:, in_sets]), _blocks(section, plan)
    expected = {"composition": lambda rows: expected_composition(rates_NxI[rows], total_N[rows])}
    sums = section_sums(few, {"model_expected": expected}, block_N)["model_expected", "composition"]
    _add_sets(arrays, "model_expected", "composition", (sums,), plan)
    for pitches in (1, 2):
        several: dict[str, list[Sums]] = {form: [] for form in FORMS}
        for source_N in displaced(*section.where, pitches):
            for form, sums in _read_at(few, rates_NxI, total_N, source_N, block_N).items():
                several[form].append(sums)
        for form, found in several.items():
            _add_sets(arrays, f"displaced_{pitches}", form, tuple(found), plan)
    rng = plan.rng(section, "turned")
    runs = [
        _read_at(few, rates_NxI, total_N, turned(*section.where[:3], rng), None) for _ in range(plan.config.shuffles)
    ]
    arrays |= {f"shuffled/{form}": np.stack([run[form].r() for run in runs]) for form in FORMS}
    if plan.null_genes is not None:
        arrays |= _null_class(section, rates_NxP, plan.null_genes)
    if true_NxI is not None:
        arrays["truth/model"] = pearson_by_gene(true_NxI, rates_NxI)
        arrays["truth/own_density"] = pearson_by_gene(true_NxI, np.broadcast_to(total_N[:, None], true_NxI.shape))
    return arrays


def _rows(values_NxG: np.ndarray):
    return lambda rows: values_NxG[rows]


def _strips(number: int, genes: int) -> list[slice]:
    step = max(1, (1 << 22) // max(genes, 1))
    return [slice(first, first + step) for first in range(0, number, step)]


def _blocks(section: SectionBins, plan: Plan) -> np.ndarray | None:
    """Block of each bin, where blocks are resampled."""
    return section_blocks(section, plan.config)[0] if plan.by_block else None


def section_blocks(section: SectionBins, config: EvaluateConfig) -> tuple[np.ndarray, float]:
    """Block of each bin, and their side in µm: evaluate.block_um or 3 spots, doubled while there are too many."""
    side_um = config.block_um if section.layout == "square" else 3 * section.pitch_um
    while True:
        block_N = blocks(section.x_um_N, section.y_um_N, side_um)
        if block_N.max(initial=0) < MOST_BLOCKS:
            return block_N, side_um
        side_um *= 2


def _add_bulk(arrays: Arrays, name: str, sum_G, total_N: np.ndarray) -> None:
    arrays[f"bulk/{name}"] = np.asarray(sum_G, np.float64).ravel()
    arrays[f"bulk_total/{name}"] = np.array(float(total_N.sum()))


def _add_scores(arrays: Arrays, measured: Measured, made: dict[str, FromRates | Direct], plan: Plan,
                section: SectionBins) -> None:  # fmt: skip
    """r of each method over all genes; with blocks, sums over the genes in sets, and of the model's counts over all."""
    for (method, form), sums in section_sums(measured, made).items():
        arrays[f"r/{method}/{form}"] = sums.r()
    if not plan.by_block:
        return
    block_N, few = _blocks(section, plan), measured.of(plan.in_sets)
    of_sets = {method: _of_genes(prediction, plan.in_sets) for method, prediction in made.items()}
    for (method, form), sums in section_sums(few, of_sets, block_N).items():
        _pack(arrays, f"{method}/{form}", (sums,))
    if "model" in made:
        whole = section_sums(measured, {"model_whole": {"counts": made["model"].rates}}, block_N)
        _pack(arrays, "model_whole/counts", (whole["model_whole", "counts"],))


def _of_genes(prediction: FromRates | Direct, genes: np.ndarray) -> FromRates | Direct:
    if isinstance(prediction, FromRates):
        return FromRates(lambda rows: prediction.rates(rows)[:, genes], prediction.total_N)
    return {form: functools.partial(lambda values, rows: values(rows)[:, genes], values)
            for form, values in prediction.items()}  # fmt: skip


def _read_at(few: Measured, rates_NxI: np.ndarray, total_N: np.ndarray, source_N: np.ndarray,
             block_N: np.ndarray | None) -> dict[str, Sums]:  # fmt: skip
    """Each bin with the prediction of the bin that `source_N` names; bins without one (−1) are left out."""
    there = np.flatnonzero(source_N >= 0)
    source = source_N[there]
    kept = np.flatnonzero(np.isin(there, few.kept_N))
    part = Measured(few.counts[there], few.total_N[there], kept, few.measured_G)
    told = FromRates(lambda rows: rates_NxI[source[rows]], total_N[source])
    sums = section_sums(part, {"": told}, None if block_N is None else block_N[there])
    blocks = 1 if block_N is None else int(block_N.max()) + 1  # also those of which nothing is left
    return {form: _with_blocks(value, blocks) for (_, form), value in sums.items()}


def _with_blocks(sums: Sums, blocks: int) -> Sums:
    missing = blocks - len(sums.n_K)
    padded = (np.pad(getattr(sums, name), ((0, missing), (0, 0))) for name in _PARTS)
    return Sums(np.pad(sums.n_K, (0, missing)), *padded)


def _add_sets(arrays: Arrays, method: str, form: str, several: tuple[Sums, ...], plan: Plan) -> None:
    arrays[f"r_sets/{method}/{form}"] = mean_defined(np.stack([sums.r() for sums in several]))
    if plan.by_block:
        _pack(arrays, f"{method}/{form}", several)


def _pack(arrays: Arrays, name: str, several: tuple[Sums, ...]) -> None:
    arrays[f"bins/{name}"] = np.stack([sums.n_K for sums in several])
    arrays[f"sums/{name}"] = np.stack([np.stack([getattr(sums, part) for part in _PARTS]) for sums in several])


def unpack(arrays: Arrays, name: str) -> tuple[Sums, ...]:
    """The sums by block that were kept of a method and form."""
    return tuple(Sums(n_K, *parts) for n_K, parts in zip(arrays[f"bins/{name}"], arrays[f"sums/{name}"], strict=True))


def _null_class(section: SectionBins, rates_NxP: np.ndarray | None, null: np.ndarray) -> Arrays:
    """What `null_class.null_report` takes of a section."""
    told_NxK, told_total_N = rates_of(section, null, rates_NxP)
    return {"null_class/counts": section.counts[:, null].toarray(),
            "null_class/totals": np.asarray(section.counts.sum(1), np.float64).ravel(),
            "null_class/told": composition(told_NxK, told_total_N)}  # fmt: skip


def _nats(section: SectionBins, rates_NxP: np.ndarray | None) -> Arrays:
    """Poisson negative log-likelihood of a section's counts, over every gene that it measured, in nats.

    Split as in the loss of training: Poisson of each bin's total, without the log-factorial of the counts, which no
    model changes, and the multinomial over genes. NaN where there is no prediction.
    """
    counts = section.counts.multiply(section.measured_gene_P[None]).tocsr()
    detections = float(counts.sum())
    if rates_NxP is None:
        return {"gene_nats": np.array(np.nan), "total_nats": np.array(np.nan), "detections": np.array(detections)}
    _, told_N = rates_of(section, np.zeros(0, int), rates_NxP)
    bin_E = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    told_E = np.maximum(np.nan_to_num(rates_NxP[bin_E, counts.indices]), _TINY)
    total_N, told_N = np.asarray(counts.sum(1)).ravel(), np.maximum(told_N, _TINY)
    return {
        "gene_nats": np.array(-float(counts.data @ np.log(told_E / told_N[bin_E]))),
        "total_nats": np.array(float((told_N - total_N * np.log(told_N)).sum())),
        "detections": np.array(detections),
    }

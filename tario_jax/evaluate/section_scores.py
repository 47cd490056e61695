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
import scipy.special

from tario_jax.config import EvaluateConfig
from tario_jax.evaluate import noise
from tario_jax.evaluate.controls import Controls, Density, density_counts, displaced, from_density, turned
from tario_jax.evaluate.intervals import blocks
from tario_jax.evaluate.kept import Arrays
from tario_jax.evaluate.metrics import composition, expected_composition, mean_defined, pearson_by_gene
from tario_jax.evaluate.moments import FORMS, Direct, FromRates, Line, Measured, Rows, Sums, measure, section_sums
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
        least_total = section.least_total(self.config.min_total)
        return measure(section.counts, section.measured_gene_P, self.genes, least_total)

    def rng(self, section: SectionBins, purpose: str) -> np.random.Generator:
        """Of one section: what is drawn for it does not depend on which others there are."""
        return np.random.default_rng([self.config.seed, zlib.crc32(f"{section.section_id} {purpose}".encode())])


def totals_of(section: SectionBins, rates: Rows) -> np.ndarray:
    """Total of predicted rates over every gene that the section measured, float64 [N]."""
    strips = _strips(len(section), len(section.measured_gene_P))
    return np.concatenate([np.zeros(0), *(_finite(rates(rows))[:, section.measured_gene_P].sum(1, dtype=np.float64)
                                          for rows in strips)])  # fmt: skip


class _Reading:
    """The one pass over a section's predicted rates, [n, P] a strip: what is wanted of them is noted as they go by.

    A missing or non-finite prediction is 0: a constant, so its r is 0.
    """

    def __init__(self, section: SectionBins, rates: Rows | None, plan: Plan):
        self._section, self._whole, self._plan = section, rates, plan
        number = len(section)
        self.total_N = np.zeros(number)
        self.rates_NxI = np.zeros((number, len(plan.in_sets)), np.float32)
        null = np.zeros(0, int) if plan.null_genes is None else plan.null_genes
        self.null_NxK, self._null = np.zeros((number, len(null)), np.float32), null
        self.log_rates_N = np.zeros(number)  # sum over a bin's detections of the log rate of their gene

    def rates(self, rows: slice) -> np.ndarray:
        """Of the genes under evaluation, [n, G]."""
        section, plan = self._section, self._plan
        bins = len(section.x_um_N[rows])
        if self._whole is None:
            return np.zeros((bins, len(plan.genes)), np.float32)
        rates_nxP = _finite(self._whole(rows))
        measured_P = section.measured_gene_P
        self.total_N[rows] = (rates_nxP if measured_P.all() else rates_nxP[:, measured_P]).sum(1, dtype=np.float64)
        self.null_NxK[rows] = rates_nxP[:, self._null]
        counts = section.counts[rows]
        bin_E = np.repeat(np.arange(bins), np.diff(counts.indptr))
        log_E = np.log(np.maximum(rates_nxP[bin_E, counts.indices].astype(np.float64), _TINY))
        log_E *= counts.data * measured_P[counts.indices]
        self.log_rates_N[rows] = np.bincount(bin_E, log_E, minlength=bins)
        rates_nxG = rates_nxP if len(plan.genes) == rates_nxP.shape[1] else rates_nxP[:, plan.genes]
        self.rates_NxI[rows] = rates_nxG[:, plan.in_sets]
        return rates_nxG

    def nats(self) -> Arrays:
        """Poisson negative log-likelihood of a section's counts, over every gene that it measured, in nats.

        Split as in the loss of training: Poisson of each bin's total, and the multinomial over genes, without its
        coefficient, which no model changes. NaN where there is no prediction.
        """
        counts_N = np.asarray(self._section.counts @ self._section.measured_gene_P.astype(np.float64)).ravel()
        told_N = np.maximum(self.total_N, _TINY)
        gene_nats = float(counts_N @ np.log(told_N) - self.log_rates_N.sum())
        total_nats = float((told_N - counts_N * np.log(told_N) + scipy.special.gammaln(counts_N + 1)).sum())
        missing = self._whole is None
        return {"gene_nats": np.array(np.nan if missing else gene_nats),
                "total_nats": np.array(np.nan if missing else total_nats),
                "detections": np.array(float(counts_N.sum()))}  # fmt: skip

    def null_class(self) -> Arrays:
        """What `null_class.null_report` takes of a section."""
        counts = self._section.counts
        return {"null_class/counts": counts[:, self._null].toarray(),
                "null_class/totals": np.asarray(counts.sum(1), np.float64).ravel(),
                "null_class/told": composition(self.null_NxK, self.total_N)}  # fmt: skip


def _finite(rates_nxP: np.ndarray) -> np.ndarray:
    if np.isfinite(rates_nxP).all():
        return rates_nxP
    return np.nan_to_num(rates_nxP, nan=0.0, posinf=0.0, neginf=0.0)


def score_measurement(section: SectionBins, truth: Callable[[], Truth] | None, plan: Plan) -> Arrays:
    """What depends neither on the model nor on training: noise, neighbours, and on virtual tissue the truth.

    `true_rates` [N, I] is T there.
    """
    measured, in_sets = plan.measure(section), plan.in_sets
    made: dict[str, FromRates | Direct] = {}
    arrays: Arrays = {
        "patient": np.array(section.patient_id), "cohort": np.array(section.cohort), "number": np.array(len(section)),
        "left_out": np.array(len(section) - len(measured.kept_N)), "measured": measured.measured_G,
        "rho": noise.section_reliability(measured),
    }  # fmt: skip
    _add_bulk(arrays, "measured", measured.sums()[0], measured.total_N)
    if truth is not None:
        for name, rates_NxP in zip(("true_rate", "reachable"), truth(), strict=True):
            rates_NxG, total_N = rates_NxP[:, plan.genes], totals_of(section, _rows(rates_NxP))
            made[name] = FromRates(_rows(rates_NxG), total_N)
            _add_bulk(arrays, name, rates_NxG.sum(0, dtype=np.float64), total_N)
            if name == "true_rate":
                arrays["true_rates"] = rates_NxG[:, in_sets].astype(np.float32)
    _add_scores(arrays, measured, made, plan, section)
    few, block_N = measured.of(in_sets), _blocks(section, plan)
    smoothed_NxI = neighbour_weights(*section.where) @ few.counts
    smoothed = {"counts": lambda rows: smoothed_NxI[rows].toarray()}
    sums = section_sums(few, {"neighbours": smoothed}, block_N)["neighbours", "counts"]
    _add_sets(arrays, "neighbours", "counts", (sums,), plan)
    if truth is not None:
        arrays["truth/neighbours"] = pearson_by_gene(arrays["true_rates"], smoothed_NxI.toarray())
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
    sums = _add_scores(arrays, measured, made, plan, section)
    _add_bulk(arrays, "ridge", sums["ridge", "counts"].p.sum(0), made["ridge"].total_N)
    return arrays


def score_model(section: SectionBins, rates: Rows | None, density: Density | None, true_NxI: np.ndarray | None,
                plan: Plan) -> Arrays:  # fmt: skip
    """Everything that depends on the model. rates: predicted ones of the whole panel, in strips; density: the model's
    own density control, where it could be fitted."""
    measured, in_sets = plan.measure(section), plan.in_sets
    reading = _Reading(section, rates, plan)
    arrays: Arrays = {"predicted": np.array(rates is not None)}
    model = FromRates(reading.rates, reading.total_N)
    sums = _add_scores(arrays, measured, {"model": model}, plan, section)
    rates_NxI, total_N = reading.rates_NxI, reading.total_N
    _add_bulk(arrays, "model", sums["model", "counts"].p.sum(0), total_N)
    arrays |= reading.nats()
    # without training sections there is no composition to tell it in; r in counts does not depend on one
    mean_G = np.ones(len(plan.genes)) if plan.controls is None else plan.controls.mean_composition_G
    own = density_counts(total_N, mean_G) if density is None else from_density(density, total_N, mean_G)
    _add_scores(arrays, measured, {"own_density": own}, plan, section)
    few, block_N = measured.of(in_sets), _blocks(section, plan)
    of_rates = {"composition": lambda rows: composition(rates_NxI[rows], total_N[rows])}
    sums = section_sums(few, {"model_rates": of_rates}, block_N)["model_rates", "composition"]
    _add_sets(arrays, "model_rates", "composition", (sums,), plan)
    read = functools.partial(_read_at, few, rates_NxI, _composed(rates_NxI, total_N), total_N)
    for pitches in (1, 2):
        sources = displaced(*section.where, pitches)
        # the model itself at the bins that have one to read in that direction: a difference is of the same bins
        in_place = [np.where(source_N >= 0, np.arange(len(source_N)), -1) for source_N in sources]
        for name, directions in ((f"displaced_{pitches}", sources), (f"in_place_{pitches}", in_place)):
            found = [read(source_N, block_N) for source_N in directions]
            for form in FORMS:
                _add_sets(arrays, name, form, tuple(sums[form] for sums in found), plan)
    rng = plan.rng(section, "turned")
    runs = [read(turned(*section.where[:3], rng), None) for _ in range(plan.config.shuffles)]
    arrays |= {f"shuffled/{form}": np.stack([run[form].r() for run in runs]) for form in FORMS}
    if plan.null_genes is not None:
        arrays |= reading.null_class()
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
    """Block of each bin, int [N], and the side in µm: evaluate.block_um or 3 spots,
    doubled while there are too many."""
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
                section: SectionBins) -> dict[tuple[str, str], Sums]:  # fmt: skip
    """r of each method over all genes; with blocks, sums over the genes in sets, and of the model's counts over all.

    Returns the sums over all genes, of whole sections.
    """
    found = section_sums(measured, made)
    for (method, form), sums in found.items():
        arrays[f"r/{method}/{form}"] = sums.r()
    if not plan.by_block:
        return found
    block_N, few = _blocks(section, plan), measured.of(plan.in_sets)
    of_sets = {method: _of_genes(prediction, plan.in_sets) for method, prediction in made.items()}
    for (method, form), sums in section_sums(few, of_sets, block_N).items():
        _pack(arrays, f"{method}/{form}", (sums,))
    if "model" in made:
        whole = section_sums(measured, {"model_whole": {"counts": made["model"].rates}}, block_N)
        _pack(arrays, "model_whole/counts", (whole["model_whole", "counts"],))
    return found


def _of_genes(prediction: FromRates | Direct, genes: np.ndarray) -> FromRates | Direct:
    if isinstance(prediction, FromRates):
        return FromRates(lambda rows: prediction.rates(rows)[:, genes], prediction.total_N, prediction.counted)
    return {form: values.of(genes) if isinstance(values, Line) else
            functools.partial(lambda values, rows: values(rows)[:, genes], values)
            for form, values in prediction.items()}  # fmt: skip


def _composed(rates_NxI: np.ndarray, total_N: np.ndarray) -> np.ndarray:
    """What rates say of the composition of counts, float32 [N, I]: of every bin once, wherever it is read."""
    composed_NxI = np.empty_like(rates_NxI)
    for rows in _strips(*rates_NxI.shape):
        composed_NxI[rows] = expected_composition(rates_NxI[rows], total_N[rows])
    return composed_NxI


def _read_at(few: Measured, rates_NxI: np.ndarray, composed_NxI: np.ndarray, total_N: np.ndarray, source_N: np.ndarray,
             block_N: np.ndarray | None) -> dict[str, Sums]:  # fmt: skip
    """Each bin with the prediction of the bin that `source_N` names; bins without one (−1) are left out."""
    there = np.flatnonzero(source_N >= 0)
    source = source_N[there]
    kept = np.flatnonzero(np.isin(there, few.kept_N))
    part = Measured(few.counts[there], few.total_N[there], kept, few.measured_G)
    predicted = FromRates(lambda rows: rates_NxI[source[rows]], total_N[source],
                          composed=lambda rows: composed_NxI[source[rows]])  # fmt: skip
    sums = section_sums(part, {"": predicted}, None if block_N is None else block_N[there])
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

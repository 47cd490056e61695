"""The evaluation of a checkpoint on a corpus: reads, predicts, measures, draws, reports."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus, Section
from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.features import section_features
from tario_jax.evaluate.figures import Look, draw_figures
from tario_jax.evaluate.metrics import composition
from tario_jax.evaluate.null_class import null_report
from tario_jax.evaluate.report import banners, write_report
from tario_jax.evaluate.tables import Evaluation, SectionBins, evaluate, plain
from tario_jax.predict.maps import GeneMaps
from tario_jax.predict.predictor import Predictor
from tario_jax.tokens.capacity import refuse_fine_bins
from tario_jax.virtual.genes import null_symbols
from tario_jax.virtual.section import truth_rates

_DENSITY_SECTIONS = 12  # training sections that are predicted too: the density lines are fitted on them
_LEAST_NULL_GENES = 10


def evaluate_checkpoint(
    predictor: Predictor, corpus: Corpus, config: EvaluateConfig, folder: Path, *, title: str,
    maps: dict[str, GeneMaps] | None = None, bin_um: float | None = None, say: Callable[[str], None] = print,
    began: float | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluates on the held-out sections of the corpus that the model was trained on, or on all sections of another.

    maps: predictions of held-out sections that are there already; bin_um: side of the bins, that of training by
    default; began: `time.monotonic()` of the start of the whole job. Writes report.html, report.json, genes.tsv and
    figures/ into `folder`. On another panel the genes in common are evaluated, and the report says how many.
    """
    began = time.monotonic() if began is None else began
    provenance = predictor.provenance
    side_um = provenance.bin_um if bin_um is None else bin_um
    own = corpus.seal == provenance.corpus_seal
    if own:
        train, held_out = map(corpus.section, provenance.train), map(corpus.section, provenance.held_out)
        train, held_out = list(train), list(held_out)
    else:
        seen = set(provenance.seen_patients)
        train, held_out = [], [section for section in corpus.sections if section.patient not in seen]
        if not held_out:
            raise InputError(f"corpus {corpus.root}: the model was trained on every patient in it, by their names; "
                             "expected patients that it has not seen")  # fmt: skip
        left_out = len(corpus.sections) - len(held_out)
        say(f"evaluate: another corpus than that of training: {len(held_out)} of {len(corpus.sections)} sections are "
            f"held out{f', {left_out} bear the name of a training patient' if left_out else ''}")  # fmt: skip
    usable = [section for section in held_out if section.holds("he")]
    if not usable:
        raise InputError(f"corpus {corpus.root}: no section has an H&E; there is nothing to predict from")
    if bin_um is not None and all(section.spots is not None for section in usable):
        raise InputError(f"corpus {corpus.root}: is measured in spots, which are predicted as they are; leave out "
                         "the side of bins")  # fmt: skip
    refuse_fine_bins(usable, side_um, force=provenance.config.data.force_adjacent)
    common = _common_genes(predictor, corpus)
    if len(common.symbols) < len(predictor.panel) or len(common.symbols) < len(corpus.panel):
        say(
            f"evaluate: {len(common.symbols)} genes in common of {len(predictor.panel)} in the model's panel and "
            f"{len(corpus.panel)} in the corpus's"
        )
    maps = dict(maps or {})
    step = max(1, len(train) // _DENSITY_SECTIONS)
    density_ids = {section.id for section in train[::step][:_DENSITY_SECTIONS]}
    density = [section for section in train if section.id in density_ids]
    for number, section in enumerate([*usable, *density], 1):
        if section.id not in maps:
            maps[section.id] = predictor.predict_section(
                section, tissue=corpus.kind, bin_um=None if section.spots is not None else side_um,
                overlap=config.overlap,
            )  # fmt: skip
        _tick(say, "predict", number, len(usable) + len(density))
    tables: dict[str, SectionBins] = {}
    for number, section in enumerate([*train, *usable], 1):
        tables[section.id] = section_table(
            section, side_um, provenance.config.data.min_measured, maps.get(section.id), common
        )
        _tick(say, "measure", number, len(train) + len(usable))
    held_out_tables = [tables[section.id] for section in usable]
    evaluation = evaluate(
        [tables[section.id] for section in train], held_out_tables, common.symbols, config,
        trained_on=provenance.trained_on, corpus_kind=corpus.kind, split_by=provenance.split_by if own else "patient",
    )  # fmt: skip
    report = evaluation.report
    report["headline"]["seconds"] = round(time.monotonic() - began, 1)
    report["genes"]["model_panel"], report["genes"]["corpus_panel"] = len(predictor.panel), len(corpus.panel)
    report["genes"]["in_common"] = len(common.symbols)
    report["bin_um"] = None if usable[0].spots is not None else side_um
    report["provenance"] = {
        "name": provenance.config.name, "corpus_seal": corpus.seal, "trained_on_seal": provenance.corpus_seal,
        "panel_hash": predictor.panel.hash, "train_sections": len(provenance.train), "own_corpus": own,
        "starts": [{name: start[name] for name in ("run", "step", "trained_on", "corpus_seal", "panel_hash", "code")}
                   for start in provenance.starts],
        "sections_of_training_patients": 0 if own else len(corpus.sections) - len(held_out),
    }  # fmt: skip
    if corpus.kind == "virtual":
        report["null_class"] = _null_class(held_out_tables, common.symbols)
    report["banners"] = banners(report)
    by_id = {section.id: section for section in usable}
    figures = draw_figures(
        folder / "figures", evaluation, held_out_tables, common.symbols,
        lambda section_id, symbol: _look(by_id[section_id], corpus.panel.index[symbol]),
    )  # fmt: skip
    write_report(folder, evaluation, figures, title)
    return evaluation


@dataclasses.dataclass(frozen=True)
class CommonGenes:
    """Genes that both the model and the corpus know, in the order of the model's panel."""

    symbols: tuple[str, ...]
    in_model: np.ndarray  # int32 positions
    in_corpus: np.ndarray


def _common_genes(predictor: Predictor, corpus: Corpus) -> CommonGenes:
    position_G = corpus.panel.positions(predictor.panel.symbols)
    in_model = np.flatnonzero(position_G >= 0)
    if not len(in_model):
        raise InputError(f"corpus {corpus.root}: its panel {corpus.panel.hash} shares no gene with the model's "
                         f"{predictor.panel.hash}; check that both use the same gene symbols")  # fmt: skip
    symbols = tuple(predictor.panel.symbols[i] for i in in_model)
    return CommonGenes(symbols, in_model, position_G[in_model])


def section_table(
    section: Section, bin_um: float, min_measured: float, maps: GeneMaps | None, genes: CommonGenes
) -> SectionBins:
    """Measured counts, features and predictions of a section on its bins that count, or on its spots."""
    if section.spots is not None:
        x_um_N, y_um_N = section.spots.x_um_N, section.spots.y_um_N
        counts_NxG = section.spots.dense(len(section.measured_gene_G))
        size_um, pitch_um, layout = section.spots.diameter_um, section.spots.pitch_um, "spots"
        kept, measured_N = np.arange(len(x_um_N)), np.ones(len(x_um_N), np.float32)
        truth = {}
    else:
        section.check_bins(bin_um)
        columns, rows = int(section.width_um / bin_um + 1e-6), int(section.height_um / bin_um + 1e-6)
        x_um_N, y_um_N = grid_places(columns, rows, bin_um)
        measured_N = section.measured_share(x_um_N, y_um_N, bin_um)
        kept = np.flatnonzero(measured_N >= min_measured - 1e-6)
        counts_NxG = grid_counts(section.all_detections(), len(section.measured_gene_G), columns, rows, bin_um)
        size_um, pitch_um, layout = bin_um, bin_um, "square"
        truth = _truth(section, bin_um)
    x_um_N, y_um_N, share_Nx1 = x_um_N[kept], y_um_N[kept], np.minimum(measured_N[kept, None], 1.0)
    features_NxF, density_N = section_features(section.he(), section.he_um_per_px, x_um_N, y_um_N, size_um)
    return SectionBins(
        section_id=section.id, patient_id=section.patient, cohort=section.cohort, x_um_N=x_um_N, y_um_N=y_um_N,
        pitch_um=pitch_um, layout=layout, counts_NxG=counts_NxG[kept][:, genes.in_corpus].astype(np.float32),
        features_NxF=features_NxF, nuclear_density_N=density_N,
        measured_gene_G=section.measured_gene_G[genes.in_corpus],
        # rates and truths are of whole bins, counts of what was measured of them
        rates_NxG=None if maps is None else share_Nx1 * _rates_at(maps, x_um_N, y_um_N)[:, genes.in_model],
        **{name: share_Nx1 * values[kept][:, genes.in_corpus] for name, values in truth.items()},
    )  # fmt: skip


def _truth(section: Section, bin_um: float) -> dict[str, np.ndarray]:
    """T and V of virtual tissue on these bins; nothing of real tissue."""
    if section.truth is None:
        return {}
    true, reachable = truth_rates(section.truth, bin_um)
    return {"true_rate_NxG": true.reshape(-1, true.shape[-1]), "reachable_NxG": reachable.reshape(-1, true.shape[-1])}


def _null_class(tables: list[SectionBins], symbols: tuple[str, ...]) -> dict | None:
    """Whether the model tells of genes that nothing can tell of; None where there are too few of them in common."""
    null = np.flatnonzero(np.isin(symbols, null_symbols()))
    if len(null) < _LEAST_NULL_GENES:
        return None
    totals = [table.counts_NxG.sum(1, dtype=np.float64) for table in tables]
    told = [composition(table.rates_NxG[:, null], table.rates_NxG.sum(1, dtype=np.float64)) for table in tables]
    return plain(null_report([table.counts_NxG[:, null] for table in tables], totals, told))


def _rates_at(maps: GeneMaps, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
    """Predicted rates at these centres, which must be among the maps' places."""
    number = {place: i for i, place in enumerate(zip(maps.x_um_N.round(2), maps.y_um_N.round(2), strict=True))}
    wanted = list(zip(x_um_N.round(2), y_um_N.round(2), strict=True))
    missing = [place for place in wanted if place not in number]
    if missing:
        raise InputError(f"maps of {maps.section}: have no place at {missing[0]} µm; predict it with the same bins")
    return maps.rates_NxG[[number[place] for place in wanted]]


def _look(section: Section, gene: int) -> Look:
    dots = {}
    if section.has_detections:
        found = section.all_detections()
        mine = found.gene_D == gene
        dots = {"dot_x_um_D": found.x_um_D[mine], "dot_y_um_D": found.y_um_D[mine]}
    return Look(section.he(), section.he_um_per_px, **dots)


def _tick(say: Callable[[str], None], what: str, number: int, total: int) -> None:
    if number % max(1, total // 5) == 0 or number == total:
        say(f"{what}: {number}/{total} sections")


def headline_table(report: dict) -> str:
    """The headline for people."""
    own = report["provenance"]["own_corpus"]
    side = f"held-out sections, split by {report['split_by']}" if own else "sections of another corpus"
    genes, sections = report["genes"], report["sections"]
    lines = [
        *(f"! {banner}" for banner in report["banners"]),
        f"{'trained on':<32} {report['trained_on']} tissue",
        f"{'evaluated on':<32} {report['corpus_kind']} tissue: {sections['held_out']} {side}",
        f"{'genes in common':<32} {genes['evaluated']} evaluated of {genes['in_common']} in common "
        f"(model {genes['model_panel']}, corpus {genes['corpus_panel']})",
    ]
    for name, value in report["headline"].items():
        text = "not estimable" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<32} {text}")
    return "\n".join(lines)

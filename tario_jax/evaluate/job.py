"""The evaluation of a checkpoint on a corpus: reads, predicts, measures, draws, reports."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import Config, EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate import score_file
from tario_jax.evaluate.gene_classes import class_report
from tario_jax.evaluate.kept import Kept
from tario_jax.evaluate.map_figures import Look
from tario_jax.evaluate.null_class import null_report
from tario_jax.evaluate.outcome_tables import gene_validation, score_table
from tario_jax.evaluate.ranking import RANKED_BIN_UM
from tario_jax.evaluate.report import banners, read_at, write_report
from tario_jax.evaluate.report_figures import Shown, draw_figures
from tario_jax.evaluate.scope import (
    CommonGenes,
    common_genes,
    ranking_side,
    sections_of,
    split_by_of,
    spread_over,
    unseen_validation,
)
from tario_jax.evaluate.section_bins import SectionSource
from tario_jax.evaluate.section_reader import Reader
from tario_jax.evaluate.section_work import Work
from tario_jax.evaluate.tables import Evaluation, evaluate, plain
from tario_jax.evaluate.uncertainty import count_spread
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.predictor import Predictor
from tario_jax.tokens.capacity import refuse_fine_bins
from tario_jax.train.provenance import Provenance
from tario_jax.virtual.cohort import classes_of
from tario_jax.virtual.genes import null_symbols

_DENSITY_SECTIONS = 12  # training sections that are predicted too: the density lines are fitted on them
_LEAST_NULL_GENES = 10
_SPOTS = "corpus {}: is measured in spots, which are predicted as they are; leave out the side of bins"


def refuse_side_of_spots(corpus: Corpus, sections: Sequence[Section], side_um: float | None) -> None:
    """Raises `InputError` where bins of a side are asked for, and all of these sections are measured in spots."""
    if side_um is not None and sections and all(section.has_spots for section in sections):
        raise InputError(_SPOTS.format(corpus.root))


def refuse_sides(corpus: Corpus, sections: Sequence[Section], config: Config) -> None:
    """Raises `InputError` where held-out sections cannot be read in bins of the sides that the config's evaluation asks
    for: before a training, not behind it."""
    usable = _evaluable(sections)
    asked = [side_um for side_um in (config.evaluate.bin_um, *config.evaluate.read_um) if side_um]
    if asked and usable and all(section.has_spots for section in usable):
        raise InputError(_SPOTS.format(corpus.root) + ' (--config.evaluate.bin_um=0 "--config.evaluate.read_um=()")')
    for side_um in asked:
        refuse_fine_bins(usable, side_um, force=config.data.force_adjacent)


def refuse_readings(predictor: Predictor, corpus: Corpus, config: EvaluateConfig, bin_um: float | None) -> None:
    """Raises `InputError` where a side of evaluate.read_um cannot be read: before the evaluation, not behind it.

    bin_um: side of the bins under evaluation, where one was asked for.
    """
    provenance = predictor.provenance
    side_um = bin_um or config.bin_um or provenance.bin_um
    for read_um in config.read_um:
        if read_um > side_um:
            raise InputError(f"evaluate.read_um holds {read_um:g}: bins are summed up to those of {side_um:g} µm; "
                             "expected smaller ones, or none (\"--config.evaluate.read_um=()\")")  # fmt: skip
    usable = _evaluable(sections_of(provenance, corpus)[1])
    if config.read_um and usable and all(section.has_spots for section in usable):
        raise InputError(_SPOTS.format(corpus.root) + ' ("--config.evaluate.read_um=()")')
    for read_um in config.read_um:
        refuse_fine_bins(usable, read_um, force=provenance.config.data.force_adjacent)


def evaluate_checkpoint(
    predictor: Predictor, corpus: Corpus, config: EvaluateConfig, folder: Path, *, title: str,
    bin_um: float | None = None, read_um: float | None = None,
    shared: Path | None = None, part: tuple[int, int] = (1, 1), say: Callable[[str], None] = print,
    began: float | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluates on the held-out sections of the corpus that the model was trained on, or on all sections of another.

    bin_um: side of the bins, by default evaluate.bin_um, else that of training; read_um: side of those that are
    predicted, and summed up to bin_um; by default bin_um where that is given, else the side of training; shared: folder
    of what does not depend on the model, `folder`/kept by default; part:
    (k, n) where n processes share the work; began: `time.monotonic()` of the start of the whole job. What is worked out
    is kept section by section: interrupted and started again, it goes on. Writes report.html, report.json, genes.tsv,
    scores.npz, validation.parquet and figures/ into `folder`. On another panel the genes in common are evaluated, and
    the report says how many.
    """
    began = time.monotonic() if began is None else began
    provenance = predictor.provenance
    train, held_out = sections_of(provenance, corpus)
    own, left_out = corpus.seal == provenance.corpus_seal, len(corpus.sections) - len(held_out)
    if not own:
        say(f"evaluate: another corpus than that of training: {len(held_out)} of {len(corpus.sections)} sections are "
            f"held out{f', {left_out} bear the name of a training patient' if left_out else ''}")  # fmt: skip
    usable, without = _usable(corpus, held_out, say)
    predictor.refuse_tissue(usable[0].id, corpus.kind)
    spots = all(section.has_spots for section in usable)
    bin_um, read_um = _sides(provenance, corpus, usable, config, bin_um, read_um)
    genes = common_genes(predictor, corpus)
    if len(genes.symbols) < max(len(predictor.panel), len(corpus.panel)):
        say(f"evaluate: {len(genes.symbols)} genes in common of {len(predictor.panel)} in the model's panel and "
            f"{len(corpus.panel)} in the corpus's")  # fmt: skip
    kept = Kept(folder / "kept")
    reader = Reader(predictor, corpus, genes, bin_um, read_um, config.overlap,
                    kept if shared is None else Kept(shared))  # fmt: skip
    density = {section.id for section in spread_over(train, _DENSITY_SECTIONS)}
    rank_on = ranking_side(provenance, corpus)
    ranker = _ranker(reader, [*train, *usable, *rank_on], spots)

    def source_of(section: Section, *, predicted: bool = False, with_truth: bool = False) -> SectionSource:
        ranked = None if ranker is reader else ranker.source(section, predicted=False, with_truth=False)
        source = reader.source(section, predicted=predicted, with_truth=with_truth)
        return dataclasses.replace(source, ranked=ranked)

    training = [source_of(section, predicted=section.id in density) for section in train]
    sources = [source_of(section, predicted=True, with_truth=True) for section in usable]
    ranking = [source_of(section) for section in rank_on]
    evaluation = evaluate(
        training, sources, genes.symbols, config, trained_on=provenance.trained_on, corpus_kind=corpus.kind,
        split_by=split_by_of(provenance, corpus),
        null_genes=_null_genes(genes) if corpus.kind == "virtual" else None,
        ranked_on=ranking if own else None, work=Work(reader.shared, kept, part, say),
    )  # fmt: skip
    report, by_id = evaluation.report, {section.id: section for section in usable}
    sides = {"bin_um": bin_um, "read_um": read_um, "ranked_bin_um": ranker.bin_um}
    report |= dict.fromkeys(sides) if spots else sides
    report["genes"] |= {"model_panel": len(predictor.panel), "corpus_panel": len(corpus.panel),
                        "in_common": len(genes.symbols)}  # fmt: skip
    report["skipped"] |= {f"sections_without_{what}": ids for what, ids in without.items()}
    report["settings"] = plain(dataclasses.asdict(config))
    report["provenance"] = _provenance(predictor, corpus) | {"sections_of_training_patients": 0 if own else left_out}
    class_G = _add_classes(evaluation, corpus.kind)
    evaluated = [by_id[name] for name in evaluation.context.section_ids]
    unseen = unseen_validation(provenance, corpus)
    report["uncertainty"] = plain(count_spread(reader, unseen, evaluated, kept, say, part))
    report["headline"]["seconds"] = round(time.monotonic() - began, 1)
    report["banners"] = banners(report)
    figures = draw_figures(folder / "figures", evaluation,
                           lambda section_id, symbol: _shown(reader, by_id[section_id], symbol))  # fmt: skip
    _write_tables(folder, evaluation, class_G, provenance.config.data.min_measured)
    write_report(folder, evaluation, figures, title)
    return evaluation


def _evaluable(sections: Sequence[Section]) -> list[Section]:
    """Those with an H&E to predict from, and counts to compare with."""
    return [section for section in sections if section.holds("he") and section.has_counts]


def _usable(corpus: Corpus, held_out: Sequence[Section],
            say: Callable[[str], None]) -> tuple[list[Section], dict[str, list[str]]]:  # fmt: skip
    """Held-out sections that can be evaluated; of the others their ids, by what they have not: he or counts."""
    without = {"he": [section.id for section in held_out if not section.holds("he")],
               "counts": [section.id for section in held_out if not section.has_counts]}  # fmt: skip
    for what, ids in without.items():
        if ids:
            name = "H&E" if what == "he" else what
            say(f"evaluate: {len(ids)} held-out sections have no {name} and are left out ({ids[0]}, …)")
    usable = _evaluable(held_out)
    if not usable:
        raise InputError(f"corpus {corpus.root}: none of {len(held_out)} held-out sections has both an H&E and counts "
                         "to compare with; 'tario predict' needs no counts")  # fmt: skip
    return usable, without


def _sides(provenance: Provenance, corpus: Corpus, usable: list[Section], config: EvaluateConfig,
           bin_um: float | None, read_um: float | None) -> tuple[float, float]:  # fmt: skip
    """Sides of the bins under evaluation and of those that are predicted, of what was asked for, in µm. Raises
    `InputError` for sides that these sections cannot be read at."""
    if all(section.has_spots for section in usable):
        if bin_um is not None or read_um is not None:
            raise InputError(_SPOTS.format(corpus.root))
        if config.bin_um:
            raise InputError(_SPOTS.format(corpus.root) + " (--config.evaluate.bin_um=0)")
    if read_um is None:
        read_um = provenance.bin_um if bin_um is None else bin_um
    bin_um = (config.bin_um or provenance.bin_um) if bin_um is None else bin_um
    if read_um > bin_um:
        raise InputError(f"--read-um={read_um:g}: bins are summed up to those of {bin_um:g} µm; expected smaller ones")
    refuse_fine_bins(usable, read_um, force=provenance.config.data.force_adjacent)
    return bin_um, read_um


def _add_classes(evaluation: Evaluation, corpus_kind: str) -> np.ndarray:
    """Adds what virtual tissue tells of classes of genes to the report; the class of each evaluated gene, str [G]."""
    symbols = evaluation.bulk["symbols"]
    if corpus_kind != "virtual":
        return np.full(len(symbols), "")
    class_G = classes_of(symbols)
    evaluation.report["classes"] = plain(class_report(evaluation.context, class_G))
    arrays_S = evaluation.context.arrays_S
    if "null_class/counts" in arrays_S[0]:
        of_null = ([arrays[f"null_class/{name}"] for arrays in arrays_S] for name in ("counts", "totals", "told"))
        evaluation.report["null_class"] = plain(null_report(*of_null))
    return class_G


def _provenance(predictor: Predictor, corpus: Corpus) -> dict[str, Any]:
    """Of the model and of the corpus, for the report."""
    provenance = predictor.provenance
    return {
        "name": provenance.config.name, "checkpoint": predictor.checkpoint, "corpus_seal": corpus.seal,
        "trained_on_seal": provenance.corpus_seal,
        "panel_hash": predictor.panel.hash, "train_sections": len(provenance.train),
        "own_corpus": corpus.seal == provenance.corpus_seal,
        "starts": [{name: start[name] for name in ("run", "step", "trained_on", "corpus_seal", "panel_hash", "code")}
                   for start in provenance.starts],
    }  # fmt: skip


def _write_tables(folder: Path, evaluation: Evaluation, class_G: np.ndarray, min_measured: float) -> None:
    """scores.npz and validation.parquet. class_G: str, of each evaluated gene; min_measured: share of a bin."""
    report, symbols = evaluation.report, evaluation.bulk["symbols"]
    of = report["provenance"]
    score_table(
        evaluation.context, symbols, class_G, bin_um=report["bin_um"] or 0.0, read_um=report["read_um"] or 0.0,
        min_measured=min_measured, corpus_seal=of["corpus_seal"], checkpoint=of["checkpoint"],
        ranked_on=report["ranked_on"], split_by=report["split_by"],
    ).write(folder / score_file.FILE)  # fmt: skip
    about = {name: of[name] for name in ("name", "checkpoint", "panel_hash", "corpus_seal")}
    about |= {name: report[name] for name in ("bin_um", "read_um", "trained_on", "corpus_kind", "split_by")}
    if "not_learnt" not in report["uncertainty"]:
        about["count_spread"] = {name: report["uncertainty"][name] for name in ("size_um", "bursts", "uncertain")}
    gene_validation(evaluation.context, symbols, about).write(folder / VALIDATION)


def _ranker(reader: Reader, sections: list[Section], spots: bool) -> Reader:
    """Reads the bins that genes are ranked on, whatever is evaluated: the same where those are spots, or where some
    section holds no bin of 36 µm, or none that its places are known well enough for."""
    side_um = RANKED_BIN_UM
    if spots or any(min(section.width_um, section.height_um) < side_um or side_um < 2 * section.place_precision_um
                    for section in sections):  # fmt: skip
        return reader
    return reader if reader.bin_um == side_um else dataclasses.replace(reader, bin_um=side_um)


def _null_genes(genes: CommonGenes) -> np.ndarray | None:
    """Genes that nothing can tell of; None where there are too few of them in common."""
    null = np.flatnonzero(np.isin(genes.symbols, null_symbols()))
    return None if len(null) < _LEAST_NULL_GENES else null


def _shown(reader: Reader, section: Section, symbol: str) -> Shown:
    bins = reader.source(section, predicted=True, with_truth=False).measured()
    at = reader.genes.symbols.index(symbol)
    dots = {}
    if section.has_detections:
        found = section.all_detections()
        mine = found.gene_D == reader.genes.in_corpus[at]
        dots = {"dot_x_um_D": found.x_um_D[mine], "dot_y_um_D": found.y_um_D[mine]}
    look = Look(section.he(), section.he_um_per_px, **dots)
    predicted_N = np.nan_to_num(reader.rates(section, bins)[:, at]).astype(float)
    return bins, bins.counts_of(at).astype(float), predicted_N, look


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
    if report["bin_um"]:
        lines.insert(-1, f"{'bins':<32} {report['bin_um']:g} µm{read_at(report)}")
    null = report.get("null_class") or {}
    if "not_judged" in null:
        lines.append(f"{'null genes':<32} not judged, {null['not_judged']}")
    for name, value in report["headline"].items():
        text = "not estimable" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
        named = name.replace("top100", f"top{report['headline']['genes']}")  # of so many, whatever the key says
        lines.append(f"{named:<32} {text}")
    return "\n".join(lines)

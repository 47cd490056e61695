"""A source's genes on another panel, so that several platforms and panels stand in one corpus."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import DetectionBlocks, Detections, SectionData, Spots
from tario_jax.panel import Panel, match_genes
from tario_jax.sources.ingested import Ingested, IngestReport
from tario_jax.sources.spot_table import summed

_NAMED = 8  # genes in a note


def onto_panel(source: Ingested, panel: Panel) -> Ingested:
    """The same sections with their genes numbered by `panel`; each knows which of its genes it measured.

    Genes are matched by `match_genes`. Counts of genes that the panel lacks are dropped, and counted in the report as
    'on panel' beside what the source itself dropped. Raises `InputError` where no gene is in common.
    """
    gene_S = measured_genes(source.panel, panel, source.report)
    same = np.array_equal(gene_S, np.arange(len(panel)))

    def generate() -> Iterator[SectionData]:
        for section in source.sections:
            yield section if same else _renumbered(section, gene_S, len(panel), source.report)

    return Ingested(panel, generate(), source.number, source.report)


def measured_genes(theirs: Panel, panel: Panel, report: IngestReport) -> np.ndarray:
    """Position in `panel` of each gene of a source, int32; −1 where it has none (`match_genes`).

    Ids and symbols that disagree, and genes of the source that meet in one gene of the panel, are named in the report.
    Raises `InputError` where no gene is in common.
    """
    gene_S, renamed, contradicted = match_genes(theirs, panel)
    if theirs.symbols == panel.symbols and not contradicted:
        return gene_S  # nothing is mapped, and there is nothing to say
    found = int(np.sum(gene_S >= 0))
    if not found:
        raise InputError(
            f"{report.path}: none of its {len(theirs)} genes ({', '.join(theirs.symbols[:3])}, …) is in the panel of "
            f"{len(panel)} ({', '.join(panel.symbols[:3])}, …); expected the same symbols or Ensembl ids; another "
            "species, or aliases?"
        )
    tally = report.open("on panel", "", len(theirs))
    tally.drop("gene with the symbol but not the Ensembl id of a panel gene", len(contradicted))
    tally.drop("gene that the panel does not have", len(theirs) - found - len(contradicted))
    tally.close(found)
    measured = np.unique(gene_S[gene_S >= 0], return_counts=True)
    summed_genes = [panel.symbols[position] for position in measured[0][measured[1] > 1]]
    report.notes.append(f"{len(measured[0])} of the {len(panel)} genes of the panel are measured")
    for said, genes in (
        ("genes of the panel are the sum of several genes of the source", summed_genes),
        ("genes go by their Ensembl id under another symbol", renamed),
        ("genes are left out: the panel has their symbol under another Ensembl id", contradicted),
    ):
        if genes:
            report.notes.append(f"{len(genes)} {said}: {'; '.join(genes[:_NAMED])}{'; …' * (len(genes) > _NAMED)}")
    return gene_S


def _renumbered(section: SectionData, gene_S: np.ndarray, genes: int, report: IngestReport) -> SectionData:
    changed: dict = {}
    tally = report.open("on panel", section.section_id, 0)
    if section.detections is not None:
        changed["detections"], read, lost = _detections(section.detections, gene_S)
        tally.read += read
        tally.drop("detections of genes that the panel does not have", lost)
        tally.kept += read - lost
    if section.spots is not None:
        changed["spots"], lost = _spots(section.spots, gene_S, genes)
        total = int(section.spots.count_E.sum(dtype=np.int64))
        tally.read += total
        tally.drop("counts of genes that the panel does not have", lost)
        tally.kept += total - lost
    tally.close(tally.kept)
    measured_S = np.ones(len(gene_S), bool) if section.measured_gene_G is None else section.measured_gene_G.astype(bool)
    measured_gene_G = np.zeros(genes, bool)
    measured_gene_G[gene_S[measured_S & (gene_S >= 0)]] = True
    if section.measured_gene_G is not None or not measured_gene_G.all():
        changed["measured_gene_G"] = measured_gene_G
    if lost_here := sum(tally.dropped.values()):
        changed["quality"] = section.quality | {"counts_not_on_panel": float(lost_here)}
    return dataclasses.replace(section, **changed)


def _detections(
    found: Detections | DetectionBlocks, gene_S: np.ndarray
) -> tuple[Detections | DetectionBlocks, int, int]:
    """Those of the panel's genes, how many there were, and how many of them were of others."""
    if isinstance(found, Detections):
        return _on_panel(found, gene_S), len(found), int(np.sum(gene_S[found.gene_D] < 0))
    read = lost = 0
    for block in found:
        read += len(block)
        lost += int(np.sum(gene_S[block.gene_D] < 0))
    return found.map(lambda block: _on_panel(block, gene_S)), read, lost


def _on_panel(found: Detections, gene_S: np.ndarray) -> Detections:
    gene_D = gene_S[found.gene_D]
    kept_D = gene_D >= 0
    columns = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)} | {"gene_D": gene_D}
    return Detections(**{name: None if values is None else values[kept_D] for name, values in columns.items()})


def _spots(spots: Spots, gene_S: np.ndarray, genes: int) -> tuple[Spots, int]:
    """The spots with counts of the panel's genes, and how many counts were of others."""
    gene_E = gene_S[spots.gene_E]
    kept_E = gene_E >= 0
    spot_E = np.repeat(np.arange(len(spots)), np.diff(spots.indptr))[kept_E]
    indptr, gene, count = summed(spot_E, gene_E[kept_E], spots.count_E[kept_E], len(spots), genes)
    lost = int(spots.count_E[~kept_E].sum(dtype=np.int64))
    return dataclasses.replace(spots, indptr=indptr, gene_E=gene, count_E=count), lost

"""A source's genes on another panel: by Ensembl id, else by symbol; what meets is summed, what differs is said."""

import dataclasses

import numpy as np
from refusals import refused

from tario_jax.corpus.section import Detections, SectionData, Spots
from tario_jax.panel import Panel
from tario_jax.sources.ingested import Ingested, IngestReport
from tario_jax.sources.onto_panel import measured_genes, onto_panel

ID = "ENSG0000000000{}".format
PANEL = Panel(("TP53", "MYC", "SEPTIN2", "EGFR"), (ID(1), ID(2), ID(3), ""))


def report():
    return IngestReport("a test", "here")


def spots(gene_E, count_E, indptr):
    return Spots(np.arange(2) * 10.0 + 5, np.full(2, 5.0), 4.0, np.array(indptr), np.array(gene_E, np.int32),
                 np.array(count_E, np.int32), ("a", "b"))  # fmt: skip


def ingested(panel, **fields):
    section = SectionData("S1", "P1", "LUAD", 20.0, 10.0, **fields)
    return Ingested(panel, iter([section]), 1, report())


def test_an_id_goes_before_a_symbol_and_a_symbol_serves_where_one_has_no_id():
    theirs = Panel(("SEPT2", "TP53", "MYC", "EGFR", "egfr", "OTHER"), (ID(3), "", ID(2), ID(7), "", ID(8)))
    said = report()
    np.testing.assert_array_equal(measured_genes(theirs, PANEL, said), [2, 0, 1, 3, -1, -1])
    assert f"1 genes go by their Ensembl id under another symbol: SEPT2 is SEPTIN2 by {ID(3)}" in said.table()
    tally = said.tally("on panel")
    assert (tally.read, tally.kept, tally.dropped) == (6, 4, {"gene that the panel does not have": 2})


def test_a_symbol_whose_id_is_another_is_left_out_and_named():
    said = report()
    theirs = Panel(("TP53", "MYC"), (ID(1), ID(9)))
    np.testing.assert_array_equal(measured_genes(theirs, PANEL, said), [0, -1])
    assert f"under another Ensembl id: MYC is {ID(9)}, in the panel {ID(2)}" in said.table()
    assert said.tally("on panel").dropped == {"gene with the symbol but not the Ensembl id of a panel gene": 1}


def test_a_symbol_that_is_an_id_is_matched_as_one_whatever_its_version():
    theirs = Panel((ID(2) + ".14", ID(1)))
    np.testing.assert_array_equal(measured_genes(theirs, PANEL, report()), [1, 0])


def test_two_genes_of_a_source_on_one_of_the_panel_are_summed_and_said():
    theirs = Panel(("SEPT2", "SEPTIN2", "EGFR", "OTHER"), (ID(3), "", "", ""))
    source = ingested(theirs, spots=spots([0, 1, 3, 1, 2], [2, 3, 7, 4, 1], [0, 3, 5]))
    mapped = onto_panel(source, PANEL)
    (section,) = mapped.sections
    np.testing.assert_array_equal(section.spots.dense(4), [[0, 0, 5, 0], [0, 0, 4, 1]])
    assert len(section.spots.gene_E) == 3  # one entry for a spot and gene
    np.testing.assert_array_equal(section.measured_gene_G, [False, False, True, True])
    tally = mapped.report.tally("on panel", "S1")
    assert (tally.read, tally.kept) == (17, 10) and section.quality["counts_not_on_panel"] == 7
    assert "1 genes of the panel are the sum of several genes of the source: SEPTIN2" in mapped.report.table()
    assert mapped.panel is PANEL


def test_detections_keep_their_places_and_flags():
    theirs = Panel(("OTHER", "EGFR", "TP53"))
    place, gene, cell = np.arange(4.0), np.array([1, 0, 2, 1], np.int32), np.array([5, 6, 7, 8], np.int32)
    found = Detections(place, place + 1, gene, np.array([1, 1, 0, 0], bool), cell)
    (section,) = onto_panel(ingested(theirs, detections=found), PANEL).sections
    kept = section.detections
    np.testing.assert_array_equal(kept.gene_D, [3, 0, 3])
    np.testing.assert_array_equal(kept.x_um_D, [0, 2, 3])
    np.testing.assert_array_equal(kept.in_nucleus_D, [True, False, False])
    np.testing.assert_array_equal(kept.cell_D, [5, 7, 8])


def test_what_a_section_did_not_measure_stays_unmeasured():
    theirs = Panel(("EGFR", "TP53"))
    source = ingested(theirs, spots=spots([0], [1], [0, 1, 1]), measured_gene_G=np.array([True, False]))
    (section,) = onto_panel(source, PANEL).sections
    np.testing.assert_array_equal(section.measured_gene_G, [False, False, False, True])


def test_a_source_on_its_own_panel_is_what_it_was():
    source = ingested(PANEL, spots=spots([0, 1], [1, 2], [0, 1, 2]))
    before = dataclasses.replace(source, sections=None)
    (section,) = onto_panel(source, Panel(PANEL.symbols)).sections
    assert section.measured_gene_G is None and not section.quality and before.panel == source.panel


def test_a_panel_without_a_common_gene_is_refused():
    refused(lambda: onto_panel(ingested(Panel(("Tp53", "Myc")), spots=spots([0], [1], [0, 1, 1])), PANEL),
            "here: none of its 2 genes (Tp53, Myc", "TP53, MYC", "another species, or aliases?")  # fmt: skip

"""A panel is its symbols; Ensembl ids stand beside them and change neither hash nor identity."""

import pytest
from refusals import refused

from tario_jax.panel import Panel, ensembl_id

PLAIN = Panel(("TP53", "MYC", "AC012345.1"))
KNOWN = Panel(PLAIN.symbols, ("ENSG00000141510", "", "ENSG00000000003"))


def test_ids_change_neither_the_hash_nor_what_a_panel_equals():
    assert KNOWN.hash == PLAIN.hash == "258aed1f8b7fc532" and KNOWN == PLAIN
    assert PLAIN.to_text() == "symbol\nTP53\nMYC\nAC012345.1\n"  # as every corpus before ids were known


@pytest.mark.parametrize("panel", [PLAIN, KNOWN])
def test_a_panel_is_read_as_it_was_written(panel):
    again = Panel.from_text(panel.to_text(), "panel.tsv")
    assert (again.symbols, again.ensembl) == (panel.symbols, panel.ensembl)


def test_versions_of_ids_are_left_off_and_clone_names_are_no_ids():
    read = Panel.from_text("symbol\tensembl\nTP53\tENSG00000141510.18\nENSG00000000003.4\t\n", "panel.tsv")
    assert read.ids == ("ENSG00000141510", "ENSG00000000003") and read.symbols[1] == "ENSG00000000003.4"
    assert ensembl_id("ENSMUSG00000064341.1") == "ENSMUSG00000064341" and ensembl_id("AC012345.1") == ""
    assert ensembl_id("ENSG00000182378.15_PAR_Y") == "ENSG00000182378_PAR_Y"


def test_ids_that_are_none_or_stand_twice_are_refused():
    refused(lambda: Panel(("A", "B"), ("ENSG00000000001", "ENSG00000000001")), "is the id of 'A' and of 'B'")
    refused(lambda: Panel(("A",), ("P04637",)), "gene 'A' has the id 'P04637'")
    refused(lambda: Panel(("A", "B"), ("ENSG00000000001",)), "1 Ensembl ids of 2 genes")
    refused(lambda: Panel.from_text("symbol\tensembl\nA\n", "panel.tsv"), "panel.tsv: line 2 has 1 columns")
    refused(lambda: Panel.from_text("symbol\n", "panel.tsv"), "panel.tsv", "no gene")
    refused(lambda: Panel.from_text("gene\tensembl\nA\t\n", "panel.tsv"), "expected the header 'symbol'")

"""The two files of the virtual panel: every gene once under its approved symbol, and markers in the cells they mark."""

import re
from collections import Counter
from pathlib import Path

import pytest

import tario_jax.virtual
from tario_jax.virtual.cohort import gene_table
from tario_jax.virtual.diagnoses import COHORTS
from tario_jax.virtual.genes import program, virtual_panel
from tario_jax.virtual.genotype import MUTATIONS
from tario_jax.virtual.kinds import TYPES, VISIBLE_STATES
from tario_jax.virtual.patients import TRAITS

FOLDER = Path(tario_jax.virtual.__file__).parent
HEADER, *LINES = (FOLDER / "genes.tsv").read_text().splitlines()
ROWS = {line.split("\t")[0]: dict(zip(HEADER.split("\t"), line.split("\t"), strict=True)) for line in LINES}
NOTE, *OTHERS = (FOLDER / "symbols.txt").read_text().splitlines()

# class -> what its genes may follow
DRIVERS = {
    "type_marker": ("",), "visible_state": VISIBLE_STATES, "hidden_state": ("subclone", "stress", "metabolism"),
    "diffusing": ("interferon", "tgf_beta"), "patient_level": ("", *TRAITS), "sex": ("female", "male"),
    "mutation": MUTATIONS, "housekeeping": ("",), "low": ("",), "null": ("",),
}  # fmt: skip
LEAST = {
    "type_marker": 300, "visible_state": 100, "hidden_state": 100, "diffusing": 100, "patient_level": 60, "null": 50,
}  # fmt: skip
APPROVED = re.compile(r"[A-Z][A-Z0-9]*([-_][A-Z0-9]+)*|C(\d+|X|Y)orf\d+[A-Z]?")
MONTH = re.compile(r"(JAN|FEB|MAR|MARCH|APR|MAY|JUN|JUL|AUG|SEP|SEPT|OCT|NOV|DEC)-?\d+")

# What a pathologist or an atlas of single cells would say, written without the table.
CANONICAL = {
    "tumour:LUAD": "NAPSA NKX2-1 SFTPB SFTPA1 KRT7 EPCAM",
    "tumour:LUSC": "KRT5 KRT6A TP63 SOX2 KRT14 DSG3 PKP1",
    "tumour:BRCA": "ESR1 GATA3 PGR ERBB2 SCGB2A2 ANKRD30A KRT8 KRT18",
    "tumour:CRC": "CDX2 KRT20 CEACAM5 LGR5 VIL1 TFF3 CDH17 EPCAM",
    "tumour:SKCM": "MLANA PMEL SOX10 TYR MITF S100B DCT",
    "tumour:OV": "MUC16 PAX8 WT1 MSLN FOLR1 CLDN6 KRT7",
    "tumour:RCC": "CA9 NDUFA4L2 ANGPTL4 PAX8 CD70 CUBN",
    "tumour:PRAD": "KLK3 KLK2 NKX3-1 FOLH1 TMPRSS2 AMACR STEAP2 AR",
    "epithelium:LUAD": "SFTPC AGER SCGB1A1 FOXJ1",
    "epithelium:LUSC": "SFTPC AGER SCGB1A1",
    "epithelium:CRC": "GUCA2A MUC2 CA1 KRT20",
    "epithelium:SKCM": "KRT5 KRT14 KRT1 KRT10 LORICRIN DSG3",
    "epithelium:RCC": "UMOD SLC12A1 AQP2 LRP2",
    "epithelium:PRAD": "KLK3 MSMB ACP3",
    "fibroblast": "COL1A1 DCN LUM PDGFRA PI16",
    "myofibroblast": "FAP POSTN COL11A1 ACTA2 TAGLN",
    "endothelial": "PECAM1 VWF CDH5 CLDN5 KDR",
    "mural": "RGS5 PDGFRB MYH11 ACTA2 NOTCH3",
    "adipocyte": "ADIPOQ PLIN1 FABP4 LEP CIDEC",
    "cd4_t": "CD3D CD3E CD4 CD40LG TRAC",
    "cd8_t": "CD3D CD3E CD8A CD8B GZMK PRF1",
    "treg": "CD3E CD4 FOXP3 IL2RA CTLA4 IKZF2",
    "nk": "NKG7 KLRD1 NCAM1 GNLY KLRF1",
    "b_cell": "MS4A1 CD19 CD79A CD79B PAX5",
    "plasma": "MZB1 JCHAIN IGHG1 SDC1 CD79A",
    "macrophage": "CD68 CD163 C1QA MRC1 CSF1R",
    "dendritic": "CD1C CLEC9A LAMP3 LILRA4 HLA-DRA",
    "mast": "TPSAB1 CPA3 KIT MS4A2",
    "neutrophil": "FCGR3B CSF3R CXCR2 S100A8",
}
FOREIGN = {
    "tumour:LUSC": "NAPSA NKX2-1", "tumour:LUAD": "TP63 KRT5", "tumour:BRCA": "KLK3 CDX2", "tumour:CRC": "KRT7 PAX8",
    "tumour:SKCM": "EPCAM KRT8 CDH1", "tumour:RCC": "CDX2 MUC16", "tumour:PRAD": "KRT7 TP63", "cd4_t": "CD8A FOXP3",
    "cd8_t": "CD4 MS4A1", "treg": "CD8A", "nk": "CD3E CD3D CD8A", "plasma": "MS4A1", "b_cell": "CD3E MZB1",
    "fibroblast": "EPCAM PECAM1", "adipocyte": "COL1A1", "macrophage": "CD3E",
}  # fmt: skip
DRIVEN = {
    "proliferation": "MKI67 TOP2A PCNA", "hypoxia": "VEGFA ADM NDRG1", "emt": "VIM ZEB1 FN1 -ESRP2",
    "keratinisation": "KRT1 KRT10 SPRR1B IVL LORICRIN", "interferon": "ISG15 IFI6 MX1 CXCL9 CXCL10 STAT1",
    "tgf_beta": "TGFB1 SMAD7 CCN2 TIMP1", "stress": "FOS JUN HSPA1A", "metabolism": "FASN SCD HMGCR",
    "subclone": "MYC -CDKN2A", "immune": "HLA-A HLA-B", "female": "XIST TSIX", "EGFR": "EGFR", "STK11": "-STK11 CPS1",
    "PTEN": "-PTEN", "RBM10": "-RBM10",
    "male": "RPS4Y1 DDX3Y UTY KDM5D EIF1AY USP9Y ZFY NLGN4Y TXLNGY SRY AMELY TSPY1",
}  # fmt: skip


def _pairs(table: dict[str, str]) -> list[tuple[str, str]]:
    return [(place, gene) for place, genes in table.items() for gene in genes.split()]


def _marks(gene: str, place: str) -> bool:
    """Whether the table says that a cell of `place` (a type, or `type:COHORT`) expresses the gene."""
    return bool({"all", place, place.partition(":")[0]} & set(ROWS[gene]["where"].split(",")))


def test_the_two_files_hold_18963_different_genes_in_the_panels_order():
    symbols = [line.split("\t")[0] for line in LINES] + OTHERS
    assert len(symbols) == len(set(symbols)) == 18_963
    assert virtual_panel().symbols == tuple(symbols)
    # the gene axis of the small panel is padded to a multiple of 1,024: no more than one
    assert 900 <= len(LINES) <= 1_024


def test_symbols_file_is_sorted_and_names_source_licence_and_rule():
    assert OTHERS == sorted(OTHERS)
    assert NOTE.startswith("#") and all(word in NOTE for word in ("HGNC", "2024", "CC0", "Rule"))


def test_symbols_have_the_approved_form_and_none_was_turned_into_a_date():
    symbols = [*ROWS, *OTHERS]
    assert [s for s in symbols if not APPROVED.fullmatch(s) or MONTH.fullmatch(s)] == []
    assert {"SEPTIN1", "SEPTIN9", "MARCHF1", "MARCHF5"} <= set(OTHERS)
    withdrawn = {"LOR", "DDX58", "ACPP", "CTGF", "CYR61", "GARS", "H3F3A", "WARS", "PRPF4B", "TDGF1", "MARC1"}
    assert withdrawn.isdisjoint(symbols)
    # the rule of `symbols.txt`: no uncharacterised reading frame, and olfactory receptors from the front
    assert not [s for s in OTHERS if re.fullmatch(r"C(\d+|X|Y)orf\d+", s)]
    assert {"OR10A2", "OR5A1"} <= set(OTHERS) and "OR9Q2" not in OTHERS


def test_every_row_names_a_known_class_driver_level_and_type():
    places = {"all", *TYPES, *(f"{kind}:{cohort}" for kind in ("tumour", "epithelium") for cohort in COHORTS)}
    assert HEADER.split("\t") == ["symbol", "class", "where", "drives", "level"]
    for row in ROWS.values():
        named = row["where"].split(",")
        assert row["drives"].removeprefix("-") in DRIVERS[row["class"]], row
        assert row["drives"] != "-" and row["level"] in ("low", "mid", "high"), row
        assert set(named) <= places and len(set(named)) == len(named), row
        # a type is named once for all cancer types, or for some of them, not both
        assert not {tag.partition(":")[0] for tag in named if ":" in tag} & set(named), row
        if row["class"] in ("sex", "patient_level", "housekeeping", "low", "null"):
            assert row["where"] == "all", row
        if row["class"] == "mutation":
            assert row["where"] == "tumour", row
        if row["class"] == "type_marker":
            assert row["where"] != "all", row


def test_no_class_and_no_driver_is_thin():
    classes = Counter(row["class"] for row in ROWS.values())
    drivers = Counter(row["drives"].removeprefix("-") for row in ROWS.values())
    assert all(classes[name] >= least for name, least in LEAST.items()), classes
    least = dict.fromkeys((name for names in DRIVERS.values() for name in names if name), 8) | {"female": 2}
    assert all(drivers[name] >= least[name] for name in least), drivers
    assert min(drivers[name] for name in MUTATIONS) >= 11


@pytest.mark.parametrize("place", [kind for kind in TYPES if kind not in ("tumour", "epithelium")])
def test_every_type_has_markers(place):
    assert sum(row["class"] == "type_marker" and _marks(gene, place) for gene, row in ROWS.items()) >= 8


@pytest.mark.parametrize("cohort", COHORTS)
def test_tumour_and_epithelium_of_every_cancer_type_have_markers(cohort):
    markers = [gene for gene, row in ROWS.items() if row["class"] == "type_marker"]
    assert sum(_marks(gene, f"epithelium:{cohort}") for gene in markers) >= 8
    mine = [gene for gene in markers if _marks(gene, f"tumour:{cohort}")]
    for other in COHORTS:  # enough of them to tell it from each other cancer type
        assert other == cohort or sum(not _marks(gene, f"tumour:{other}") for gene in mine) >= 8, other


@pytest.mark.parametrize("cohort", COHORTS)
def test_every_pair_of_types_is_told_apart_by_markers(cohort):
    marked = {
        kind: {g for g, row in ROWS.items() if row["class"] == "type_marker" and _marks(g, f"{kind}:{cohort}")}
        for kind in TYPES
    }
    # a normal epithelium and the tumour that grew from it may share all but a few
    pairs = [(a, b) for a in TYPES for b in TYPES if a != b and {a, b} != {"tumour", "epithelium"}]
    assert [(a, b) for a, b in pairs if len(marked[a] - marked[b]) < 4] == []


def test_canonical_markers_are_in_their_cells():
    assert len(_pairs(CANONICAL)) >= 60
    assert [(place, gene) for place, gene in _pairs(CANONICAL) if not _marks(gene, place)] == []


def test_markers_are_not_in_the_cells_that_they_exclude():
    assert [(place, gene) for place, gene in _pairs(FOREIGN) if _marks(gene, place)] == []


def test_programs_hold_their_best_known_genes_and_turn_them_the_right_way():
    for driver, gene in _pairs(DRIVEN):
        sign = "-" if gene.startswith("-") else ""
        assert ROWS[gene.removeprefix("-")]["drives"] == sign + driver, gene


def test_genes_of_the_y_chromosome_are_all_of_men_only():
    family = r"(TSPY|RBMY|DAZ|CDY|BPY|VCY|PRY|HSFY)\d*([A-KM-Z]\d*)?"  # an L would be a relative on another chromosome
    y_linked = re.compile(family + r"|(RPS4|NLGN4|TMSB4|DDX3|USP9|PCDH11|TBL1|TGIF2L|EIF1A|AMEL|ZF|UT|SR)Y\d?|KDM5D")
    named = {gene for gene in [*ROWS, *OTHERS] if y_linked.fullmatch(gene)}
    assert len(named) >= 40
    assert {gene for gene in named if gene in OTHERS or ROWS[gene]["drives"] != "male"} == set()


def test_the_table_beside_a_corpus_tells_what_every_gene_does():
    whole = program()
    header, *lines = gene_table(whole).splitlines()
    rows = {row["symbol"]: row for row in (dict(zip(header.split("\t"), x.split("\t"), strict=True)) for x in lines)}
    assert tuple(rows) == virtual_panel().symbols
    for symbol, curated in ROWS.items():
        row = rows[symbol]
        assert row["class"] == curated["class"]
        assert set(row["where"].split(",")) == _spelled_out(curated["where"]), symbol
        driver, sign = curated["drives"].removeprefix("-"), "-" if curated["drives"].startswith("-") else "+"
        expected = "" if not driver else driver if driver in ("female", "male") else f"{driver}:{sign}"
        assert any(change.startswith(expected) for change in row["follows"].split(",")), symbol
    # a rate that changes with a unit of hypoxia as the table says, by the rates themselves
    gene = virtual_panel().symbols.index("VEGFA")
    assert f"hypoxia:{whole.loading_G[gene]:+.2f}" in rows["VEGFA"]["follows"]
    assert sum(row["class"] == "null" for row in rows.values()) == len(whole.genes_of("null"))


def _spelled_out(where: str) -> set[str]:
    """All types of all cancer types are `all`; a type named for each of them is named once."""
    named = set(where.split(","))
    for kind in TYPES:
        tags = {f"{kind}:{cohort}" for cohort in COHORTS}
        named = named - tags | {kind} if tags <= named else named
    return {"all"} if named >= set(TYPES) else named

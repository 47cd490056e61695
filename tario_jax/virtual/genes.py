"""The virtual panel: which gene is expressed where, and what drives it.

`genes.tsv` holds the curated genes: symbol, class, where (cell types, `type:COHORT` for one cancer type only, or
`all`), drives and level. `symbols.txt` holds the other symbols: what those genes do is drawn. Strengths are drawn
once, from a generator that no cohort's seed touches: biology is the same for every seed.
"""

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np

from tario_jax.panel import Panel
from tario_jax.virtual.diagnoses import COHORTS, DIAGNOSES
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genotype import MUTATIONS
from tario_jax.virtual.kinds import STATES, TYPES, UNSEEN_STATES, VISIBLE_STATES
from tario_jax.virtual.patients import TRAITS

# class -> weight of a gene of middle level, and share of the genes that are not curated
CLASSES = {
    "type_marker": (3.4, 0.14), "visible_state": (0.7, 0.08), "hidden_state": (0.7, 0.08), "diffusing": (0.8, 0.06),
    "patient_level": (0.6, 0.08), "sex": (1.0, 0.0), "mutation": (0.8, 0.0), "housekeeping": (0.5, 0.10),
    "low": (0.05, 0.24), "silent": (0.0, 0.21), "null": (0.45, 0.01),
}  # fmt: skip
# families of genes whose role is plain from their names, whatever the draw would say
FAMILIES = {
    "housekeeping": re.compile(r"(M?RP[LS]|PSM[ABCD]|NDUF[ABCSV]|EIF\d)\d*"),
    "silent": re.compile(r"(OR\d+[A-Z]|TAS2R|KRTAP|DEFB|PRAMEF)"),
}
LEVEL_WEIGHT = {"low": 0.02, "mid": 1.0, "high": 3.5}
UNCURATED_WEIGHT = 0.16  # of a gene that is not curated: most are poorly seen
NULL_SHARE = 0.05  # of a cell's RNA, the same in every type
LEAK = 0.04  # of a gene's weight in the types that it is not for
DIFFUSING, HIDDEN = UNSEEN_STATES[:2], UNSEEN_STATES[2:]
POOLS = 16  # genes are read out in pools; a field of view may lose one


@dataclasses.dataclass(frozen=True)
class Program:
    """How the panel's genes behave; C cancer types, T cell types, R traits, M mutations, K diagnoses, G genes."""

    panel: Panel
    class_G: np.ndarray  # str [G]
    share_CxTxG: np.ndarray  # float32; of a cell's RNA, at state 0; sums to 1 over the whole panel
    detected_G: np.ndarray  # float32; share of a gene's transcripts that the assay finds
    state_G: np.ndarray  # int8, position in STATES of the one that turns the gene up or down; −1 for none
    loading_G: np.ndarray  # float32; change of the log rate by unit of that state
    trait_loading_RxG: np.ndarray  # float32; change of the log rate by unit of the patient's trait
    mutation_loading_MxG: np.ndarray  # float32; change of the tumour cells' log rate where mutated
    diagnosis_loading_KxG: np.ndarray  # float32; change of the tumour cells' log rate by diagnosis
    sex_G: np.ndarray  # int8; 1 for genes of women only, −1 for genes of men only, else 0
    patient_sd_G: np.ndarray  # float32; of the patient's own log effect, which nothing drawn tells of
    nuclear_share_G: np.ndarray  # float32; share of the transcripts that lie in the nucleus
    pool_G: np.ndarray  # int8 [G], 0 to POOLS − 1

    def genes_of(self, *names: str) -> np.ndarray:
        """Positions of the genes of these classes, in panel order."""
        return np.flatnonzero(np.isin(self.class_G, names))


def _rows() -> list[dict[str, str]]:
    lines = (Path(__file__).parent / "genes.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]


@functools.cache
def curated_panel() -> Panel:
    """The curated genes, in the order of `genes.tsv`: the small panel, for laptops and tests."""
    return Panel(tuple(row["symbol"] for row in _rows()))


@functools.cache
def virtual_panel() -> Panel:
    """All genes: the curated ones, then the others. The small panel is its beginning."""
    lines = (Path(__file__).parent / "symbols.txt").read_text().splitlines()
    return Panel((*curated_panel().symbols, *(line for line in lines if not line.startswith("#"))))


def null_symbols() -> list[str]:
    """Symbols of the null genes: no H&E, and no other gene, tells of their composition."""
    whole = program()
    return [whole.panel.symbols[gene] for gene in whole.genes_of("null")]


def _named(where: str, cohort: str) -> np.ndarray:
    """bool [T]: the types that `where` names in a cancer type."""
    named = {tag.partition(":")[0] for tag in where.split(",") if tag.partition(":")[2] in ("", cohort)}
    return np.array([name in named or "all" in named for name in TYPES])


@functools.cache
def program(curated_only: bool = False) -> Program:
    """The behaviour of the whole panel, or of its curated beginning: the same numbers for the genes in both."""
    if curated_only:
        whole, genes = program(), len(curated_panel())
        cut = {field.name: getattr(whole, field.name)[..., :genes] for field in dataclasses.fields(Program)[1:]}
        return Program(curated_panel(), **cut)
    rows, genes = _rows(), len(virtual_panel())
    rng = generator(0, 0, Stream.GENE)
    unit_6xG = rng.random((6, genes))
    normal_TxG = rng.standard_normal((len(TYPES), genes))
    class_G, drives_G, inside_CxTxG, weight_G = _behaviours(rows, genes, rng)
    weight_G *= np.exp(0.5 * rng.standard_normal(genes))

    state_G, sex_G = np.full(genes, -1, np.int8), np.zeros(genes, np.int8)
    loading_G, patient_sd_G = np.zeros(genes, np.float32), np.zeros(genes, np.float32)
    trait_RxG = np.zeros((len(TRAITS), genes), np.float32)
    mutation_MxG = np.zeros((len(MUTATIONS), genes), np.float32)
    for gene in np.flatnonzero(drives_G != ""):
        sign = -1 if drives_G[gene].startswith("-") else 1
        drives = drives_G[gene].lstrip("-")
        size = sign * (0.5 + 0.4 * unit_6xG[1, gene])
        if drives in STATES:
            state_G[gene], loading_G[gene] = STATES.index(drives), size
        elif drives in TRAITS:
            trait_RxG[TRAITS.index(drives), gene] = size
        elif drives in MUTATIONS:
            mutation_MxG[MUTATIONS.index(drives), gene] = 2 * size
        else:
            sex_G[gene] = {"female": 1, "male": -1}[drives]
    own = class_G == "patient_level"
    patient_sd_G[own] = 0.5 + 0.5 * unit_6xG[2, own]
    other = ~own & ~np.isin(class_G, ("null", "silent"))
    patient_sd_G[other] = 0.25 + 0.3 * unit_6xG[2, other]
    # two genes of five also follow a trait that the tissue shows
    also = np.flatnonzero(other & (unit_6xG[4] > 0.6))
    trait_RxG[rng.integers(len(TRAITS), size=len(also)), also] += 0.25 * np.sign(unit_6xG[4, also] - 0.8)
    diagnosis_KxG = 0.8 * rng.standard_normal((len(DIAGNOSES), genes), np.float32)
    diagnosis_KxG *= other & (rng.random((len(DIAGNOSES), genes)) < 0.2)  # one gene of five differs by diagnosis

    nuclear_G = (0.25 + 0.25 * unit_6xG[3]).astype(np.float32)
    nuclear_G[np.isin(virtual_panel().symbols, ("MALAT1", "NEAT1", "XIST"))] = 0.85
    detected_G = np.where(unit_6xG[5] < 0.08, 0.15, 0.7 + 0.3 * unit_6xG[5]).astype(np.float32)
    uneven_TxG = np.exp(0.2 * normal_TxG)  # no two types agree exactly on a gene
    null_G = class_G == "null"
    uneven_TxG[:, null_G] = 1.0
    share_CxTxG = weight_G * uneven_TxG * np.where(inside_CxTxG, 0.7 + 0.6 * unit_6xG[0], LEAK)
    for part_G, share in ((null_G, NULL_SHARE), (~null_G, 1 - NULL_SHARE)):
        share_CxTxG[:, :, part_G] *= share / share_CxTxG[:, :, part_G].sum(-1, keepdims=True)
    # so that a null gene is found in proportion to what else is found of a cell, and of its nucleus
    detected_G[null_G] = 1.0
    found_G = (share_CxTxG.mean((0, 1)) * detected_G)[~null_G]
    nuclear_G[null_G] = (found_G * nuclear_G[~null_G]).sum() / found_G.sum()
    return Program(
        virtual_panel(), class_G, share_CxTxG.astype(np.float32), detected_G, state_G, loading_G, trait_RxG,
        mutation_MxG, diagnosis_KxG, sex_G, patient_sd_G, nuclear_G, rng.integers(POOLS, size=genes).astype(np.int8),
    )  # fmt: skip


def _behaviours(rows: list[dict[str, str]], genes: int, rng: np.random.Generator):
    """Class, driver, bool [C, T, G] of the types that a gene is for, and weight: as curated, else drawn."""
    class_G, drives_G = np.full(genes, "", "U16"), np.full(genes, "", "U16")
    inside_CxTxG = np.ones((len(COHORTS), len(TYPES), genes), bool)
    weight_G = np.zeros(genes)
    for gene, row in enumerate(rows):
        class_G[gene], drives_G[gene] = row["class"], row["drives"]
        inside_CxTxG[:, :, gene] = [_named(row["where"], cohort) for cohort in COHORTS]
        weight_G[gene] = CLASSES[row["class"]][0] * LEVEL_WEIGHT[row["level"]]
    drawn = np.arange(len(rows), genes)
    shares = np.array([share for _, share in CLASSES.values()])
    class_G[drawn] = rng.choice(list(CLASSES), len(drawn), p=shares / shares.sum())
    for gene in drawn:
        for name, families in FAMILIES.items():
            if families.match(virtual_panel().symbols[gene]):
                class_G[gene] = name
    weight_G[drawn] = UNCURATED_WEIGHT * np.array([CLASSES[name][0] for name in class_G[drawn]])
    weight_G[drawn] *= np.exp(0.8 * rng.standard_normal(len(drawn)) - 0.32)
    drivers = {"visible_state": VISIBLE_STATES, "hidden_state": HIDDEN, "diffusing": DIFFUSING}
    pick_G, turn_G = rng.random(genes), rng.random(genes)
    for name, states in drivers.items():
        mine = drawn[class_G[drawn] == name]
        sign_G = np.where(turn_G[mine] < 0.3, "-", "")
        drives_G[mine] = np.char.add(sign_G, np.array(states)[(pick_G[mine] * len(states)).astype(int)])
    traits = drawn[(class_G[drawn] == "patient_level") & (pick_G[drawn] < 0.5)]
    drives_G[traits] = np.array(TRAITS)[(turn_G[traits] * len(TRAITS)).astype(int)]
    # markers that nobody has curated: of one to three types, and half of them in some cancer types only
    markers = drawn[class_G[drawn] == "type_marker"]
    types_TxK = rng.random((len(TYPES), len(markers))).argsort(0) < rng.integers(1, 4, len(markers))
    cohorts_CxK = (rng.random((len(COHORTS), len(markers))) < 0.3) | (rng.random(len(markers)) < 0.5)
    inside_CxTxG[:, :, markers] = cohorts_CxK[:, None] & types_TxK
    return class_G, drives_G, inside_CxTxG, weight_G

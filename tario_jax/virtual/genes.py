"""The virtual panel: which gene is expressed where, and what drives it.

`genes.tsv` is the source: symbol, class, where (cell types, `type:COHORT` for one cancer type only, or `all`),
drives (a state or, for patient-level genes, a trait; a leading − turns it down) and level. Strengths are drawn once
from a generator keyed by the symbol: biology is the same for every seed, and a gene added later moves no other.
"""

import dataclasses
import functools
import zlib
from pathlib import Path

import numpy as np

from tario_jax.panel import Panel
from tario_jax.virtual.fields import Stream, generator

COHORTS = ("LUAD", "BRCA", "SKCM")
TYPES = (
    "tumour", "epithelium", "fibroblast", "myofibroblast", "endothelial", "mural", "cd4_t", "cd8_t", "b_cell",
    "plasma", "macrophage", "dendritic", "mast", "neutrophil",
)  # fmt: skip
VISIBLE_STATES = ("proliferation", "hypoxia", "emt")
UNSEEN_STATES = ("interferon", "tgf_beta", "subclone", "stress", "metabolism")
STATES = VISIBLE_STATES + UNSEEN_STATES
TRAITS = ("grade", "immune", "fibrosis")  # of a patient, all drawn: nuclear size, infiltrate, collagen

CLASS_WEIGHT = {"type_marker": 2.4, "visible_state": 0.55, "hidden_state": 0.7, "diffusing": 0.6,
                "patient_level": 0.8, "housekeeping": 1.3, "low": 0.6, "null": 0.45}  # fmt: skip
LEVEL_WEIGHT = {"low": 0.02, "mid": 1.0, "high": 3.5}
NULL_SHARE = 0.07  # of a cell's RNA, the same in every type
LEAK = 0.04  # of a gene's weight in the types that it is not for


@dataclasses.dataclass(frozen=True)
class Program:
    """How the panel's genes behave; C cancer types, T cell types, S states, R traits, G genes."""

    panel: Panel
    class_G: np.ndarray  # str [G]
    share_CxTxG: np.ndarray  # float32; share of a cell's RNA at state 0, sums to 1 over genes
    loading_SxG: np.ndarray  # float32; change of the log rate by unit of state
    trait_loading_RxG: np.ndarray  # float32; change of the log rate by unit of the patient's trait
    patient_sd_G: np.ndarray  # float32; of the patient's own log effect, which nothing drawn tells of
    nuclear_share_G: np.ndarray  # float32; share of the transcripts that lie in the nucleus

    def genes_of(self, *names: str) -> np.ndarray:
        """Positions of the genes of these classes, in panel order."""
        return np.flatnonzero(np.isin(self.class_G, names))


def _rows() -> list[dict[str, str]]:
    lines = (Path(__file__).parent / "genes.tsv").read_text().splitlines()
    header = lines[0].split("\t")
    return [dict(zip(header, line.split("\t"), strict=True)) for line in lines[1:]]


@functools.cache
def virtual_panel() -> Panel:
    """The genes of every virtual section, in the order of `genes.tsv`."""
    return Panel(tuple(row["symbol"] for row in _rows()))


def _types(where: str, cohort: str) -> np.ndarray:
    """bool [T]: the types that `where` names in a cancer type."""
    named = {tag.partition(":")[0] for tag in where.split(",") if tag.partition(":")[2] in ("", cohort)}
    return np.array([name in named or "all" in named for name in TYPES])


@functools.cache
def program() -> Program:
    """The behaviour of the whole panel, from `genes.tsv`."""
    rows = _rows()
    genes = len(rows)
    class_G = np.array([row["class"] for row in rows])
    weight_CxTxG = np.zeros((len(COHORTS), len(TYPES), genes))
    loading_SxG = np.zeros((len(STATES), genes), np.float32)
    trait_RxG = np.zeros((len(TRAITS), genes), np.float32)
    patient_sd_G = np.zeros(genes, np.float32)
    nuclear_G = np.zeros(genes, np.float32)
    for gene, row in enumerate(rows):
        rng = generator(0, zlib.crc32(row["symbol"].encode()), Stream.GENE)
        strength, loading, patient_sd, nuclear, direction = rng.random(5)
        weight = CLASS_WEIGHT[row["class"]] * LEVEL_WEIGHT[row["level"]] * np.exp(0.5 * rng.standard_normal())
        uneven_T = np.exp(0.2 * rng.standard_normal(len(TYPES)))  # no two types agree exactly on a gene
        if row["class"] == "null":
            uneven_T[:] = 1.0
        for c, cohort in enumerate(COHORTS):
            inside_T = _types(row["where"], cohort)
            weight_CxTxG[c, :, gene] = weight * uneven_T * np.where(inside_T, 0.7 + 0.6 * strength, LEAK)
        sign = -1 if row["drives"].startswith("-") else 1
        drives = row["drives"].lstrip("-")
        if drives in STATES:
            loading_SxG[STATES.index(drives), gene] = sign * (0.4 + 0.3 * loading)
        if row["class"] == "patient_level":
            patient_sd_G[gene] = 0.4 + 0.4 * patient_sd
            if drives:
                trait_RxG[TRAITS.index(drives), gene] = sign * (0.4 + 0.3 * loading)
        elif row["class"] != "null":
            patient_sd_G[gene] = 0.15 + 0.2 * patient_sd
            if direction > 0.6:  # two genes of five also follow a trait that the tissue shows
                trait_RxG[rng.integers(len(TRAITS)), gene] = 0.25 * np.sign(direction - 0.8)
        nuclear_G[gene] = 0.85 if row["symbol"] in ("MALAT1", "NEAT1", "XIST") else 0.25 + 0.25 * nuclear
    null_G = class_G == "null"
    for part_G, share in ((null_G, NULL_SHARE), (~null_G, 1 - NULL_SHARE)):
        weight_CxTxG[:, :, part_G] *= share / weight_CxTxG[:, :, part_G].sum(-1, keepdims=True)
    return Program(virtual_panel(), class_G, weight_CxTxG.astype(np.float32), loading_SxG, trait_RxG, patient_sd_G,
                   nuclear_G)  # fmt: skip

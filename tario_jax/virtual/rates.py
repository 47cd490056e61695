"""What a section's cells express: the expected detections of every gene in every cell, kept in a form that needs no
array of cells by genes.

    rate[n, g] = base[n] · weight[type n, g] · exp(loading[g] · state[n, state of g])

weight is the type's share of RNA times what the patient, the diagnosis and the assay make of the gene; base is the
depth times the cell's RNA times the efficiency. A null gene's rate is a fixed share of what is expected of all other
genes in the cell, times a field of its own: no composition can tell of it. As each gene follows one state at most,

    Σ_n a[n] · base[n] · exp(l · state[n])

is a smooth function of l, known from a few values of it: that is what makes 18,963 genes as cheap as a few.
"""

import dataclasses

import numpy as np

from tario_jax.virtual.cells import Cells
from tario_jax.virtual.diagnoses import COHORTS, DIAGNOSES
from tario_jax.virtual.fields import FieldBasis, Stream, generator
from tario_jax.virtual.genes import NULL_SHARE, Program, virtual_panel
from tario_jax.virtual.genotype import MUTATIONS, female_share, posterior
from tario_jax.virtual.hidden import Hidden
from tario_jax.virtual.kinds import STATES, TUMOUR, TYPES, VISIBLE_STATES
from tario_jax.virtual.patients import TRAITS, Patient

DEPTHS = {"low": 150.0, "default": 400.0, "high": 1000.0}
"""Expected transcripts within reach of the assay in a typical cell (RNA 1), before false negatives."""
RNA_OF = {
    "tumour": 1.25, "epithelium": 1.1, "fibroblast": 1.0, "myofibroblast": 1.1, "endothelial": 0.8, "mural": 0.8,
    "cd4_t": 0.25, "cd8_t": 0.28, "treg": 0.25, "nk": 0.28, "b_cell": 0.25, "plasma": 1.2, "macrophage": 1.4,
    "dendritic": 1.0, "mast": 0.8, "neutrophil": 0.4, "adipocyte": 0.6,
}  # fmt: skip
RNA_T = np.array([RNA_OF[name] for name in TYPES], np.float32)
NECROTIC_RNA = 0.03
ACTIVE_RNA = 0.3  # change of a cell's log RNA by unit of proliferation, and of hypoxia downwards
MALE_LEAK = 0.01  # of a gene of one sex only, in the other
NULL_FIELD_SIGMA_UM = 40.0
NULL_FIELD_SD = 0.5
NULL_FIELD_LIMIT = 2.5
NODES = 12  # loadings at which exp(l · state) is evaluated; between them it is read to 2e-5


def patient_weights(patient: Patient, genes: Program, seed: int, *, known: bool) -> np.ndarray:
    """Share of RNA by type and gene in this patient, float32 [T, G]; its mean over what is not drawn unless `known`.

    Diagnosis and traits are drawn. Not drawn: the patient's own effect on a gene (of mean 1), sex and genotype; of the
    latter two the mean is over what the cancer type, and for the genotype the traits and the site, tell of them.
    """
    log_G = patient.trait_R @ genes.trait_loading_RxG
    tumour_G = np.exp(genes.diagnosis_loading_KxG[DIAGNOSES.index(patient.diagnosis)])
    if known:
        normal_G = generator(seed, patient.number, Stream.EFFECT).standard_normal(len(virtual_panel()))
        log_G = log_G + genes.patient_sd_G * (normal_G[: len(genes.panel)] - 0.5 * genes.patient_sd_G)
        female = float(patient.sex == "female")
        tumour_G = tumour_G * np.exp(_mutation_log(patient.mutated, genes))
    else:
        female = female_share(patient.cohort)
        mixed = sum(p * np.exp(_mutation_log(mutated, genes))
                    for mutated, p in posterior(patient.cohort, patient.trait_R, TRAITS, patient.site))  # fmt: skip
        tumour_G = tumour_G * mixed
    sex_G = np.where(genes.sex_G == 1, female, np.where(genes.sex_G == -1, 1 - female, 1.0))
    factor_G = np.exp(log_G) * np.maximum(sex_G, MALE_LEAK) * genes.detected_G
    weight_TxG = genes.share_CxTxG[COHORTS.index(patient.cohort)] * factor_G.astype(np.float32)
    weight_TxG[TYPES.index("tumour")] *= tumour_G.astype(np.float32)
    return weight_TxG


def _mutation_log(mutated: dict[str, bool], genes: Program) -> np.ndarray:
    total_G = np.zeros(len(genes.panel), np.float32)
    for m, name in enumerate(MUTATIONS):
        if mutated.get(name, False):
            total_G += genes.mutation_loading_MxG[m]
    return total_G


def rna_of(cells: Cells) -> np.ndarray:
    """RNA of each cell relative to a typical one of its type, float32 [N]; all that it depends on is drawn.

    It grows with the nucleus and with proliferation, and falls with hypoxia.
    """
    area_N = cells.nucleus_um_Nx2.prod(1)
    typical_N = np.bincount(cells.look_N, area_N) / np.maximum(np.bincount(cells.look_N), 1)
    state = {name: cells.state_NxV[:, v] for v, name in enumerate(VISIBLE_STATES)}
    active_N = np.where(cells.look_N == TUMOUR, state["proliferation"], 0.0) - state["hypoxia"]
    rna_N = (area_N / typical_N[cells.look_N]) ** 0.5 * np.exp(ACTIVE_RNA * active_N)
    return np.where(cells.necrotic_N, NECROTIC_RNA, rna_N).astype(np.float32)


def null_fields(cells: Cells, section_um: float, number: int, rng: np.random.Generator) -> np.ndarray:
    """The null genes' own fields at the cells, float32 [N, number], of mean 1."""
    basis = FieldBasis(NULL_FIELD_SIGMA_UM, section_um)
    field_NxK = basis.at(cells.x_um_N, cells.y_um_N, basis.noise(rng, number))
    np.clip(field_NxK, -NULL_FIELD_LIMIT, NULL_FIELD_LIMIT, out=field_NxK)
    return np.exp(NULL_FIELD_SD * field_NxK - 0.5 * NULL_FIELD_SD**2)


@dataclasses.dataclass(frozen=True)
class Loadings:
    """How the panel's loadings are spanned by a few: exp(l · s) ≈ Σ_k span_KxG[k, g] · exp(node_K[k] · s).

    Lagrange polynomials on Chebyshev nodes in l: for |l · s| up to 2.1 the error is below 2e-5 of the value.
    """

    node_K: np.ndarray  # float64 [NODES]
    span_KxG: np.ndarray  # float64 [NODES, G]

    @classmethod
    def of(cls, genes: Program) -> "Loadings":
        reach = max(float(np.abs(genes.loading_G).max()), 1e-3)
        node_K = reach * np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
        gap_KxK = node_K[:, None] - node_K
        np.fill_diagonal(gap_KxK, 1.0)
        away_GxK = genes.loading_G[:, None] - node_K
        span_KxG = np.ones((NODES, len(genes.loading_G)))
        for k in range(NODES):
            others = [j for j in range(NODES) if j != k]
            span_KxG[k] = away_GxK[:, others].prod(1) / gap_KxK[k, others].prod()
        return cls(node_K, span_KxG)


def expected_totals(weight_TxG: np.ndarray, genes: Program, loadings: Loadings, hidden_type_N: np.ndarray,
                    state_NxS: np.ndarray) -> np.ndarray:  # fmt: skip
    """Σ over all genes but the null ones of weight · exp(loading · state), float64 [N]."""
    counted_G = genes.class_G != "null"
    total_N = (weight_TxG * (counted_G & (genes.state_G < 0))).sum(1, dtype=np.float64)[hidden_type_N]
    for s in range(len(STATES)):
        mine = np.flatnonzero(genes.state_G == s)
        if len(mine):
            by_type_TxK = np.einsum("tg,kg->tk", weight_TxG[:, mine], loadings.span_KxG[:, mine])
            power_NxK = np.exp(state_NxS[:, s, None] * loadings.node_K)
            total_N += (by_type_TxK[hidden_type_N] * power_NxK).sum(1)
    return total_N


def null_weight(genes: Program) -> np.ndarray:
    """Rate of each null gene per unit of all others' expected total, float64 [K]."""
    return genes.share_CxTxG[0, 0, genes.genes_of("null")] / (1 - NULL_SHARE)


def states_of(cells: Cells, hidden: Hidden) -> np.ndarray:
    """float32 [N, S] by STATES."""
    return np.concatenate([cells.state_NxV, hidden.state_NxU], 1)


@dataclasses.dataclass(frozen=True)
class Expression:
    """Expected detections of N cells by G genes, unmultiplied: see the module's docstring."""

    weight_TxG: np.ndarray  # float32
    base_N: np.ndarray  # float32; depth, RNA and efficiency
    type_N: np.ndarray  # int8, position in TYPES
    state_NxS: np.ndarray  # float32 by STATES
    others_N: np.ndarray  # float64; what a null gene's rate is proportional to
    null_field_NxK: np.ndarray  # float32 by null genes


def express(weight_TxG: np.ndarray, genes: Program, loadings: Loadings, cells: Cells, hidden: Hidden,
            scale_N: np.ndarray, null_field_NxK: np.ndarray) -> Expression:  # fmt: skip
    """scale_N: depth times efficiency of each cell."""
    state_NxS = states_of(cells, hidden)
    others_N = expected_totals(weight_TxG, genes, loadings, hidden.type_N, state_NxS)
    base_N = (scale_N * rna_of(cells) * RNA_T[hidden.type_N]).astype(np.float32)
    return Expression(weight_TxG, base_N, hidden.type_N, state_NxS, others_N, null_field_NxK)

"""Rates of every gene in every cell, the detections drawn from them, and the truths T and V.

    rate[c, g] = detections_per_cell · RNA[c] · share[type, g] · exp(Σ_s loading[s, g] · state[c, s])
                 · patient[g] · efficiency

and a null gene's is a fixed share of the cell's sum over all others, times a field of its own.
`detections_per_cell` is thus that of a typical cell (RNA 1). Counts are Poisson around the rate times a Gamma of
mean 1 for the cell and one for the gene in it. A share of the detections lies anywhere: the diffuse background.
"""

import dataclasses

import numpy as np
from scipy import sparse

from tario_jax.corpus.section import Detections, Truth
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.fields import FieldBasis, Stream, generator
from tario_jax.virtual.genes import NULL_SHARE, STATES, TYPES, UNSEEN_STATES, VISIBLE_STATES, program
from tario_jax.virtual.hidden import Hidden, draw_fields, draw_hidden
from tario_jax.virtual.patients import Patient

REDRAWS = 24
RNA_T = np.array([1.35, 1.1, 0.75, 0.85, 0.7, 0.7, 0.65, 0.7, 0.65, 1.2, 1.1, 0.9, 0.8, 0.6], np.float32)
"""RNA of a cell of typical size, by TYPES."""
BACKGROUND_SHARE = 0.04
CELL_SHAPE = 5.0  # of the Gamma on a cell's depth
GENE_SHAPE = 2.5  # of the Gamma on a gene in a cell
NULL_FIELD_SIGMA_UM = 40.0
NULL_FIELD_SD = 0.5
PLACES_PER_CELL = 32  # places that stand for a cell's nucleus, and as many for its cytoplasm, in T and V


@dataclasses.dataclass(frozen=True)
class Visible:
    """What a section's rates owe to what is drawn, and what its null genes owe to their own fields."""

    scale_N: np.ndarray  # detections_per_cell times the RNA that a cell's size gives
    state_factor_NxG: np.ndarray  # float32
    null_field_NxK: np.ndarray  # float32, of mean 1 across patients


def _rna_of_size(cells: Cells) -> np.ndarray:
    """RNA relative to a typical cell of the look: grows with the nucleus, which is drawn."""
    area_N = cells.nucleus_um_Nx2.prod(1)
    typical_N = np.bincount(cells.look_N, area_N) / np.maximum(np.bincount(cells.look_N), 1)
    return (area_N / typical_N[cells.look_N]) ** 0.5


def draw_visible(cells: Cells, section_um: float, detections_per_cell: float, rng: np.random.Generator) -> Visible:
    """The parts of the rates that do not change when the unseen is drawn again, but for the null fields."""
    genes = program()
    factor_NxG = np.ones((len(cells), len(genes.panel)), np.float32)
    for s, name in enumerate(VISIBLE_STATES):
        loaded = np.flatnonzero(genes.loading_SxG[STATES.index(name)])
        loading = genes.loading_SxG[STATES.index(name), loaded]
        factor_NxG[:, loaded] *= np.exp(cells.state_NxV[:, s, None] * loading)
    basis = FieldBasis(NULL_FIELD_SIGMA_UM, section_um)
    field_NxK = basis.at(cells.x_um_N, cells.y_um_N, basis.noise(rng, len(genes.genes_of("null"))))
    null_field_NxK = np.exp(NULL_FIELD_SD * field_NxK - 0.5 * NULL_FIELD_SD**2)
    return Visible((detections_per_cell * _rna_of_size(cells)).astype(np.float32), factor_NxG, null_field_NxK)


def _hidden_factor(hidden: Hidden, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The genes that an unseen state loads, and its factor on them in each cell."""
    genes = program()
    loading_G = genes.loading_SxG[STATES.index(name)]
    loaded = np.flatnonzero(loading_G)
    return loaded, np.exp(hidden.state_NxU[:, UNSEEN_STATES.index(name), None] * loading_G[loaded])


def _fill_null(rate_NxG: np.ndarray, field_NxK: np.ndarray | float) -> None:
    """Sets the null genes to a fixed share of the RNA that a cell holds, times their fields: linear in the other
    genes' rates, so E[null | drawn] is that same share of theirs."""
    genes = program()
    null_K = genes.genes_of("null")
    rate_NxG[:, null_K] = 0
    share_K = genes.share_CxTxG[0, 0, null_K] / np.float32(1 - NULL_SHARE)
    rate_NxG[:, null_K] = rate_NxG.sum(1, keepdims=True) * share_K * field_NxK


def true_rates(patient: Patient, visible: Visible, hidden: Hidden) -> np.ndarray:
    """Expected detections of each cell, float32 [N, G], before the background."""
    genes = program()
    rate_NxG = genes.share_CxTxG[patient.cohort_index][hidden.type_N]
    rate_NxG *= visible.state_factor_NxG
    for name in UNSEEN_STATES:
        loaded, factor = _hidden_factor(hidden, name)
        rate_NxG[:, loaded] *= factor
    rate_NxG *= (visible.scale_N * RNA_T[hidden.type_N] * np.float32(patient.efficiency))[:, None]
    rate_NxG *= np.exp(patient.log_effect_G)
    _fill_null(rate_NxG, visible.null_field_NxK)
    return rate_NxG


def reachable_rates(patient: Patient, cells: Cells, visible: Visible, section_um: float, seed: int) -> np.ndarray:
    """E[rates | all that is drawn], float32 [N, G]: unseen fields, types and levels redrawn REDRAWS times.

    The null fields, the unseen part of the patient's gene effects and the efficiency enter as independent factors
    of mean 1; their average over redraws is known exactly, so they are left out.
    """
    genes = program()
    rng = generator(seed, patient.number, Stream.REDRAW)
    field_NxFxR = draw_fields(cells, section_um, rng, REDRAWS)
    level_RxU = rng.standard_normal((REDRAWS, len(UNSEEN_STATES)))
    level_RxU = (level_RxU - level_RxU.mean(0)) / level_RxU.std(0)
    choice_N = rng.random(len(cells))
    share_TxG = genes.share_CxTxG[patient.cohort_index]

    loaded = {name: np.flatnonzero(genes.loading_SxG[STATES.index(name)]) for name in UNSEEN_STATES}
    sums = {name: np.zeros((len(cells), len(genes_)), np.float32) for name, genes_ in loaded.items()}
    rna_NxT = np.zeros((len(cells), len(TYPES)), np.float32)
    every = np.arange(len(cells))
    for redraw in range(REDRAWS):
        # stepping the choice through the unit interval gives every type its share of the redraws
        hidden = draw_hidden(
            cells, section_um, field_NxFxR[..., redraw], level_RxU[redraw], (choice_N + redraw / REDRAWS) % 1
        )
        rna_N = RNA_T[hidden.type_N]
        rna_NxT[every, hidden.type_N] += rna_N
        for name in UNSEEN_STATES:
            _, factor = _hidden_factor(hidden, name)
            factor *= share_TxG[:, loaded[name]][hidden.type_N]
            factor *= rna_N[:, None]
            sums[name] += factor
    # a plain sum over types, without BLAS: the same bits whatever its threads
    rate_NxG = np.asarray(sparse.csr_array(rna_NxT) @ share_TxG)
    for name in UNSEEN_STATES:
        rate_NxG[:, loaded[name]] = sums[name]
    rate_NxG *= visible.state_factor_NxG
    rate_NxG *= (visible.scale_N / REDRAWS)[:, None]
    rate_NxG *= np.exp(patient.log_effect_G - patient.hidden_log_effect_G)
    _fill_null(rate_NxG, 1.0)
    return rate_NxG


def _places(cells: Cells, cell_K: np.ndarray, nuclear_K: np.ndarray, turn_K: np.ndarray, depth_K: np.ndarray):
    """Places (x, y) in µm within the nucleus, or between its border and the cell's.

    turn_K and depth_K in [0, 1) are the place's angle and how much of the area lies nearer to the centre.
    """
    inner, outer = cells.nucleus_um_Nx2[cell_K] ** 2, cells.cell_um_Nx2[cell_K] ** 2
    depth = depth_K[:, None]
    semi = np.sqrt(np.where(nuclear_K[:, None], inner * depth, inner + (outer - inner) * depth))
    along, across = semi[:, 0] * np.cos(2 * np.pi * turn_K), semi[:, 1] * np.sin(2 * np.pi * turn_K)
    cos, sin = np.cos(cells.angle_N[cell_K]), np.sin(cells.angle_N[cell_K])
    return (cells.x_um_N[cell_K] + along * cos - across * sin, cells.y_um_N[cell_K] + along * sin + across * cos)


def draw_detections(cells: Cells, rate_NxG: np.ndarray, section_um: float, rng: np.random.Generator) -> Detections:
    """Detections at sub-micron places. `in_nucleus_D` says where the transcript was, also where cells overlap;
    the background lies in no cell (`cell_D` 0) and no nucleus. What falls outside the section is not there."""
    genes = program()
    shape = rate_NxG.shape
    depth_N = rng.standard_gamma(CELL_SHAPE, len(cells)).astype(np.float32) / CELL_SHAPE
    rate_NxG = rate_NxG * (depth_N * (1 - BACKGROUND_SHARE))[:, None]
    rate_NxG *= rng.standard_gamma(GENE_SHAPE, shape, np.float32) / np.float32(GENE_SHAPE)
    entry_E, count_E = _poisson_entries(rate_NxG.ravel(), rng)
    entry_D = np.repeat(entry_E, count_E)
    cell_D, gene_D = entry_D // shape[1], entry_D % shape[1]
    in_nucleus_D = rng.random(len(gene_D)) < genes.nuclear_share_G[gene_D]
    x_um_D, y_um_D = _places(cells, cell_D, in_nucleus_D, rng.random(len(gene_D)), rng.random(len(gene_D)))

    stray_G = rng.poisson(background(rate_NxG.sum(0) / (1 - BACKGROUND_SHARE)))
    stray_D = np.repeat(np.arange(shape[1]), stray_G)
    x_um_D = np.concatenate([x_um_D, rng.uniform(0, section_um, len(stray_D))]).astype(np.float32)
    y_um_D = np.concatenate([y_um_D, rng.uniform(0, section_um, len(stray_D))]).astype(np.float32)
    gene_D = np.concatenate([gene_D, stray_D]).astype(np.int32)
    cell_D = np.concatenate([cell_D + 1, np.zeros(len(stray_D), np.int64)]).astype(np.int32)
    in_nucleus_D = np.concatenate([in_nucleus_D, np.zeros(len(stray_D), bool)])
    inside = (x_um_D >= 0) & (x_um_D < section_um) & (y_um_D >= 0) & (y_um_D < section_um)
    return Detections(x_um_D[inside], y_um_D[inside], gene_D[inside], in_nucleus_D[inside], cell_D[inside])


def _poisson_entries(rate_E: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Poisson counts of many small rates: where they are above 0, and what they are there."""
    count_E = rng.poisson(rate_E)
    entry_E = np.flatnonzero(count_E)
    return entry_E, count_E[entry_E]


def background(total_G: np.ndarray) -> np.ndarray:
    """Expected background detections of each gene over the section, where its cells expect total_G."""
    return BACKGROUND_SHARE * total_G


def bin_truth(cells: Cells, section_um: float, bin_um: float, *rates: np.ndarray) -> list[np.ndarray]:
    """Expected detections of each bin, float32 [rows, columns, G], for each of the cells' `rates` [N, G].

    A cell's detections are shared among bins by places that stand for those that `draw_detections` would draw:
    nucleus and cytoplasm apart, since genes differ in where they lie.
    """
    genes = program()
    rows = int(section_um // bin_um)
    place = np.arange(PLACES_PER_CELL)
    turn_P, depth_P = place * 0.6180339887498949 % 1, (place + 0.5) / PLACES_PER_CELL
    cell_K = np.repeat(np.arange(len(cells)), PLACES_PER_CELL)
    shares = []
    for nuclear in (True, False):
        turn_K, depth_K = np.tile(turn_P, len(cells)), np.tile(depth_P, len(cells))
        x_um_K, y_um_K = _places(cells, cell_K, np.full(len(cell_K), nuclear), turn_K, depth_K)
        row_K, column_K = np.floor(y_um_K / bin_um).astype(np.int64), np.floor(x_um_K / bin_um).astype(np.int64)
        inside = (row_K >= 0) & (row_K < rows) & (column_K >= 0) & (column_K < rows)
        weight = np.full(inside.sum(), (1 - BACKGROUND_SHARE) / PLACES_PER_CELL, np.float32)
        index = (row_K * rows + column_K)[inside], cell_K[inside]
        shares.append(sparse.coo_array((weight, index), (rows**2, len(cells))).tocsr())
    truths = []
    for rate_NxG in rates:
        truth_BxG = shares[0] @ (rate_NxG * genes.nuclear_share_G) + shares[1] @ (
            rate_NxG * (1 - genes.nuclear_share_G)
        )
        truth_BxG += background(rate_NxG.sum(0)) * (bin_um / section_um) ** 2
        truths.append(truth_BxG.reshape(rows, rows, -1).astype(np.float32))
    return truths


def draw_unseen(patient: Patient, cells: Cells, section_um: float, rng: np.random.Generator) -> Hidden:
    """The patient's own unseen types and states."""
    field_NxF = draw_fields(cells, section_um, rng, 1)[..., 0]
    return draw_hidden(cells, section_um, field_NxF, patient.level_U, rng.random(len(cells)))


def section_truth(patient: Patient, cells: Cells, visible: Visible, rate_NxG: np.ndarray, section_um: float,
                  bin_um: float, seed: int) -> Truth:  # fmt: skip
    """T and V on the grid of `bin_um` from the section's origin; bins that reach beyond the section are left out."""
    reachable_NxG = reachable_rates(patient, cells, visible, section_um, seed)
    return Truth(bin_um, *bin_truth(cells, section_um, bin_um, rate_NxG, reachable_NxG))

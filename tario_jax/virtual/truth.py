"""The truths of a virtual section, computed when asked for, of any genes in bins of any size, from its stored cells.

T is the expected number of detections in a bin, given the cells, their types and states, the patient and the assay.
V = E[T | all that is drawn]: what is not drawn is redrawn REDRAWS times (`hidden.py`) or averaged exactly
(`rates.patient_weights`). What counts as drawn is in the docstring of `tario_jax.virtual`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import sparse

from tario_jax.virtual.assay import BACKGROUND_SHARE, LOST_POOL_LEFT, Assay, background
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.detections import places
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genes import Program
from tario_jax.virtual.genotype import posterior, shifts
from tario_jax.virtual.hidden import draw_fields, draw_hidden
from tario_jax.virtual.kinds import STATES, TYPES, UNSEEN_STATES
from tario_jax.virtual.patients import TRAITS, Patient
from tario_jax.virtual.rates import Expression, Loadings, express, null_weight, patient_weights

REDRAWS = 24
PLACES_PER_CELL = 32  # places that stand for a cell's nucleus, and as many for its cytoplasm


@dataclasses.dataclass(frozen=True)
class Bins:
    """Square bins from the section's origin that lie in it whole, and how cells share their detections among them."""

    per_side: int
    area_share: float  # of the section, of one bin
    nuclear_BxN: sparse.csr_array  # shares of each cell's nuclear detections; a last row holds all of them
    outer_BxN: sparse.csr_array  # the same of its other detections


def make_bins(cells: Cells, section_um: float, bin_um: float) -> Bins:
    """Shares by places that stand for those that `draw_detections` would draw."""
    per_side = int(section_um / bin_um + 1e-6)
    place = np.arange(PLACES_PER_CELL)
    turn_P, depth_P = place * 0.6180339887498949 % 1, (place + 0.5) / PLACES_PER_CELL
    cell_K = np.repeat(np.arange(len(cells)), PLACES_PER_CELL)
    turn_K, depth_K = np.tile(turn_P, len(cells)), np.tile(depth_P, len(cells))
    shares = []
    for nuclear in (True, False):
        x_um_K, y_um_K = places(cells, cell_K, np.full(len(cell_K), nuclear), turn_K, depth_K)
        row_K, column_K = np.floor(y_um_K / bin_um).astype(np.int64), np.floor(x_um_K / bin_um).astype(np.int64)
        inside = (row_K >= 0) & (row_K < per_side) & (column_K >= 0) & (column_K < per_side)
        bin_E = np.concatenate([(row_K * per_side + column_K)[inside], np.full(len(cells), per_side**2)])
        cell_E = np.concatenate([cell_K[inside], np.arange(len(cells))])
        weight_E = np.concatenate([np.full(inside.sum(), 1 / PLACES_PER_CELL), np.ones(len(cells))])
        shares.append(sparse.coo_array((weight_E, (bin_E, cell_E)), (per_side**2 + 1, len(cells))).tocsr())
    return Bins(per_side, (bin_um / section_um) ** 2, *shares)


class _Moments:
    """Sums over cells of base · (1, null weight, exp(l_k · state s)) by bin and type, from which any gene follows."""

    def __init__(self, bins: Bins, loadings: Loadings):
        self._bins, self._loadings = bins, loadings
        rows = bins.nuclear_BxN.shape[0]
        self._columns = 1 + len(STATES) * len(loadings.node_K)
        self._sum_2xBxTxM = np.zeros((2, rows, len(TYPES), self._columns), np.float32)
        self._null_2xB = np.zeros((2, rows))
        self._weight = 0.0

    def add(self, expression: Expression, weight: float = 1.0, factor_N: np.ndarray | float = 1.0) -> None:
        """Adds one draw of the cells, with that weight."""
        base_N = (expression.base_N * factor_N).astype(np.float32)
        power_NxSxK = np.exp(expression.state_NxS[:, :, None] * self._loadings.node_K.astype(np.float32))
        value_NxM = np.concatenate([np.ones((len(base_N), 1), np.float32), power_NxSxK.reshape(len(base_N), -1)], 1)
        value_NxM *= (weight * base_N)[:, None]
        null_N = weight * base_N * expression.others_N
        for part, share_BxN in enumerate((self._bins.nuclear_BxN, self._bins.outer_BxN)):
            for t in range(len(TYPES)):
                mine = np.flatnonzero(expression.type_N == t)
                if len(mine):
                    self._sum_2xBxTxM[part, :, t] += share_BxN[:, mine] @ value_NxM[mine]
            self._null_2xB[part] += share_BxN @ null_N
        self._weight += weight

    def rates(self, weight_TxG: np.ndarray, genes: Program, wanted: np.ndarray, rows: slice) -> np.ndarray:
        """Expected detections of the wanted genes in these rows of bins, all fields of null genes at 1."""
        sum_2xBxTxM, null_2xB = self._sum_2xBxTxM[:, rows], self._null_2xB[:, rows]
        rates_BxG = np.zeros((sum_2xBxTxM.shape[1], len(wanted)), np.float32)
        nuclear_G = genes.nuclear_share_G[wanted]
        null_G = genes.class_G[wanted] == "null"
        state_G = genes.state_G[wanted]
        nodes = len(self._loadings.node_K)
        for part, share_G in enumerate((nuclear_G, 1 - nuclear_G)):
            sum_BxTxM = sum_2xBxTxM[part]
            plain = np.flatnonzero((state_G < 0) & ~null_G)
            rates_BxG[:, plain] += (sum_BxTxM[:, :, 0] @ weight_TxG[:, wanted[plain]]) * share_G[plain]
            for s in range(len(STATES)):
                mine = np.flatnonzero(state_G == s)
                if not len(mine):
                    continue
                span_KxG = self._loadings.span_KxG[:, wanted[mine]].astype(np.float32)
                spanned = weight_TxG[:, None, wanted[mine]] * span_KxG
                some = sum_BxTxM[:, :, 1 + s * nodes : 1 + (s + 1) * nodes].reshape(len(sum_BxTxM), -1)
                rates_BxG[:, mine] += (some @ spanned.reshape(-1, len(mine))) * share_G[mine]
            if null_G.any():
                weight_K = null_weight(genes)[np.searchsorted(genes.genes_of("null"), wanted[null_G])]
                rates_BxG[:, null_G] += null_2xB[part][:, None] * (weight_K * share_G[null_G])
        return rates_BxG / np.float32(self._weight)


def true_rates(expression: Expression, cells: Cells, bins: Bins, genes: Program, loadings: Loadings, assay: Assay,
               wanted: np.ndarray) -> np.ndarray:  # fmt: skip
    """T of the wanted genes, float32 [rows, columns, len(wanted)]."""
    lost_N = assay.lost_pool_F[assay.field_of(cells.x_um_N, cells.y_um_N)]
    left_NxP = {pool: np.where(lost_N == pool, LOST_POOL_LEFT, 1.0) for pool in set(lost_N[lost_N >= 0].tolist())}
    left_NxP[-1] = np.ones(len(cells))  # of the genes whose pool is nowhere lost
    moments = {pool: _Moments(bins, loadings) for pool in left_NxP}
    for pool, left_N in left_NxP.items():
        moments[pool].add(expression, factor_N=left_N)

    def rates(some: np.ndarray, rows: slice) -> np.ndarray:
        rates_BxG = np.zeros((bins.nuclear_BxN[rows].shape[0], len(some)), np.float32)
        pool_G = np.where(np.isin(genes.pool_G[some], list(left_NxP)), genes.pool_G[some], -1)
        for pool, left_N in left_NxP.items():
            mine = np.flatnonzero(pool_G == pool)
            rates_BxG[:, mine] = moments[pool].rates(expression.weight_TxG, genes, some[mine], rows)
            null = mine[genes.class_G[some[mine]] == "null"]  # again, with their fields
            if len(null):
                column_K = np.searchsorted(genes.genes_of("null"), some[null])
                value_NxK = expression.null_field_NxK[:, column_K] * null_weight(genes)[column_K]
                value_NxK *= (expression.base_N * left_N * expression.others_N)[:, None]
                nuclear_K = genes.nuclear_share_G[some[null]]
                rates_BxG[:, null] = (bins.nuclear_BxN[rows] @ value_NxK) * nuclear_K
                rates_BxG[:, null] += (bins.outer_BxN[rows] @ value_NxK) * (1 - nuclear_K)
        return rates_BxG

    return _with_background(rates, bins, genes, wanted)


def reachable_rates(patient: Patient, cells: Cells, bins: Bins, genes: Program, loadings: Loadings, *, seed: int,
                    region: int, section_um: float, depth: float, wanted: np.ndarray) -> np.ndarray:  # fmt: skip
    """V of the wanted genes, float32 [rows, columns, len(wanted)].

    The null fields, the assay and the patient's efficiency enter as independent factors of mean 1 and are left out.
    """
    rng = generator(seed, patient.number, Stream.REDRAW, region)
    field_NxFxR = draw_fields(cells, section_um, rng, REDRAWS)
    level_RxU = rng.standard_normal((REDRAWS, len(UNSEEN_STATES)))
    level_RxU = (level_RxU - level_RxU.mean(0)) / level_RxU.std(0)
    genotypes = posterior(patient.cohort, patient.trait_R, TRAITS, patient.site)
    upto = np.cumsum([p for _, p in genotypes])
    order = rng.permutation(REDRAWS)
    choice_N = rng.random(len(cells))
    weight_TxG = patient_weights(patient, genes, seed, known=False)
    moments = _Moments(bins, loadings)
    for redraw in range(REDRAWS):
        mutated, _ = genotypes[min(int(np.searchsorted(upto, (order[redraw] + 0.5) / REDRAWS)), len(upto) - 1)]
        # stepping the choice through the unit interval gives every type its share of the redraws
        hidden = draw_hidden(
            cells, section_um, field_NxFxR[..., redraw], level_RxU[redraw] + shifts(mutated, UNSEEN_STATES),
            (choice_N + redraw / REDRAWS) % 1,
        )  # fmt: skip
        scale_N = np.full(len(cells), depth, np.float32)
        moments.add(express(weight_TxG, genes, loadings, cells, hidden, scale_N, np.ones((len(cells), 0), np.float32)))
    return _with_background(
        lambda some, rows: moments.rates(weight_TxG, genes, some, rows), bins, genes, wanted
    )  # fmt: skip


def _with_background(rates: Callable[[np.ndarray, slice], np.ndarray], bins: Bins, genes: Program,
                     wanted: np.ndarray) -> np.ndarray:  # fmt: skip
    """rates(genes, rows of bins): the bins in rows and columns, with their share of the section's background."""
    whole_G = rates(np.arange(len(genes.panel)), slice(-1, None))[0].astype(np.float64)
    rates_BxG = rates(wanted, slice(None, -1)) * np.float32(1 - BACKGROUND_SHARE)
    strays_G, _ = background(whole_G, genes.class_G == "null")
    rates_BxG += (strays_G[wanted] * bins.area_share).astype(np.float32)
    return rates_BxG.reshape(bins.per_side, bins.per_side, -1)

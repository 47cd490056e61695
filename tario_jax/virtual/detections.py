"""Detections drawn from a section's expression, at sub-micron places.

Transcripts come in bursts of one to three (variance about 1.5 times the mean), a cell's depth is Gamma distributed
around its expectation. A gene that follows a state is drawn at the highest rate that the cells of a type reach, and
thinned: exact, and no rate is ever computed for a gene in a cell that does not hold it.
"""

import numpy as np

from tario_jax.corpus.section import Detections
from tario_jax.virtual.assay import BACKGROUND_SHARE, LOST_POOL_LEFT, NEGATIVE_PROBES, Assay, background
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.genes import Program
from tario_jax.virtual.kinds import STATES, TYPES
from tario_jax.virtual.rates import Expression, null_weight

CELL_SHAPE = 5.0  # of the Gamma on a cell's depth
BURST_ABOVE_1, BURST_ABOVE_2 = 0.20, 0.05  # probability of a burst of more than one, and of more than two
MEAN_BURST = 1 + BURST_ABOVE_1 + BURST_ABOVE_2


def _events(expression: Expression, genes: Program, level_N: np.ndarray, rng: np.random.Generator):
    """Bursts: the cell and the gene of each, int64 and int32 [E]. level_N: base of each cell, per burst."""
    null_K = genes.genes_of("null")
    counted_G = np.ones(len(genes.panel), np.float32)
    counted_G[null_K] = 0
    cells, found = [], []
    for t in range(len(TYPES)):
        mine = np.flatnonzero(expression.type_N == t)
        if not len(mine):
            continue
        upto = level_N[mine].cumsum(dtype=np.float64)
        bound_G = np.ones(len(genes.panel), np.float32)
        for s in range(len(STATES)):
            loaded = np.flatnonzero(genes.state_G == s)
            low, high = expression.state_NxS[mine, s].min(), expression.state_NxS[mine, s].max()
            loading = genes.loading_G[loaded]
            bound_G[loaded] = np.exp(np.maximum(loading * low, loading * high))
        count_G = rng.poisson(upto[-1] * (expression.weight_TxG[t] * bound_G * counted_G).astype(np.float64))
        gene_E = np.repeat(np.arange(len(genes.panel), dtype=np.int32), count_G)
        cell_E = mine[np.searchsorted(upto, rng.random(len(gene_E)) * upto[-1], "right").clip(max=len(mine) - 1)]
        follows = np.flatnonzero(genes.state_G[gene_E] >= 0)
        gene, cell = gene_E[follows], cell_E[follows]
        chance = np.exp(genes.loading_G[gene] * expression.state_NxS[cell, genes.state_G[gene]]) / bound_G[gene]
        kept = np.ones(len(gene_E), bool)
        kept[follows] = rng.random(len(follows), np.float32) < chance
        cells.append(cell_E[kept])
        found.append(gene_E[kept])
    if len(null_K):
        upto = (level_N * expression.others_N).cumsum(dtype=np.float64)
        bound_K = expression.null_field_NxK.max(0)
        count_K = rng.poisson(upto[-1] * null_weight(genes) * bound_K)
        which_E = np.repeat(np.arange(len(null_K)), count_K)
        cell_E = np.searchsorted(upto, rng.random(len(which_E)) * upto[-1], "right").clip(max=len(level_N) - 1)
        kept = rng.random(len(which_E), np.float32) < expression.null_field_NxK[cell_E, which_E] / bound_K[which_E]
        cells.append(cell_E[kept])
        found.append(null_K[which_E[kept]].astype(np.int32))
    return np.concatenate(cells), np.concatenate(found)


def places(cells: Cells, cell_K: np.ndarray, nuclear_K: np.ndarray, turn_K: np.ndarray, depth_K: np.ndarray):
    """Places (x, y) in µm within the nucleus, or between its border and the cell's, float32 [K] each.

    turn_K and depth_K in [0, 1) are the place's angle and how much of the area lies nearer to the centre.
    """
    inner_Nx2 = (cells.nucleus_um_Nx2**2).astype(np.float32)
    ring_Nx2 = (cells.cell_um_Nx2**2).astype(np.float32) - inner_Nx2
    cos_N, sin_N = np.cos(cells.angle_N).astype(np.float32), np.sin(cells.angle_N).astype(np.float32)
    turn_K = np.float32(2 * np.pi) * turn_K
    depth_K = depth_K.astype(np.float32, copy=False)
    inner_share_K = np.where(nuclear_K, depth_K, np.float32(1))
    ring_share_K = np.where(nuclear_K, np.float32(0), depth_K)
    semi = [np.sqrt(inner_Nx2[cell_K, axis] * inner_share_K + ring_Nx2[cell_K, axis] * ring_share_K) for axis in (0, 1)]
    along, across = semi[0] * np.cos(turn_K), semi[1] * np.sin(turn_K)
    cos, sin = cos_N[cell_K], sin_N[cell_K]
    x_um_N, y_um_N = cells.x_um_N.astype(np.float32), cells.y_um_N.astype(np.float32)
    return x_um_N[cell_K] + along * cos - across * sin, y_um_N[cell_K] + along * sin + across * cos


def draw_detections(cells: Cells, expression: Expression, genes: Program, assay: Assay,
                    rng: np.random.Generator) -> tuple[Detections, int]:  # fmt: skip
    """Detections, and the number of counts of all negative probes.

    `in_nucleus_D` says where the transcript was, also where cells overlap; the background lies in no cell (`cell_D` 0)
    and no nucleus. What falls outside the section is not there.
    """
    depth_N = rng.standard_gamma(CELL_SHAPE, len(cells)).astype(np.float32) / CELL_SHAPE
    level_N = expression.base_N * depth_N * np.float32((1 - BACKGROUND_SHARE) / MEAN_BURST)
    cell_E, gene_E = _events(expression, genes, level_N, rng)
    if (assay.lost_pool_F >= 0).any():
        lost_N = assay.lost_pool_F[assay.field_of(cells.x_um_N, cells.y_um_N)]
        hit = genes.pool_G[gene_E] == lost_N[cell_E]
        kept = ~hit | (rng.random(len(gene_E), np.float32) < LOST_POOL_LEFT)
        cell_E, gene_E = cell_E[kept], gene_E[kept]
    burst_E = rng.random(len(gene_E), np.float32)
    size_E = 1 + (burst_E < BURST_ABOVE_1).astype(np.int64) + (burst_E < BURST_ABOVE_2)
    cell_D, gene_D = np.repeat(cell_E, size_E), np.repeat(gene_E, size_E)
    in_nucleus_D = rng.random(len(gene_D), np.float32) < genes.nuclear_share_G[gene_D]
    x_um_D, y_um_D = places(
        cells, cell_D, in_nucleus_D, rng.random(len(gene_D), np.float32), rng.random(len(gene_D), np.float32)
    )

    total_G = np.bincount(gene_D, minlength=len(genes.panel)) / (1 - BACKGROUND_SHARE)
    strays_G, of_a_probe = background(total_G, genes.class_G == "null")
    stray_D = np.repeat(np.arange(len(total_G), dtype=np.int32), rng.poisson(strays_G))
    probes = rng.poisson(NEGATIVE_PROBES * of_a_probe)
    side_um = np.float32(assay.section_um)
    x_um_D = np.concatenate([x_um_D, rng.random(len(stray_D), np.float32) * side_um])
    y_um_D = np.concatenate([y_um_D, rng.random(len(stray_D), np.float32) * side_um])
    gene_D = np.concatenate([gene_D, stray_D])
    cell_D = np.concatenate([cell_D + 1, np.zeros(len(stray_D), np.int64)]).astype(np.int32)
    in_nucleus_D = np.concatenate([in_nucleus_D, np.zeros(len(stray_D), bool)])
    inside = (x_um_D >= 0) & (x_um_D < side_um) & (y_um_D >= 0) & (y_um_D < side_um)
    found = Detections(x_um_D[inside], y_um_D[inside], gene_D[inside], in_nucleus_D[inside], cell_D[inside])
    return found, int(probes)

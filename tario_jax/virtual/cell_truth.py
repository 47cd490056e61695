"""The truths of single cells of a virtual section, computed from the cells that are stored beside it.

No bit of a patient depends on this: it reads what `section.py` stored.
"""

import dataclasses

import numpy as np
from scipy import sparse

from tario_jax.virtual.cells import Cells
from tario_jax.virtual.hidden import Hidden
from tario_jax.virtual.patients import draw_patient
from tario_jax.virtual.rates import DEPTHS, Loadings
from tario_jax.virtual.regions import REGION_NAMES, region_of
from tario_jax.virtual.section import Settings, draw_expression
from tario_jax.virtual.stain import UM_PER_PX
from tario_jax.virtual.truth import Bins, reachable_rates, true_rates


def cell_truth_rates(stored: dict[str, np.ndarray], wanted: np.ndarray | None = None,
                     *, reachable: bool = True) -> tuple[np.ndarray, np.ndarray | None]:  # fmt: skip
    """T and V of each cell, float32 [N, G] each: its own expected detections, wherever in or around it they lie.

    As `truth_rates`, but the background, which lies in no cell, is left out. wanted: positions of genes in the panel,
    in rising order (all by default). V is None unless `reachable`.
    """
    number, index, seed, depth, whole = (int(value) for value in stored["numbers"])
    settings = Settings(seed, float(stored["section_um"][0]), list(DEPTHS)[depth], "whole" if whole else "curated")
    patient = draw_patient(number, seed)
    region = region_of(patient, REGION_NAMES[index], settings.section_um)
    cells, hidden = stored_cells(stored), _of(Hidden, "hidden", stored)
    genes, loadings = settings.genes, Loadings.of(settings.genes)
    wanted = np.arange(len(genes.panel)) if wanted is None else wanted
    bins = _one_cell_each(len(cells))
    expression, _, assay = draw_expression(patient, region, cells, settings, hidden)

    def by_cell(rates: np.ndarray) -> np.ndarray:
        return rates.reshape(-1, len(wanted))[: len(cells)]

    true = by_cell(true_rates(expression, cells, bins, genes, loadings, assay, wanted))
    if not reachable:
        return true, None
    return true, by_cell(reachable_rates(
        patient, cells, bins, genes, loadings, seed=seed, region=index, section_um=region.side_um,
        depth=DEPTHS[settings.depth], wanted=wanted,
    ))  # fmt: skip


def stored_cells(stored: dict[str, np.ndarray]) -> Cells:
    """The section's cells, in the frame of its detections."""
    return _of(Cells, "cells", stored)


def he_shift_um(stored: dict[str, np.ndarray]) -> np.ndarray:
    """How far right of and below its detections a cell is drawn, (x, y): the registration error, in whole px."""
    number, _, seed, _, _ = (int(value) for value in stored["numbers"])
    return np.round(draw_patient(number, seed).stain.shift_um_2 / UM_PER_PX) * UM_PER_PX


def nucleus_rings(cells: Cells, vertices: int = 24) -> np.ndarray:
    """Outlines of the nuclei, float64 [N, vertices, 2] in µm."""
    turn = 2 * np.pi * np.arange(vertices) / vertices
    along, across = (
        cells.nucleus_um_Nx2[:, axis, None] * wave for axis, wave in ((0, np.cos(turn)), (1, np.sin(turn)))
    )
    cos_Nx1, sin_Nx1 = np.cos(cells.angle_N)[:, None], np.sin(cells.angle_N)[:, None]
    x = cells.x_um_N[:, None] + along * cos_Nx1 - across * sin_Nx1
    y = cells.y_um_N[:, None] + along * sin_Nx1 + across * cos_Nx1
    return np.stack([x, y], -1)


def _of(kind: type, prefix: str, stored: dict[str, np.ndarray]):
    return kind(**{field.name: stored[f"{prefix}_{field.name}"] for field in dataclasses.fields(kind)})


def _one_cell_each(cells: int) -> Bins:
    """Bins that hold one cell each, whole, and no area: what `truth.py` says of bins, it says of cells."""
    per_side = int(np.ceil(np.sqrt(cells)))  # bins come as a square; the last ones are empty
    share_BxN = sparse.eye_array(per_side**2, cells, format="csr")
    share_BxN = sparse.vstack([share_BxN, sparse.csr_array(np.ones((1, cells)))], format="csr")
    return Bins(per_side, 0.0, share_BxN, share_BxN)

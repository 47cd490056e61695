"""What the H&E does not show: the types behind a look, and the states that nothing draws.

Both follow smooth fields of their own. `draw_hidden` is used once for the patient and again for every redraw, so
that the reachable rate V averages over exactly what made the true rate T.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from tario_jax.virtual.cells import LOOKS, LYMPHOCYTE, Cells
from tario_jax.virtual.fields import FieldBasis, sample_grid
from tario_jax.virtual.genes import TYPES, UNSEEN_STATES

FIELD_SIGMA_UM = 50.0
FIELDS = ("b_cell", "cd8_t", "caf", "myeloid", "granulocyte", "mural", "subclone", "stress", "metabolism")
TYPES_OF_LOOK = {
    "tumour": ("tumour",), "epithelium": ("epithelium",), "spindle": ("fibroblast", "myofibroblast"),
    "vessel_wall": ("endothelial", "mural"), "lymphocyte": ("cd4_t", "cd8_t", "b_cell"), "plasma": ("plasma",),
    "myeloid": ("macrophage", "dendritic"), "granulocyte": ("mast", "neutrophil"),
}  # fmt: skip
# log odds of a type within its look: at field 0, and by unit of its field
TYPE_ODDS = {
    "b_cell": (-0.5, "b_cell", 1.6), "cd8_t": (0.0, "cd8_t", 1.6), "myofibroblast": (-0.4, "caf", 2.0),
    "dendritic": (-1.5, "myeloid", 1.4), "neutrophil": (0.0, "granulocyte", 2.2), "mural": (-0.6, "mural", 0.8),
}  # fmt: skip
AGGREGATE_B_CELLS = 1.4  # log odds of a B cell inside an aggregate, which is drawn
DIFFUSION_STEP_UM = 8.0
DIFFUSION_SIGMA_UM = 45.0
INTERFERON_REACH_UM = 150.0


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The unseen part of N cells."""

    probability_NxT: np.ndarray  # float32, of the types that the look allows
    type_N: np.ndarray  # int, position in TYPES
    state_NxU: np.ndarray  # float32, by UNSEEN_STATES


def hidden_basis(section_um: float) -> FieldBasis:
    return FieldBasis(FIELD_SIGMA_UM, section_um)


def draw_fields(cells: Cells, section_um: float, rng: np.random.Generator, redraws: int) -> np.ndarray:
    """Independent draws of the unseen fields at the cells, float32 [N, FIELDS, redraws].

    More than one redraw is matched to the fields' mean 0 and variance 1 at each cell: an average over a few dozen of
    them is then nearly free of sampling noise, which would lower the reachable correlation below what is reachable.
    """
    basis = hidden_basis(section_um)
    field_NxFR = basis.at(cells.x_um_N, cells.y_um_N, basis.noise(rng, len(FIELDS) * redraws))
    field_NxFxR = field_NxFR.reshape(len(cells), len(FIELDS), redraws)
    if redraws > 1:
        field_NxFxR -= field_NxFxR.mean(-1, keepdims=True)
        field_NxFxR /= field_NxFxR.std(-1, keepdims=True)
    return field_NxFxR


def _spread(cells: Cells, section_um: float, weight_N: np.ndarray) -> np.ndarray:
    """Cells of that weight within reach of a diffusing signal, as a density per 1,000 µm² at each cell."""
    steps = int(np.ceil(section_um / DIFFUSION_STEP_UM))
    row_N = np.minimum((cells.y_um_N / DIFFUSION_STEP_UM).astype(np.int64), steps - 1)
    column_N = np.minimum((cells.x_um_N / DIFFUSION_STEP_UM).astype(np.int64), steps - 1)
    grid = np.bincount(row_N * steps + column_N, weight_N, steps**2).reshape(steps, steps)
    grid = ndimage.gaussian_filter(grid, DIFFUSION_SIGMA_UM / DIFFUSION_STEP_UM, mode="nearest")
    return sample_grid(grid, DIFFUSION_STEP_UM, cells.x_um_N, cells.y_um_N) * 1000 / DIFFUSION_STEP_UM**2


def draw_hidden(cells: Cells, section_um: float, field_NxF: np.ndarray, level_U: np.ndarray,
                choice_N: np.ndarray) -> Hidden:  # fmt: skip
    """The types and unseen states that go with these fields.

    level_U: the patient's unseen levels. choice_N: uniform [0, 1) numbers that pick each cell's type.
    """
    field = {name: field_NxF[:, f] for f, name in enumerate(FIELDS)}
    odds_NxT = np.full((len(cells), len(TYPES)), -np.inf, np.float32)
    for look, names in enumerate(TYPES_OF_LOOK[name] for name in LOOKS):
        of_look_N = np.flatnonzero(cells.look_N == look)
        for name in names:
            start, driver, slope = TYPE_ODDS.get(name, (0.0, "b_cell", 0.0))
            odds_NxT[of_look_N, TYPES.index(name)] = start + slope * field[driver][of_look_N]
    in_aggregate_N = (cells.look_N == LYMPHOCYTE) & (cells.aggregate_um_N < 0)
    odds_NxT[in_aggregate_N, TYPES.index("b_cell")] += AGGREGATE_B_CELLS
    probability_NxT = np.exp(odds_NxT)
    probability_NxT /= probability_NxT.sum(1, keepdims=True)
    type_N = (choice_N[:, None] >= probability_NxT.cumsum(1)).sum(1).clip(max=len(TYPES) - 1)

    level = dict(zip(UNSEEN_STATES, level_U, strict=True))
    cd8 = _spread(cells, section_um, type_N == TYPES.index("cd8_t"))
    caf = _spread(cells, section_um, type_N == TYPES.index("myofibroblast"))
    near_N = np.exp(-np.maximum(cells.aggregate_um_N, 0) / INTERFERON_REACH_UM)
    state = {
        "interferon": 1.6 * near_N + 1.5 * np.tanh(cd8 / 0.8) - 1.0 + 0.3 * level["interferon"],
        "tgf_beta": 2.4 * np.tanh(caf / 1.5) - 1.0 + 0.2 * level["tgf_beta"],
        "subclone": field["subclone"] + 0.3 * level["subclone"],
        "stress": 0.8 * field["stress"] + 0.3 * level["stress"],
        "metabolism": 0.9 * field["metabolism"] + 0.3 * level["metabolism"],
    }
    state_NxU = np.stack([state[name] for name in UNSEEN_STATES], 1).astype(np.float32)
    return Hidden(probability_NxT, type_N, state_NxU)

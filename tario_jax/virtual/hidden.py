"""What the H&E does not show: the types behind a look, and the states that nothing draws.

Both follow smooth fields of their own. `draw_hidden` is used once for the patient and again for every redraw, so
that the reachable rate V averages over exactly what made the true rate T.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from tario_jax.virtual.cells import Cells
from tario_jax.virtual.fields import FieldBasis, sample_grid
from tario_jax.virtual.kinds import LOOKS, STATE_LIMIT, TYPES, TYPES_OF_LOOK, UNSEEN_STATES

FIELD_SIGMA_UM = 50.0
FIELDS = ("b_cell", "cd8_t", "treg", "nk", "caf", "myeloid", "granulocyte", "mural", "subclone", "stress",
          "metabolism")  # fmt: skip
# log odds of a type within its look: at field 0, and by unit of its field
TYPE_ODDS = {
    "b_cell": (-0.5, "b_cell", 1.6), "cd8_t": (0.0, "cd8_t", 1.6), "treg": (-1.3, "treg", 1.2),
    "nk": (-1.6, "nk", 1.2), "myofibroblast": (-0.4, "caf", 2.0), "dendritic": (-1.5, "myeloid", 1.4),
    "neutrophil": (0.0, "granulocyte", 2.2), "mural": (-0.6, "mural", 0.8),
}  # fmt: skip
AGGREGATE_B_CELLS = 1.4  # log odds of a B cell inside an aggregate, which is drawn
SPREAD_STEP_UM = 16.0
SPREAD_SIGMA_UM = {"interferon": 140.0, "tgf_beta": 150.0}
AGGREGATE_REACH_UM = 300.0  # from an aggregate's border, where interferon is highest, evenly down to nothing


@dataclasses.dataclass(frozen=True)
class Hidden:
    """The unseen part of N cells."""

    type_N: np.ndarray  # int8, position in TYPES
    state_NxU: np.ndarray  # float32, by UNSEEN_STATES


def draw_fields(cells: Cells, section_um: float, rng: np.random.Generator, redraws: int) -> np.ndarray:
    """Independent draws of the unseen fields at the cells, float32 [N, FIELDS, redraws].

    More than one redraw is matched to the fields' mean 0 and variance 1 at each cell: an average over a few dozen of
    them is then nearly free of sampling noise, which would lower the reachable correlation below what is reachable.
    """
    basis = FieldBasis(FIELD_SIGMA_UM, section_um)
    field_NxFR = basis.at(cells.x_um_N, cells.y_um_N, basis.noise(rng, len(FIELDS) * redraws))
    field_NxFxR = field_NxFR.reshape(len(cells), len(FIELDS), redraws)
    if redraws > 1:
        field_NxFxR -= field_NxFxR.mean(-1, keepdims=True)
        field_NxFxR /= field_NxFxR.std(-1, keepdims=True)
    return field_NxFxR


def _spread(cells: Cells, section_um: float, sender_N: np.ndarray, sigma_um: float) -> np.ndarray:
    """Senders within reach of a diffusing signal, as a density per 1,000 µm² at each cell.

    Near the section's edge it is the density of that part of the reach which lies in the section.
    """
    steps = int(np.ceil(section_um / SPREAD_STEP_UM))
    row_N = np.minimum((cells.y_um_N / SPREAD_STEP_UM).astype(np.int64), steps - 1)
    column_N = np.minimum((cells.x_um_N / SPREAD_STEP_UM).astype(np.int64), steps - 1)
    sent = np.bincount(row_N * steps + column_N, sender_N, steps**2).reshape(steps, steps)
    span_um = np.minimum(SPREAD_STEP_UM, section_um - SPREAD_STEP_UM * np.arange(steps))  # the last step may be cut
    reach = {"sigma": sigma_um / SPREAD_STEP_UM, "mode": "constant", "truncate": 3.0}
    area = ndimage.gaussian_filter(np.outer(span_um, span_um), **reach)
    grid = ndimage.gaussian_filter(sent, **reach) / area
    return sample_grid(grid, SPREAD_STEP_UM, cells.x_um_N, cells.y_um_N) * 1000


def draw_hidden(cells: Cells, section_um: float, field_NxF: np.ndarray, level_U: np.ndarray,
                choice_N: np.ndarray) -> Hidden:  # fmt: skip
    """The types and unseen states that go with these fields.

    level_U: the patient's unseen levels. choice_N: uniform [0, 1) numbers that pick each cell's type.
    """
    field = {name: field_NxF[:, f] for f, name in enumerate(FIELDS)}
    type_N = np.zeros(len(cells), np.int8)
    for look, allowed in enumerate(TYPES_OF_LOOK[name] for name in LOOKS):
        types = [TYPES.index(name) for name in allowed]
        mine = np.flatnonzero(cells.look_N == look)
        if len(types) == 1:
            type_N[mine] = types[0]
            continue
        odds_NxT = np.zeros((len(mine), len(types)), np.float32)
        for t, name in enumerate(allowed):
            if name in TYPE_ODDS:
                start, driver, slope = TYPE_ODDS[name]
                odds_NxT[:, t] = start + slope * field[driver][mine]
            if name == "b_cell":
                odds_NxT[:, t] += AGGREGATE_B_CELLS * (cells.aggregate_um_N[mine] < 0)
        level_NxT = np.exp(odds_NxT).cumsum(1)
        picked = (choice_N[mine, None] * level_NxT[:, -1:] >= level_NxT).sum(1).clip(max=len(types) - 1)
        type_N[mine] = np.array(types)[picked]

    level = dict(zip(UNSEEN_STATES, level_U, strict=True))
    killers = np.isin(type_N, (TYPES.index("cd8_t"), TYPES.index("nk")))
    killer_N = _spread(cells, section_um, killers, SPREAD_SIGMA_UM["interferon"])
    caf_N = _spread(cells, section_um, type_N == TYPES.index("myofibroblast"), SPREAD_SIGMA_UM["tgf_beta"])
    near_N = np.clip(1 - cells.aggregate_um_N / AGGREGATE_REACH_UM, 0, 1)
    state = {
        "interferon": 2.4 * near_N + 3.0 * np.tanh(killer_N / 0.7) - 2.7 + 0.3 * level["interferon"],
        "tgf_beta": 8.0 * np.tanh(caf_N / 1.2) - 2.4 + 0.2 * level["tgf_beta"],
        "subclone": field["subclone"] + 0.3 * level["subclone"],
        "stress": 0.8 * field["stress"] + 0.3 * level["stress"],
        "metabolism": 0.9 * field["metabolism"] + 0.3 * level["metabolism"],
    }
    state_NxU = np.stack([state[name] for name in UNSEEN_STATES], 1).astype(np.float32)
    return Hidden(type_N, np.clip(state_NxU, -STATE_LIMIT, STATE_LIMIT))

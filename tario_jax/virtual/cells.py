"""The cells of a section: where they lie, how they look, and the states that the H&E shows.

A cell's *look* is all that is drawn of its type. Types that share a look are told apart only by `hidden.py`.
"""

import dataclasses

import numpy as np
from scipy import spatial
from scipy.special import ndtri

from tario_jax.virtual.architecture import GRID_UM, Architecture, between_nodes
from tario_jax.virtual.fields import sample_grid
from tario_jax.virtual.kinds import (
    ADIPOCYTE,
    EPITHELIUM,
    GRANULOCYTE,
    LOOKS,
    LYMPHOCYTE,
    MYELOID,
    PLASMA,
    SPINDLE,
    STATE_LIMIT,
    TUMOUR,
    VESSEL_WALL,
    VISIBLE_STATES,
)
from tario_jax.virtual.packing import pack
from tario_jax.virtual.patients import Patient
from tario_jax.virtual.patterns import POLARITY

NUCLEUS_UM = np.array(
    [(4.5, 3.65), (4.0, 3.0), (6.3, 1.55), (5.2, 1.35), (2.85, 2.7), (3.0, 2.65), (4.0, 2.95), (2.7, 2.1), (4.4, 1.15)]
)
"""Semi-axes of the nucleus by look."""
CELL_UM = np.array(
    [(6.6, 5.5), (5.8, 4.6), (9.5, 2.6), (6.7, 1.9), (3.4, 3.2), (4.9, 3.9), (6.2, 5.0), (3.9, 3.5), (11.0, 1.8)]
)
"""Semi-axes of the cell by look."""
SPACING_UM = {"tumour": 8.8, "normal": 7.5, "stroma": 14.0, "aggregate": 5.1}
SPACING_LIMITS_UM = (4.4, 20.0)
BASAL_UM = 2.4  # from a basement membrane to the middle of a nucleus, at least


@dataclasses.dataclass(frozen=True)
class Cells:
    """N cells; everything here is drawn in the H&E."""

    x_um_N: np.ndarray
    y_um_N: np.ndarray
    look_N: np.ndarray  # int8, position in kinds.LOOKS
    angle_N: np.ndarray  # radians, of the long axis
    nucleus_um_Nx2: np.ndarray  # semi-axes
    cell_um_Nx2: np.ndarray  # semi-axes; more than the nucleus's
    state_NxV: np.ndarray  # float32, by kinds.VISIBLE_STATES
    mitosis_N: np.ndarray  # bool
    pigment_N: np.ndarray  # bool: holds melanin
    necrotic_N: np.ndarray  # bool: a ghost of a cell
    aggregate_um_N: (
        np.ndarray
    )  # distance to the nearest lymphoid aggregate, in the region or around it; negative inside
    vessel_um_N: np.ndarray  # distance to the nearest vessel

    def __len__(self) -> int:
        return len(self.x_um_N)


def _gradient_angle(grid_YxX: np.ndarray) -> np.ndarray:
    down, right = np.gradient(grid_YxX)
    return np.arctan2(down, right)


@dataclasses.dataclass(frozen=True)
class _Places:
    """What the plan says at places."""

    epithelium: np.ndarray
    tumour: np.ndarray
    lumen: np.ndarray
    aggregate: np.ndarray
    necrosis: np.ndarray
    gland_um: np.ndarray
    lumen_um: np.ndarray


def _read(plan: Architecture, x_um_N: np.ndarray, y_um_N: np.ndarray) -> _Places:
    stack = np.stack([plan.gland_um, plan.lumen_um, plan.aggregate_um, plan.necrosis_um], -1)
    gland_um, lumen_um, aggregate_um, necrosis_um = _linear(stack, x_um_N, y_um_N).T
    tumour = sample_grid(plan.tumour, GRID_UM, x_um_N, y_um_N)
    lumen, aggregate = lumen_um < 0, aggregate_um < 0
    epithelium = (gland_um < 0) & ~lumen & ~aggregate
    return _Places(epithelium, epithelium & tumour, lumen, aggregate, (necrosis_um < 0) & epithelium & tumour, gland_um,
                   lumen_um)  # fmt: skip


def _linear(stack_YxXxF: np.ndarray, x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
    return np.stack([between_nodes(stack_YxXxF[..., f], x_um_N, y_um_N) for f in range(stack_YxXxF.shape[-1])], -1)


def _packed(patient: Patient, plan: Architecture, axis: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Places of all cells but those of vessel walls and fat, [N, 2]."""
    kind = patient.diagnosis
    stroma_um = SPACING_UM["stroma"] * np.exp(0.05 * patient.trait("fibrosis") - 0.22 * plan.infiltrate)
    # lymphocytes that line the border need room there
    stroma_um *= 1 - 0.22 * np.exp(-np.abs(plan.edge_um) / 45) * (0.5 + 0.5 * np.tanh(patient.trait("immune_border")))
    stroma_um *= np.exp(0.16 * np.clip(plan.collagen, -0.5, 1.2))  # dense collagen holds few cells
    if kind.pattern == "scattered":
        stroma_um = np.where(plan.bed_um < 0, 0.78 * stroma_um, stroma_um)
    elif kind.pattern == "files":
        stroma_um = np.where(plan.bed_um < 0, 1.5 * stroma_um, stroma_um)
    tumour_um = SPACING_UM["tumour"] * kind.cell_spacing * np.exp(0.05 * patient.trait("grade"))
    tumour_um = (
        tumour_um * np.sqrt(kind.nucleus_size) * (1 + 0.25 * kind.keratin * np.tanh((-plan.gland_um - 8) / 25).clip(0))
    )

    def spacing_at(x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
        here = _read(plan, x_um_N, y_um_N)
        spacing_um = sample_grid(stroma_um, GRID_UM, x_um_N, y_um_N)
        spacing_um = np.where(here.epithelium, SPACING_UM["normal"], spacing_um)
        spacing_um = np.where(here.tumour, sample_grid(tumour_um, GRID_UM, x_um_N, y_um_N), spacing_um)
        spacing_um = np.where(here.necrosis, 1.2 * spacing_um, spacing_um)
        spacing_um = np.where(here.aggregate, SPACING_UM["aggregate"], spacing_um) * patient.cell_spacing
        spacing_um = spacing_um.clip(*SPACING_LIMITS_UM)
        apical_um = np.where(here.tumour, kind.apical_um, 3.0)
        barren = here.epithelium & ((here.gland_um > -BASAL_UM) | (here.lumen_um < apical_um))
        septum = sample_grid(plan.septum_um, GRID_UM, x_um_N, y_um_N) < 3.5
        barren |= ~here.epithelium & (np.abs(here.gland_um) < 1.2) & ~here.aggregate & ~septum
        barren |= (here.lumen | (here.lumen_um < 1.5)) & ~here.aggregate
        barren |= sample_grid(np.maximum(plan.keratin, plan.calcified), GRID_UM, x_um_N, y_um_N) > 0.45
        barren |= between_nodes(plan.fat_um, x_um_N, y_um_N) < 0.5
        barren |= between_nodes(plan.vessel_um, x_um_N, y_um_N) < 3.0
        return np.where(barren, np.inf, spacing_um)

    polarity = POLARITY[kind.pattern]
    stretch = {"across": 1 + 0.35 * (kind.nucleus_stretch - 1) + 0.08, "any": 1.0,
               "along": 1 + 0.55 * (kind.nucleus_stretch - 1)}[polarity]  # fmt: skip

    def shape_at(x_um_N: np.ndarray, y_um_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        here = _read(plan, x_um_N, y_um_N)
        angle = sample_grid(axis["fibre"], GRID_UM, x_um_N, y_um_N)
        across = here.epithelium & (~here.tumour | (polarity == "across"))
        angle = np.where(across, sample_grid(axis["across"], GRID_UM, x_um_N, y_um_N), angle)
        along = here.tumour & (polarity == "along")
        angle = np.where(along, sample_grid(axis["along"], GRID_UM, x_um_N, y_um_N), angle)
        drawn_out = np.where(here.tumour, stretch, np.where(here.epithelium, 1.08, 1.25))
        return angle, np.where(here.aggregate, 1.0, drawn_out)

    return pack(rng, plan.side_um, SPACING_LIMITS_UM[0], spacing_at, shape_at)


def _looks(patient: Patient, plan: Architecture, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The look of each cell, int8 [N], from the compartment that it lies in."""
    kind, at = patient.diagnosis, (GRID_UM, *places.T)
    here = _read(plan, *places.T)
    bed_um_N, edge_um_N = sample_grid(plan.bed_um, *at), sample_grid(plan.edge_um, *at)
    immune_N = kind.lymphoid * np.exp(0.7 * patient.trait("immune") + 0.7 * sample_grid(plan.infiltrate, *at))
    border = np.exp(0.9 * patient.trait("immune_border"))
    lining_N = np.exp(-np.abs(edge_um_N) / 45) + 0.3 * np.exp(-here.gland_um.clip(0) / 20) * (bed_um_N < 40)
    weight_NxL = np.zeros((len(places), len(LOOKS)))
    weight_NxL[:, SPINDLE] = 1.0
    weight_NxL[:, LYMPHOCYTE] = 0.24 * immune_N + 0.55 * border * kind.lymphoid**0.5 * lining_N
    weight_NxL[:, PLASMA] = 0.07 * immune_N + 0.06 * border * lining_N
    weight_NxL[:, MYELOID] = 0.13 * immune_N**0.5 + 0.12 * (kind.carbon > 0)
    weight_NxL[:, GRANULOCYTE] = 0.05
    weight_NxL[:, VESSEL_WALL] = 0.10 + 1.2 * (sample_grid(plan.septum_um, *at) < 5)
    # flat cells line the airspaces; single tumour cells lie among the fibres of some tumours
    weight_NxL[:, EPITHELIUM] = 0.5 * (sample_grid(plan.air, *at) & (here.lumen_um < 6))
    if kind.pattern == "scattered":
        weight_NxL[:, TUMOUR] = 1.3 * (bed_um_N < 0)
    elif kind.pattern == "nests":
        weight_NxL[:, TUMOUR] = 0.25 * np.exp(-here.gland_um.clip(0) / 10) * (bed_um_N < 0) * (kind.keratin == 0)
    inside = {LYMPHOCYTE: 0.05 * immune_N, MYELOID: 0.02 * immune_N**0.5, VESSEL_WALL: 0.01 * np.ones(len(places))}
    zones = (
        (here.epithelium & ~here.tumour, {EPITHELIUM: 1.0, LYMPHOCYTE: 0.02}),
        (here.tumour, {TUMOUR: 1.0} | inside),
        (here.necrosis, {TUMOUR: 1.0, GRANULOCYTE: 0.14, MYELOID: 0.05}),
        (here.aggregate, {LYMPHOCYTE: 1.0, PLASMA: 0.05, MYELOID: 0.06, SPINDLE: 0.03, VESSEL_WALL: 0.02}),
    )
    for zone_N, weights in zones:
        weight_NxL[zone_N] = 0
        for look, weight in weights.items():
            weight_NxL[zone_N, look] = weight[zone_N] if isinstance(weight, np.ndarray) else weight
    level_NxL = weight_NxL.cumsum(1)
    return (rng.random(len(places))[:, None] * level_NxL[:, -1:] >= level_NxL).sum(1).astype(np.int8)


def _wall_places(plan: Architecture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 2] and tangents [N] of the cells that line the vessels; larger vessels have more layers."""
    found = [plan.vessels.outline(rng, 0.9, 14.0)]
    for layer, least_um in ((1, 5.5), (2, 9.5)):
        thick = plan.vessels.radius_um_K > least_um
        larger = dataclasses.replace(
            plan.vessels, **{f.name: getattr(plan.vessels, f.name)[thick] for f in dataclasses.fields(plan.vessels)}
        )
        found.append(larger.outline(rng, 0.9 + 3.6 * layer, 12.0))
    places, angles = (np.concatenate(part) for part in zip(*found, strict=True))
    # where two vessels overlap, none of the walls crosses the other's lumen
    clear = between_nodes(plan.vessel_um, *places.T) > -1.0
    return places[clear], angles[clear]


def _fat_places(plan: Architecture, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The flat nuclei at the rims of the drops of fat, and their tangents."""
    turn = rng.uniform(0, 2 * np.pi, len(plan.fat))
    out_um = 0.94 * plan.fat.radius_um_K
    places = np.stack([plan.fat.x_um_K + out_um * np.cos(turn), plan.fat.y_um_K + out_um * np.sin(turn)], 1)
    return places, turn + 0.5 * np.pi


def _room(x_um_N: np.ndarray, y_um_N: np.ndarray, nucleus_um_Nx2: np.ndarray, epithelial_N: np.ndarray) -> np.ndarray:
    """By how much epithelial nuclei must shrink to leave their nearest neighbour room: 0.7 to 1, float64 [N]."""
    room_N = np.ones(len(x_um_N))
    among = np.flatnonzero(epithelial_N)
    if len(among) > 1:
        places = np.stack([x_um_N, y_um_N], 1)[among]
        apart_um = spatial.cKDTree(places).query(places, k=2)[0][:, 1]
        room_N[among] = np.clip(1.1 * apart_um / (2 * np.sqrt(nucleus_um_Nx2[among].prod(1))), 0.7, 1.0)
    return room_N


def draw_cells(patient: Patient, plan: Architecture, rng: np.random.Generator) -> Cells:
    """Draws the cells of a section and all of them that shows."""
    kind, grade = patient.diagnosis, patient.trait("grade")
    # columnar cells stand on the basement membrane, or around the nearer lumen
    nearer = np.where(-plan.gland_um < plan.lumen_um, plan.gland_um, -plan.lumen_um)
    axis = {"across": _gradient_angle(nearer), "along": plan.axis, "fibre": plan.fibre_angle}
    wall_xy, wall_angle = _wall_places(plan, rng)
    fat_xy, fat_angle = _fat_places(plan, rng)
    free_xy = _packed(patient, plan, axis, rng)
    free_look = _looks(patient, plan, free_xy, rng)
    places = np.concatenate([wall_xy, fat_xy, free_xy])
    look_N = np.concatenate(
        [np.full(len(wall_xy), VESSEL_WALL, np.int8), np.full(len(fat_xy), ADIPOCYTE, np.int8), free_look]
    )
    tangent_N = np.concatenate([wall_angle, fat_angle, np.full(len(free_xy), np.nan)])
    inside = ((places >= 0) & (places < plan.side_um)).all(1)
    (x_um_N, y_um_N), look_N, tangent_N = places[inside].T, look_N[inside], tangent_N[inside]
    cells = len(look_N)
    at = (GRID_UM, x_um_N, y_um_N)
    here = _read(plan, x_um_N, y_um_N)
    tumour_N = look_N == TUMOUR
    necrotic_N = tumour_N & here.necrosis

    # long axes: along the fibres in the stroma, across the epithelium in glands, by the pattern in the tumour
    polarity = POLARITY[kind.pattern]
    across_N = (look_N == EPITHELIUM) | (tumour_N & (polarity == "across"))
    along_N = tumour_N & (polarity == "along")
    angle_N = rng.uniform(0, np.pi, cells)
    wobble_N = rng.standard_normal(cells)
    angle_N = np.where(across_N, sample_grid(axis["across"], *at) + 0.22 * wobble_N, angle_N)
    # flat cells of an airspace lie along its wall
    flat_N = (look_N == EPITHELIUM) & sample_grid(plan.air, *at) & (here.gland_um > 0)
    angle_N = np.where(flat_N, sample_grid(_gradient_angle(plan.lumen_um), *at) + 0.5 * np.pi, angle_N)
    angle_N = np.where(along_N, sample_grid(axis["along"], *at) + 0.2 * wobble_N, angle_N)
    fibrous_N = np.isin(look_N, (SPINDLE, VESSEL_WALL))
    angle_N = np.where(fibrous_N, sample_grid(axis["fibre"], *at) + 0.25 * wobble_N, angle_N)
    angle_N = np.where(np.isnan(tangent_N), angle_N, tangent_N)

    vessel_um_N = between_nodes(plan.perfused_um, x_um_N, y_um_N)
    aggregate_um_N = between_nodes(plan.aggregate_um, x_um_N, y_um_N)
    dividing_N = 0.8 * sample_grid(plan.proliferation, *at) + 0.6 * rng.standard_normal(cells) + 0.3 * grade
    germinal_N = (look_N == LYMPHOCYTE) & (aggregate_um_N < -22)
    depth_N = (-here.gland_um).clip(0)
    keratin_N = 2.2 * np.tanh(depth_N / 28) + 2.2 * sample_grid(plan.keratin, *at) + 0.3 * rng.standard_normal(cells)
    invasion_N = np.exp(-depth_N / 12) * np.exp(sample_grid(plan.bed_um, *at).clip(max=0) / 110)
    state = {
        "proliferation": np.where(tumour_N, dividing_N, -1.6) + 1.8 * germinal_N,
        "hypoxia": np.clip(vessel_um_N / 35 - 1.2, -1.0, 2.5),
        "keratinisation": np.where(tumour_N, kind.keratin * keratin_N, 0.0) - 0.8,
        "emt": np.where(tumour_N, 2.8 * invasion_N - 0.8 + 0.3 * rng.standard_normal(cells), 0.0),
    }
    state_NxV = np.stack([state[name] for name in VISIBLE_STATES], 1)
    state_NxV = np.clip(state_NxV, -STATE_LIMIT, STATE_LIMIT).astype(np.float32)

    size_N = np.exp(0.07 * rng.standard_normal(cells))
    drawn_N = rng.standard_normal(cells)  # nuclei differ from each other more in high grades
    size_N *= np.where(tumour_N, kind.nucleus_size * np.exp(0.07 * grade + 0.08 * state["proliferation"]), 1.0)
    size_N *= np.exp(np.where(tumour_N, 0.07 + 0.03 * (grade + 2) + kind.pleomorphism, 0.05) * drawn_N)
    size_N *= np.where(necrotic_N, 0.8, 1.0)
    long_N = np.where(tumour_N, kind.nucleus_stretch * np.exp(0.10 * state["emt"].clip(-1, 2)), 1.0)
    stretch_N = np.exp(0.08 * rng.standard_normal(cells)) * np.sqrt(long_N)
    flattened_N = np.where(flat_N, 1.35, 1.0)
    nucleus_um_Nx2 = NUCLEUS_UM[look_N] * size_N[:, None] * np.stack([stretch_N, 1 / stretch_N], 1)
    nucleus_um_Nx2 = nucleus_um_Nx2 * np.stack([flattened_N, 1 / flattened_N], 1)
    nucleus_um_Nx2 *= _room(x_um_N, y_um_N, nucleus_um_Nx2, tumour_N | (look_N == EPITHELIUM))[:, None]
    roomy_N = np.where(tumour_N, kind.cell_spacing, 1.0) * size_N
    cell_um_Nx2 = np.maximum(CELL_UM[look_N] * roomy_N[:, None], nucleus_um_Nx2 * 1.15)

    mitosis_N = tumour_N & ~necrotic_N & (dividing_N + rng.standard_normal(cells) > -ndtri(0.012) * 1.45)
    pigmented_N = kind.pigment * np.exp(-1.1 + 1.3 * sample_grid(plan.pigment, *at))
    pigment_N = np.isin(look_N, (TUMOUR, MYELOID)) & ~necrotic_N & (rng.random(cells) < pigmented_N)
    return Cells(
        x_um_N, y_um_N, look_N, angle_N, nucleus_um_Nx2, cell_um_Nx2, state_NxV, mitosis_N, pigment_N, necrotic_N,
        aggregate_um_N, vessel_um_N,
    )  # fmt: skip

"""The cells of a section: where they lie, how they look, and the states that the H&E shows.

A cell's *look* is all that is drawn of its type. Types that share a look are told apart only by `hidden.py`.
"""

import dataclasses

import numpy as np
from scipy import spatial
from scipy.special import ndtri

from tario_jax.virtual.architecture import GRID_UM, Architecture
from tario_jax.virtual.fields import sample_grid
from tario_jax.virtual.genes import VISIBLE_STATES
from tario_jax.virtual.patients import Patient

LOOKS = ("tumour", "epithelium", "spindle", "vessel_wall", "lymphocyte", "plasma", "myeloid", "granulocyte")
TUMOUR, EPITHELIUM, SPINDLE, VESSEL_WALL, LYMPHOCYTE, PLASMA, MYELOID, GRANULOCYTE = range(len(LOOKS))

NUCLEUS_UM = np.array(
    [(3.55, 2.8), (3.4, 2.4), (5.0, 1.25), (4.4, 1.2), (2.55, 2.4), (2.5, 2.3), (3.4, 2.5), (2.3, 1.9)]
)
"""Semi-axes of the nucleus by look."""
CELL_UM = np.array([(6.4, 5.3), (5.6, 4.4), (8.5, 2.7), (6.5, 2.0), (3.2, 3.0), (4.8, 3.9), (6.0, 5.0), (3.8, 3.5)])
"""Semi-axes of the cell by look."""
SPACING_UM = {"tumour": 6.5, "normal": 5.7, "stroma": 9.2, "aggregate": 4.9}
COHORT_TUMOUR_SPACING = {"LUAD": 1.0, "BRCA": 0.95, "SKCM": 1.08}


@dataclasses.dataclass(frozen=True)
class Cells:
    """N cells; everything here is drawn in the H&E."""

    x_um_N: np.ndarray
    y_um_N: np.ndarray
    look_N: np.ndarray  # int, position in LOOKS
    angle_N: np.ndarray  # radians, of the long axis
    nucleus_um_Nx2: np.ndarray  # semi-axes
    cell_um_Nx2: np.ndarray  # semi-axes; more than the nucleus's
    state_NxV: np.ndarray  # float32, by VISIBLE_STATES
    mitosis_N: np.ndarray  # bool
    pigment_N: np.ndarray  # bool
    aggregate_um_N: np.ndarray  # distance to the nearest lymphoid aggregate; negative inside

    def __len__(self) -> int:
        return len(self.x_um_N)


def _blue_noise(rng: np.random.Generator, section_um: float, spacing_um: np.ndarray) -> np.ndarray:
    """Places no nearer to each other than the spacing there (Poisson discs), float64 [N, 2] (x, y).

    `spacing_um` is a grid of GRID_UM; inf where no cell lies. Proposals in a random order are taken where no taken
    one is too near: a maximal independent set, found in rounds.
    """
    least_um = spacing_um.min()
    if not np.isfinite(least_um):
        return np.zeros((0, 2))
    proposals = rng.random((int(3.2 * (section_um / least_um) ** 2), 2)) * section_um
    keep = rng.random(len(proposals))
    own_um = sample_grid(spacing_um, GRID_UM, *proposals.T)
    chosen = keep < (least_um / own_um) ** 2
    proposals, own_um = proposals[chosen], own_um[chosen]
    pairs = spatial.cKDTree(proposals).query_pairs(own_um.max(), output_type="ndarray")
    apart_um = np.linalg.norm(proposals[pairs[:, 0]] - proposals[pairs[:, 1]], axis=1)
    pairs = pairs[apart_um < 0.5 * (own_um[pairs[:, 0]] + own_um[pairs[:, 1]])]
    first, second = pairs.min(1), pairs.max(1)  # the earlier proposal of a pair has the right of way
    taken = np.zeros(len(proposals), bool)
    open_ = np.ones(len(proposals), bool)
    while open_.any():
        live = open_[first] & open_[second]
        first, second = first[live], second[live]
        blocked = np.zeros(len(proposals), bool)
        blocked[second] = True
        new = open_ & ~blocked
        taken |= new
        open_ &= ~new
        open_[second[new[first]]] = False
    return proposals[taken]


def _vessel_walls(rng: np.random.Generator, plan: Architecture) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, 2] and tangents [N] of the cells that line the vessels; larger vessels have more layers."""
    vessels = plan.vessels
    places, angles = [np.zeros((0, 2))], [np.zeros(0)]
    for x_um, y_um, radius_um in zip(vessels.x_um_K, vessels.y_um_K, vessels.radius_um_K, strict=True):
        for layer in range(1 + int(radius_um > 6) + int(radius_um > 11)):
            ring_um = radius_um + 1.2 + 3.4 * layer
            count = max(2, round(2 * np.pi * ring_um / 9.5))
            turn = 2 * np.pi * (np.arange(count) + rng.uniform(-0.25, 0.25, count) + rng.random()) / count
            places.append(np.stack([x_um + ring_um * np.cos(turn), y_um + ring_um * np.sin(turn)], 1))
            angles.append(turn + 0.5 * np.pi)
    places, angles = np.concatenate(places), np.concatenate(angles)
    inside = ((places >= 0) & (places < plan.section_um)).all(1)
    return places[inside], angles[inside]


def _looks(rng: np.random.Generator, patient: Patient, plan: Architecture, x_um_N: np.ndarray, y_um_N: np.ndarray):
    """The look of each cell, int [N], from the compartment that it lies in."""
    at = [x_um_N, y_um_N]
    immune_N = np.exp(0.5 * patient.trait("immune") + 0.7 * sample_grid(plan.infiltrate, GRID_UM, *at))
    near_N = np.exp(-sample_grid(plan.border_um, GRID_UM, *at) / 50)
    weight_NxL = np.zeros((len(x_um_N), len(LOOKS)))
    weight_NxL[:, SPINDLE] = 1.0
    weight_NxL[:, LYMPHOCYTE] = 0.32 * immune_N
    weight_NxL[:, PLASMA] = 0.08 * immune_N
    weight_NxL[:, MYELOID] = 0.13 * immune_N**0.5
    weight_NxL[:, GRANULOCYTE] = 0.05
    weight_NxL[:, VESSEL_WALL] = 0.10
    if patient.cohort == "BRCA":  # single files at the edge of the nests
        weight_NxL[:, TUMOUR] = 0.25 * near_N
    zones = (
        (plan.tumour, {TUMOUR: 1.0, LYMPHOCYTE: 0.035, MYELOID: 0.03, SPINDLE: 0.012, VESSEL_WALL: 0.02}),
        (plan.normal, {EPITHELIUM: 1.0, LYMPHOCYTE: 0.02}),
        (plan.aggregate_um < 0, {LYMPHOCYTE: 1.0, PLASMA: 0.05, MYELOID: 0.07, SPINDLE: 0.04, VESSEL_WALL: 0.02}),
    )
    for zone, weights in zones:
        in_zone_N = sample_grid(zone, GRID_UM, *at)
        weight_NxL[in_zone_N] = 0
        for look, weight in weights.items():
            factor_N = immune_N[in_zone_N] if zone is plan.tumour and look in (LYMPHOCYTE, MYELOID) else 1.0
            weight_NxL[in_zone_N, look] = weight * factor_N
    level_NxL = weight_NxL.cumsum(1)
    return (rng.random(len(x_um_N))[:, None] * level_NxL[:, -1:] >= level_NxL).sum(1)


def draw_cells(patient: Patient, plan: Architecture, rng: np.random.Generator) -> Cells:
    """Draws the cells of a section and all of them that shows."""
    spacing_um = np.full(plan.tumour.shape, SPACING_UM["stroma"] * np.exp(0.06 * patient.trait("fibrosis")))
    spacing_um *= np.exp(-0.16 * plan.infiltrate)
    spacing_um[plan.tumour] = SPACING_UM["tumour"] * COHORT_TUMOUR_SPACING[patient.cohort]
    spacing_um[plan.tumour] *= np.exp(0.05 * patient.trait("grade") - 0.09 * plan.infiltrate[plan.tumour])
    spacing_um[plan.normal] = SPACING_UM["normal"]
    spacing_um[plan.aggregate_um < 0] = SPACING_UM["aggregate"]
    spacing_um *= patient.cell_spacing
    spacing_um[plan.lumen | (plan.vessel_um < 3)] = np.inf
    wall_xy, wall_angle = _vessel_walls(rng, plan)
    free_xy = _blue_noise(rng, plan.section_um, spacing_um)
    x_um_N, y_um_N = np.concatenate([wall_xy, free_xy]).T
    look_N = np.concatenate([np.full(len(wall_xy), VESSEL_WALL), _looks(rng, patient, plan, *free_xy.T)])
    cells = len(look_N)
    at = (GRID_UM, x_um_N, y_um_N)

    # long axes: along the fibres in the stroma, across the epithelium in glands, anywhere else
    across_y, across_x = np.gradient(plan.gland_um)
    radial_N = np.arctan2(sample_grid(across_y, *at), sample_grid(across_x, *at))
    fibre_N = sample_grid(plan.fibre_angle, *at) + 0.25 * rng.standard_normal(cells)
    angle_N = rng.uniform(0, np.pi, cells)
    in_gland_N = (look_N == EPITHELIUM) | ((look_N == TUMOUR) & (np.abs(sample_grid(plan.gland_um, *at)) < 13))
    angle_N = np.where(in_gland_N, radial_N + 0.3 * rng.standard_normal(cells), angle_N)
    angle_N = np.where(np.isin(look_N, (SPINDLE, VESSEL_WALL)), fibre_N, angle_N)
    angle_N[: len(wall_xy)] = wall_angle

    tumour_N, grade = look_N == TUMOUR, patient.trait("grade")
    state_NxV = np.zeros((cells, len(VISIBLE_STATES)), np.float32)
    dividing_N = 0.8 * sample_grid(plan.proliferation, *at) + 0.6 * rng.standard_normal(cells) + 0.3 * grade
    germinal_N = (look_N == LYMPHOCYTE) & (sample_grid(plan.aggregate_um, *at) < -25)
    state_NxV[:, 0] = np.where(tumour_N, dividing_N, -1.6) + 1.8 * germinal_N
    state_NxV[:, 1] = np.clip(sample_grid(plan.vessel_um, *at) / 35 - 1.2, -1.0, 2.5)
    edge_N = np.exp(-sample_grid(plan.border_um, *at) / 18)
    state_NxV[:, 2] = np.where(tumour_N, 2.2 * edge_N - 0.8 + 0.3 * rng.standard_normal(cells), 0.6)

    size_N = np.exp(0.07 * rng.standard_normal(cells))
    size_N *= np.where(tumour_N, np.exp(0.08 * grade + 0.10 * state_NxV[:, 0]), 1.0)
    pleomorphic_N = np.where(tumour_N, 0.08 + 0.03 * (grade + 2), 0.05)
    size_N *= np.exp(pleomorphic_N * rng.standard_normal(cells))
    stretch_N = np.exp(0.08 * rng.standard_normal(cells) + np.where(tumour_N, 0.12 * state_NxV[:, 2], 0.0))
    stretch_N *= np.where(in_gland_N & tumour_N, 1.12, 1.0)
    nucleus_um_Nx2 = NUCLEUS_UM[look_N] * size_N[:, None] * np.stack([stretch_N, 1 / stretch_N], 1)
    cell_um_Nx2 = np.maximum(CELL_UM[look_N] * size_N[:, None], nucleus_um_Nx2 * 1.15)
    mitosis_N = tumour_N & (dividing_N + rng.standard_normal(cells) > -ndtri(0.012) * 1.45)
    pigmented = np.exp(-1.5 + 1.2 * sample_grid(plan.pigment, *at))
    pigment_N = (patient.cohort == "SKCM") & np.isin(look_N, (TUMOUR, MYELOID)) & (rng.random(cells) < 0.3 * pigmented)
    return Cells(
        x_um_N, y_um_N, look_N, angle_N, nucleus_um_Nx2, cell_um_Nx2, state_NxV, mitosis_N, pigment_N,
        sample_grid(plan.aggregate_um, *at),
    )  # fmt: skip

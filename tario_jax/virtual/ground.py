"""What lies around the nuclei: cytoplasm, collagen, mucin, keratin, necrosis, fat and blood, as densities of stains.

All of it is laid down at BROAD_UM_PER_PX: it has little finer detail.
"""

import dataclasses

import numpy as np
from scipy import ndimage, spatial

from tario_jax.virtual.architecture import GRID_UM, Architecture
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.kinds import EPITHELIUM, TUMOUR
from tario_jax.virtual.patients import Patient
from tario_jax.virtual.patterns import NORMAL
from tario_jax.virtual.raster import ellipse_pixels, fibrous_noise, finer, smooth_noise

BROAD_UM_PER_PX = 1.0
FACTOR = round(GRID_UM / BROAD_UM_PER_PX)

# by look; optical density of the cytoplasm
CYTOPLASM_E = np.array([0.38, 0.43, 0.47, 0.51, 0.22, 0.47, 0.36, 0.72, 0.28], np.float32)
CYTOPLASM_H = np.array([0.32, 0.27, 0.20, 0.17, 0.26, 0.48, 0.21, 0.22, 0.08], np.float32)
OWN_OF_EOSIN = 0.55  # what eosinophilic tissue absorbs beside Ruifrok's eosin, which is pinker than most slides

BARE = 0.012  # what even an empty space takes up of the stain


@dataclasses.dataclass
class Ground:
    """Densities, float32 [side, side], of haematoxylin, of eosin, and of what blood and keratin absorb themselves."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    own: np.ndarray

    def lay(self, cover: np.ndarray, haematoxylin, eosin, own=0.0) -> None:
        """Puts a material over what is there, as opaque as `cover` says, 0 to 1."""
        self.haematoxylin += cover * (haematoxylin - self.haematoxylin)
        self.eosin += cover * (eosin - self.eosin)
        self.own += cover * (own - self.own)


def _inside(distance_um: np.ndarray, soft_um: float = 1.2) -> np.ndarray:
    """1 where a signed distance is negative, 0 where it is positive, over a soft border."""
    return np.clip(0.5 - distance_um / soft_um, 0, 1)


@dataclasses.dataclass(frozen=True)
class _Owners:
    """The nearest cell of each pixel, and where in that cell the pixel lies."""

    cell: np.ndarray
    out: np.ndarray  # (distance from the middle, in semi-axes of the cell)²
    border: np.ndarray  # near 1 where two cells meet


def _owners(cells: Cells, side_px: int) -> _Owners:
    row = np.minimum((cells.y_um_N / BROAD_UM_PER_PX).astype(np.int64), side_px - 1)
    column = np.minimum((cells.x_um_N / BROAD_UM_PER_PX).astype(np.int64), side_px - 1)
    seed = np.full((side_px, side_px), -1, np.int32)
    seed[row, column] = np.arange(len(cells))
    nearest = ndimage.distance_transform_edt(seed < 0, return_distances=False, return_indices=True)
    cell = seed[nearest[0], nearest[1]]
    centre_um = ((np.arange(side_px) + 0.5) * BROAD_UM_PER_PX).astype(np.float32)
    dx = centre_um - cells.x_um_N.astype(np.float32)[cell]
    dy = centre_um[:, None] - cells.y_um_N.astype(np.float32)[cell]
    cos, sin = np.cos(cells.angle_N).astype(np.float32)[cell], np.sin(cells.angle_N).astype(np.float32)[cell]
    a, b = cells.cell_um_Nx2.astype(np.float32).T
    out = ((dx * cos + dy * sin) / a[cell]) ** 2 + ((dy * cos - dx * sin) / b[cell]) ** 2
    border = np.zeros((side_px, side_px), np.float32)
    border[:, 1:] = cell[:, 1:] != cell[:, :-1]
    border[1:] = np.maximum(border[1:], cell[1:] != cell[:-1])
    return _Owners(cell, out, ndimage.gaussian_filter(border, 0.55, truncate=2.5))


def _collagen(patient: Patient, plan: Architecture, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """Eosin of the fibres: bundles with clefts between, denser and more closed in fibrous tissue."""
    twice = 2 * plan.fibre_angle
    angle = 0.5 * np.arctan2(finer(np.sin(twice), FACTOR, side_px), finer(np.cos(twice), FACTOR, side_px))
    angle += 0.4 * smooth_noise(rng, side_px, 7.0)  # wavy: fibres swing about their direction
    fibre = 0.75 * fibrous_noise(rng, angle, 11.0, 1.0) + 0.65 * fibrous_noise(rng, angle, 24.0, 2.6)
    dense = finer(plan.collagen, FACTOR, side_px)
    filled = np.clip(0.72 + 0.34 * fibre + 0.30 * dense, 0.10, 1.4)
    return 0.47 * np.exp(0.22 * dense) * filled


def _blood(plan: Architecture, ground: Ground, side_px: int, rng: np.random.Generator) -> None:
    """Red cells, packed in some vessels and few in others."""
    beads, owner = plan.vessels.beads()
    full_K = rng.uniform(0.2, 1.0, len(plan.vessels))[owner]
    room_um_K = np.maximum(beads.radius_um_K - 1.6, 0.6)
    count_K = rng.poisson(0.030 * full_K * np.pi * room_um_K**2)
    bead = np.repeat(np.arange(len(beads)), count_K)
    turn, out = rng.uniform(0, 2 * np.pi, len(bead)), np.sqrt(rng.random(len(bead))) * room_um_K[bead]
    x_um, y_um = beads.x_um_K[bead] + out * np.cos(turn), beads.y_um_K[bead] + out * np.sin(turn)
    semi_um = np.stack([np.full(len(bead), 3.1), rng.uniform(1.8, 3.1, len(bead))], 1)
    _, pixel, u, v = ellipse_pixels(side_px, BROAD_UM_PER_PX, x_um, y_um, turn, semi_um, 1.1)
    cover = np.zeros(side_px * side_px, np.float32)
    np.maximum.at(cover, pixel, np.clip(1.15 - (u * u + v * v) ** 2, 0, 1).astype(np.float32))
    ground.lay(cover.reshape(side_px, side_px), 0.02, 0.72, 0.42)


def _fat(plan: Architecture, ground: Ground, side_px: int) -> None:
    """Empty drops, flattened where they touch, within thin rims."""
    if not len(plan.fat):
        return
    step_px = 2
    near = np.argwhere(plan.fat_um < 3 * GRID_UM)  # nodes of the plan
    part = GRID_UM / (step_px * BROAD_UM_PER_PX)
    offset = (np.arange(int(part)) + 0.5) / part
    row, column = (
        (near[:, axis, None, None] + offset.reshape(-1, 1) if axis == 0 else near[:, axis, None, None] + offset)
        * np.ones((1, int(part), int(part)))
        for axis in (0, 1)
    )
    y_um, x_um = row.ravel() * GRID_UM, column.ravel() * GRID_UM
    centres = np.stack([plan.fat.x_um_K, plan.fat.y_um_K], 1)
    k = min(3, len(centres))
    distance, which = spatial.cKDTree(centres).query(np.stack([x_um, y_um], 1), k=[*range(1, k + 1)])
    depth_um = plan.fat.radius_um_K[which[:, 0]] - distance[:, 0]
    for other in range(1, k):
        apart_um = np.linalg.norm(centres[which[:, 0]] - centres[which[:, other]], axis=1)
        wall_um = (distance[:, other] ** 2 - distance[:, 0] ** 2) / (2 * apart_um)
        # corners are round
        depth_um = np.minimum(depth_um, wall_um + 2 * np.exp(-np.abs(depth_um - wall_um) / 3) * -1)
    half_px = -(-side_px // step_px)
    grid = np.full((half_px, half_px), -5.0, np.float32)
    at_row, at_column = (np.floor(v / (step_px * BROAD_UM_PER_PX)).astype(np.int64) for v in (y_um, x_um))
    fits = (at_row < half_px) & (at_column < half_px)
    grid[at_row[fits], at_column[fits]] = depth_um[fits]
    depth = finer(grid, step_px, side_px)
    ground.lay(_inside(-depth - 1.0, 2.0), 0.02, 0.34)
    ground.lay(_inside(1.2 - depth, 1.2), BARE, BARE)


def lay_ground(patient: Patient, plan: Architecture, cells: Cells, side_px: int, rng: np.random.Generator) -> Ground:
    """All but the nuclei, at BROAD_UM_PER_PX."""
    kind = patient.diagnosis
    gland_um, lumen_um, vessel_um, necrosis_um, keratin = (
        finer(np.clip(grid, -200, 200), FACTOR, side_px)
        for grid in (plan.gland_um, plan.lumen_um, plan.vessel_um, plan.necrosis_um, plan.keratin)
    )
    calcified = finer(plan.calcified, FACTOR, side_px)
    at = np.minimum((np.arange(side_px) * BROAD_UM_PER_PX / GRID_UM).astype(np.int64), plan.tumour.shape[0] - 1)
    is_tumour = plan.tumour[np.ix_(at, at)]
    owners = _owners(cells, side_px)
    grain, cloud = smooth_noise(rng, side_px, 0.8), smooth_noise(rng, side_px, 4.0)
    granular = 1 + 0.10 * grain + 0.07 * cloud

    # stroma, and the cells in it
    collagen = _collagen(patient, plan, side_px, rng)
    ground = Ground(0.05 + 0.41 * collagen, collagen, np.zeros((side_px, side_px), np.float32))
    # packed lymphocytes leave little room for collagen
    aggregate = _inside(finer(np.clip(plan.aggregate_um, -100, 100), FACTOR, side_px), 10)
    ground.eosin *= 1 - 0.55 * aggregate
    ground.haematoxylin += 0.10 * aggregate
    tumour_N, clear = cells.look_N == TUMOUR, kind.clear_cytoplasm
    keratin_N, hypoxia_N = cells.state_NxV[:, 2].clip(-1, 3), cells.state_NxV[:, 1]
    e_N = CYTOPLASM_E[cells.look_N] * np.exp(-0.16 * hypoxia_N + 0.08 * rng.standard_normal(len(cells)))
    e_N *= np.where(tumour_N, kind.eosinophilia * (1 - 0.86 * clear) * np.exp(0.16 * keratin_N * (keratin_N > -0.7)), 1)
    h_N = CYTOPLASM_H[cells.look_N] * np.where(tumour_N, (1 - 0.9 * clear) * np.exp(-0.25 * (keratin_N + 0.8)), 1)
    e_N = np.where(cells.necrotic_N, 0.55, e_N).astype(np.float32)
    h_N = np.where(cells.necrotic_N, 0.06, h_N).astype(np.float32)
    cytoplasm_e, cytoplasm_h = e_N[owners.cell], h_N[owners.cell]
    single = np.clip(1.5 * (1.15 - owners.out), 0, 0.85)
    ground.lay(single, cytoplasm_h, cytoplasm_e)

    # epithelium: its cells fill it
    epithelial_N = tumour_N | (cells.look_N == EPITHELIUM)
    typical_e = float(np.median(e_N[tumour_N])) if tumour_N.any() else 0.4
    typical_h = float(np.median(h_N[tumour_N])) if tumour_N.any() else 0.1
    own_cell = epithelial_N[owners.cell]
    fill_e, fill_h = np.where(own_cell, cytoplasm_e, typical_e), np.where(own_cell, cytoplasm_h, typical_h)
    plain = np.float32(0.10 + 0.9 * kind.membrane)
    border = owners.border * np.where(is_tumour, plain, 0.15)
    fill_e = fill_e * granular + 0.30 * border
    fill_h = fill_h * granular + 0.06 * border
    apical_um = np.where(is_tumour, kind.apical_um, 9.0 * NORMAL[patient.cohort].goblet)
    mucous = np.where(is_tumour, kind.mucin * (kind.pattern != "pools"), NORMAL[patient.cohort].goblet)
    vacuole = mucous * _inside(lumen_um - apical_um - 2 + 2.0 * grain, 2.0) * _inside(2.0 - lumen_um, 1.5)
    fill_e, fill_h = fill_e * (1 - 0.8 * vacuole), fill_h * (1 - vacuole) + 0.12 * vacuole
    epithelium = _inside(gland_um)
    # the stroma shrinks away from some of the epithelium
    cleft = _inside(np.abs(gland_um - 1.0) - 1.2, 1.2) * np.clip(0.9 * cloud + 0.15, 0, 0.9)
    ground.lay(cleft * (1 - aggregate), BARE, BARE)
    ground.lay(epithelium, fill_h, fill_e)
    # immune cells within it
    ground.lay(epithelium * single * ~own_cell, cytoplasm_h, cytoplasm_e)

    # open spaces: empty, or filled with mucin or with the dead
    lumen = _inside(lumen_um)
    ground.lay(lumen, BARE, BARE)
    twice = finer(np.cos(2 * plan.axis), FACTOR, side_px)
    streak = fibrous_noise(rng, 0.5 * np.arccos(np.clip(twice, -1, 1)) + 0.5 * cloud, 14.0, 1.5)
    slime = lumen * finer(plan.mucin, FACTOR, side_px).clip(0, 1)
    ground.lay(slime, np.clip(0.15 + 0.035 * streak + 0.02 * cloud, 0.05, 0.3),
               np.clip(0.03 + 0.01 * streak, 0.01, 0.2))  # fmt: skip
    dirt = lumen * finer(plan.debris, FACTOR, side_px).clip(0, 1) * _inside(lumen_um + 3 + 3 * cloud, 4)
    specks = np.clip(2.2 * grain - 2.6, 0, 1.4)
    ground.lay(dirt, 0.07 + 0.55 * specks, np.clip(0.46 + 0.14 * grain + 0.10 * cloud, 0.1, 0.8))

    dead = _inside(necrosis_um, 8) * epithelium * (1 - lumen) * is_tumour
    ground.lay(dead, 0.06 + 0.5 * specks, np.clip(0.52 + 0.13 * grain + 0.08 * cloud, 0.1, 0.9))
    lamella = 0.5 + 0.5 * np.sin(26 * keratin + 1.2 * cloud)
    ground.lay(np.clip(1.6 * keratin, 0, 1), 0.03 + 0.05 * lamella, 0.72 + 0.30 * lamella, 0.10 + 0.12 * lamella)

    ring = 0.5 + 0.5 * np.sin(22 * calcified + cloud)
    ground.lay(np.clip(4 * calcified, 0, 1), 0.55 + 0.65 * ring, 0.20 + 0.15 * ring)
    ground.own += OWN_OF_EOSIN * ground.eosin
    _fat(plan, ground, side_px)
    wall = _inside(vessel_um - 2.2, 1.5)
    ground.lay(0.8 * wall, 0.03, 0.5)
    ground.lay(_inside(vessel_um), 0.02, 0.05)
    _blood(plan, ground, side_px, rng)
    return ground

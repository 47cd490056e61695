"""The ground plan of a section: where tumour, stroma, glands, vessels, fat, necrosis and lymphoid aggregates lie."""

import dataclasses

import numpy as np
from scipy.special import ndtri

from tario_jax.virtual.fields import FieldBasis, sample_grid
from tario_jax.virtual.patients import Patient
from tario_jax.virtual.patterns import ALVEOLAR_PITCH_UM, LAYOUTS, Site, alveolar_walls_um, normal_glands
from tario_jax.virtual.regions import Region
from tario_jax.virtual.shapes import FAR_UM, Discs, Vessels, lattice, scatter

GRID_UM = 4.0
COARSE_UM = 16.0
LOBE_SIGMAS = 4.0  # of lobes, in sigmas of the fields that part tumour from stroma
ZONE_SIGMA_UM = 300.0
AROUND_UM = 416.0
"""How far around a section its tumour and its aggregates are known, so that what spreads from them is not cut."""
VESSELS_PER_MM2 = 80.0
FAT_PITCH_UM = 50.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Grids of GRID_UM, float [rows, columns], signed distances in µm and negative inside, unless it says otherwise.

    Where `lumen_um` < 0 there is open space, filled or not; else where `gland_um` < 0 there is epithelium; else
    stroma, or fat, or a vessel. All of it shows in the H&E.
    """

    side_um: float
    bed_um: np.ndarray  # the bed of the tumour: all that belongs to its pattern
    edge_um: np.ndarray  # the outer border of the tumour; far negative in a region of the core
    gland_um: np.ndarray  # epithelium together with its lumina: basement membrane at 0
    lumen_um: np.ndarray
    tumour: np.ndarray  # bool: what epithelium there is here is tumour
    air: np.ndarray  # bool: lumina here are airspaces of the lung
    septum_um: np.ndarray  # unsigned distance to the middle of a septum
    necrosis_um: np.ndarray
    keratin: np.ndarray  # 0 to 1 at the centre of a keratin pearl
    calcified: np.ndarray  # 0 to 1 at the centre of a psammoma body
    mucin: np.ndarray  # bool: lumina here hold mucin
    debris: np.ndarray  # bool: lumina here hold what has died
    vessel_um: np.ndarray  # vessels that are drawn open
    perfused_um: np.ndarray  # those, and capillaries that are not
    fat_um: np.ndarray
    aggregate_um: np.ndarray
    collagen: np.ndarray  # log density of the collagen of stroma
    axis: np.ndarray  # radians: long axes of tumour cells, where they follow one
    fibre_angle: np.ndarray  # radians
    infiltrate: np.ndarray  # N(0, 1): where immune cells are more or fewer
    proliferation: np.ndarray  # N(0, 1): where tumour cells divide
    pigment: np.ndarray  # N(0, 1): where melanin lies
    vessels: Vessels
    fat: Discs  # drops of fat


@dataclasses.dataclass(frozen=True)
class _Around:
    """The tumour's bed on a coarse grid that reaches AROUND_UM beyond the section."""

    bed_YxX: np.ndarray
    edge_YxX: np.ndarray

    def _at(self, grid: np.ndarray, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        return _between(grid, COARSE_UM, np.asarray(x_um) + AROUND_UM, np.asarray(y_um) + AROUND_UM)

    def bed_at(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        return self._at(self.bed_YxX, x_um, y_um)

    def edge_at(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        return self._at(self.edge_YxX, x_um, y_um)


def _between(grid_YxX: np.ndarray, step_um: float, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """The grid at any place, linear between the centres of its cells; places outside read the border."""
    row = np.clip(y_um / step_um - 0.5, 0, grid_YxX.shape[0] - 1.001)
    column = np.clip(x_um / step_um - 0.5, 0, grid_YxX.shape[1] - 1.001)
    top, left = row.astype(np.int64), column.astype(np.int64)
    down, right = row - top, column - left
    upper = grid_YxX[top, left] * (1 - right) + grid_YxX[top, left + 1] * right
    lower = grid_YxX[top + 1, left] * (1 - right) + grid_YxX[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def between_nodes(grid_YxX: np.ndarray, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
    """A grid of GRID_UM at any place, linear between the centres of its cells."""
    return _between(grid_YxX, GRID_UM, x_um, y_um)


def _around(patient: Patient, region: Region, rng: np.random.Generator) -> _Around:
    """Bed and border such that the tumour's share of the region's area is the region's."""
    wide_um = region.side_um + 2 * AROUND_UM
    sigma_um = patient.diagnosis.compartment_um
    broad, slow = FieldBasis(sigma_um, wide_um), FieldBasis(120.0, wide_um)
    lobe = FieldBasis(LOBE_SIGMAS * sigma_um, wide_um)  # a tumour has lobes too, wider than a small region
    level = 0.7 * broad.on_grid(COARSE_UM, broad.noise(rng, 1))[..., 0].astype(np.float64)
    level += 0.7 * lobe.on_grid(COARSE_UM, lobe.noise(rng, 1))[..., 0]
    wave = slow.on_grid(COARSE_UM, slow.noise(rng, 1))[..., 0]
    turn = rng.uniform(0, 2 * np.pi)
    centre_um = (np.arange(level.shape[0]) + 0.5) * COARSE_UM - AROUND_UM
    inside = (centre_um > 0) & (centre_um < region.side_um)
    inner = np.ix_(inside, inside)
    edge_um = np.full(level.shape, -FAR_UM)
    if region.at_border:
        edge_um = np.cos(turn) * centre_um + np.sin(turn) * centre_um[:, None] + 28 * wave
        edge_um = edge_um - np.quantile(edge_um[inner], region.tumour_share / patient.tumour_share)
    within = (edge_um < 0)[inner]
    least = np.quantile(level[inner][within], 1 - patient.tumour_share)
    # the mean slope of such a field turns its level into a distance
    return _Around(np.maximum(1.5 * sigma_um * (least - level), edge_um), edge_um)


def _vessels(patient: Patient, region: Region, merit_at, angle: np.ndarray, rng: np.random.Generator) -> Vessels:
    """Of three proposed places the best is taken; most vessels lie along the fibres, cut lengthwise or across."""
    proposals = scatter(rng, region.side_um, VESSELS_PER_MM2 * patient.vessel_density, 60.0, of=3)
    merit = merit_at(*proposals.transpose(2, 0, 1))
    places = proposals[np.arange(len(proposals)), merit.argmax(1)]
    places = places[merit.max(1) > -50]  # none hangs in an open space
    radius_um_K = np.clip(3.2 * np.exp(0.5 * rng.standard_normal(len(places))), 2.2, 16)
    long_um_K = radius_um_K * (1 + np.minimum(rng.exponential(0.8, len(places)), 3) * (radius_um_K < 9))
    return Vessels(*places.T, sample_grid(angle, GRID_UM, *places.T), long_um_K, radius_um_K)


def _aggregates(patient: Patient, region: Region, around: _Around, rng: np.random.Generator) -> Discs:
    """Lymphoid aggregates keep to the stroma beside the tumour, more so at its outer border."""
    proposals = scatter(rng, region.side_um, patient.aggregates_per_mm2, AROUND_UM - 16, of=5)
    x_um, y_um = proposals.transpose(2, 0, 1)
    merit = -np.abs(around.bed_at(x_um, y_um) - 35) - 0.3 * np.abs(around.edge_at(x_um, y_um)).clip(max=150)
    places = proposals[np.arange(len(proposals)), merit.argmax(1)]
    return Discs(*places.T, rng.uniform(28, 70, len(places)))


def _fat(patient: Patient, gland_um, bed_um, edge_um, field, rng, side_um: float) -> Discs:
    """Drops in the parts of the stroma that are fat; more of it outside the tumour."""
    share = patient.diagnosis.fat
    if share == 0:
        return Discs(*np.zeros((3, 0)))
    stroma = (gland_um > 12) & (bed_um > 4)
    score = np.where(stroma, field + 1.2 * (edge_um > 30), -np.inf)
    room = score[stroma & (edge_um < 30)], score[stroma & (edge_um >= 30)]
    places = lattice(rng, side_um, FAT_PITCH_UM, 0.16)
    at_NxF = sample_grid(np.stack([score, edge_um], -1), GRID_UM, *places.T)
    least_N = np.full(len(places), np.inf)
    for part, scores, part_share in ((at_NxF[:, 1] < 30, room[0], share), (at_NxF[:, 1] >= 30, room[1], 4 * share)):
        if len(scores):
            least_N[part] = np.quantile(scores, max(1 - part_share, 0.1))
    places = places[at_NxF[:, 0] >= least_N]
    return Discs(*places.T, rng.uniform(0.46, 0.58, len(places)) * FAT_PITCH_UM)


def _necrosis(patient: Patient, epithelium: np.ndarray, vessel_um: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Where the patient's share of the tumour, the farthest from vessels, has died."""
    share = min(patient.necrosis, 0.4)
    if share < 0.002 or not epithelium.any():
        return np.full(vessel_um.shape, FAR_UM)
    score = np.minimum(vessel_um, 90) + 14 * field
    return np.quantile(score[epithelium], 1 - share) - score


def build_architecture(patient: Patient, region: Region, rng: np.random.Generator) -> Architecture:
    """Draws the ground plan of one region of a patient."""
    kind, side_um = patient.diagnosis, region.side_um
    centre_um = (np.arange(int(np.ceil(side_um / GRID_UM))) + 0.5) * GRID_UM
    x_um, y_um = np.meshgrid(centre_um, centre_um)
    around = _around(patient, region, rng)
    bed_um, edge_um = around.bed_at(x_um, y_um), around.edge_at(x_um, y_um)

    slow, middle, fine = FieldBasis(100.0, side_um), FieldBasis(45.0, side_um), FieldBasis(16.0, side_um)
    wave, fat_field = np.moveaxis(slow.on_grid(GRID_UM, slow.noise(rng, 2)), -1, 0)
    infiltrate, proliferation, pigment, dead = np.moveaxis(middle.on_grid(GRID_UM, middle.noise(rng, 4)), -1, 0)
    zone = FieldBasis(ZONE_SIGMA_UM, side_um)  # whole parts of a tumour are inflamed, or grow
    inflamed, growing = np.moveaxis(zone.on_grid(GRID_UM, zone.noise(rng, 2)), -1, 0)
    infiltrate, proliferation = 0.7 * (infiltrate + inflamed), 0.7 * (proliferation + growing)
    warp_YxXxF = fine.on_grid(GRID_UM, fine.noise(rng, 5))
    warped = x_um + 4 * warp_YxXxF[..., 0], y_um + 4 * warp_YxXxF[..., 1]  # nothing in tissue is a circle
    bed_um = bed_um + 5 * warp_YxXxF[..., 2]
    turn = rng.uniform(0, np.pi)
    stream_um = np.cos(turn) * y_um - np.sin(turn) * x_um + 70 * wave + 2.5 * warp_YxXxF[..., 3]
    septa = float(np.exp(0.25 * patient.trait("fibrosis")))

    site = Site(side_um, *warped, bed_um, around.bed_at, stream_um, warp_YxXxF[..., 2:], patient.lumen, septa)
    layout = LAYOUTS[kind.pattern](site, kind, rng)
    gland_um, lumen_um = layout.gland_um, layout.lumen_um
    septum_um = np.full(x_um.shape, FAR_UM) if layout.septum_um is None else layout.septum_um
    septum_um = np.where(bed_um < 0, septum_um, FAR_UM)

    # what is not tumour: normal glands outside, a stray one inside; the lung's airspaces
    normal = normal_glands(site, patient.cohort, rng)
    keep_um = 14 - np.minimum(bed_um, edge_um + 14 + 26 * (rng.random() < 0.25))
    normal_um, normal_lumen_um = np.maximum(normal.gland_um, keep_um), np.maximum(normal.lumen_um, keep_um + 6)
    tumour = gland_um < normal_um
    gland_um, lumen_um = np.minimum(gland_um, normal_um), np.minimum(lumen_um, normal_lumen_um)
    air = np.zeros(x_um.shape, bool)
    if patient.cohort in ("LUAD", "LUSC"):
        wall_um = alveolar_walls_um(site, ALVEOLAR_PITCH_UM, rng)
        open_um = np.maximum(5.0 - wall_um, 24 - (bed_um if kind.pattern == "lepidic" else edge_um))
        open_um = np.maximum(open_um, 9 - np.minimum(gland_um, bed_um))
        air = (open_um < lumen_um) | (kind.pattern == "lepidic")
        lumen_um = np.minimum(lumen_um, open_um)

    # fibres run along the stream and around glands
    down, right = np.gradient(stream_um)
    fibre = np.arctan2(-right, down)
    gland_down, gland_right = np.gradient(np.minimum(gland_um, 60))
    near = np.exp(-np.abs(gland_um) / 14) * 1.5
    around_gland = np.arctan2(-gland_right, gland_down)
    cos = np.cos(2 * fibre) + near * np.cos(2 * around_gland)
    sin = np.sin(2 * fibre) + near * np.sin(2 * around_gland)
    fibre = 0.5 * np.arctan2(sin, cos)
    axis = fibre if layout.axis is None else layout.axis

    def merit_at(x_um_N: np.ndarray, y_um_N: np.ndarray) -> np.ndarray:
        """Vessels keep to the stroma and its septa, and out of lumina."""
        here = [sample_grid(grid, GRID_UM, x_um_N, y_um_N) for grid in (gland_um, lumen_um, septum_um)]
        return np.minimum(here[0], 12) - 100 * (here[1] < 8) - np.minimum(here[2], 10)

    vessels = _vessels(patient, region, merit_at, axis, rng)
    vessel_um = vessels.beads()[0].distance_um(x_um, y_um)
    wall_um = 2.5 - vessel_um
    gland_um, lumen_um = np.maximum(gland_um, wall_um), np.maximum(lumen_um, 6 + wall_um)
    # each nest of clear cells is framed by capillaries
    perfused_um = np.minimum(vessel_um, septum_um) if kind.pattern == "alveoli" else vessel_um

    aggregate_um = _aggregates(patient, region, around, rng).distance_um(
        x_um + 8 * warp_YxXxF[..., 0], y_um + 8 * warp_YxXxF[..., 1]
    )
    gland_um, lumen_um = np.maximum(gland_um, 4 - aggregate_um), np.maximum(lumen_um, 8 - aggregate_um)
    fat = _fat(patient, np.minimum(gland_um, vessel_um), np.minimum(bed_um, aggregate_um), edge_um, fat_field, rng,
               side_um)  # fmt: skip
    tumour &= bed_um < 12
    epithelium = tumour & (gland_um < 0) & (lumen_um > 0)

    # keratin gathers in pearls, deep in the nests
    pearls = scatter(rng, side_um, 400 * kind.keratin**2, 30.0)[:, 0]
    pearls = pearls[sample_grid(gland_um, GRID_UM, *pearls.T) < -16]
    pearl = Discs(*pearls.T, rng.uniform(12, 30, len(pearls)))
    keratin = np.clip(-pearl.distance_um(*warped) / 14, 0, 1) * np.clip((-gland_um - 8) / 8, 0, 1)
    bodies = scatter(rng, side_um, 100 * kind.calcification, 30.0)[:, 0]
    in_core = (sample_grid(gland_um, GRID_UM, *bodies.T) > 1) & (around.bed_at(*bodies.T) < -10)
    bodies = bodies[in_core & (sample_grid(vessel_um, GRID_UM, *bodies.T) > 14)]
    body = Discs(*bodies.T, rng.uniform(7, 14, len(bodies)))

    return Architecture(
        side_um, bed_um, edge_um, gland_um, lumen_um, tumour, air, septum_um,
        necrosis_um=_necrosis(patient, epithelium, perfused_um, dead),
        keratin=keratin,
        calcified=np.clip(-body.distance_um(*warped) / 9, 0, 1),
        mucin=(infiltrate + 0.3 * dead < 2.0 * (2 * kind.mucin - 1)) & (kind.mucin > 0) & tumour,
        debris=tumour & (dead > ndtri(1 - min(6 * patient.necrosis, 0.9))),
        vessel_um=vessel_um,
        perfused_um=perfused_um,
        fat_um=fat.distance_um(x_um, y_um),
        aggregate_um=aggregate_um,
        collagen=np.where(edge_um < 20, kind.desmoplasia, -0.1) + 0.28 * patient.trait("fibrosis") - 0.1,
        axis=axis, fibre_angle=fibre,
        infiltrate=infiltrate, proliferation=proliferation, pigment=pigment, vessels=vessels, fat=fat,
    )  # fmt: skip

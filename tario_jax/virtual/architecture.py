"""The ground plan of a section: where tumour, stroma, glands, vessels and lymphoid aggregates lie."""

import dataclasses

import numpy as np
from scipy import ndimage, spatial
from scipy.special import ndtri

from tario_jax.virtual.fields import FieldBasis
from tario_jax.virtual.patients import Patient

GRID_UM = 4.0
EPITHELIUM_UM = 12.0  # height of a glandular epithelium
COMPARTMENT_SIGMA_UM = {"LUAD": 75.0, "BRCA": 60.0, "SKCM": 90.0}


@dataclasses.dataclass(frozen=True)
class Discs:
    """Round things: centres and radii in µm."""

    x_um_K: np.ndarray
    y_um_K: np.ndarray
    radius_um_K: np.ndarray

    def __len__(self) -> int:
        return len(self.radius_um_K)

    def distance_um(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """From each place to the nearest border, negative inside; 1,000 where there is no disc."""
        if not len(self):
            return np.full(np.shape(x_um), 1000.0)
        nearest = min(4, len(self))
        tree = spatial.cKDTree(np.stack([self.x_um_K, self.y_um_K], 1))
        distance, which = tree.query(np.stack([x_um, y_um], -1), k=[*range(1, nearest + 1)])
        return (distance - self.radius_um_K[which]).min(-1)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Grids of GRID_UM, [rows, columns]; all of it shows in the H&E."""

    section_um: float
    tumour: np.ndarray  # bool: tumour epithelium or sheet
    normal: np.ndarray  # bool: epithelium of a normal duct
    lumen: np.ndarray  # bool: space within glands and ducts
    gland_um: np.ndarray  # distance to the border of the nearest gland, duct or nest; negative inside
    border_um: np.ndarray  # distance to the nearest change between tumour and stroma
    vessel_um: np.ndarray  # distance to the nearest vessel wall; negative in its lumen
    aggregate_um: np.ndarray  # distance to the border of the nearest lymphoid aggregate; negative inside
    infiltrate: np.ndarray  # N(0, 1): where immune cells are more or fewer
    proliferation: np.ndarray  # N(0, 1): where tumour cells divide
    pigment: np.ndarray  # N(0, 1): where melanin lies
    fibre_angle: np.ndarray  # radians
    vessels: Discs
    aggregates: Discs


def _scatter(rng: np.random.Generator, section_um: float, per_mm2: float, margin_um: float) -> np.ndarray:
    """Places of a Poisson process on the section and a margin around it, float64 [K, 2] (x, y)."""
    side_um = section_um + 2 * margin_um
    return rng.uniform(-margin_um, section_um + margin_um, (rng.poisson(per_mm2 * side_um**2 * 1e-6), 2))


def _jittered(rng: np.random.Generator, section_um: float, pitch_um: float) -> np.ndarray:
    """Places of a jittered hexagonal lattice over the section and one pitch around it, float64 [K, 2] (x, y)."""
    count = int(section_um / pitch_um) + 4
    column, row = np.meshgrid(np.arange(count), np.arange(int(count * 1.16)))
    places = np.stack([column + 0.5 * (row % 2), row * 0.866], -1).reshape(-1, 2) * pitch_um - 1.5 * pitch_um
    return places + rng.uniform(-0.27, 0.27, places.shape) * pitch_um


def build_architecture(patient: Patient, section_um: float, rng: np.random.Generator) -> Architecture:
    """Draws the ground plan of one section."""
    centre_um = (np.arange(int(np.ceil(section_um / GRID_UM))) + 0.5) * GRID_UM
    x_um, y_um = np.meshgrid(centre_um, centre_um)

    broad = FieldBasis(COMPARTMENT_SIGMA_UM[patient.cohort], section_um)
    compartment = broad.on_grid(GRID_UM, broad.noise(rng, 1))[..., 0]
    middle = FieldBasis(45.0, section_um)
    infiltrate, proliferation, pigment, angle_a, angle_b, solid = np.moveaxis(
        middle.on_grid(GRID_UM, middle.noise(rng, 6)), -1, 0
    )
    fine = FieldBasis(16.0, section_um)
    warp_x, warp_y, nest = np.moveaxis(fine.on_grid(GRID_UM, fine.noise(rng, 3)), -1, 0)
    warped = x_um + 4 * warp_x, y_um + 4 * warp_y  # nothing in tissue is a circle

    region = compartment + 0.15 * nest > -ndtri(patient.tumour_share)
    lumen = np.zeros_like(region)
    gland_um = np.full(region.shape, 1000.0)
    if patient.cohort == "LUAD":
        places = _jittered(rng, section_um, 66.0)
        glands = Discs(*places.T, rng.uniform(22, 39, len(places)))
        gland_um = glands.distance_um(*warped)
        open_gland = solid < ndtri(0.3 + 0.65 * patient.lumen)
        tumour = region & ((gland_um < 0) | ~open_gland)
        lumen = region & open_gland & (gland_um < -EPITHELIUM_UM)
    elif patient.cohort == "BRCA":
        tumour = region & (nest > -0.35)
    else:
        tumour = region & (np.abs(nest) > 0.07)

    ducts_xy = _scatter(rng, section_um, 9.0, 40.0)
    ducts = Discs(*ducts_xy.T, rng.uniform(16, 30, len(ducts_xy)))
    duct_um = ducts.distance_um(*warped)
    duct = (duct_um < 0) & ~ndimage.binary_dilation(region, iterations=3)
    normal = duct & (duct_um > -EPITHELIUM_UM + 1)
    lumen |= duct & ~normal
    gland_um = np.where(duct, duct_um, gland_um)
    tumour &= ~lumen

    # vessels keep to the stroma: of three proposed places the one farthest from tumour is taken
    inside_um = ndimage.distance_transform_edt(tumour, sampling=GRID_UM)
    outside_um = ndimage.distance_transform_edt(~tumour, sampling=GRID_UM)
    border_um = np.where(tumour, inside_um, outside_um)
    proposals = _scatter(rng, section_um, 3 * 75.0 * patient.vessel_density, 30.0)
    proposals = proposals[: len(proposals) // 3 * 3].reshape(-1, 3, 2)
    node = np.clip(proposals / GRID_UM, 0, len(centre_um) - 1).astype(np.int64)
    merit = (outside_um - inside_um)[node[..., 1], node[..., 0]] - 100 * lumen[node[..., 1], node[..., 0]]
    vessels_xy = proposals[np.arange(len(proposals)), merit.argmax(1)]
    vessels = Discs(*vessels_xy.T, np.clip(4.0 * np.exp(0.6 * rng.standard_normal(len(vessels_xy))), 2.5, 18))

    vessel_um = vessels.distance_um(x_um, y_um)
    lumen &= vessel_um > 16  # no vessel runs through a gland's lumen

    proposals = _scatter(rng, section_um, 6 * patient.aggregates_per_mm2, 60.0)
    proposals = proposals[: len(proposals) // 6 * 6].reshape(-1, 6, 2)
    node = np.clip(proposals / GRID_UM, 0, len(centre_um) - 1).astype(np.int64)
    merit = -np.abs((outside_um - inside_um)[node[..., 1], node[..., 0]] - 30)  # just outside the tumour
    aggregates_xy = proposals[np.arange(len(proposals)), merit.argmax(1)]
    aggregates = Discs(*aggregates_xy.T, rng.uniform(30, 75, len(aggregates_xy)))

    return Architecture(
        section_um, tumour, normal, lumen, gland_um, border_um,
        vessel_um=vessel_um,
        aggregate_um=aggregates.distance_um(x_um + 8 * warp_x, y_um + 8 * warp_y),
        infiltrate=infiltrate, proliferation=proliferation, pigment=pigment,
        fibre_angle=0.5 * np.arctan2(angle_b, angle_a), vessels=vessels, aggregates=aggregates,
    )  # fmt: skip

"""Nuclei and pigment, painted at the pixel size of the H&E."""

import numpy as np

from tario_jax.virtual.cells import Cells
from tario_jax.virtual.kinds import MYELOID, TUMOUR
from tario_jax.virtual.patients import Patient
from tario_jax.virtual.raster import ellipse_pixels, smooth_noise

# by look: density of haematoxylin; how pale the centre is; how coarse the chromatin
DENSITY = np.array([1.28, 1.28, 1.40, 1.40, 1.60, 1.45, 1.15, 1.5, 1.4], np.float32)
CLEARING = np.array([0.36, 0.28, 0.10, 0.05, 0.05, 0.15, 0.35, 0.05, 0.0], np.float32)
CLUMPS = np.array([0.26, 0.20, 0.18, 0.12, 0.20, 0.45, 0.20, 0.30, 0.05], np.float32)
MITOSIS_DENSITY = 2.8


def paint_nuclei(patient: Patient, cells: Cells, side_px: int, um_per_px: float,
                 rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Haematoxylin of the nuclei, float32 [side, side]: shape, size, chromatin and mitoses by look and state."""
    look, grade, kind = cells.look_N, patient.trait("grade"), patient.diagnosis
    tumour_N, living_N = look == TUMOUR, ~cells.necrotic_N
    # a plate of chromosomes, seen from the side
    semi_um_Nx2 = np.where(cells.mitosis_N[:, None], cells.nucleus_um_Nx2 * [0.95, 0.42], cells.nucleus_um_Nx2)
    density_N = DENSITY[look] * np.exp(0.10 * rng.standard_normal(len(cells)))
    density_N *= np.where(tumour_N, np.exp(0.09 * cells.state_NxV[:, 0] + 0.05 * grade), 1.0)
    # ghosts: faded, a few shrunk to a dark point
    shrunk_N = ~living_N & (rng.random(len(cells)) < 0.25)
    density_N *= np.where(living_N, 1.0, np.where(shrunk_N, 1.5, 0.30))
    semi_um_Nx2 = semi_um_Nx2 * np.where(shrunk_N, 0.55, 1.0)[:, None]
    density_N = np.where(cells.mitosis_N, MITOSIS_DENSITY, density_N).astype(np.float32)
    plain_N = cells.mitosis_N | ~living_N
    clearing_N = np.where(plain_N, 0, CLEARING[look] + 0.25 * tumour_N * (kind.nucleolus - 0.25)).astype(np.float32)
    clumps_N = (CLUMPS[look] * (1 + 0.25 * grade * tumour_N)).clip(0.05).astype(np.float32)
    nucleolus_N = np.where(tumour_N & (rng.random(len(cells)) < 0.75), 1.3 * kind.nucleolus, 0.0)
    nucleolus_N = (nucleolus_N * ~plain_N).astype(np.float32)
    spot_Nx2 = rng.uniform(-0.35, 0.35, (len(cells), 2)).astype(np.float32)
    lobe_N = rng.uniform(0, 2 * np.pi, len(cells)).astype(np.float32)
    irregular_N = np.where(tumour_N, 0.035 + 0.015 * (grade + 2), 0.03).clip(0.02, 0.09).astype(np.float32)

    which, pixel, u, v = ellipse_pixels(
        side_px, um_per_px, cells.x_um_N, cells.y_um_N, cells.angle_N, semi_um_Nx2, 1.22
    )
    out = np.sqrt(u * u + v * v)
    # outlines bulge: the third harmonic cos(3 (angle − lobe)), from powers of (u, v) without an arctangent
    cos3, sin3 = np.cos(3 * lobe_N), np.sin(3 * lobe_N)
    bulge = (u**3 - 3 * u * v * v) * cos3[which] + (3 * u * u * v - v**3) * sin3[which]
    out += irregular_N[which] * bulge / np.maximum(out, 0.3) ** 2
    edge = np.clip((1.06 - out) * 6, 0, 1)
    chromatin = 1 - clearing_N[which] * np.exp(-((out / 0.74) ** 4))
    chromatin += clumps_N[which] * smooth_noise(rng, side_px, 1.1).reshape(-1)[pixel]
    spot = (u - spot_Nx2[which, 0]) ** 2 + (v - spot_Nx2[which, 1]) ** 2
    painted = edge * (density_N[which] * np.maximum(chromatin, 0.25) + nucleolus_N[which] * np.exp(-spot * 20))
    haematoxylin = np.zeros(side_px * side_px, np.float32)
    np.maximum.at(haematoxylin, pixel, painted.astype(np.float32))
    return haematoxylin.reshape(side_px, side_px)


def paint_grains(cells: Cells, held_N: np.ndarray, amount: float, side_px: int, um_per_px: float,
                 rng: np.random.Generator) -> np.ndarray | None:  # fmt: skip
    """Density of a pigment in the cells that hold it, float32 [side, side], or None where none does."""
    held = np.flatnonzero(held_N)
    if not len(held):
        return None
    which, pixel, u, v = ellipse_pixels(
        side_px,
        um_per_px,
        cells.x_um_N[held],
        cells.y_um_N[held],
        cells.angle_N[held],
        1.1 * cells.cell_um_Nx2[held],
        1.0,
    )
    amount_K = np.where(cells.look_N[held] == MYELOID, 2.0, 1.0) * rng.uniform(0.3, 1.2, len(held))
    grains = rng.random(len(pixel), np.float32) ** 1.5
    layer = np.zeros(side_px * side_px, np.float32)
    out = u * u + v * v
    # around the nucleus rather than over it
    np.maximum.at(layer, pixel, (amount * amount_K[which]).astype(np.float32) * grains * (1 - out) * (0.35 + 1.5 * out))
    return layer.reshape(side_px, side_px)

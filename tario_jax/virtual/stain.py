"""H&E painted from the cells of a section, as optical densities of haematoxylin and eosin.

Densities are laid down per pixel, then turned into light by the patient's stain vectors (Ruifrok and Johnston 2001):
rgb = white · exp(−(H·h + E·e + pigments)). Then come the patient's lens, registration error, camera and compression.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from tario_jax.virtual.architecture import Architecture
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.ground import BROAD_UM_PER_PX, lay_ground
from tario_jax.virtual.kinds import MYELOID
from tario_jax.virtual.nuclei import paint_grains, paint_nuclei
from tario_jax.virtual.patients import Patient
from tario_jax.virtual.raster import bands, doubled, finer, smooth_noise

UM_PER_PX = 0.5
# optical densities in red, green and blue
OWN = np.array([0.06, 0.42, 0.62], np.float32)  # blood and keratin, beside the eosin that they take up
MELANIN = np.array([0.22, 0.55, 1.0], np.float32)  # brown: takes blue most
CARBON = np.array([1.0, 1.0, 0.98], np.float32)
THICKNESS_SD = 0.06  # of the section, from place to place


def _displaced(image_YxX: np.ndarray, shift_px_2: np.ndarray) -> np.ndarray:
    """The image moved by whole pixels (x, y); what comes in at a border is its mirror image."""
    right, down = (int(shift) for shift in np.round(shift_px_2))
    side = image_YxX.shape[0]
    kept = image_YxX[max(0, -down) : side - max(0, down), max(0, -right) : side - max(0, right)]
    return np.pad(kept, ((max(0, down), max(0, -down)), (max(0, right), max(0, -right))), "symmetric")


def draw_he(patient: Patient, plan: Architecture, cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """The section's H&E at UM_PER_PX, uint8 [H, W, 3].

    Stain, focus, scanner, compression and the displacement of the image against the cells (to the nearest pixel) are
    the patient's own.
    """
    stain = patient.stain
    side_px = int(round(plan.side_um / UM_PER_PX))
    ground = lay_ground(patient, plan, cells, -(-side_px // round(BROAD_UM_PER_PX / UM_PER_PX)), rng)
    nuclei = paint_nuclei(patient, cells, side_px, UM_PER_PX, rng)
    coarse_px = -(-side_px // 32)
    thickness = np.exp(THICKNESS_SD * finer(smooth_noise(rng, coarse_px, 4.0), 32, side_px))
    eosin, haematoxylin, own = (doubled(layer, side_px) for layer in (ground.eosin, ground.haematoxylin, ground.own))
    for band in bands(side_px):  # a nucleus leaves little room for what takes up eosin
        eosin[band] *= (1 - 0.45 * np.minimum(nuclei[band], 1)) * thickness[band]
        haematoxylin[band] = (haematoxylin[band] + nuclei[band]) * thickness[band]
    layers = [
        (haematoxylin, stain.haematoxylin * stain.vector_2x3[0]),
        (eosin, stain.eosin * stain.vector_2x3[1]),
        (own, OWN),
        (paint_grains(cells, cells.pigment_N, 2.2, side_px, UM_PER_PX, rng), MELANIN),
        (paint_grains(cells, _dusty(patient, cells, rng), 2.2, side_px, UM_PER_PX, rng), CARBON),
    ]
    layers = [(layer, vector) for layer, vector in layers if layer is not None]
    light_3xYxX = np.empty((3, side_px, side_px), np.float32)
    for band in bands(side_px):
        for channel in range(3):
            density = sum(layer[band] * np.float32(vector[channel]) for layer, vector in layers)
            light_3xYxX[channel, band] = np.float32(stain.white_3[channel]) * np.exp(-density)
    rgb = np.empty((side_px, side_px, 3), np.uint8)
    grain = np.float32(stain.noise) * rng.standard_normal((side_px, side_px), np.float32) + np.float32(0.5)
    for channel, light in enumerate(light_3xYxX):
        light = _displaced(ndimage.gaussian_filter(light, stain.focus_px, truncate=3.0), stain.shift_um_2 / UM_PER_PX)
        # the same grains in shifted order for each channel
        light += np.roll(grain, 7919 * channel)
        rgb[..., channel] = np.clip(light, 0, 255, out=light)
    return _compressed(rgb, stain.jpeg_quality)


def _dusty(patient: Patient, cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """Macrophages that hold the dust of the air."""
    return (cells.look_N == MYELOID) & (rng.random(len(cells)) < patient.diagnosis.carbon)


def _compressed(rgb: np.ndarray, quality: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))

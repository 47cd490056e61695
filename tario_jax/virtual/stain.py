"""H&E painted from the cells of a section, as optical densities of haematoxylin and eosin.

Densities are laid down per pixel, then turned into light by the stain vectors of `skimage.color` (Ruifrok and
Johnston 2001), each patient's own a little off: rgb = white · exp(−(H·h + E·e + melanin·m)).
"""

import numpy as np
from scipy import fft, ndimage
from skimage.color import rgb_from_hed

from tario_jax.virtual.architecture import GRID_UM, Architecture
from tario_jax.virtual.cells import MYELOID, TUMOUR, Cells
from tario_jax.virtual.patients import Patient

UM_PER_PX = 0.5
BROAD_UM_PER_PX = 1.0  # of cytoplasm and stroma, which have no finer detail
MELANIN = np.array([0.45, 0.62, 0.78])  # brown: takes blue most

# by look; optical density of the painted material at its densest
NUCLEUS_H = np.array([0.80, 0.85, 0.95, 0.95, 1.30, 1.15, 0.62, 1.15], np.float32)
CLEARING = np.array([0.45, 0.30, 0.10, 0.05, 0.05, 0.15, 0.35, 0.05], np.float32)  # pale centre of the nucleus
CLUMPS = np.array([0.30, 0.20, 0.20, 0.15, 0.18, 0.45, 0.20, 0.30], np.float32)  # coarseness of the chromatin
CYTOPLASM_E = np.array([0.50, 0.55, 0.55, 0.60, 0.22, 0.55, 0.42, 0.75], np.float32)
CYTOPLASM_H = np.array([0.08, 0.05, 0.02, 0.02, 0.05, 0.26, 0.04, 0.10], np.float32)
NUCLEOLUS = {"LUAD": 0.35, "BRCA": 0.25, "SKCM": 0.65}  # density added by a nucleolus of a tumour cell


def _ellipse_pixels(side_px: int, um_per_px: float, x_um_K, y_um_K, angle_K, semi_um_Kx2, reach: float):
    """Pixels in the boxes around K ellipses: which ellipse, flat pixel index, and place (u, v) in units of the
    semi-axes. Boxes go out to `reach` semi-axes; ellipses of like size are laid out together."""
    half_px_K = np.ceil(reach * semi_um_Kx2.max(1) / um_per_px).astype(np.int64)
    parts = []
    for low, high in ((0, 6), (6, 9), (9, 13), (13, 19), (19, 400)):
        group = np.flatnonzero((half_px_K > low) & (half_px_K <= high))
        if not len(group):
            continue
        half_px = half_px_K[group].max()
        step = np.arange(-half_px, half_px + 1)
        column = np.floor(x_um_K[group] / um_per_px).astype(np.int64)[:, None] + step
        row = np.floor(y_um_K[group] / um_per_px).astype(np.int64)[:, None] + step
        dx = ((column + 0.5) * um_per_px - x_um_K[group, None]).astype(np.float32)[:, None, :]
        dy = ((row + 0.5) * um_per_px - y_um_K[group, None]).astype(np.float32)[:, :, None]
        cos, sin = (f(angle_K[group]).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        semi = semi_um_Kx2[group].astype(np.float32)[:, :, None, None]
        u, v = (dx * cos + dy * sin) / semi[:, 0], (dy * cos - dx * sin) / semi[:, 1]
        inside = (u * u + v * v) < np.float32(reach**2)
        inside &= ((row >= 0) & (row < side_px))[:, :, None] & ((column >= 0) & (column < side_px))[:, None, :]
        which, at_row, at_column = np.nonzero(inside)
        parts.append((group[which], row[which, at_row] * side_px + column[which, at_column], u[inside], v[inside]))
    if not parts:
        return (np.zeros(0, np.int64),) * 2 + (np.zeros(0, np.float32),) * 2
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _noise(rng: np.random.Generator, side_px: int, sigma_px: float) -> np.ndarray:
    """Smooth noise of about unit variance, float32 [side, side]."""
    noise = ndimage.gaussian_filter(rng.standard_normal((side_px, side_px), np.float32), sigma_px, truncate=2.5)
    return noise * np.float32(2 * np.sqrt(np.pi) * sigma_px)


def _fibres(rng: np.random.Generator, angle: np.ndarray, length_px: float, width_px: float) -> np.ndarray:
    """Noise drawn out along the local angle, about unit variance: four fixed directions, blended."""
    side = angle.shape[0]
    # wavy: fibres swing about their direction
    angle = angle + 0.35 * _noise(rng, side, 9.0)
    spectrum = fft.rfft2(rng.standard_normal((side, side), np.float32))
    fy = fft.fftfreq(side).astype(np.float32)[:, None] * np.float32(2 * np.pi)
    fx = fft.rfftfreq(side).astype(np.float32)[None] * np.float32(2 * np.pi)
    total, weights = np.zeros_like(angle, np.float32), np.zeros_like(angle, np.float32)
    for direction in np.arange(4) * np.pi / 4:
        along, across = fx * np.cos(direction) + fy * np.sin(direction), fy * np.cos(direction) - fx * np.sin(direction)
        kernel = np.exp(-0.5 * ((along * length_px) ** 2 + (across * width_px) ** 2)).astype(np.float32)
        drawn = fft.irfft2(spectrum * kernel, s=(side, side))
        weight = np.maximum(np.cos(2 * (angle - direction)), 0).astype(np.float32) ** 2
        total += weight * drawn
        weights += weight**2
    return total / np.sqrt(weights) * np.float32(2 * np.sqrt(np.pi * length_px * width_px))


def _upscale(grid: np.ndarray, factor: int, side_px: int) -> np.ndarray:
    """A grid at a pixel size `factor` times smaller, linear between its centres, cropped to [side, side]."""
    fine = ndimage.zoom(grid.astype(np.float32), factor, order=1, grid_mode=True, mode="nearest")
    return fine[:side_px, :side_px]


def _broad_layers(patient: Patient, plan: Architecture, cells: Cells, side_px: int, rng: np.random.Generator):
    """Eosin and haematoxylin of stroma, cytoplasm and vessels at BROAD_UM_PER_PX, float32 [side, side] each."""
    factor = round(GRID_UM / BROAD_UM_PER_PX)
    epithelium = _upscale(plan.tumour | plan.normal, factor, side_px)
    lumen = _upscale(ndimage.gaussian_filter(plan.lumen.astype(np.float32), 1.0), factor, side_px)
    # empty where the plan says lumen, with a border that the apical cytoplasm makes
    lumen = np.clip((lumen - 0.36) * 5, 0, 1)
    vessel = np.clip(0.5 - _upscale(np.minimum(plan.vessel_um, 100), factor, side_px) / 1.5, 0, 1)
    twice = plan.fibre_angle * 2
    angle = 0.5 * np.arctan2(_upscale(np.sin(twice), factor, side_px), _upscale(np.cos(twice), factor, side_px))

    loose = _noise(rng, side_px, 9.0)
    fibre = _fibres(rng, angle, 12.0, 1.3) + 0.6 * _fibres(rng, angle, 22.0, 2.6)
    dense = {"LUAD": 0.0, "BRCA": 0.35, "SKCM": -0.1}[patient.cohort] + 0.25 * patient.trait("fibrosis")
    collagen = 0.42 * np.exp(0.45 * dense) * np.clip(0.75 + 0.36 * fibre + 0.16 * loose + 0.3 * dense, 0.04, 1.9)
    # packed lymphocytes leave little room for collagen
    collagen *= 1 - 0.6 * np.clip(0.5 - _upscale(np.minimum(plan.aggregate_um, 200), factor, side_px) / 12, 0, 1)

    e_N = CYTOPLASM_E[cells.look_N] * np.exp(-0.28 * cells.state_NxV[:, 1])  # hypoxic cytoplasm is paler
    h_N = CYTOPLASM_H[cells.look_N]
    which, pixel, u, v = _ellipse_pixels(
        side_px, BROAD_UM_PER_PX, cells.x_um_N, cells.y_um_N, cells.angle_N, cells.cell_um_Nx2, 1.35
    )
    near = np.exp(-1.6 * (u * u + v * v) ** 2)
    area = side_px * side_px
    covered = np.bincount(pixel, near, area).astype(np.float32).reshape(side_px, side_px)
    with np.errstate(invalid="ignore", divide="ignore"):
        eosin = np.bincount(pixel, near * e_N[which], area).reshape(side_px, side_px) / covered
        haematoxylin = np.bincount(pixel, near * h_N[which], area).reshape(side_px, side_px) / covered
    eosin = np.where(covered > 0, eosin, 0).astype(np.float32)
    haematoxylin = np.where(covered > 0, haematoxylin, 0).astype(np.float32)
    cover = 1 - np.exp(-1.8 * covered)
    granular = 1 + 0.10 * _noise(rng, side_px, 1.0) + 0.08 * _noise(rng, side_px, 4.0)
    # between epithelial cells there is membrane and a little cleft, between stromal cells collagen
    ground = epithelium * 0.28 + (1 - epithelium) * collagen
    eosin = (cover * eosin + (1 - cover) * ground) * granular
    open_ = (1 - lumen * (1 - 0.5 * cover)) * (1 - vessel)
    eosin = np.maximum(eosin * open_, 0.015)
    haematoxylin = haematoxylin * cover * open_ * granular + 0.02

    vessels = plan.vessels
    count_K = rng.poisson(0.020 * np.pi * np.maximum(vessels.radius_um_K - 1.5, 0) ** 2)
    owner = np.repeat(np.arange(len(vessels)), count_K)
    turn, out = rng.uniform(0, 2 * np.pi, len(owner)), np.sqrt(rng.random(len(owner)))
    out *= np.maximum(vessels.radius_um_K[owner] - 2.5, 0.1)
    x_um, y_um = vessels.x_um_K[owner] + out * np.cos(turn), vessels.y_um_K[owner] + out * np.sin(turn)
    _, pixel, u, v = _ellipse_pixels(
        side_px, BROAD_UM_PER_PX, x_um, y_um, np.zeros(len(owner)), np.full((len(owner), 2), 3.0), 1.1
    )
    np.maximum.at(eosin.reshape(-1), pixel, (0.95 * (1.05 - (u * u + v * v) ** 3).clip(0, 1)).astype(np.float32))
    return eosin, haematoxylin


def _nuclei(patient: Patient, cells: Cells, side_px: int, rng: np.random.Generator) -> np.ndarray:
    """Haematoxylin of the nuclei at UM_PER_PX, float32 [side, side]."""
    look, grade = cells.look_N, patient.trait("grade")
    tumour_N = look == TUMOUR
    semi_um_Nx2 = np.where(cells.mitosis_N[:, None], cells.nucleus_um_Nx2 * [0.95, 0.42], cells.nucleus_um_Nx2)
    density_N = NUCLEUS_H[look] * np.exp(0.10 * rng.standard_normal(len(cells)))
    density_N *= np.where(tumour_N, np.exp(0.10 * cells.state_NxV[:, 0] + 0.05 * grade), 1.0)
    density_N = np.where(cells.mitosis_N, 1.9, density_N).astype(np.float32)
    clearing_N = np.where(cells.mitosis_N, 0, CLEARING[look]).astype(np.float32)
    clumps_N = (CLUMPS[look] * (1 + 0.25 * grade * tumour_N)).astype(np.float32)
    nucleolus_N = np.where(tumour_N & (rng.random(len(cells)) < 0.75), NUCLEOLUS[patient.cohort], 0.0)
    nucleolus_N = (nucleolus_N * ~cells.mitosis_N).astype(np.float32)
    spot_Nx2 = rng.uniform(-0.4, 0.4, (len(cells), 2)).astype(np.float32)
    lobe_N = rng.uniform(0, 2 * np.pi, len(cells)).astype(np.float32)
    irregular_N = np.where(tumour_N, 0.05 + 0.02 * (grade + 2), 0.03).astype(np.float32)

    which, pixel, u, v = _ellipse_pixels(
        side_px, UM_PER_PX, cells.x_um_N, cells.y_um_N, cells.angle_N, semi_um_Nx2, 1.22
    )
    out = np.sqrt(u * u + v * v)
    # outlines bulge: the third harmonic cos(3 (angle − lobe)), from powers of (u, v) without an arctangent
    cos3, sin3 = np.cos(3 * lobe_N), np.sin(3 * lobe_N)
    bulge = (u**3 - 3 * u * v * v) * cos3[which] + (3 * u * u * v - v**3) * sin3[which]
    out += irregular_N[which] * bulge / np.maximum(out, 0.3) ** 2
    edge = np.clip((1.06 - out) * 6, 0, 1)
    chromatin = 1 - clearing_N[which] * np.exp(-((out / 0.72) ** 4))
    texture = _noise(rng, side_px, 1.1).reshape(-1)[pixel]
    chromatin += clumps_N[which] * texture
    spot = (u - spot_Nx2[which, 0]) ** 2 + (v - spot_Nx2[which, 1]) ** 2
    painted = edge * (density_N[which] * np.maximum(chromatin, 0.25) + nucleolus_N[which] * np.exp(-spot * 22))
    haematoxylin = np.zeros(side_px * side_px, np.float32)
    np.maximum.at(haematoxylin, pixel, painted)
    return haematoxylin.reshape(side_px, side_px)


def _melanin(cells: Cells, side_px: int, rng: np.random.Generator) -> np.ndarray | None:
    """Density of melanin at UM_PER_PX, or None where no cell holds any."""
    held = np.flatnonzero(cells.pigment_N)
    if not len(held):
        return None
    which, pixel, u, v = _ellipse_pixels(
        side_px, UM_PER_PX, cells.x_um_N[held], cells.y_um_N[held], cells.angle_N[held], cells.cell_um_Nx2[held], 1.0
    )
    amount = (np.where(cells.look_N[held] == MYELOID, 1.3, 0.6) * rng.uniform(0.3, 1.2, len(held))).astype(np.float32)
    grains = rng.random(len(pixel), np.float32) ** 2
    melanin = np.zeros(side_px * side_px, np.float32)
    np.maximum.at(melanin, pixel, amount[which] * grains * (1 - (u * u + v * v)))
    return melanin.reshape(side_px, side_px)


def draw_he(patient: Patient, plan: Architecture, cells: Cells, rng: np.random.Generator) -> np.ndarray:
    """The section's H&E at UM_PER_PX, uint8 [H, W, 3]. Stain, thickness, focus and scanner are the patient's own."""
    side_px = int(round(plan.section_um / UM_PER_PX))
    broad_px = -(-side_px // 2)
    eosin, haematoxylin = (_upscale(layer, 2, side_px) for layer in _broad_layers(patient, plan, cells, broad_px, rng))
    nuclei = _nuclei(patient, cells, side_px, rng)
    eosin *= 1 - 0.45 * np.minimum(nuclei, 1)
    haematoxylin += nuclei
    thickness = np.exp(0.07 * _upscale(_noise(rng, -(-side_px // 32), 4.0), 32, side_px))
    focus_px = rng.uniform(0.55, 1.25)
    layers = [haematoxylin * np.exp(0.16 * rng.standard_normal()), eosin * np.exp(0.20 * rng.standard_normal())]
    vectors = [*(rgb_from_hed[:2] + 0.035 * rng.standard_normal((2, 3)))]
    melanin = _melanin(cells, side_px, rng)
    if melanin is not None:
        layers.append(melanin)
        vectors.append(MELANIN)
    layers = [ndimage.gaussian_filter(layer * thickness, focus_px, truncate=3.0) for layer in layers]
    vectors = np.clip(vectors, 0.02, None)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    white = (rng.uniform(236, 250) * np.exp(0.012 * rng.standard_normal(3))).clip(max=254).astype(np.float32)

    rgb = np.empty((side_px, side_px, 3), np.uint8)
    grain = rng.standard_normal((side_px, side_px), np.float32)
    for channel in range(3):
        density = sum(layer * vector[channel] for layer, vector in zip(layers, vectors, strict=True))
        light = white[channel] * np.exp(-density)
        # camera noise: the same grains in shifted order for each channel
        light += 1.6 * np.roll(grain, 7919 * channel)
        rgb[..., channel] = np.clip(light + 0.5, 0, 255)
    return rgb

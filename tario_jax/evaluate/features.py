"""Stain and texture features of a bin's surroundings: the strong, cheap control that a model has to beat.

Everything is a per-pixel map whose mean is taken over squares around the bins: maps are reduced to blocks of 4 px and
summed once, then any square costs four look-ups. Work is done at about 1 µm per px, where a nucleus is 6–10 px wide.
"""

import functools

import numpy as np
import scipy.ndimage
import scipy.sparse

from tario_jax.config import InputError

WORK_UM_PER_PX = 1.0
BLOCK_PX = 4
MARGIN_PX = 16  # around a crop, so that filters see no border
WHOLE_PX = 4_000_000  # larger images are read in crops around the places

# Ruifrok & Johnston, Anal Quant Cytol Histol 23 (2001): optical densities of haematoxylin, eosin, DAB in R, G, B.
STAINS_3x3 = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
H_LEVELS = np.array([0.02, 0.08, 0.15, 0.25, 0.4, 0.6, 0.9])
E_LEVELS = np.array([0.02, 0.08, 0.16, 0.28, 0.45, 0.7])
GLCM_STEPS = (1, 2, 4)
NUCLEUS_SIGMA_PX = 2.5
NUCLEUS_CONTRAST = 0.04  # of the smoothed haematoxylin over its surroundings, optical density


def surroundings_um(size_um: float) -> tuple[float, float]:
    """Sides of the two squares that are described: the bin and three times its side; 1.12 and 2.24 for spots.

    Spots (80 µm and wider) lie apart, so their wider square ends about where the next spot begins.
    """
    return (1.12 * size_um, 2.24 * size_um) if size_um >= 80 else (size_um, 3.0 * size_um)


def section_features(
    he: np.ndarray, he_um_per_px: float, x_um_N: np.ndarray, y_um_N: np.ndarray, size_um: float
) -> tuple[np.ndarray, np.ndarray]:
    """Features of the surroundings of N places, and the nuclear density there.

    he: uint8 [H, W, 3]; places are centres in µm from the image's top left corner; size_um is the bin's side or the
    spot's diameter. Returns float32 [N, F] and float32 [N]: the share of the inner square that nuclei cover (on real
    spots it follows the counts better than a count of blobs, which merges crowded nuclei). Squares that reach over the
    image's edge are averaged over the part inside; a place outside raises `InputError`.
    """
    x_um_N, y_um_N = np.asarray(x_um_N, np.float64), np.asarray(y_um_N, np.float64)
    if not len(x_um_N):
        he = he[:64, :64]  # enough for the names and shapes of nothing
    height_um, width_um = he.shape[0] * he_um_per_px, he.shape[1] * he_um_per_px
    outside = (x_um_N < 0) | (y_um_N < 0) | (x_um_N > width_um) | (y_um_N > height_um)
    if outside.any():
        raise InputError(f"{outside.sum()} of {len(outside)} places lie outside the H&E of {width_um:.0f} × "
                         f"{height_um:.0f} µm; check the section's registration")  # fmt: skip
    sides_um = surroundings_um(size_um)
    # Never finer than the image; coarser than 1 µm per px only where the image is.
    work_um_per_px = max(he_um_per_px, WORK_UM_PER_PX)
    if height_um * width_um / work_um_per_px**2 <= WHOLE_PX:
        maps = feature_maps(_resize(he, he_um_per_px, work_um_per_px))
        pooled = _pool(maps, work_um_per_px, x_um_N, y_um_N, sides_um)
    else:
        margin_um = sides_um[1] / 2 + MARGIN_PX * work_um_per_px
        parts = []
        for x_um, y_um in zip(x_um_N, y_um_N, strict=True):
            left, top = (max(int((v - margin_um) / he_um_per_px), 0) for v in (x_um, y_um))
            right, bottom = (int(np.ceil((v + margin_um) / he_um_per_px)) for v in (x_um, y_um))
            crop = he[top:bottom, left:right]
            here_um = np.array([x_um - left * he_um_per_px]), np.array([y_um - top * he_um_per_px])
            maps = feature_maps(_resize(crop, he_um_per_px, work_um_per_px))
            parts.append(_pool(maps, work_um_per_px, *here_um, sides_um))
        pooled = [np.concatenate([part[k] for part in parts]) for k in range(len(sides_um))]
    names = _map_names()
    features_NxF = np.concatenate([_derive(means_NxM, names) for means_NxM in pooled], 1)
    density_N = pooled[0][:, names.index("nucleus")]
    return features_NxF.astype(np.float32), density_N.astype(np.float32)


def mean_features(rgb: np.ndarray, um_per_px: float) -> np.ndarray:
    """The features of a whole image, float64 [F] by `feature_names`. rgb: uint8 [H, W, 3]."""
    maps = feature_maps(_resize(rgb, um_per_px, max(um_per_px, WORK_UM_PER_PX)))
    return _derive(maps.mean((1, 2), dtype=np.float64)[None], _map_names())[0]


def feature_maps(rgb: np.ndarray) -> np.ndarray:
    """Per-pixel maps of an image at about 1 µm per px, reduced to blocks of 4 px: float32 [M, rows, columns].

    rgb: float32 [H, W, 3] in 0 … 255. Blocks at the right and lower edge are padded by repeating the last pixel.
    """
    height, width = rgb.shape[:2]
    rgb = np.pad(rgb, ((0, -height % BLOCK_PX), (0, -width % BLOCK_PX), (0, 0)), mode="edge")
    density = -np.log10(np.maximum(rgb, 1.0) / 255.0)
    stains = density @ _unmixing()
    h, e, d = (np.ascontiguousarray(stains[..., k]) for k in range(3))
    h_px, e_px = np.maximum(h, 0.0), np.maximum(e, 0.0)
    maps = []
    share_of_px = np.full(BLOCK_PX, 1 / BLOCK_PX**2, np.float32)

    def add(values):
        rows, columns = values.shape[0] // BLOCK_PX, values.shape[1] // BLOCK_PX
        summed = values.reshape(rows, BLOCK_PX, -1).sum(1, dtype=np.float32)  # ten times as fast as a mean over both
        maps.append((summed.reshape(-1, BLOCK_PX) @ share_of_px).reshape(rows, columns))

    for stain in (h, e, d):
        add(stain)
        add(stain * stain)
    add(h_px * h_px * h_px)
    for values, levels in ((h_px, H_LEVELS), (e_px, E_LEVELS)):
        # Soft histogram: each pixel is shared linearly between the two levels around it.
        place = np.interp(values, levels, np.arange(len(levels), dtype=np.float32)).astype(np.float32)
        for level in range(len(levels)):
            add(np.maximum(1.0 - np.abs(place - level), 0.0))
    smooth = {sigma: scipy.ndimage.gaussian_filter(h, sigma, truncate=3.0) for sigma in (1.0, 2.5, 5.0)}
    smooth_e = scipy.ndimage.gaussian_filter(e, 2.5, truncate=3.0)
    for values in (h, e, smooth[2.5], smooth_e):
        down, across = np.diff(values, axis=0, append=values[-1:]), np.diff(values, axis=1, append=values[:, -1:])
        add(np.abs(down) + np.abs(across))
    for fine, coarse in ((h, smooth[1.0]), (smooth[1.0], smooth[2.5]), (smooth[2.5], smooth[5.0])):
        difference = fine - coarse
        add(difference * difference)
        add(np.maximum(difference, 0.0))
    blob = smooth[NUCLEUS_SIGMA_PX] - smooth[5.0]
    nucleus = ((blob > 0.0) & (smooth[1.0] > smooth[5.0] + NUCLEUS_CONTRAST)).astype(np.float32)
    peak = (blob == scipy.ndimage.maximum_filter(blob, 5)) & (blob > NUCLEUS_CONTRAST / 2)
    add(peak.astype(np.float32))
    add(nucleus)
    add(nucleus * h)
    add(nucleus * e)
    add(nucleus * h * h)
    for pattern in _local_binary_patterns(h):
        add(pattern)
    for step in GLCM_STEPS:
        # The last pixel repeats: rolling around would compare opposite edges of the tissue.
        right = np.concatenate([h[:, step:], np.repeat(h[:, -1:], step, 1)], 1)
        below = np.concatenate([h[step:], np.repeat(h[-1:], step, 0)], 0)
        add(((h - right) ** 2 + (h - below) ** 2) / 2)
        add((1 / (1 + np.abs(h - right) * 10) + 1 / (1 + np.abs(h - below) * 10)) / 2)
        add((h * right + h * below) / 2)
    return np.stack(maps)


@functools.cache
def _map_names() -> list[str]:
    """Names of the maps, in their order."""
    names = [f"{stain}{power}" for stain in "hed" for power in ("", "²")] + ["h³"]
    names += [f"h_level{k}" for k in range(len(H_LEVELS))] + [f"e_level{k}" for k in range(len(E_LEVELS))]
    names += ["edge_h", "edge_e", "edge_smooth_h", "edge_smooth_e"]
    names += [f"{kind}{k}" for k in range(3) for kind in ("band_energy", "band_positive")]
    names += ["nuclei", "nucleus", "nucleus_h", "nucleus_e", "nucleus_h²"]
    names += [f"lbp{k}" for k in range(10)]
    names += [f"{kind}{step}" for step in GLCM_STEPS for kind in ("contrast", "homogeneity", "product")]
    return names


def _derive(means_NxM: np.ndarray, names: list[str]) -> np.ndarray:
    """Means of maps to features: standard deviations, skewness, correlations and values within nuclei."""
    mean = {name: means_NxM[:, k] for k, name in enumerate(names)}
    sd = {stain: np.sqrt(np.maximum(mean[f"{stain}²"] - mean[stain] ** 2, 1e-10)) for stain in "hed"}
    area = np.maximum(mean["nucleus"], 1e-3)
    derived = [
        *sd.values(),
        (mean["h³"] - 3 * mean["h"] * mean["h²"] + 2 * mean["h"] ** 3) / np.maximum(sd["h"], 1e-2) ** 3,
        mean["nucleus_h"] / area,
        mean["nucleus_e"] / area,
        np.sqrt(np.maximum(mean["nucleus_h²"] / area - (mean["nucleus_h"] / area) ** 2, 0.0)),
        (mean["h"] - mean["nucleus_h"]) / np.maximum(1 - mean["nucleus"], 1e-2),
        (mean["e"] - mean["nucleus_e"]) / np.maximum(1 - mean["nucleus"], 1e-2),
        np.log(area / np.maximum(mean["nuclei"], 1e-4)),
        np.log(mean["nuclei"] + 1e-3),
        np.log(np.maximum(mean["h"], 0) + 1e-2),
        np.log(np.maximum(mean["e"], 0) + 1e-2),
    ]
    derived += [np.log(mean[f"band_energy{k}"] + 1e-6) for k in range(3)]
    derived += [np.log(mean[f"contrast{step}"] + 1e-6) for step in GLCM_STEPS]
    derived += [(mean[f"product{step}"] - mean["h"] ** 2) / np.maximum(sd["h"] ** 2, 1e-4) for step in GLCM_STEPS]
    kept = [mean[name] for name in names if name not in _MEANS_LEFT_OUT]
    return np.stack(kept + derived, 1)


_MEANS_LEFT_OUT = ("h²", "e²", "d²", "h³", "nucleus_h²", *(f"product{step}" for step in GLCM_STEPS))
_DERIVED = ("sd h", "sd e", "sd d", "skewness h", "h of nuclei", "e of nuclei", "sd h of nuclei", "h between nuclei",
            "e between nuclei", "log nuclear area", "log nuclei", "log h", "log e",
            *(f"log band_energy{k}" for k in range(3)), *(f"log contrast{step}" for step in GLCM_STEPS),
            *(f"correlation{step}" for step in GLCM_STEPS))  # fmt: skip


def feature_names() -> tuple[str, ...]:
    """Of what `mean_features` gives, in its order; `section_features` gives them for one square and then the other."""
    return (*(name for name in _map_names() if name not in _MEANS_LEFT_OUT), *_DERIVED)


@functools.cache
def _unmixing() -> np.ndarray:
    """Optical density in R, G, B → amounts of the three stains, float32 [3, 3]."""
    unit_3x3 = STAINS_3x3 / np.linalg.norm(STAINS_3x3, axis=1, keepdims=True)
    return np.linalg.inv(unit_3x3).astype(np.float32)


def _local_binary_patterns(values: np.ndarray) -> list[np.ndarray]:
    """Ten 0/1 maps: uniform patterns by their number of brighter neighbours (0–8), and the rest.

    Ojala, Pietikäinen & Mäenpää, IEEE TPAMI 24 (2002), at 8 neighbours of the pixel grid.
    """
    padded = np.pad(values, 1, mode="edge")
    height, width = values.shape
    code = np.zeros(values.shape, np.uint8)
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    for bit, (down, right) in enumerate(ring):
        # A neighbour must be clearly darker in stain: flat background would otherwise be a pattern of JPEG noise.
        brighter = padded[down : down + height, right : right + width] > values + 0.01
        code |= brighter.view(np.uint8) << bit
    pattern = _uniform_class()[code]
    return [(pattern == k).astype(np.float32) for k in range(10)]


@functools.cache
def _uniform_class() -> np.ndarray:
    """Class 0–9 of each 8-bit ring: its number of ones where it changes at most twice around, else 9."""
    bits_256x8 = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits_256x8 != np.roll(bits_256x8, 1, axis=1)).sum(1)
    return np.where(changes <= 2, bits_256x8.sum(1), 9).astype(np.uint8)


def _resize(rgb: np.ndarray, um_per_px: float, to_um_per_px: float) -> np.ndarray:
    """Area-weighted resampling to a coarser grid, float32; the image itself where the scales are the same."""
    if abs(to_um_per_px / um_per_px - 1) < 1e-6:
        return rgb.astype(np.float32)
    height, width = rgb.shape[:2]
    down = _area_weights(height, to_um_per_px / um_per_px)
    across = _area_weights(width, to_um_per_px / um_per_px)
    rows = (down @ rgb.reshape(height, -1).astype(np.float32)).reshape(down.shape[0], width, 3)
    turned = np.ascontiguousarray(rows.transpose(1, 0, 2)).reshape(width, -1)
    return (across @ turned).reshape(across.shape[0], down.shape[0], 3).transpose(1, 0, 2)


@functools.lru_cache(64)
def _area_weights(size: int, factor: float) -> scipy.sparse.csr_array:
    """Row i averages pixels over [i·factor, (i+1)·factor), sparse float32 [ceil(size/factor), size]."""
    number = max(int(np.ceil(size / factor - 1e-9)), 1)
    low = np.arange(number) * factor
    high = np.minimum(low + factor, size)
    entries = []
    for row in range(number):
        for column in range(int(low[row]), int(np.ceil(high[row] - 1e-9))):
            share = min(high[row], column + 1) - max(low[row], column)
            entries.append((row, column, share / (high[row] - low[row])))
    row, column, share = (np.array(part) for part in zip(*entries, strict=True))
    return scipy.sparse.csr_array((share.astype(np.float32), (row, column)), shape=(number, size))


def _pool(
    maps: np.ndarray, um_per_px: float, x_um_N: np.ndarray, y_um_N: np.ndarray, sides_um: tuple[float, ...]
) -> list[np.ndarray]:
    """Mean of each map over squares around the places, one float64 [N, M] for each side."""
    count, rows, columns = maps.shape
    summed = np.zeros((count, rows + 1, columns + 1))
    np.cumsum(np.cumsum(maps, axis=1, dtype=np.float64), axis=2, out=summed[:, 1:, 1:])
    x_N, y_N = (v / (um_per_px * BLOCK_PX) for v in (x_um_N, y_um_N))
    means = []
    for side_um in sides_um:
        half = side_um / (2 * um_per_px * BLOCK_PX)
        left, right = np.clip(x_N - half, 0, columns), np.clip(x_N + half, 0, columns)
        top, bottom = np.clip(y_N - half, 0, rows), np.clip(y_N + half, 0, rows)
        area_N = np.maximum((right - left) * (bottom - top), 1e-9)
        lower = _at(summed, bottom, right) - _at(summed, bottom, left)
        upper = _at(summed, top, right) - _at(summed, top, left)
        means.append(((lower - upper) / area_N).T)
    return means


def _at(summed: np.ndarray, y_N: np.ndarray, x_N: np.ndarray) -> np.ndarray:
    """The summed maps at fractional block corners, bilinear (exact for maps constant within a block), [M, N]."""
    row = np.minimum(y_N.astype(int), summed.shape[1] - 2)
    column = np.minimum(x_N.astype(int), summed.shape[2] - 2)
    down, across = y_N - row, x_N - column
    return (
        summed[:, row, column] * (1 - down) * (1 - across)
        + summed[:, row + 1, column] * down * (1 - across)
        + summed[:, row, column + 1] * (1 - down) * across
        + summed[:, row + 1, column + 1] * down * across
    )

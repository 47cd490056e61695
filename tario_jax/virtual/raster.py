"""Pixels: grids made finer, smooth and fibrous noise, and the pixels of ellipses."""

import numpy as np
from scipy import ndimage

BAND_PX = 32
"""Rows that are worked on together: few enough to stay in the processor's cache."""


def bands(side_px: int) -> list[slice]:
    """The rows of an image, BAND_PX at a time."""
    return [slice(first, min(first + BAND_PX, side_px)) for first in range(0, side_px, BAND_PX)]


def finer(grid_YxX: np.ndarray, factor: int, side_px: int) -> np.ndarray:
    """A grid at a pixel `factor` times smaller, cubic between its centres (Catmull–Rom), float32 [side, side]."""
    grid = np.pad(grid_YxX.astype(np.float32), 2, "edge")
    rows, columns = grid_YxX.shape
    across = np.empty((rows + 4, columns * factor), np.float32)
    layer = np.empty((rows * factor, columns * factor), np.float32)
    phases = [_cubic((phase + 0.5) / factor - 0.5) for phase in range(factor)]
    for phase, (first, weights) in enumerate(phases):
        across[:, phase::factor] = sum(w * grid[:, first + k : first + k + columns] for k, w in enumerate(weights))
    for band in bands(rows):
        part = across[band.start : band.stop + 4]
        for phase, (first, weights) in enumerate(phases):
            layer[band.start * factor + phase : band.stop * factor : factor] = sum(
                w * part[first + k : first + k + band.stop - band.start] for k, w in enumerate(weights)
            )
    return layer[:side_px, :side_px]


def _cubic(place: float) -> tuple[int, np.ndarray]:
    """The first of five neighbours that a place −0.5 to 0.5 grid cells off the middle one reads, and four weights."""
    first = int(np.floor(place))
    t = place - first
    weights = 0.5 * np.array(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], np.float32
    )
    return first + 1, weights


def doubled(layer_YxX: np.ndarray, side_px: int) -> np.ndarray:
    """A layer at half the pixel size, linear between the centres of its pixels, cropped to [side, side]."""
    rows, columns = layer_YxX.shape
    wide = np.empty((rows, 2 * columns), np.float32)
    wide[:, 0::2] = 0.75 * layer_YxX
    wide[:, 1::2] = wide[:, 0::2]
    quarter = 0.25 * layer_YxX
    wide[:, 2::2] += quarter[:, :-1]
    wide[:, 0] += quarter[:, 0]
    wide[:, 1:-1:2] += quarter[:, 1:]
    wide[:, -1] += quarter[:, -1]
    twice = np.empty((2 * rows, 2 * columns), np.float32)
    for band in bands(rows):
        middle = 0.75 * wide[band]
        before = np.maximum(np.arange(band.start, band.stop) - 1, 0)
        after = np.minimum(np.arange(band.start, band.stop) + 1, rows - 1)
        twice[2 * band.start : 2 * band.stop : 2] = middle + 0.25 * wide[before]
        twice[2 * band.start + 1 : 2 * band.stop : 2] = middle + 0.25 * wide[after]
    return twice[:side_px, :side_px]


def smooth_noise(rng: np.random.Generator, side_px: int, sigma_px: float) -> np.ndarray:
    """Smooth noise of about unit variance, float32 [side, side]."""
    noise = ndimage.gaussian_filter(rng.standard_normal((side_px, side_px), np.float32), sigma_px, truncate=2.5)
    return noise * np.float32(2 * np.sqrt(np.pi) * sigma_px)


def fibrous_noise(rng: np.random.Generator, angle_YxX: np.ndarray, length_px: float, width_px: float) -> np.ndarray:
    """Noise drawn out along the local angle, of unit variance: a line integral of smooth noise through each pixel."""
    side = angle_YxX.shape[0]
    reach_px = int(np.ceil(2 * length_px)) + 1
    wide = side + 2 * reach_px
    noise = smooth_noise(rng, wide, width_px).reshape(-1)
    step_px = 2.0 * width_px
    along_px = np.arange(-int(2 * length_px / step_px), int(2 * length_px / step_px) + 1) * step_px
    weight_K = np.exp(-0.5 * (along_px / length_px) ** 2)
    weight_K /= np.sqrt((weight_K**2).sum())
    total = np.zeros((side, side), np.float32)
    for band in bands(side):
        cos, sin = np.cos(angle_YxX[band]), np.sin(angle_YxX[band])
        row = np.arange(band.start, band.stop)[:, None] + reach_px
        middle = (row * wide + np.arange(side) + reach_px).astype(np.int32)
        for along, weight in zip(along_px, weight_K, strict=True):
            right, down = (np.rint(np.float32(along) * f).astype(np.int32) for f in (cos, sin))
            total[band] += np.float32(weight) * noise[middle + down * wide + right]
    return total


def ellipse_pixels(side_px: int, um_per_px: float, x_um_K, y_um_K, angle_K, semi_um_Kx2, reach: float):
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

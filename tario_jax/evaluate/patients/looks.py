"""How a section's H&E looks, without any model: stain and texture of its tissue, and what the scanner left in it.

The first is what a probe of the model's vectors has to beat, the second tells slides of one scanner from others.

Axes: S squares, F stain and texture features, A acquisition statistics.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter

from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.features import feature_names, mean_features
from tario_jax.predict.slide import SlideSection

SQUARES = 16  # of a section, evenly
_FURTHER = (1, 2, 4, 8)  # times as many, as long as fewer than half of SQUARES are tissue: a slide is mostly glass
LEAST_PX = 32
_SIDE_PX, _CODED_PX = 512, 8  # JPEG codes squares of 8 px: where it did, steps between them stay
_BRIGHTEST, _SMOOTHED_PX = 0.001, 7  # where no stain is; single pixels are noise
_SMOOTHEST = 0.02
_GLASS_DENSITY = 0.03  # mean optical density of a square that holds hardly any tissue

ACQUISITION = ("white, blue over red", "white, green over red", "white, level", "sharpness, 1 px over 2",
               "sharpness, 2 px over 4", "noise", "steps of JPEG blocks")  # fmt: skip


class Look(NamedTuple):
    """Means over a section's squares of tissue, float32."""

    texture_F: np.ndarray  # by `texture_names`
    acquisition_A: np.ndarray  # by ACQUISITION
    um_per_px: float  # of the H&E that was looked at: sharpness and noise of another scale are others


def texture_names() -> tuple[str, ...]:
    return feature_names()


def no_look() -> Look:
    """Of a region, or of what was measured: nothing is known."""
    return Look(*(np.full(len(names), np.nan, np.float32) for names in (texture_names(), ACQUISITION)), np.nan)


def look_of(section: Section | SlideSection) -> Look:
    """Of some SQUARES squares of 512 px, evenly over the section's H&E as it is stored; those of glass are left out.

    A square is smaller only where the section is; of one of fewer than LEAST_PX along a side, nothing is known.
    """
    height_px, width_px = section.he_shape_px
    if min(height_px, width_px) < LEAST_PX:
        return no_look()
    side_px, um_per_px = min(_SIDE_PX, height_px, width_px), section.he_um_per_px
    corners = [(row, column) for row in _starts(height_px, side_px) for column in _starts(width_px, side_px)]
    read_S: dict[int, tuple[np.ndarray, bool]] = {}
    for more in _FURTHER:
        for at in np.unique(np.linspace(0, len(corners) - 1, min(more * SQUARES, len(corners))).round().astype(int)):
            if at not in read_S:
                row, column = corners[at]
                rgb = section.he_window(column * um_per_px, row * um_per_px, side_px, um_per_px)
                read_S[at] = rgb, bool(-np.log10(np.maximum(rgb, 1) / 255.0).mean() > _GLASS_DENSITY)
        if sum(tissue for _, tissue in read_S.values()) >= SQUARES / 2:
            break
    kept = [rgb for rgb, tissue in read_S.values() if tissue] or [rgb for rgb, _ in read_S.values()]
    looks = [(mean_features(rgb, um_per_px), acquisition(rgb)) for rgb in kept]
    return Look(*(np.mean(of_S, 0).astype(np.float32) for of_S in zip(*looks, strict=True)), um_per_px)


def _starts(size_px: int, side_px: int) -> range:
    return range(0, size_px - side_px + 1, side_px)


def acquisition(rgb: np.ndarray) -> np.ndarray:
    """What lens, camera and file format left in an image, by ACQUISITION: float64 [A].

    rgb: uint8 [H, W, 3], its corner at a multiple of 8 px of the image that was coded. White is the brightest
    thousandth; sharpness the log ratio of mean squared differences over a px and over two, over two and over four;
    noise the log Laplacian where it is least; steps the log ratio of differences between blocks of 8 px and within.
    """
    light = rgb.astype(np.float32)
    smooth = uniform_filter(light, (_SMOOTHED_PX, _SMOOTHED_PX, 1)).reshape(-1, 3)
    least = smooth.min(1)
    white_3 = np.log(np.maximum(smooth[least >= np.quantile(least, 1 - _BRIGHTEST)].mean(0), 1.0) / 255)
    grey = light.mean(-1)
    step = {px: np.mean((grey[:, px:] - grey[:, :-px]) ** 2) + np.mean((grey[px:] - grey[:-px]) ** 2) + 1e-3
            for px in (1, 2, 4)}  # fmt: skip
    edge = np.abs(4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:])
    rows, columns = (size // _CODED_PX for size in edge.shape)
    block = edge[: rows * _CODED_PX, : columns * _CODED_PX].reshape(rows, _CODED_PX, columns, _CODED_PX).mean((1, 3))
    return np.array([
        white_3[2] - white_3[0], white_3[1] - white_3[0], white_3.mean(), np.log(step[1] / step[2]),
        np.log(step[2] / step[4]), np.log(np.quantile(block, _SMOOTHEST) + 0.1),
        (_block_step(grey) + _block_step(grey.T)) / 2,
    ], np.float64)  # fmt: skip


def _block_step(grey: np.ndarray) -> float:
    change = np.abs(np.diff(grey, axis=1)).mean(0) + 1e-3
    between = np.arange(len(change)) % _CODED_PX == _CODED_PX - 1
    return float(np.log(change[between].mean() / change[~between].mean()))

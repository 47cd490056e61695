"""The windows that cover an image, and what they say together: as `tario predict` does it, without turning any.

Axes: W windows, N squares of a window, S squares of the image, G genes.
"""

from typing import Any, NamedTuple

import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.resample import crop_and_resample
from tario_jax.predict.cover import BinPlaces, Blend, Placed, towards_middle
from tario_jax.serve.engine import Windows
from tario_jax.serve.refusal import Refusal
from tario_jax.tokens.window import grid_centres


class Squares(NamedTuple):
    """Squares of an image, row by row, and where those of each window go."""

    x_um_S: np.ndarray
    y_um_S: np.ndarray
    placed_W: list[Placed]


class _Extent(NamedTuple):
    """What places ask of a section."""

    width_um: float
    height_um: float
    id: str = "the image"


def squares_of_window(window_um: float, bin_um: float) -> int:
    return len(grid_centres(window_um, bin_um)[0])


def cover_image(image: np.ndarray, um_per_px: float, bin_um: float, window: dict[str, Any], overlap: float
                ) -> tuple[Windows, Squares]:  # fmt: skip
    """image: uint8 [H, W, 3]; window: as the bundle's signature names it; overlap: of neighbouring windows."""
    height_um, width_um = (size * um_per_px for size in image.shape[:2])
    places, corners = _places(width_um, height_um, bin_um, window, overlap)
    x_um_N, y_um_N = grid_centres(window["side_um"], bin_um)
    weight_N, (rows, columns) = towards_middle(x_um_N, y_um_N, window["side_um"]), places.number_YxX.shape
    placed = []
    for left_um, top_um in corners:
        column_N, row_N = (np.floor(at / bin_um).astype(int) for at in (x_um_N + left_um, y_um_N + top_um))
        slot_n = np.flatnonzero((column_N >= 0) & (column_N < columns) & (row_N >= 0) & (row_N < rows))
        number_n = places.number_YxX[row_N[slot_n], column_N[slot_n]]
        slot_n, number_n = slot_n[number_n >= 0], number_n[number_n >= 0]
        placed.append(Placed(slot_n, number_n, weight_N[slot_n]))
    he = np.stack([crop_and_resample(image, image.shape, um_per_px, *corner, window["side_px"], window["um_per_px"])
                   for corner in corners])  # fmt: skip
    xy_um_Nx2 = np.stack([x_um_N, y_um_N], 1).astype(np.float32)
    windows = Windows(he, np.broadcast_to(xy_um_Nx2, (len(corners), *xy_um_Nx2.shape)),
                      np.full((len(corners), len(xy_um_Nx2)), bin_um, np.float32))  # fmt: skip
    return windows, Squares(places.x_um_N, places.y_um_N, placed)


def windows_over(width_um: float, height_um: float, bin_um: float, window: dict[str, Any], overlap: float) -> int:
    """How many windows cover an image, before it is unpacked."""
    return len(_places(width_um, height_um, bin_um, window, overlap)[1])


def _places(width_um: float, height_um: float, bin_um: float, window: dict[str, Any], overlap: float):
    # a window of one tile, and that of one patch: places ask for no parts
    data = DataConfig(bin_um=bin_um, window_um=window["side_um"], tile_um=window["side_um"],
                      he_um_per_px=window["um_per_px"], patch_px=window["side_px"])  # fmt: skip
    try:
        places = BinPlaces(_Extent(width_um, height_um), data)
    except InputError:
        raise Refusal(422, f"the image is {width_um:.0f} x {height_um:.0f} µm; expected at least one square of "
                           f"{bin_um:g} µm") from None  # fmt: skip
    return places, places.corners(overlap)


def blended(squares: Squares, rates_WxNxG: np.ndarray) -> np.ndarray:
    """Means over windows at the squares of an image, weighed towards the middle of a window: float32 [S, G]."""
    blend = Blend(len(squares.x_um_S), rates_WxNxG.shape[2])
    for placed, rates_NxG in zip(squares.placed_W, rates_WxNxG, strict=True):
        blend.add(placed, rates_NxG)
    return blend.mean()

"""The windows that cover an image, and what they say together: as `tario predict` does it.

Axes: W windows, N squares of a window, S squares of the image, G genes.
"""

import math
from typing import NamedTuple

import numpy as np

from tario_jax.corpus.resample import crop_and_resample
from tario_jax.serve.engine import Windows
from tario_jax.serve.refusal import Refusal

_LEAST_SHARE = 0.9  # of a square that lies on the image


class Placed(NamedTuple):
    """Squares of an image, row by row, and where those of each window go."""

    x_um_S: np.ndarray
    y_um_S: np.ndarray
    number_WxN: np.ndarray  # of the square; S: it is none of the image's
    weight_N: np.ndarray  # 1 in the middle of a window, falling smoothly, never 0


def squares_of_window(window_um: float, bin_um: float) -> int:
    return int(window_um / bin_um + 1e-6) ** 2


def cover_image(image: np.ndarray, um_per_px: float, bin_um: float, window: dict, overlap: float
                ) -> tuple[Windows, Placed]:  # fmt: skip
    """image: uint8 [H, W, 3]; window: as the bundle's signature names it; overlap: of neighbouring windows."""
    height_um, width_um = (size * um_per_px for size in image.shape[:2])
    columns, rows = (int((extent + (1 - _LEAST_SHARE) * bin_um) / bin_um + 1e-6) for extent in (width_um, height_um))
    share_R, share_C = (np.minimum(extent / bin_um - np.arange(number), 1.0)
                        for extent, number in ((height_um, rows), (width_um, columns)))  # fmt: skip
    whole_RxC = np.outer(share_R, share_C) >= _LEAST_SHARE - 1e-6
    if not whole_RxC.any():
        raise Refusal(422, f"the image is {width_um:.0f} x {height_um:.0f} µm; expected at least one square of "
                           f"{bin_um:g} µm")  # fmt: skip
    row_S, column_S = np.nonzero(whole_RxC)
    number_RxC = np.full((rows, columns), len(row_S))
    number_RxC[row_S, column_S] = np.arange(len(row_S))
    held = int(window["side_um"] / bin_um + 1e-6)
    step = max(1, round(held * (1 - overlap)))
    corners = [(column, row) for row in _starts(rows, held, step) for column in _starts(columns, held, step)]
    line, column = (at.ravel() for at in np.meshgrid(np.arange(held), np.arange(held), indexing="ij"))
    padded_RxC = np.full((rows + 2 * held, columns + 2 * held), len(row_S))
    padded_RxC[held : held + rows, held : held + columns] = number_RxC
    number_WxN = np.stack([padded_RxC[row0 + held + line, column0 + held + column] for column0, row0 in corners])
    he = np.stack([crop_and_resample(image, image.shape, um_per_px, column0 * bin_um, row0 * bin_um, window["side_px"],
                                     window["um_per_px"]) for column0, row0 in corners])  # fmt: skip
    xy_um = (np.stack([column, line], 1) + 0.5) * bin_um
    weight_N = (np.sin(np.pi * xy_um[:, 0] / window["side_um"]) * np.sin(np.pi * xy_um[:, 1] / window["side_um"])) ** 2
    windows = Windows(he, np.broadcast_to(xy_um.astype(np.float32), (len(corners), *xy_um.shape)),
                      np.full((len(corners), len(xy_um)), bin_um, np.float32))  # fmt: skip
    return windows, Placed((column_S + 0.5) * bin_um, (row_S + 0.5) * bin_um, number_WxN, weight_N + 1e-3)


def windows_over(width_um: float, height_um: float, bin_um: float, window_um: float, overlap: float) -> int:
    """How many windows cover an image, before it is unpacked."""
    held = int(window_um / bin_um + 1e-6)
    step = max(1, round(held * (1 - overlap)))
    return math.prod(len(_starts(math.ceil(extent / bin_um), held, step)) for extent in (width_um, height_um))


def _starts(number: int, held: int, step: int) -> list[int]:
    if number <= held:
        return [-((held - number) // 2)]  # the image lies in the middle of its only window
    return sorted({*range(0, number - held, step), number - held})


def blended(placed: Placed, rates_WxNxG: np.ndarray) -> np.ndarray:
    """Means over windows at the squares of an image, weighed towards the middle of a window: float32 [S, G]."""
    squares, genes = len(placed.x_um_S), rates_WxNxG.shape[2]
    sum_SxG, weight_S = np.zeros((squares + 1, genes), np.float32), np.zeros(squares + 1, np.float32)
    for number_N, rates_NxG in zip(placed.number_WxN, rates_WxNxG, strict=True):
        sum_SxG[number_N] += placed.weight_N[:, None].astype(np.float32) * rates_NxG  # a window holds a square once
        weight_S[number_N] += placed.weight_N.astype(np.float32)
    return sum_SxG[:-1] / weight_S[:-1, None]

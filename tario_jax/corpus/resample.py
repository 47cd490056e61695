"""Averages over areas whose edges fall between pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np


def _edge_sums(values: np.ndarray, start: float, step: float, number: int) -> np.ndarray:
    """Sums of `values` along axis 0 over [start + i·step, start + (i + 1)·step), fractional pixels by their share."""
    edges = start + step * np.arange(number + 1)
    cumulative = np.zeros((values.shape[0] + 1, *values.shape[1:]), np.float32)
    np.cumsum(values, axis=0, dtype=np.float32, out=cumulative[1:])
    low = np.clip(np.floor(edges + 1e-9).astype(int), 0, values.shape[0])
    high = np.minimum(low + 1, values.shape[0])
    share = np.clip(edges - low, 0.0, 1.0).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(cumulative[low] * (1 - share) + cumulative[high] * share, axis=0)


def crop_and_resample(
    store: Any, shape: tuple[int, ...], stored_um_per_px: float, x_um: float, y_um: float, side_px: int,
    um_per_px: float,
) -> np.ndarray:  # fmt: skip
    """A square of an image whose top left corner is (x_um, y_um): uint8 [side_px, side_px, 3], averaged by area.

    store: anything that is sliced like an array [H, W, 3]. White outside.
    """
    return crop_later(store, shape, stored_um_per_px, x_um, y_um, side_px, um_per_px,
                      lambda part: lambda: np.asarray(part))()  # fmt: skip


def crop_later(
    store: Any, shape: tuple[int, ...], stored_um_per_px: float, x_um: float, y_um: float, side_px: int,
    um_per_px: float, begin: Callable[[Any], Callable[[], np.ndarray]],
) -> Callable[[], np.ndarray]:  # fmt: skip
    """`crop_and_resample` in two halves: `begin(store[...])` starts to read at once; what comes back ends it."""
    scale = um_per_px / stored_um_per_px  # stored px per asked px
    left, top = x_um / stored_um_per_px, y_um / stored_um_per_px
    left, top = (round(edge) if abs(edge - round(edge)) < 1e-6 else edge for edge in (left, top))
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + side_px * scale - 1e-6)), int(np.ceil(top + side_px * scale - 1e-6))
    rows = slice(max(y0, 0), min(max(y1, 0), shape[0]))
    columns = slice(max(x0, 0), min(max(x1, 0), shape[1]))
    inside = rows.start < rows.stop and columns.start < columns.stop
    reading = begin(store[rows, columns]) if inside else None

    def end() -> np.ndarray:
        if inside and (rows.stop - rows.start, columns.stop - columns.start) == (y1 - y0, x1 - x0):
            pixels = reading()
        else:
            pixels = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
            if inside:
                target = slice(rows.start - y0, rows.stop - y0), slice(columns.start - x0, columns.stop - x0)
                pixels[target] = reading()
        return area_resample(pixels, top - y0, left - x0, scale, side_px)

    return end


def area_resample(pixels: np.ndarray, top: float, left: float, scale: float, side_px: int) -> np.ndarray:
    """A square of an image, averaged by area.

    pixels: uint8 [H, W, 3]; (top, left): its corner in px of `pixels`; scale: px of `pixels` per px of the result.
    Returns uint8 [side_px, side_px, 3].
    """
    if (
        abs(scale - round(scale)) < 1e-9 and top == int(top) and left == int(left)
    ):  # whole pixels: no fractional edges to weigh
        factor, y, x = round(scale), int(top), int(left)
        part = pixels[y : y + side_px * factor, x : x + side_px * factor]
        if factor == 1:
            return part
        return square_means(part, factor)
    rows = _edge_sums(pixels.astype(np.float32), top, scale, side_px)
    both = _edge_sums(np.ascontiguousarray(rows.transpose(1, 0, 2)), left, scale, side_px).transpose(1, 0, 2)
    return np.clip(np.rint(both / (scale * scale)), 0, 255).astype(np.uint8)


def square_means(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Means of squares of `factor` px: uint8 [H, W, 3] to uint8 [H / factor, W / factor, 3]; both must divide."""
    total = np.full((pixels.shape[0] // factor, pixels.shape[1] // factor, 3), factor * factor // 2, np.uint32)
    for i in range(factor):
        for j in range(factor):
            total += pixels[i::factor, j::factor]
    total //= factor * factor
    return total.astype(np.uint8)


def box_means(values: np.ndarray, um_per_px: float, x_um: np.ndarray, y_um: np.ndarray, side_um: float) -> np.ndarray:
    """Mean of a map over squares centred at (x_um, y_um); outside of the map it is 0.

    values: numbers [rows, columns], with pixels of `um_per_px`; x_um, y_um: [N]. Returns float32 [N].
    """
    x_N, y_N, half = np.asarray(x_um) / um_per_px, np.asarray(y_um) / um_per_px, side_um / 2 / um_per_px
    if not len(x_N):
        return np.zeros(0, np.float32)
    # only what lies under the squares is summed: a slide's map has millions of px, those of a window some thousands
    down, left = _under(y_N, half, values.shape[0]), _under(x_N, half, values.shape[1])
    values, y_N, x_N = values[down, left], y_N - down.start, x_N - left.start
    rows, columns = values.shape
    integral = np.zeros((rows + 1, columns + 1))
    integral[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)

    def at(y, x):
        y, x = np.clip(y, 0, rows), np.clip(x, 0, columns)
        y0, x0 = np.minimum(y.astype(int), rows - 1), np.minimum(x.astype(int), columns - 1)
        fy, fx = y - y0, x - x0
        upper = integral[y0, x0] * (1 - fx) + integral[y0, x0 + 1] * fx
        lower = integral[y0 + 1, x0] * (1 - fx) + integral[y0 + 1, x0 + 1] * fx
        return upper * (1 - fy) + lower * fy

    x0, x1, y0, y1 = x_N - half, x_N + half, y_N - half, y_N + half
    total = at(y1, x1) - at(y0, x1) - at(y1, x0) + at(y0, x0)
    return (total * (um_per_px / side_um) ** 2).astype(np.float32)


def _under(middle_N: np.ndarray, half: float, size: int) -> slice:
    """The px of an axis that intervals of 2 · half around these middles touch, at least one."""
    first = int(np.clip(np.floor(middle_N.min() - half), 0, size - 1))
    return slice(first, int(np.clip(np.ceil(middle_N.max() + half), first + 1, size)))

"""Maps of one gene side by side: what was detected, what was measured of it, what is predicted."""

import dataclasses
from pathlib import Path

import numpy as np

from tario_jax.evaluate.figures import INK, RULE, SOFT, TITLE, Drawn, blank_figure, head_figure, save_figure
from tario_jax.evaluate.moran import Layout

COLOURS = "magma"


@dataclasses.dataclass(frozen=True)
class Look:
    """What lies behind a map: the H&E and the measured detections of one gene, each where there is one."""

    he: np.ndarray | None = None
    he_um_per_px: float | None = None
    dot_x_um_D: np.ndarray | None = None
    dot_y_um_D: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class GeneMap:
    """Values of one gene at N places. Each map has a colour scale of its own, to its 99th percentile, or to its highest
    value where that is 0."""

    title: str
    x_um_N: np.ndarray
    y_um_N: np.ndarray
    pitch_um: float
    layout: Layout
    values_N: np.ndarray

    @property
    def frame_um(self) -> tuple[float, float, float, float]:
        """left, right, top, bottom."""
        half = self.pitch_um / 2
        return (float(self.x_um_N.min() - half), float(self.x_um_N.max() + half),
                float(self.y_um_N.min() - half), float(self.y_um_N.max() + half))  # fmt: skip


def frame_of(maps: list[GeneMap]) -> tuple[float, float, float, float]:
    """The frame that holds all of them: what was measured may be less than what is predicted."""
    left, right, top, bottom = zip(*(one.frame_um for one in maps), strict=True)
    return min(left), max(right), min(top), max(bottom)


def draw_maps(path: Path, heading: str, rows: list[tuple[Look | None, list[GeneMap]]], caption: str,
              banner: str = "") -> Drawn:  # fmt: skip
    """A row a gene or section: detections or H&E first (None: nothing), then its maps, all in one frame.

    The figure compares patterns: the prediction of an expectation is smoother than counts can be, so scales differ and
    are written at the bars. banner: stands under the heading and before the caption.
    """
    columns = max(len(maps) + (look is not None) for look, maps in rows)
    left, right, top, bottom = frame_of(rows[0][1])
    width = 3.6 * min(max((right - left) / (bottom - top), 0.6), 1.6)
    figure = blank_figure(columns * width + 1.4, 4.0 * len(rows) + 0.35)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, (look, maps) in zip(grid, rows, strict=True):
        frame = frame_of(maps)
        axes = list(axes)
        if look is not None:
            _draw_look(axes[0], look)
            _frame(axes[0], frame)
            _scale_bar(axes[0], *frame)
        for axis, one in zip(axes[look is not None :], maps, strict=False):
            _draw_map(figure, axis, one)
            _frame(axis, frame)
            if look is None and one is maps[0]:
                _scale_bar(axis, *frame)
        for axis in axes[len(maps) + (look is not None) :]:
            axis.set_visible(False)
    head_figure(figure, heading, banner)
    save_figure(figure, path)
    return Drawn(path, f"{banner} {caption}".strip())


def _draw_look(axis, look: Look) -> None:
    if look.dot_x_um_D is not None:
        number = len(look.dot_x_um_D)
        size = float(np.clip(6000 / max(number, 1), 0.6, 9.0))
        axis.scatter(look.dot_x_um_D, look.dot_y_um_D, s=size, c="#3b1c6b", alpha=0.65, linewidths=0)
        axis.set_title(f"detections: {number:,}", **TITLE)
    else:
        axis.set_title("H&E" if look.he is not None else "no detections stored", **TITLE)
    if look.he is not None:
        step = max(1, max(look.he.shape[:2]) // 900)
        he = look.he[::step, ::step]
        extent = (0, look.he.shape[1] * look.he_um_per_px, look.he.shape[0] * look.he_um_per_px, 0)
        axis.imshow(he, extent=extent, alpha=1.0 if look.dot_x_um_D is None else 0.35, interpolation="bilinear")


def _draw_map(figure, axis, one: GeneMap) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    half = one.pitch_um / 2
    # A spot's own diameter is not known here; 0.8 of the pitch reads well and leaves the gaps visible.
    shapes = [
        Circle((x, y), 0.8 * half) if one.layout == "spots" else Rectangle((x - half, y - half), 2 * half, 2 * half)
        for x, y in zip(one.x_um_N, one.y_um_N, strict=True)
    ]
    patches = PatchCollection(shapes, cmap=COLOURS, edgecolors="face", linewidths=0.2)
    patches.set_array(one.values_N)
    patches.set_clim(0, float(np.percentile(one.values_N, 99)) or max(float(one.values_N.max()), 1e-9))
    axis.add_collection(patches)
    axis.set_title(one.title, **TITLE)
    bar = figure.colorbar(patches, ax=axis, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, colors=SOFT, length=0)
    bar.ax.locator_params(nbins=4)
    axis.set_facecolor("#f1f3f5")


def _frame(axis, frame_um: tuple[float, float, float, float]) -> None:
    left, right, top, bottom = frame_um
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_aspect("equal")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(RULE)


def _scale_bar(axis, left: float, right: float, top: float, bottom: float) -> None:
    """A round length near a quarter of the width, below the panel."""
    near = (right - left) / 4
    length = max(size for size in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if size <= max(near, 10))
    label = f"{length} µm" if length < 1000 else f"{length / 1000:g} mm"
    y = bottom + 0.035 * (bottom - top)
    axis.plot([left, left + length], [y, y], color=INK, linewidth=2.5, solid_capstyle="butt", clip_on=False)
    axis.text(left + length + 0.02 * (right - left), y, label, va="center", fontsize=9, color=SOFT, clip_on=False)

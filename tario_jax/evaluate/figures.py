"""Figures of a report: triptychs, the top-k curve, the bulk scatter. PNG, without pyplot's global state."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.metrics import pearson_by_gene
from tario_jax.evaluate.tables import Evaluation, SectionBins

INK, SOFT, RULE = "#1d2733", "#5b6775", "#d5dae0"
LINES = {  # method: (label, colour, style)
    "model": ("model", "#0b5cad", "-"),
    "ridge": ("ridge on stain and texture", "#c2571a", "-"),
    "own_density": ("model's own density", "#6b7683", "--"),
    "nuclear_density": ("nuclear density", "#6b7683", ":"),
    "reachable": ("reachable from the H&E", "#2b8a57", "-"),
    "ceiling": ("noise ceiling", "#a7b0ba", "-"),
}
COHORT_COLOURS = ("#0b5cad", "#c2571a", "#2b8a57", "#7a4fa3", "#a08a13", "#b03a5b")
MAP_COLOURS = "magma"
MAX_CURVES = 6  # panels; more cohorts than this are drawn by size


@dataclasses.dataclass(frozen=True)
class Look:
    """What lies behind a map: the H&E and the measured detections of one gene, each where there is one."""

    he: np.ndarray | None = None
    he_um_per_px: float | None = None
    dot_x_um_D: np.ndarray | None = None
    dot_y_um_D: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure on disk and what it shows."""

    path: Path
    caption: str


def draw_figures(
    folder: Path,
    evaluation: Evaluation,
    held_out: list[SectionBins],
    symbols: tuple[str, ...],
    look: Callable[[str, str], Look],
) -> list[Drawn]:
    """Writes the curve, the triptychs of evaluation.examples and, with two or more patients, the bulk scatter.

    look(section_id, symbol) gives the picture behind a map. Raises `InputError` where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    if evaluation.report["curve"]["k"]:
        drawn.append(draw_curve(folder / "curve.png", evaluation.report))
    sections = {section.section_id: section for section in held_out}
    for number, (section_id, symbol) in enumerate(evaluation.examples, 1):
        path = folder / f"triptych_{number}.png"
        drawn.append(draw_triptych(path, sections[section_id], symbols.index(symbol), symbol, look(section_id, symbol)))
    if len(evaluation.bulk["patients"]) > 1:
        drawn.append(draw_bulk(folder / "bulk.png", evaluation))
    return drawn


def draw_triptych(path: Path, section: SectionBins, gene: int, symbol: str, look: Look) -> Drawn:
    """Raw detections (or the H&E under the spots), binned truth and prediction of one gene, on one frame.

    Truth and prediction have their own colour scales (their 99th percentiles are written at the bars): the figure
    compares patterns; the prediction of an expectation is smoother than counts can be.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle, Rectangle

    measured_N = section.counts_NxG[:, gene].astype(float)
    rates = section.rates_NxG
    predicted_N = np.zeros(len(section)) if rates is None else np.nan_to_num(rates[:, gene]).astype(float)
    r = pearson_by_gene(measured_N[:, None], predicted_N[:, None])[0]
    half = section.pitch_um / 2
    left, right = section.x_um_N.min() - half, section.x_um_N.max() + half
    top, bottom = section.y_um_N.min() - half, section.y_um_N.max() + half
    width = 3.6 * min(max((right - left) / (bottom - top), 0.6), 1.6)
    figure = blank_figure(3 * width + 1.4, 4.35)
    axes = figure.subplots(1, 3)
    spots = section.layout == "spots"
    first = axes[0]
    if look.dot_x_um_D is not None:
        number = len(look.dot_x_um_D)
        size = float(np.clip(6000 / max(number, 1), 0.6, 9.0))
        first.scatter(look.dot_x_um_D, look.dot_y_um_D, s=size, c="#3b1c6b", alpha=0.65, linewidths=0)
        first.set_title(f"detections: {number:,}", **TITLE)
    else:
        first.set_title("H&E" if look.he is not None else "no detections stored", **TITLE)
    if look.he is not None:
        step = max(1, max(look.he.shape[:2]) // 900)
        he = look.he[::step, ::step]
        extent = (0, look.he.shape[1] * look.he_um_per_px, look.he.shape[0] * look.he_um_per_px, 0)
        first.imshow(he, extent=extent, alpha=1.0 if look.dot_x_um_D is None else 0.35, interpolation="bilinear")
    for axis, values_N, title in (
        (axes[1], measured_N, f"measured, per {'spot' if spots else f'{section.pitch_um:g} µm bin'}"),
        (axes[2], predicted_N, f"predicted from H&E · r = {r:.2f}"),
    ):
        # A spot's own diameter is not known here; 0.8 of the pitch reads well and leaves the gaps visible.
        shapes = [
            Circle((x, y), 0.4 * section.pitch_um) if spots else Rectangle((x - half, y - half), 2 * half, 2 * half)
            for x, y in zip(section.x_um_N, section.y_um_N, strict=True)
        ]
        top_value = max(float(np.percentile(values_N, 99)), 1e-9)
        patches = PatchCollection(shapes, cmap=MAP_COLOURS, edgecolors="face", linewidths=0.2)
        patches.set_array(values_N)
        patches.set_clim(0, top_value)
        axis.add_collection(patches)
        axis.set_title(title, **TITLE)
        bar = figure.colorbar(patches, ax=axis, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=9, colors=SOFT, length=0)
        bar.ax.locator_params(nbins=4)
        axis.set_facecolor("#f1f3f5")
    for axis in axes:
        axis.set_xlim(left, right)
        axis.set_ylim(bottom, top)
        axis.set_aspect("equal")
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color(RULE)
    _scale_bar(first, left, right, top, bottom)
    figure.suptitle(
        f"{symbol} · section {section.section_id} ({section.cohort})", x=0.01, ha="left", fontsize=13, color=INK,
        fontweight="bold",
    )  # fmt: skip
    save_figure(figure, path)
    return Drawn(path, f"{symbol} in held-out section {section.section_id}: measured and predicted. "
                       "Chosen by Moran's I and median r, not by how well it looks.")  # fmt: skip


def draw_curve(path: Path, report: dict[str, Any]) -> Drawn:
    """Mean r over the k genes of highest Moran's I against k: all held-out sections, then each cohort."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    k, cohorts = report["curve"]["k"], report["curve"]["cohorts"]
    names = [name for name in cohorts if name != "all"]
    names = sorted(names, key=lambda name: -cohorts[name]["sections"])[: MAX_CURVES - 1]
    shown = ["all", *sorted(names)] if len(names) > 1 else ["all"]
    columns = min(len(shown), 3) if len(shown) != 4 else 2
    rows = -(-len(shown) // columns)
    figure = blank_figure(max(4.3 * columns, 6.4), 3.7 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axis, name in zip(grid.flat, shown, strict=False):
        entry = cohorts[name]
        for method, (label, colour, style) in reversed(LINES.items()):
            line = entry["methods"].get(method)
            if line is None:
                continue
            y = _floats(line["mean_r"])
            wide = 2.2 if method == "model" else 1.4
            (handles[label],) = axis.plot(k, y, color=colour, linestyle=style, linewidth=wide)
            if "low" in line:
                axis.fill_between(k, _floats(line["low"]), _floats(line["high"]), color=colour, alpha=0.15, linewidth=0)
        unit = "section" if entry["sections"] == 1 else "sections"
        whose = f"{entry['patients']} patients" if entry["patients"] > 1 else "1 patient"
        title = "all held-out" if name == "all" else name
        axis.set_title(f"{title} · {entry['sections']} {unit}, {whose}", **TITLE)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlim(1, k[-1])
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.0)
        axis.axhline(0, color=RULE, linewidth=1, zorder=0)
        axis.set_xlabel(f"k genes of highest Moran's I ({report['ranked_on']})", fontsize=10, color=SOFT)
        plain_axes(axis)
    for axis in list(grid.flat)[len(shown) :]:
        axis.set_visible(False)
    for row in grid:
        row[0].set_ylabel("mean spatial r, counts", fontsize=10, color=SOFT)
    ordered = [label for label, _, _ in LINES.values() if label in handles]
    figure.legend(
        [handles[label] for label in ordered], ordered, loc="outside lower center", ncols=min(len(ordered), 3),
        frameon=False, fontsize=10, labelcolor=INK,
    )  # fmt: skip
    save_figure(figure, path)
    return Drawn(path, f"Mean spatial correlation (counts) over the k genes of highest Moran's I. Band: 95 % "
                       f"{report['interval']['kind']} of the model.")  # fmt: skip


def draw_bulk(path: Path, evaluation: Evaluation) -> Drawn:
    """Predicted against measured log-CPM of each held-out patient, by cohort, each gene about its cohort mean."""
    bulk, report = evaluation.bulk, evaluation.report["bulk"]
    symbols = list(bulk["symbols"])
    genes = [symbols.index(symbol) for symbol in evaluation.report["sets"]["top_moran"]["symbols"]]
    cohort_P = np.asarray(bulk["cohorts"])
    names = [name for name in sorted(set(cohort_P.tolist())) if (cohort_P == name).sum() > 1][:MAX_CURVES]
    if not names:
        names, cohort_P = ["all cohorts"], np.full(len(cohort_P), "all cohorts")
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = blank_figure(max(3.9 * columns, 4.8), 4.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, (axis, name) in enumerate(zip(grid.flat, names, strict=False)):
        own = np.flatnonzero(cohort_P == name)
        x, y = (bulk[key][np.ix_(own, genes)] for key in ("measured_PxG", "predicted_PxG"))
        x, y = x - x.mean(0), y - y.mean(0)
        limit = float(np.nanpercentile(np.abs(x), 99)) * 1.05 if np.isfinite(x).any() else 1.0
        limit = max(limit, 1e-3)
        axis.plot([-limit, limit], [-limit, limit], color=RULE, linewidth=1, zorder=0)
        axis.scatter(x, y, s=7, color=COHORT_COLOURS[number % len(COHORT_COLOURS)], alpha=0.35, linewidths=0)
        entry = report["by_cohort"].get(name, {})
        figure_r = entry.get("log_cpm", {}).get("model", {}).get("r")
        text = f"mean r = {figure_r:.2f}" if figure_r is not None else "r not estimable"
        axis.set_title(f"{name} · {len(own)} patients · {text}", **TITLE)
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
        axis.set_aspect("equal")
        axis.set_xlabel("measured log-CPM, about the gene's mean", fontsize=10, color=SOFT)
        plain_axes(axis)
    for axis in list(grid.flat)[len(names) :]:
        axis.set_visible(False)
    for row in grid:
        row[0].set_ylabel("predicted log-CPM, about the mean", fontsize=10, color=SOFT)
    save_figure(figure, path)
    return Drawn(path, f"Bulk: one point a patient and gene ({len(genes)} genes of highest Moran's I); r is the mean "
                       "over all evaluated genes, within the cohort.")  # fmt: skip


TITLE = {"fontsize": 11, "color": INK, "loc": "left"}


def blank_figure(width_in: float, height_in: float):
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("figures: matplotlib is not installed; pip install 'tario-jax[eval]'") from error
    figure = Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axis) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(RULE)
    axis.tick_params(colors=SOFT, labelsize=9, length=3, color=RULE, labelleft=True)


def _scale_bar(axis, left: float, right: float, top: float, bottom: float) -> None:
    """A round length near a quarter of the width, below the panel."""
    near = (right - left) / 4
    length = max(size for size in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if size <= max(near, 10))
    label = f"{length} µm" if length < 1000 else f"{length / 1000:g} mm"
    y = bottom + 0.035 * (bottom - top)
    axis.plot([left, left + length], [y, y], color=INK, linewidth=2.5, solid_capstyle="butt", clip_on=False)
    axis.text(left + length + 0.02 * (right - left), y, label, va="center", fontsize=9, color=SOFT, clip_on=False)


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def save_figure(figure, path: Path) -> None:
    partial = path.with_suffix(".partial")
    figure.savefig(partial, format="png", dpi=130, metadata={"Software": None})
    partial.replace(path)

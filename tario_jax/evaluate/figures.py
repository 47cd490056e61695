"""Figures of a report: the top-k curve, the bulk scatter; and the hand in which all are drawn.

PNG, without pyplot's global state.
"""

import dataclasses
import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.evaluate.tables import Evaluation
from tario_jax.whole_file import write_whole

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
MAX_CURVES = 6  # panels; more cohorts than this are drawn by size


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure on disk and what it shows."""

    path: Path
    caption: str


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
    hide_unused(grid, len(shown))
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
    hide_unused(grid, len(names))
    for row in grid:
        row[0].set_ylabel("predicted log-CPM, about the mean", fontsize=10, color=SOFT)
    save_figure(figure, path)
    return Drawn(path, f"Bulk: one point a patient and gene ({len(genes)} genes of highest Moran's I); r is the mean "
                       "over all evaluated genes, within the cohort.")  # fmt: skip


_LETTERS_AN_INCH, _LINE_IN = 8, 0.25  # of a heading
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


def head_figure(figure, heading: str, banner: str = "") -> None:
    """The heading, and under it what must be said of all that is shown, in as many lines as it takes."""
    said = textwrap.wrap(banner, int(_LETTERS_AN_INCH * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + _LINE_IN * len(said))
    figure.suptitle("\n".join([*filter(None, [heading]), *said]), x=0.01, ha="left", fontsize=13, color=INK,
                    fontweight="bold")  # fmt: skip


def hide_unused(grid, used: int) -> None:
    """Panels of a grid behind the last that something is drawn in."""
    for axis in list(grid.flat)[used:]:
        axis.set_visible(False)


def plain_axes(axis) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(RULE)
    axis.tick_params(colors=SOFT, labelsize=9, length=3, color=RULE, labelleft=True)


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values])


def save_figure(figure, path: Path) -> None:
    """Writes a PNG; the file is absent or whole."""
    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=130, metadata={"Software": None})
    write_whole(path, memory.getvalue())

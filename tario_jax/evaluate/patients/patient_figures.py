"""Figures of patients: maps in the colours of a column, AUROCs with what they are held against, calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.figures import INK, RULE, SOFT, TITLE, Drawn, blank_figure, hide_unused, plain_axes, save_figure
from tario_jax.evaluate.patients.outcomes import LOOKS, VECTORS, lead_text, line_text

PALETTE = ("#0b5cad", "#c2571a", "#2b8a57", "#7a4fa3", "#a08a13", "#b03a5b", "#3aa6b9", "#6b7683", "#d98fb0", "#7fb04f",
           "#5a3d2b", "#e0b03a")  # fmt: skip
LIKE = "like"
YES, NO = "#c2571a", "#9db4cc"
_UNKNOWN = "#e3e7eb"
_NAMED = 24  # values in a legend
_MARKERS = ("o", "s", "^")  # of further rounds through the palette


def colours_of(values: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, marker) of each value that is known: the most frequent first; of true and false, true stands out."""
    names, counts = np.unique([value for value in values if value], return_counts=True)
    if set(names.tolist()) <= {"true", "false"}:
        return {name: (YES if name == "true" else NO, "o") for name in names.tolist()}
    if LIKE in names:  # what is as usual stands back
        others = [name for name in names.tolist() if name != LIKE]
        return {LIKE: (NO, "o")} | {name: (PALETTE[1 + at], "o") for at, name in enumerate(others)}
    order = names[np.argsort(-counts, kind="stable")].tolist()
    return {name: (PALETTE[at % len(PALETTE)], _MARKERS[at // len(PALETTE) % len(_MARKERS)])
            for at, name in enumerate(order)}  # fmt: skip


def draw_map(path: Path, xy_Px2: np.ndarray, columns: Mapping[str, np.ndarray], *, axes: tuple[str, str],
             caption: str, marked: Mapping[str, np.ndarray] | None = None) -> Drawn:  # fmt: skip
    """A panel a column, the same places in each. marked: further places that are ringed, with their names."""
    across = min(3, len(columns))
    down = -(-len(columns) // across)
    figure = blank_figure(4.6 * across + 0.4, 4.9 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axis, (name, value_P) in zip(grid.flat, columns.items(), strict=False):
        style = colours_of(value_P.tolist())
        unknown = np.array([value not in style for value in value_P.tolist()])
        size = float(np.clip(9000 / len(xy_Px2), 4, 28))
        axis.scatter(*xy_Px2[unknown].T, s=size * 0.6, color=_UNKNOWN, linewidths=0)
        ordered = sorted(style, key=lambda value: value == "true")  # what is rare lies on top
        for number, value in enumerate(ordered):
            colour, marker = style[value]
            some = value_P == value
            named = value if number < _NAMED else "_"
            axis.scatter(*xy_Px2[some].T, s=size, color=colour, marker=marker, linewidths=0, alpha=0.85, label=named)
        for label, place in (marked or {}).items():
            axis.scatter(*place, s=90, facecolors="none", edgecolors=INK, linewidths=1.8)
            axis.annotate(label, place, xytext=(7, 7), textcoords="offset points", fontsize=9, color=INK)
        axis.set_title(f"{name} · {int((~unknown).sum()):,} patients", **TITLE)
        few = len(style) <= 12
        if style:
            axis.legend(fontsize=7.5 if few else 5.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06),
                        ncols=min(len(style), 2 if len(style) > 3 else 3), handletextpad=0.2, columnspacing=0.8,
                        markerscale=1.2)  # fmt: skip
        axis.set_xlabel(axes[0], fontsize=9, color=SOFT)
        axis.set_ylabel(axes[1], fontsize=9, color=SOFT)
        axis.set_xticks([])
        axis.set_yticks([])
        plain_axes(axis)
    hide_unused(grid, len(columns))
    save_figure(figure, path)
    return Drawn(path, caption)


_ROWS = (  # what, label, colour, filled
    ("lead", "from the model's vectors, as reported", "#0b5cad", True),
    (VECTORS, "from the model's vectors, all patients", "#0b5cad", False),
    ("fine-tuned", "from the model, tuned on the column", "#3aa6b9", True),
    (LOOKS, "from stain and texture", "#c2571a", True),
    ("confounders", "from confounders alone", "#7a4fa3", True),
    ("reachable", "reachable from the H&E (V)", "#2b8a57", True),
)


def draw_aurocs(path: Path, result: dict[str, Any]) -> Drawn:
    """A row a column of the table: AUROC with its interval, beside stain, confounders, what is reachable, and null."""
    outcomes = result["outcomes"]
    figure = blank_figure(8.2, 0.85 * len(outcomes) + 1.5)
    axis = figure.subplots()
    axis.axvline(0.5, color=RULE, linewidth=1.2, zorder=0)
    for row, one in enumerate(outcomes):
        drawn = 0
        for what, label, colour, filled in _ROWS:
            told = _row(one, what)
            if told is None:
                continue
            y = row - 0.32 + 0.16 * drawn
            drawn += 1
            axis.plot([told["low"], told["high"]], [y, y], color=colour, linewidth=1.6, alpha=0.7)
            named = label not in axis.get_legend_handles_labels()[1]
            axis.scatter(told["value"], y, s=34, color=colour if filled else "white", edgecolors=colour, zorder=3,
                         label=label if named else None)  # fmt: skip
        if one["null"] is not None:
            axis.barh(row, one["null"]["highest"] - one["null"]["lowest"], left=one["null"]["lowest"], height=0.8,
                      color="#eef1f4", zorder=-1, label="range of shuffled labels" if row == 0 else None)  # fmt: skip
    names = [f"{one['column']} ({lead_text(one)})" for one in outcomes]
    axis.set_yticks(range(len(outcomes)), names, fontsize=9, color=INK)
    axis.invert_yaxis()
    axis.set_xlabel("AUROC, told of patients that the probe has not seen", fontsize=10, color=SOFT)
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.9 / (len(outcomes) + 0.5)),
                ncols=3)  # fmt: skip
    plain_axes(axis)
    save_figure(figure, path)
    return Drawn(path, "AUROC of linear probes with 95 % intervals (bootstrap over patients), each column beside the "
                       "same probe of stain and texture statistics, of confounders alone, and, where the truth is "
                       "known, of what the H&E can tell at best.")  # fmt: skip


def _row(one: dict[str, Any], what: str) -> dict[str, float] | None:
    if what == "lead":
        return one["lead"]
    if what == "confounders":
        alone = [name for name in one["auroc"] if name.endswith(" alone")]
        return one["auroc"][alone[-1]] if alone else None
    if what == VECTORS and one["lead"]["how"] == "of all patients":
        return None
    if what == "reachable" and what in one["auroc"] and one["lead"]["how"].startswith("within "):
        return one["within"][one["lead"]["how"].removeprefix("within ")][what]
    return one["auroc"].get(what)


def draw_calibration(path: Path, result: dict[str, Any]) -> Drawn:
    """Share of patients that are such against the probability that was told, in tenths of the patients."""
    outcomes = result["outcomes"]
    across = min(4, len(outcomes))
    down = -(-len(outcomes) // across)
    figure = blank_figure(3.1 * across, 3.3 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axis, one in zip(grid.flat, outcomes, strict=False):
        told, was, number = (np.array([bin_[name] for bin_ in one["calibration"]["bins"]]) for name in
                             ("told", "was", "number"))  # fmt: skip
        error = np.sqrt(was * (1 - was) / number)
        top = float(min(1.0, 1.1 * max(told.max(), (was + error).max())))
        axis.plot([0, top], [0, top], color=RULE, linewidth=1.2, zorder=0)
        axis.errorbar(told, was, yerr=error, fmt="o-", color="#0b5cad", markersize=4, linewidth=1)
        axis.set_title(f"{one['column']} · slope {line_text(one['calibration']['slope'])}", **TITLE)
        axis.set_xlabel("told probability", fontsize=9, color=SOFT)
        plain_axes(axis)
    hide_unused(grid, len(outcomes))
    for row in grid:
        row[0].set_ylabel("share that is such", fontsize=9, color=SOFT)
    save_figure(figure, path)
    return Drawn(path, "Calibration: share of patients that are such against the probability that probes told of "
                       "them, tenths of the patients with one standard error; a class at a time where there are "
                       "more than two.")  # fmt: skip

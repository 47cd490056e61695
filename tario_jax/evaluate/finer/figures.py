"""Figures of finer readouts and of what a shift costs."""

import math
from pathlib import Path
from typing import Any

from tario_jax.evaluate.figures import INK, LINES, SOFT, TITLE, blank_figure, head_figure, plain_axes, save_figure
from tario_jax.evaluate.finer.gene_sets import split_told

_READERS = {  # (label, colour, marker)
    "model": ("model (cells: its bins of 9 µm)", LINES["model"][1], "o"),
    "bins": ("model (cells: its bins of 9 µm)", LINES["model"][1], "o"),
    "queries": ("model, a query a cell", "#7a4fa3", "s"), "coarse": ("its 36 µm spread evenly", LINES["ridge"][1], "v"),
    "density": ("its density", LINES["own_density"][1], "x"),
    "reachable": ("reachable from the H&E", LINES["reachable"][1], "_"),
    "measured": ("the measurement", LINES["ceiling"][1], "_"),
}  # fmt: skip
_PLACES = {"36": "36 µm", "18": "18 µm", "9": "9 µm", "cells": "cells,\ngiven", "nuclei": "cells,\nfound"}
_SIDES = {"36": "#0b5cad", "18": "#7a4fa3", "9": "#c2571a"}


def draw_finer(path: Path, result: dict[str, Any]) -> None:
    """r of the top genes by place: with the truth and with the counts, in both forms."""
    figure = blank_figure(11.0, 7.4)
    grid = figure.subplots(2, 2, sharex=True)
    handles: dict[str, Any] = {}
    for row, target in zip(grid, ("truth", "counts"), strict=True):
        for axis, form in zip(row, ("counts", "composition"), strict=True):
            for reader, (label, colour, marker) in _READERS.items():
                known = [(at, result["scores"][place].get(reader, {}).get(target, {}).get(form, {}).get("top"))
                         for at, place in enumerate(_PLACES)]  # fmt: skip
                known = [(at, entry) for at, entry in known if entry is not None]
                if not known or (reader == "density" and form == "composition"):
                    continue
                aside = 0.12 * (list(_READERS).index(reader) - 3)
                entries = [entry for _, entry in known]
                handles[label] = axis.errorbar(
                    [at + aside for at, _ in known], [entry["mean"] for entry in entries], _spread(entries),
                    fmt=marker, color=colour, markersize=6, linewidth=1.2,
                )  # fmt: skip
            axis.set_title(f"r with the {'true rates' if target == 'truth' else 'measured counts'}, {form}", **TITLE)
            axis.set_xticks(range(len(_PLACES)), list(_PLACES.values()))
            plain_axes(axis)
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    if split := split_told(result):
        head_figure(figure, "", *split)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False,
                  fontsize=10, labelcolor=INK)  # fmt: skip
    save_figure(figure, path)


def draw_shift(path: Path, result: dict[str, Any]) -> None:
    """r of the top genes against the shift of the detections, by side of the bins: the model, and V where known.

    Bars are intervals of the paired fall, around r.
    """
    figure = blank_figure(9.6, 4.4)
    for axis, form in zip(figure.subplots(1, 2), ("counts", "composition"), strict=True):
        for side, readers in result["scores"].items():
            for reader, style in (("reachable", "--"), ("model", "-")):
                if reader not in readers:
                    continue
                shifts = list(readers[reader])
                x = [float(shift) for shift in shifts]
                means = [readers[reader][shift][form]["top"]["mean"] for shift in shifts]
                colour = _SIDES.get(side, INK)
                falls = [result["falls"][side][reader][shift][form]["top"] for shift in shifts]
                axis.errorbar(x, means, _spread(falls), linestyle=style, color=colour, linewidth=1.6, marker="o",
                              markersize=3.5, capsize=2, label=f"{reader}, {side} µm bins")  # fmt: skip
        axis.set_title(f"r with measured counts, {form}", **TITLE)
        axis.set_xlabel("shift of the detections, µm", fontsize=10, color=SOFT)
        plain_axes(axis)
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    if banner := " ".join(filter(None, [result["banner"], *split_told(result)])):
        head_figure(figure, "", banner)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    save_figure(figure, path)


def _spread(entries: list[dict[str, float]]) -> list[list[float]]:
    """Bars below and above the means, none without an interval; a percentile may lie past the mean of few patients."""
    known = [(entry, entry["low"] is not None) for entry in entries]
    return [[max(entry["mean"] - entry["low"], 0.0) if bar else math.nan for entry, bar in known],
            [max(entry["high"] - entry["mean"], 0.0) if bar else math.nan for entry, bar in known]]  # fmt: skip

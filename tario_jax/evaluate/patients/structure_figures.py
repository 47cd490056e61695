"""The genotype figure: which mutations go together, and where patients with two of them lie."""

from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.figures import INK, RULE, SOFT, TITLE, Drawn, blank_figure, plain_axes, save_figure
from tario_jax.evaluate.patients.patient_figures import NO, YES

_FAR = 2.5  # log odds ratio of the strongest colour


def draw_structure(folder: Path, structure: dict[str, Any]) -> list[Drawn]:
    """structure.png: log odds ratios in patients and in what was told, and a panel a pair that was compared."""
    compared = [one for one in structure["two_against_one"] if one["found"] is not None]
    odds = bool(structure["co_occurrence"])
    if not odds and not compared:
        return []
    figure = blank_figure(4.6 * odds + 4.2 * len(compared), 4.2)
    grid = figure.subplots(1, odds + len(compared), squeeze=False)[0]
    if odds:
        _odds(grid[0], structure["mutations"], structure["co_occurrence"])
    for axis, one in zip(grid[odds:], compared, strict=True):
        _compared(axis, one)
    save_figure(figure, folder / "structure.png")
    return [Drawn(folder / "structure.png",
                  "Left: log odds ratio of two columns in one patient, of whom both are known; above the diagonal as "
                  "patients have them (* p < 0.05, Fisher), below it as probes told them of patients they had not "
                  "seen. Right: patients along the axis between those with both mutations and those with the first "
                  "alone, each one on the axis of folds that it is not in; AUROC over pairs of one group; p by "
                  "permutation within groups.")]  # fmt: skip


def _odds(axis, names: list[str], pairs: list[dict[str, Any]]) -> None:
    size = len(names)
    value_MxM = np.full((size, size), np.nan)
    for one in pairs:
        a, b = (names.index(name) for name in one["pair"])
        value_MxM[a, b], value_MxM[b, a] = one["log_odds_ratio"], one["told_log_odds_ratio"]
        axis.text(b, a, f"{one['log_odds_ratio']:+.1f}{'*' if one['p'] < 0.05 else ''}", ha="center", va="center",
                  fontsize=9, color=INK)  # fmt: skip
        axis.text(a, b, f"{one['told_log_odds_ratio']:+.1f}", ha="center", va="center", fontsize=9, color=INK)
    axis.imshow(np.ma.masked_invalid(value_MxM), cmap="PuOr_r", vmin=-_FAR, vmax=_FAR, alpha=0.75)
    axis.set_xticks(range(size), names, fontsize=9, rotation=45, ha="right")
    axis.set_yticks(range(size), names, fontsize=9)
    axis.set_title("together in one patient", **TITLE)
    axis.tick_params(colors=SOFT, length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _compared(axis, one: dict[str, Any]) -> None:
    found, (first, second) = one["found"], one["pair"]
    score_n, both_n = np.array(found["score"]), np.array(found["has_both"])
    edges = np.linspace(*np.percentile(score_n, [0.5, 99.5]), 22)
    for some, colour, label in ((~both_n, NO, f"{first} alone ({found['first_alone']})"),
                                (both_n, YES, f"{first} with {second} ({found['both']})")):  # fmt: skip
        axis.hist(np.clip(score_n[some], edges[0], edges[-1]), edges, density=True, color=colour, alpha=0.65,
                  label=label)  # fmt: skip
    axis.axvline(0, color=RULE, linewidth=1)
    axis.set_title(f"p {found['p']:.2g} · AUROC {found['auroc']:.2f}", **TITLE)
    axis.set_xlabel("along the axis between the two", fontsize=10, color=SOFT)
    axis.set_yticks([])
    axis.legend(fontsize=8.5, frameon=False)
    plain_axes(axis)

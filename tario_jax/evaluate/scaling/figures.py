"""Figures of a study, drawn from its values: a law that was accepted is a solid line, one that was refused a dashed one
with the reason beside it."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.figures import (
    COHORT_COLOURS,
    INK,
    RULE,
    SOFT,
    TITLE,
    Drawn,
    blank_figure,
    plain_axes,
    save_figure,
)
from tario_jax.evaluate.scaling.words import QUANTITIES, comparison_name, law_text, size_text

_COLOURS = dict(zip(QUANTITIES, (INK, SOFT, *COHORT_COLOURS), strict=False))
_LEAST_DRAWN = 3  # sizes: what two have to say stands in the tables
_WRAP = 140  # letters of a legend's line


def draw_sweep(path: Path, sweep: dict[str, Any], top_genes: int) -> Drawn:
    """Loss, and r in its three forms, against the axis; what the laws leave below.

    Dots are runs, one a seed. Where no law was fitted a dotted line joins the means.
    """
    fitted = any(law["law"] is not None for law in sweep["laws"].values())
    figure = blank_figure(13.5, 6.8 if fitted else 5.1)
    ratios = {"height_ratios": [3.2, 1]} if fitted else None
    grid = figure.subplots(2 if fitted else 1, 3, gridspec_kw=ratios, sharex=True, squeeze=False)
    handles, labels = [], []
    for name, title in QUANTITIES.items():
        column = {"nats": 0, "gene_nats": 1}.get(name, 2)
        drawn = _draw_quantity(grid[0, column], grid[-1, column], sweep, name)
        if drawn is not None:
            handles.append(drawn)
            labels.append(textwrap.fill(f"{title}: {law_text(sweep['laws'][name])}", _WRAP, subsequent_indent="    "))
    for axis, name in zip(grid[0], ("nats", "gene_nats"), strict=False):
        axis.set_title(QUANTITIES[name], **TITLE)
    ceiling = sweep["points"][0]["values"]["ceiling/top"][0]
    beside = f" (ceiling of counts {ceiling:.2f})" if ceiling == ceiling else ""
    grid[0, 2].set_title(f"mean r, top {top_genes:,} genes{beside}", **TITLE)
    for axis in grid[1] if fitted else ():
        axis.axhline(0, color=RULE, linewidth=1, zorder=0)
        axis.set_title("found − law", fontsize=9, color=SOFT, loc="left")
    for axis in grid[-1]:
        _size_ticks(axis, sweep["axis"], [point["size"] for point in sweep["points"]])
        axis.set_xlabel(sweep["label"], fontsize=10, color=SOFT)
    for axis in grid.flat:
        plain_axes(axis)
    figure.suptitle(sweep["name"], x=0.01, ha="left", fontsize=13, color=INK, fontweight="bold")
    figure.legend(handles, labels, loc="outside lower left", ncols=1, frameon=False, fontsize=8.5, labelcolor=INK)
    save_figure(figure, path)
    return Drawn(path, f"{sweep['name']}: loss, and r of the genes of highest Moran's I, on the same held-out bins. "
                       "Dots: runs, one a seed. Solid: a law that predicted the largest runs without having seen them; "
                       "dashed: one that did not, or that says no more than a constant; dotted: means.")  # fmt: skip


def _draw_quantity(upper, lower, sweep: dict[str, Any], name: str):
    """The line that stands for it in the legend; None where it is not known of every run."""
    law, colour = sweep["laws"][name], _COLOURS[name]
    rows = [(point["size"], value) for point in sweep["points"] for value in point["values"][name]]
    if any(value is None or not np.isfinite(value) for _, value in rows):
        return None
    size_R, value_R = np.array(rows).T
    upper.scatter(size_R, value_R, s=26, color=colour, edgecolors="white", linewidths=0.7, zorder=3)
    if law["law"] is None:
        sizes = np.unique(size_R)
        means = [value_R[size_R == size].mean() for size in sizes]
        (line,) = upper.plot(sizes, means, color=colour, linewidth=1.2, linestyle=":")
        return line
    smooth = np.geomspace(size_R.min(), size_R.max(), 100)
    accepted = law["verdict"] == "accepted"
    (line,) = upper.plot(smooth, _value_of(law, smooth), color=colour, linewidth=1.8 if accepted else 1.3,
                         linestyle="-" if accepted else "--")  # fmt: skip
    rest_R = value_R - _value_of(law, size_R)
    lower.scatter(size_R, rest_R, s=18, color=colour, edgecolors="white", linewidths=0.6, zorder=3)
    return line


def _value_of(law: dict[str, Any], sizes: np.ndarray) -> np.ndarray:
    """The quantity that a law of one axis gives: laws are of losses, r is what they are subtracted from."""
    fitted = law["law"]
    loss = fitted["floor"] + fitted["scales"][0] * sizes ** -fitted["exponents"][0]
    return loss if law["top"] is None else law["top"] - loss


def draw_gains(path: Path, comparison: dict[str, Any]) -> Drawn:
    """Mean change of r by gene class, and by tenth of the ranking by Moran's I, with patient intervals; grey: seeds."""
    forms = {form: values for form, values in comparison["forms"].items() if form != "residual"} or comparison["forms"]
    classes = list(next(iter(forms.values()))["by_class"])
    figure = blank_figure(11.0, max(3.6, 1.8 + 0.42 * len(classes)))
    by_class, by_decile = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
    height = 0.8 / len(forms)
    for number, (form, values) in enumerate(forms.items()):
        colour = _COLOURS[f"r/{form}/top"]
        label = f"{form}: {100 * values['better']['fraction']:.0f} % of genes better"
        groups = values["by_class"] or {"all genes": values["difference"]}
        for row, group in enumerate(groups.values()):
            _bar(by_class, row + (number - (len(forms) - 1) / 2) * height, group, height, colour)
        deciles = values["by_decile"]
        if deciles:
            x = np.arange(1, len(deciles) + 1) + 0.12 * (number - 0.5)
            means, low, high = (np.array([_known(one[key]) for one in deciles]) for key in ("mean", "low", "high"))
            # of two patients a percentile may be the mean itself, and lie past it by its rounding
            bars = np.maximum(means - low, 0.0), np.maximum(high - means, 0.0)
            by_decile.errorbar(x, means, bars, color=colour, fmt="o-", markersize=4, linewidth=1.3, elinewidth=1,
                               label=label)  # fmt: skip
            null = [max((abs(_known(v)) for v in one["null"]), default=0.0) for one in deciles]
            by_decile.fill_between(x, np.negative(null), null, color=colour, alpha=0.1, linewidth=0)
        else:
            by_decile.plot([], [], color=colour, label=label)
    names = classes or ["all genes"]
    counts = [group["genes"] for group in next(iter(forms.values()))["by_class"].values()] or [
        next(iter(forms.values()))["difference"]["genes"]
    ]
    by_class.set_yticks(range(len(names)), [f"{name} ({number:,})" for name, number in zip(names, counts, strict=True)])
    by_class.set_ylim(len(names) - 0.5, -0.5)
    by_class.set_title("by gene class", **TITLE)
    by_decile.set_title("by tenth of the ranking (1: highest Moran's I)", **TITLE)
    by_decile.set_xticks(range(1, 11))
    by_class.set_xlabel("change of mean r", fontsize=10, color=SOFT)
    by_decile.set_ylabel("change of mean r", fontsize=10, color=SOFT)
    by_class.axvline(0, color=SOFT, linewidth=1)
    by_decile.axhline(0, color=SOFT, linewidth=1)
    by_decile.legend(frameon=False, fontsize=9, labelcolor=INK)
    for axis in (by_class, by_decile):
        plain_axes(axis)
    figure.suptitle(comparison_name(comparison), x=0.01, ha="left", fontsize=13, color=INK, fontweight="bold")
    save_figure(figure, path)
    return Drawn(path, f"{comparison_name(comparison)}: change of r over all ranked genes. Whiskers: 95 % "
                       "patient bootstrap. Grey and shaded: the largest change between two seeds of one "
                       "configuration.")  # fmt: skip


def _bar(axis, at: float, group: dict[str, Any], height: float, colour: str) -> None:
    mean, low, high = (_known(group[key]) for key in ("mean", "low", "high"))
    null = max((abs(_known(value)) for value in group["null"]), default=0.0)
    axis.barh(at, 2 * null, 0.95 * height, left=-null, color=RULE, zorder=1)
    axis.barh(at, mean, 0.6 * height, color=colour, zorder=2)
    axis.plot([low, high], [at, at], color=INK, linewidth=1.2, zorder=3)


def _known(value: float | None) -> float:
    return np.nan if value is None else value


def draw_grid(path: Path, grid: dict[str, Any], top_genes: int) -> Drawn:
    """Loss and r of every cell against the size of the model, a line a context."""
    shown = [name for name in ("nats", "gene_nats", "r/counts/top", "r/composition/top") if name in grid["quantities"]]
    figure = blank_figure(4.2 * len(shown) + 0.4, 4.2)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=True):
        found = grid["quantities"][name]
        for column, context in enumerate(grid["contexts_um"]):
            colour = COHORT_COLOURS[column % len(COHORT_COLOURS)]
            cells = [row[column] for row in found["cells"]]
            axis.plot(grid["sizes"], [np.mean(cell) for cell in cells], color=colour, linewidth=1.5,
                      label=f"{context:g} µm")  # fmt: skip
            for size, cell in zip(grid["sizes"], cells, strict=True):
                axis.scatter([size] * len(cell), cell, s=24, color=colour, edgecolors="white", linewidths=0.7, zorder=3)
        sd = found["seed_sd"]
        beside = "no second seed" if sd is None else f"seed sd {sd:.2g}"
        axis.set_title(f"{QUANTITIES[name]}\ninteraction {found['interaction']:+.4f} ({beside},\npatients "
                       f"[{found['low']:+.4f}, {found['high']:+.4f}])", **TITLE | {"fontsize": 10})  # fmt: skip
        _size_ticks(axis, "parameters", grid["sizes"])
        axis.set_xlabel("parameters of the trunk", fontsize=10, color=SOFT)
        plain_axes(axis)
    axes[0].legend(title="side of a window", frameon=False, fontsize=9, title_fontsize=9, labelcolor=INK)
    save_figure(figure, path)
    return Drawn(path, f"{len(grid['sizes'])} sizes × {len(grid['contexts_um'])} contexts; r over the top {top_genes} "
                       "genes. Interaction: what the longest context gains over the shortest at the largest size, less "
                       "the same at the smallest.")  # fmt: skip


def draw_joint(path: Path, joint: dict[str, Any]) -> Drawn:
    """Loss against patients, a colour a size of the model, with the joint law; what it leaves below."""
    law = joint["laws"]["nats"]
    figure = blank_figure(7.6, 6.2)
    upper, lower = figure.subplots(2, 1, gridspec_kw={"height_ratios": [3, 1]}, sharex=True)
    sizes = np.array([run["sizes"] for run in joint["runs"]])
    loss_R = np.array([_known(run["values"]["nats"]) for run in joint["runs"]])
    smooth = np.geomspace(sizes[:, 1].min(), sizes[:, 1].max(), 100)
    for number, size in enumerate(np.unique(sizes[:, 0])):
        colour, own = COHORT_COLOURS[number % len(COHORT_COLOURS)], sizes[:, 0] == size
        upper.scatter(sizes[own, 1], loss_R[own], s=26, color=colour, edgecolors="white", linewidths=0.7, zorder=3,
                      label=f"{size_text('parameters', size)} parameters")  # fmt: skip
        if law["law"] is not None:
            upper.plot(smooth, _joint_loss(law, np.full_like(smooth, size), smooth), color=colour, linewidth=1.3,
                       linestyle="-" if law["verdict"] == "accepted" else "--")  # fmt: skip
            rest_R = loss_R[own] - _joint_loss(law, *sizes[own].T)
            lower.scatter(sizes[own, 1], rest_R, s=18, color=colour, edgecolors="white", linewidths=0.6)
    upper.set_title(textwrap.fill(law_text(law), 95), **TITLE | {"fontsize": 9.5})
    upper.set_ylabel("held-out loss, nats a detection", fontsize=10, color=SOFT)
    upper.legend(frameon=False, fontsize=9, labelcolor=INK)
    lower.axhline(0, color=RULE, linewidth=1, zorder=0)
    lower.set_ylabel("found − law", fontsize=10, color=SOFT)
    lower.set_xlabel("training patients", fontsize=10, color=SOFT)
    _size_ticks(lower, "patients", sorted(set(sizes[:, 1].tolist())))
    for axis in (upper, lower):
        plain_axes(axis)
    save_figure(figure, path)
    return Drawn(path, "The joint law over parameters N and patients D at equal steps: L = E + A / N^a + B / D^b. "
                       "Solid: accepted; dashed: refused.")  # fmt: skip


def _joint_loss(law: dict[str, Any], size_R: np.ndarray, patients_R: np.ndarray) -> np.ndarray:
    fitted = law["law"]
    (A, B), (a, b) = fitted["scales"], fitted["exponents"]
    return fitted["floor"] + A * size_R**-a + B * patients_R**-b


def _size_ticks(axis, name: str, sizes: list[float]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.set_xticks(sizes, [size_text(name, size) for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())


def draw_study(folder: Path, values: dict[str, Any]) -> dict[str, list[Drawn]]:
    """Every figure of a study, by section of its page. Raises `InputError` where matplotlib is not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    sweeps = [one for one in values["sweeps"] if len({point["size"] for point in one["points"]}) >= _LEAST_DRAWN]
    top = values["top_genes"]
    return {
        "sweeps": [draw_sweep(folder / f"sweep_{n}.png", one, top) for n, one in enumerate(sweeps, 1)],
        "joint": [draw_joint(folder / f"joint_{n}.png", one) for n, one in enumerate(values["joint"], 1)],
        "grids": [draw_grid(folder / f"grid_{n}.png", one, top) for n, one in enumerate(values["grids"], 1)],
        "comparisons": [draw_gains(folder / f"genes_{n}.png", one) for n, one in enumerate(values["comparisons"], 1)],
    }  # fmt: skip

"""scaling.json and scaling.html (one file, offline) of a study."""

import html
import json
from pathlib import Path
from typing import Any

from tario_jax.evaluate.figures import Drawn
from tario_jax.evaluate.page import picture, table, whole_page
from tario_jax.evaluate.scaling.figures import draw_study
from tario_jax.evaluate.scaling.words import (
    QUANTITIES,
    better_text,
    comparison_name,
    count_text,
    law_text,
    signed,
    size_text,
)
from tario_jax.evaluate.tables import plain
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION
from tario_jax.whole_file import write_whole

_BY_SECTION = f"{SPLIT_BY_SECTION} Nothing here says that models generalise to new patients."
_VIRTUAL = "Virtual tissue: these figures test the software and say nothing about real tumours."
_RUN_COLUMNS = ("run", "patients", "parameters", "gene tables", "window", "read at", "steps", "tokens", "FLOPs",
                "seeds", "loss", "gene part", "validation", "r counts", "r composition", "r residual",
                "r counts, all genes", "bulk r")  # fmt: skip
_SHOWN = ("run", "patients", "parameters", "gene tables", "window", "read at", "steps", "FLOPs", "loss", "r counts")


def write_study(folder: Path, values: dict[str, Any], title: str) -> Path:
    """Writes figures/, scaling.html and, last, scaling.json into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_study(folder / "figures", values)
    page = folder / "scaling.html"
    write_whole(page, render(values, drawn, title))
    write_whole(folder / "scaling.json", json.dumps(plain(values), indent=1, allow_nan=False) + "\n")
    return page


def render(values: dict[str, Any], drawn: dict[str, list[Drawn]], title: str) -> str:
    """The whole page as HTML text; it needs no network."""
    parts = [
        f'<p class="banner">{_VIRTUAL}</p>' if values["virtual"] else "",
        f'<p class="banner">{_BY_SECTION}</p>' if values["split_by"] == "section" else "",
        f"<p class=note>{html.escape(summary(values))}</p>",
        _apart(values),
        _section("Along each axis", [_laws(values), *map(picture, drawn["sweeps"])]),
        _section("Parameters and patients together", [_joint(values), *map(picture, drawn["joint"])]),
        _section("Sizes × contexts", [*map(_grid, values["grids"]), *map(picture, drawn["grids"])]),
        _section(
            "Gene by gene",
            [_comparisons(values), _classes(values), _matched(values), *map(picture, drawn["comparisons"])],
        ),
        _section("Runs", [_runs(values)]),
        _section("Left out", [_left_out(values)]),
    ]
    return whole_page(title, list(filter(None, parts)))


def summary(values: dict[str, Any]) -> str:
    held = values["held_out"]
    bins = f"bins of {held['bin_um']:g} µm" if held["bin_um"] else "spots"
    return (
        f"{len({run['name'] for run in values['runs']})} runs on {held['sections']} held-out sections of "
        f"{held['patients']} patients, {bins}. {values['genes']:,} genes, {values['ranked_genes']:,} of them ranked "
        f"by Moran's I on {values['ranked_on']}, for all runs alike; r is a mean over the top {values['top_genes']:,}, "
        f"and over sections. Intervals: 95 % bootstrap over patients, {values['samples']:,} samples; of laws, over "
        "runs. A law is accepted if, fitted without the runs of the largest size, it predicts their mean within 2 seed "
        "standard deviations, and a constant does not."
    )


def _section(heading: str, parts: list[str]) -> str:
    parts = [part for part in parts if part]
    return f"<h2>{heading}</h2>" + "\n".join(parts) if parts else ""


def _laws(values: dict[str, Any]) -> str:
    rows = []
    for sweep in values["sweeps"]:
        sizes = ", ".join(size_text(sweep["axis"], point["size"]) for point in sweep["points"])
        for number, (name, title) in enumerate(QUANTITIES.items()):
            means = " → ".join(_number(_mean(point["values"][name])) for point in sweep["points"])
            rows.append(["" if number else f"{sweep['name']} ({sizes})", title, means, law_text(sweep["laws"][name])])
    return table(["axis", "quantity", "means over seeds", "law"], rows) if rows else ""


def _joint(values: dict[str, Any]) -> str:
    rows = [[QUANTITIES[name], law_text(law)] for joint in values["joint"] for name, law in joint["laws"].items()]
    return table(["quantity", "E + A / N^a + B / D^b"], rows) if rows else ""


def _grid(grid: dict[str, Any]) -> str:
    rows = []
    for name, found in grid["quantities"].items():
        for number, (size, cells, gain) in enumerate(zip(grid["sizes"], found["cells"], found["gains"], strict=True)):
            told = "" if number else _interaction(found)
            rows.append(["" if number else QUANTITIES[name], count_text(size),
                         *(_number(_mean(cell)) for cell in cells), signed(gain, 4), told])  # fmt: skip
    contexts = [f"{context:g} µm" for context in grid["contexts_um"]]
    return table(["quantity", "parameters", *contexts, "gain of context", "interaction"], rows)


def _interaction(found: dict[str, Any]) -> str:
    seeds = "no second seed" if found["seed_sd"] is None else f"seed sd {found['seed_sd']:.2g}"
    ends = f"[{signed(found['low'], 4)}, {signed(found['high'], 4)}]"
    return f"{signed(found['interaction'], 4)} ({seeds}; patients {ends})"


def _comparisons(values: dict[str, Any]) -> str:
    rows = []
    for comparison in values["comparisons"]:
        for number, (form, found) in enumerate(comparison["forms"].items()):
            change = found["difference"]
            best = max(found["by_class"].items(), key=lambda one: one[1]["mean"] or 0.0, default=None)
            rows.append([
                "" if number else comparison_name(comparison), form, better_text(found),
                f"{signed(change['mean'], 4)} [{signed(change['low'], 4)}, {signed(change['high'], 4)}]",
                "–" if best is None else f"{best[0]} {signed(best[1]['mean'], 4)}",
            ])  # fmt: skip
    head = ["from → to", "form", "genes", "change of mean r, ranked genes", "class that gains most"]
    return table(head, rows) if rows else ""


def _classes(values: dict[str, Any]) -> str:
    """Which gene class gains from what: change of mean r in counts, and the largest between two seeds."""
    several = [(comparison_name(one), one["forms"]["counts"]["by_class"]) for one in values["comparisons"]
               if "counts" in one["forms"]]  # fmt: skip
    names = list(dict.fromkeys(name for _, classes in several for name in classes))
    rows = []
    for name in names:
        cells = []
        for _, classes in several:
            null = max((abs(value) for value in classes[name]["null"] if value == value), default=None)
            beside = "" if null is None else f" (seeds {null:.4f})"
            cells.append(f"{signed(classes[name]['mean'], 4)}{beside}")
        rows.append([name, *cells])
    return table(["change of r, counts, by gene class", *(name for name, _ in several)], rows) if rows else ""


def _matched(values: dict[str, Any]) -> str:
    rows = []
    for comparison in values["comparisons"]:
        for number, (form, found) in enumerate(comparison["forms"].items()):
            cells = [f"{top['k']:,}: {_number(_mean(top['before']))} → {_number(_mean(top['after']))}"
                     for top in found["top"]]  # fmt: skip
            rows.append(["" if number else comparison_name(comparison), form, "; ".join(cells)])
    return table(["r at matched top-k", "form", "k: mean r from → to"], rows) if rows else ""


def _runs(values: dict[str, Any]) -> str:
    return table(list(_RUN_COLUMNS), [run_cells(run) for run in values["runs"]])


def run_cells(run: dict[str, Any]) -> list[str]:
    """A run in the columns of its table."""
    found, seeds = run["values"], run["seeds"]
    return [
        run["name"], "–" if run["patients"] is None else f"{run['patients']:,}", count_text(run["parameters"]),
        count_text(run["gene_table_parameters"]), f"{run['window_um']:g} µm",
        f"{run['read_um']:g} µm" if run["read_um"] else "spots", f"{run['steps']:,}", f"{run['tokens']:.2e}",
        f"{run['flops']:.2e}", f"{seeds['data']}, {seeds['train']}",
        *(_number(found[name]) for name in ("nats", "gene_nats", "validation_nats", "r/counts/top",
                                            "r/composition/top", "r/residual/top", "r/counts/all", "bulk_r/log_cpm")),
    ]  # fmt: skip


def _apart(values: dict[str, Any]) -> str:
    return "".join(f"<p class=banner>{html.escape(apart_text(one))}</p>" for one in values["apart"])


def apart_text(apart: dict[str, Any]) -> str:
    """Why a run is on no axis with another one, with the fields that keep it from the nearest other one."""
    differs = "; ".join(f"{name} {a} and {b}" for name, (a, b) in apart["differs"].items())
    return (f"{apart['name']} is on no axis with another run: from {apart['nearest']}, the nearest, it differs in "
            f"{differs}")  # fmt: skip


def _left_out(values: dict[str, Any]) -> str:
    lines = "".join(f"<li>{html.escape(one['name'])}: {html.escape(one['why'])}</li>" for one in values["left_out"])
    return f"<ul>{lines}</ul>" if lines else ""


def _mean(values: list[float | None]) -> float | None:
    return None if any(value is None for value in values) else sum(values) / len(values)


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.4f}".replace("-", "−")


def study_table(values: dict[str, Any]) -> str:
    """The same in short, for a terminal."""
    lines = [summary(values), ""]
    columns = [_RUN_COLUMNS, *(run_cells(run) for run in values["runs"])]
    chosen = [[cells[_RUN_COLUMNS.index(name)] for name in _SHOWN] for cells in columns]
    widths = [max(map(len, column)) for column in zip(*chosen, strict=True)]
    lines += [
        "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in chosen
    ]
    lines += ["", f"! {_VIRTUAL}"] if values["virtual"] else [""]
    lines += [f"! {_BY_SECTION}"] if values["split_by"] == "section" else []
    lines += [f"! {apart_text(one)}" for one in values["apart"]]
    lines += [f"! left out: {one['name']}: {one['why']}" for one in values["left_out"]]
    for sweep in values["sweeps"]:
        lines += ["", sweep["name"]]
        lines.append(f"  {'':<22}" + "".join(f"{size_text(sweep['axis'], p['size']):>13}" for p in sweep["points"]))
        for name, title in QUANTITIES.items():
            cells = "".join(f"{_number(_mean(point['values'][name])):>13}" for point in sweep["points"])
            lines.append(f"  {title.removeprefix('held-out '):<22}{cells}")
        lines += [f"  law: {QUANTITIES[name]}: {law_text(sweep['laws'][name])}" for name in QUANTITIES
                  if len(sweep["points"]) > 2]  # fmt: skip
    for joint in values["joint"]:
        lines += ["", "parameters and patients together"]
        lines += [f"  law: {QUANTITIES[name]}: {law_text(law)}" for name, law in joint["laws"].items()]
    for grid in values["grids"]:
        lines += ["", f"{len(grid['sizes'])} sizes × {len(grid['contexts_um'])} contexts: interaction"]
        lines += [f"  {QUANTITIES[name]}: {_interaction(found)}" for name, found in grid["quantities"].items()]
    lines += ["", "gene by gene"] if values["comparisons"] else []
    for comparison in values["comparisons"]:
        lines.append(f"  {comparison_name(comparison)}")
        lines += [f"    {form:<12} {better_text(found)}" for form, found in comparison["forms"].items()]
    return "\n".join(lines)

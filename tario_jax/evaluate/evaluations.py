"""What is known of a run's checkpoints: a line each in evaluations.jsonl, and a figure of them over the steps."""

import json
from pathlib import Path
from typing import Any

from tario_jax.config import InputError
from tario_jax.evaluate.figures import INK, LINES, SOFT, TITLE, blank_figure, plain_axes, save_figure
from tario_jax.evaluate.tables import plain
from tario_jax.train.run_files import ValidationLine, read_lines
from tario_jax.whole_file import write_whole

_SHOWN = {  # field of the headline: (label, colour, style)
    "spatial_r_top100": ("counts", LINES["model"][1], "-"),
    "composition_r_top100": ("composition", "#7a4fa3", "-"),
    "ridge_r_top100": ("counts, ridge", LINES["ridge"][1], "--"),
    "own_density_r_top100": ("counts, model's own density", LINES["own_density"][1], "--"),
}


class Evaluations:
    """`evaluations.jsonl` of a folder: of each checkpoint `step`, `unix`, `checkpoint` (its seal), `key` (of the bins,
    corpus and settings that were asked for) and the headline.

    A step that was saved anew after a rollback is another checkpoint; of two lines of a step the last one counts.
    """

    def __init__(self, folder: Path):
        self._path = folder / "evaluations.jsonl"
        self._written = list(read_lines(self._path, _line).values)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """By step."""
        newest = {line["step"]: line for line in self._written}
        return [newest[step] for step in sorted(newest)]

    def holds(self, step: int, checkpoint: str | None) -> bool:
        return any((line["step"], line["checkpoint"]) == (step, checkpoint) for line in self._written)

    def refuse_others(self, key: str) -> None:
        """Raises `InputError` where a line is of other bins, another corpus or other settings: figures of several do
        not belong together."""
        other = next((line for line in self._written if line.get("key", key) != key), None)
        if other is not None:
            raise InputError(f"{self._path}: step {other['step']} was evaluated with another --bin-um, --corpus or "
                             "evaluate.*; give those, or another --out")  # fmt: skip

    def add(self, line: dict[str, Any]) -> None:
        """Replaces the file as a whole, so that a job that is killed leaves no half of a line."""
        self._written.append(_line(plain(line)))
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in self._written))


def _line(values: dict[str, Any]) -> dict[str, Any]:
    return {"step": int(values["step"]), "checkpoint": values["checkpoint"], **values}


def draw_evaluations(path: Path, lines: list[dict[str, Any]], validation: list[ValidationLine], name: str) -> None:
    """Writes a PNG: spatial r on held-out sections beside its controls, and the validation loss, over the steps.

    Raises `InputError` where matplotlib is not installed.
    """
    figure = blank_figure(6.4, 6.4)
    of_r, of_loss = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for field, (label, colour, style) in _SHOWN.items():
        known = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
        if known:
            of_r.plot(*zip(*known, strict=True), color=colour, linestyle=style, linewidth=1.4, marker="o",
                      markersize=4 if style == "-" else 0, label=label)  # fmt: skip
    if of_r.lines:
        of_r.legend(frameon=False, fontsize=9, labelcolor=INK)
    if validation:
        of_loss.plot(*zip(*validation, strict=True), color=INK, linewidth=1.4, marker="o", markersize=4)
    genes = lines[-1].get("genes") if lines else None
    of_r.set_title(f"{name}: spatial r on held-out sections" + (f", {genes} genes" if genes else ""), **TITLE)
    of_loss.set_title("validation, nats a detection", **TITLE)
    of_loss.set_xlabel("steps", fontsize=10, color=SOFT)
    of_loss.xaxis.get_major_locator().set_params(integer=True)
    for axis in (of_r, of_loss):
        plain_axes(axis)
    save_figure(figure, path)

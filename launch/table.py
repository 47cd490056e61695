"""The runs of a sweep as a table, before a cent is spent."""

import dataclasses
from typing import Any

from launch.estimate import Estimate, Prices
from launch.hardware import Hardware
from launch.sweep_file import Sweep
from launch.verdicts import Verdict
from tario_jax.config import Config


@dataclasses.dataclass(frozen=True)
class Row:
    run: str
    config: Config
    hardware: Hardware | None
    estimate: Estimate
    verdict: Verdict | None
    by_verdict: bool = True  # whether one that does not fit is refused

    @property
    def patients(self) -> int | None:
        """For training, as the config says; None where the corpus alone knows."""
        split, source = self.config.split, self.config.source
        listed = len(split.train) if split.by == "patient" else 0
        return split.train_patients or listed or (source.train_patients if source.kind == "virtual" else None)

    @property
    def verdict_text(self) -> str:
        if self.estimate.refusal:
            return "cannot run"
        if self.hardware is None or self.hardware.is_gpu:
            return "no compiler for it here" if self.hardware else ""
        if self.verdict is None:
            return "not compiled"
        return "cannot run" if self.verdict.why else str(self.verdict)

    @property
    def refused(self) -> str:
        """Why it is not to be started; empty where nothing is known against it."""
        if self.estimate.refusal:
            return self.estimate.refusal
        if self.by_verdict and self.verdict is not None and not self.verdict.fits:
            return self.verdict.why or str(self.verdict)
        return ""

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run, "patients": self.patients, "bin_um": self.config.data.bin_um,
                "window_um": self.config.data.window_um, "steps": self.config.train.steps,
                "hardware": str(self.hardware) if self.hardware else None, **self.estimate.to_dict(),
                "verdict": self.verdict and dataclasses.asdict(self.verdict), "refused": self.refused}  # fmt: skip


_HEADS = ("run", "patients", "bin", "window", "trunk", "genes", "tokens", "FLOPs", "on", "chips", "bound", "hours",
          "US$", "memory of a chip")  # fmt: skip
_UNITS = ("", "", "µm", "µm", "M", "M", "", "", "", "", "h", "h", "", "")


def sweep_table(sweep: Sweep, rows: list[Row], prices: Prices) -> str:
    """A line a run, the sums, what the columns mean, and the runs that would not fit."""
    cells = [_cells(row) for row in rows]
    shown = [at for at in range(len(_HEADS)) if any(line[at] for line in cells)]
    lines = [[line[at] for at in shown] for line in (_HEADS, _UNITS, *cells)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [shown.index(at) for at in (0, 8, 13) if at in shown]
    text = ["  ".join(cell.ljust(width) if at in left else cell.rjust(width)
                      for at, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines]  # fmt: skip
    text.append("")
    hours = [row.estimate.hours for row in rows if row.estimate.hours is not None]
    flops = sum(row.estimate.flops for row in rows)
    text.append(f"{len(rows)} runs of {sweep.file}: {flops:.2g} FLOPs" + (
        f", {sum(row.estimate.hours * row.estimate.chips for row in rows if row.estimate.hours):,.0f} chip-hours, "
        f"{sum(hours):,.0f} hours one after the other, {_dollars(rows)}" if hours else ""))  # fmt: skip
    if hours:
        text.append("bound: hours of training where nothing waits (docs/pods.md); hours: where a step attains "
                    f"{prices.share_of_bound:.0%} of that, an assumption of the price file")  # fmt: skip
    untold = sum(row.estimate.chips is not None and row.estimate.hours is None and not row.estimate.refusal
                 for row in rows)  # fmt: skip
    if untold:
        text.append(f"{untold} runs learn from H&E alone, or train a part of the model: their hours are in no sum")
    unpriced = sorted({row.hardware.kind for row in rows if row.estimate.hours and row.estimate.dollars is None})
    if unpriced:
        text.append(f"no price of {', '.join(unpriced)}: add it to the price file (--prices=FILE)")
    refused = [row for row in rows if row.refused]
    if refused:
        text += ["", f"{len(refused)} runs would not fit, and are not started:"]
        text += [f"  {row.run}: {row.refused}" for row in refused]
    return "\n".join(text)


def _dollars(rows: list[Row]) -> str:
    known = [row.estimate.dollars for row in rows if row.estimate.dollars is not None]
    return f"US$ {sum(known):,.0f}" if known else "no price"


def _cells(row: Row) -> list[str]:
    config, found = row.config, row.estimate

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return [
        row.run, cell(row.patients, "d"), f"{config.data.bin_um:g}", f"{config.data.window_um:,.0f}",
        f"{found.trunk_parameters / 1e6:,.1f}", f"{found.gene_parameters / 1e6:,.1f}", f"{found.tokens:.1e}",
        f"{found.flops:.1e}", str(row.hardware or "here"), cell(found.chips, ",d"),
        cell(found.shortest_hours, ",.1f"), cell(found.hours, ",.1f"), cell(found.dollars, ",.0f"), row.verdict_text,
    ]  # fmt: skip

"""tario compare."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tario_jax.cli.options import say, write_json
from tario_jax.config import InputError

if TYPE_CHECKING:
    from tario_jax.evaluate.run_comparison import Comparison

SUMMARY = "runs side by side: what differs in their configs, losses at equal steps and hours, speed, goodput"
EXAMPLES = """
    tario compare runs/a runs/b
    tario compare runs/a runs/b runs/c --figure=compare.png --json=compare.json
"""
GROUPS_READ = ()
_LONGEST_VALUE = 60


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR",
                        help="two or more; the others are held against the first")  # fmt: skip
    parser.add_argument(
        "--figure", type=Path, metavar="PNG", help="loss against steps and against hours (extra [eval])"
    )


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tario_jax.evaluate.run_comparison import compare_runs
    from tario_jax.train.run_files import read_run

    if len(options.workdirs) < 2:
        raise InputError(f"compare: found one workdir, {options.workdirs[0]}; give two or more")
    if options.figure is not None and options.figure.suffix != ".png":
        raise InputError(f"--figure={options.figure}: ends in {options.figure.suffix!r}; expected .png")
    runs = [read_run(workdir) for workdir in options.workdirs]
    comparison = compare_runs(runs, time.time())
    if options.figure is not None:
        from tario_jax.evaluate.run_figure import draw_runs

        draw_runs(options.figure, [one.name for one in comparison.runs], runs)
    console = Console(highlight=False)
    with console.capture() as captured:
        for table in (_config_table(comparison), _figures_table(comparison)):
            console.print(table)
    say("\n".join(line.rstrip() for line in captured.get().splitlines()))
    if comparison.other_losses:
        say(f"training losses are of different kinds ({', '.join(comparison.other_losses)}):\n"
            "hold validation against validation")  # fmt: skip
    if options.figure is not None:
        say(f"\nfigure: {options.figure}")
    if options.json is not None:
        from tario_jax.evaluate.tables import plain

        write_json(options.json, plain(comparison.to_dict()))
    return 0


def _config_table(comparison: "Comparison"):
    """Field by field, where the configs differ."""
    from rich.text import Text

    unknown = [one.name for one, config in zip(comparison.runs, comparison.has_config, strict=True) if not config]
    if not comparison.config:
        rest = f" (no config.json: {', '.join(unknown)})" if unknown else ""
        return Text(f"config: no field differs{rest}\n", "bold")
    table = _table("config", comparison)
    for field, values in comparison.config.items():
        table.add_row(field, *(_short(value) for value in values))
    return table


def _figures_table(comparison: "Comparison"):
    """Figure by figure; with two runs, the difference too."""
    two = len(comparison.runs) == 2
    table = _table("figure", comparison, *(["difference"] if two else []))
    for name, of, form in _rows(comparison):
        values = [of(one) for one in comparison.runs]
        if all(value is None for value in values):
            continue
        cells = ["–" if value is None else form(value) for value in values]
        numbers = [value for value in values if isinstance(value, (int, float))]
        if two:
            cells.append(_signed(numbers[1] - numbers[0], form) if len(numbers) == 2 else "")
        table.add_row(name, *cells)
    return table


def _rows(comparison: "Comparison") -> list[tuple[str, Any, Any]]:
    """(what, how a run has it, how it is written)."""

    def nats(value: float) -> str:
        return f"{value:.4f}"

    def low(part: str, field: str):
        return lambda one: None if getattr(one, part) is None else getattr(getattr(one, part), field)

    def field(name: str):
        return lambda one: getattr(one, name)

    at, checked = comparison.step, comparison.validation_step
    equal = [] if at is None else [
        (f"loss at step {at:,}", field("loss_at_step"), nats),
        # the mean of several differences at equal steps is less noisy than one
        (f"… − {comparison.runs[0].name}'s, mean of last {comparison.tail_steps}", field("tail_difference"),
         lambda value: _signed(value, nats)),
        (f"first group by step {at:,}", field("first_group_at_step"), nats),
        (f"last group by step {at:,}", field("last_group_at_step"), nats),
    ]  # fmt: skip
    if checked is not None:
        equal.append((f"validation at step {checked:,}", field("validation_at_step"), nats))
    if comparison.hours:
        equal.append((f"loss after {_hours(comparison.hours)}", field("loss_at_hours"), nats))
    return [
        ("state", field("state"), str),
        ("steps", lambda one: f"{one.step:,}" + (f" of {one.steps:,}" if one.steps else ""), str),
        ("loss, last", low("loss", "last"), nats), ("loss, best", low("loss", "best"), nats),
        ("validation, last", low("validation", "last"), nats), ("validation, best", low("validation", "best"), nats),
        *equal,
        ("tokens/s, median", field("tokens_per_second"), lambda value: f"{value:,.0f}"),
        ("MFU, median", field("mfu"), _percent), ("goodput", field("goodput"), _percent),
        ("time of training", field("training_hours"), _hours), ("wall time", field("wall_hours"), _hours),
        ("skipped steps", field("skipped_steps"), str), ("rollbacks", field("rollbacks"), str),
    ]  # fmt: skip


def _table(what: str, comparison: "Comparison", *more: str):
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(what, no_wrap=True)
    for one in comparison.runs:
        table.add_column(one.name, justify="right", overflow="fold")
    for name in more:
        table.add_column(name, justify="right")
    return table


def _hours(hours: float) -> str:
    from tario_jax.train.run_state import duration

    return duration(3600 * hours)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(difference: float, form) -> str:
    if not difference:
        return "0"
    return f"{'+' if difference > 0 else '−'}{form(abs(difference))}"


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"

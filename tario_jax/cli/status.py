"""tario status."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tario_jax.cli.options import say, write_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tario_jax.train.run_files import RunFiles

SUMMARY = "a run at a glance: how far, how well, how fast, and what went wrong; live in a terminal"
EXAMPLES = """
    tario status runs/quickstart
    tario status runs/quickstart --once
    tario status runs/quickstart --once --json=status.json
"""
GROUPS_READ = ()
_EVERY_S = 2.0


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="of 'tario train' or 'tario run'")
    parser.add_argument("--once", action="store_true", help="print it and leave, as where the output is no terminal")


def run(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    if not options.once and console.is_terminal:
        return _follow(options, console)
    shown = _look(options, None, console).page
    with console.capture() as captured:
        console.print(shown)
    say("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))
    return 0


class _Seen(NamedTuple):
    """A workdir as it was at one moment."""

    files: "RunFiles"
    page: "RenderableType"
    over: bool


def _look(options: argparse.Namespace, before: "RunFiles | None", console, *, rows: int | None = None) -> _Seen:
    """Reads what has grown and writes the JSON. rows: of the page, where they are few; it leaves out what it must."""
    from tario_jax.cli.status_page import page
    from tario_jax.train.run_files import read_run
    from tario_jax.train.run_status import status_of

    files = read_run(options.workdir, before)
    status = status_of(files, time.time())
    if options.json is not None:
        write_json(options.json, status.to_dict())
    shown = page(status, files.training, console.width)
    if rows is not None and len(console.render_lines(shown)) > rows:
        shown = page(status, files.training, console.width, compact=True)
    return _Seen(files, shown, status.state.name == "finished")


def _follow(options: argparse.Namespace, console) -> int:
    """On the terminal's other screen, until the run is finished or Ctrl-C; then the whole page on the usual one."""
    from rich.console import Group
    from rich.live import Live

    from tario_jax.cli.status_page import title

    seen, took_s = None, 0.0
    try:
        seen = _look(options, None, console, rows=console.height - 1)  # one is the title's
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while not seen.over:
                live.update(Group(title(options.workdir, time.time()), seen.page), refresh=True)
                time.sleep(max(_EVERY_S, 10 * took_s))  # thousands of heartbeats on a slow disk are read less often
                began = time.monotonic()
                seen = _look(options, seen.files, console, rows=console.height - 1)
                took_s = time.monotonic() - began
    except KeyboardInterrupt:
        pass  # how one leaves
    if seen is not None:
        console.print(_look(options, seen.files, console).page)
    return 0

"""A run at a glance, for a terminal of any width or for a pipe."""

import time
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tario_jax.cli.braille import plot
from tario_jax.train.run_files import TrainingLine
from tario_jax.train.run_state import SILENT_S, duration
from tario_jax.train.run_status import Status

WIDE = 110  # columns from which on two blocks stand side by side
_STATE_STYLES = {"training": "black on green", "saving": "black on green", "finished": "black on cyan",
                 "starting": "black on yellow", "compiling": "black on yellow", "stopped": "black on yellow",
                 "hung": "bold white on red", "failed": "bold white on red"}  # fmt: skip
_BAD_EVENTS = ("save_failed", "damaged", "skipped", "rolled_back", "hung", "failed")
_CHECKPOINTS_SHOWN = 5
_NAMES_SHOWN = 4  # of silent hosts
_EXCESS_WORTH_TELLING = 0.05


def page(status: Status, training: list[TrainingLine], width: int, *, compact: bool = False) -> RenderableType:
    """The whole page. training: the lines of the loss curve; width: in columns; compact: for a terminal of 24 rows."""
    wide = width >= WIDE
    curve = _curve(status, training, width // 2 - 2 if wide else width - 1, rows=4 if compact else 6)
    if compact:
        losses, kept = _goodput_line(status), _checkpoints_line(status)
    else:
        losses, kept = _goodput(status), _checkpoints(status)
    if wide:
        parts = [_beside(curve, _numbers(status, 2)), _beside(losses, kept)]
    else:
        parts = [curve, _numbers(status, 3 if compact else 2), losses, kept]
    parts = [_head(status, width), *parts, _hosts(status), _events(status, 3 if compact else 6)]
    return Group(*(Padding(part, (0, 0, 0 if compact else 1, 0)) for part in parts if part is not None))


# --- the head: who, how, how far


def _head(status: Status, width: int) -> RenderableType:
    title = Table.grid(expand=True, padding=(0, 1))
    title.add_column(no_wrap=True)
    title.add_column(ratio=1, overflow="fold")
    state = Text(f" {status.state.name.upper()} ", _STATE_STYLES[status.state.name])
    title.add_row(Text(status.name, "bold") + "  " + state, Text(status.state.why))
    return Group(title, _progress(status, width), *_warnings(status))


def _progress(status: Status, width: int) -> RenderableType:
    words = [f"step {status.step:,}" + (f"/{status.steps:,}" if status.steps else "")]
    if status.steps:
        words.append(f"{100 * status.step // status.steps} %")
    if status.state.live and status.seconds_a_step is not None:
        words.append(f"{_seconds(status.seconds_a_step)} a step")
    if status.eta_seconds is not None:
        words.append(f"ETA {duration(status.eta_seconds)}")
    said = Text("  ".join(words), no_wrap=True)
    bar = ProgressBar(total=status.steps or 1, completed=min(status.step, status.steps or 1),
                      width=max(10, width - said.cell_len - 3), complete_style="green",
                      finished_style="cyan")  # fmt: skip
    line = Table.grid(padding=(0, 2))
    line.add_row(bar, said)
    return line


def _warnings(status: Status) -> list[Text]:
    """What should not have happened, in red."""
    words = []
    if status.skipped_steps:
        words.append(f"skipped steps: {status.skipped_steps:,}")
    if status.rollbacks:
        words.append(f"rollbacks: {status.rollbacks:,}")
    if status.unread_lines:
        words.append(f"damaged lines of metrics.jsonl and events.jsonl, left out: {status.unread_lines:,}")
    silent = status.hosts.silent
    if silent:
        named = ", ".join(
            f"{host} (process {process}) for {duration(age)}" for host, process, age in silent[:_NAMES_SHOWN]
        )
        more = f" and {len(silent) - _NAMES_SHOWN:,} more" if len(silent) > _NAMES_SHOWN else ""
        words.append(f"silent: {named}{more}")
    return [Text(f"! {word}", "bold red") for word in words]


# --- the loss


def _curve(status: Status, training: list[TrainingLine], width: int, rows: int) -> RenderableType | None:
    loss = status.loss
    if loss is None:
        return None
    points = [(line.step, line.loss_nats_per_detection) for line in training]
    shown = sorted(y for _, y in points if y == y and abs(y) != float("inf"))
    low, high = shown[0], shown[-1]
    if len(shown) > 20:  # the fall from the start, or a spike, would flatten the rest
        high = shown[int(0.93 * len(shown))]
    marks = [f"{'' if high == shown[-1] else '≥'}{high:.3f}", *[""] * (rows - 2), f"{low:.3f}"]
    margin = max(map(len, marks))
    columns = max(10, width - margin - 2)
    drawn = plot(points, low, high, columns=columns, rows=rows)
    where = f" nats a detection at step {loss.last_step:,}; best {loss.best:.4f} at {loss.best_step:,}"
    lines = [Text("loss  ", "bold") + Text(f"{loss.last:.4f}", "bold green") + Text(where)]
    lines += [Text(f"{mark:>{margin}} ", "dim") + Text("│", "dim") + Text(row, "green")
              for mark, row in zip(marks, drawn, strict=True)]  # fmt: skip
    first, last = f"{points[0][0]:,}", f"{points[-1][0]:,}"
    lines.append(Text(" " * (margin + 2) + first + last.rjust(columns - len(first)), "dim"))
    if status.validation is not None:
        at = status.validation
        lines.append(Text("validation  ", "bold") + Text(f"{at.last:.4f}", "bold") + Text(
            f" at step {at.last_step:,}; best {at.best:.4f} at {at.best_step:,}"))  # fmt: skip
    return Group(*(_cut(line) for line in lines))


# --- the numbers


def _numbers(status: Status, across: int) -> RenderableType | None:
    """Pairs of a name and a number, so many side by side; what is not known is left out."""
    wait = None
    if status.data_wait_seconds is not None:
        wait = _seconds(status.data_wait_seconds)
        if status.step_seconds:
            cycle = status.step_seconds + status.data_wait_seconds
            wait += f" ({_percent(status.data_wait_seconds / cycle)})"
    pairs = [
        ("first group", _known(status.first_group_nats, "{:.4f}")),
        ("last group", _known(status.last_group_nats, "{:.4f}")),
        ("gradient norm", _known(status.gradient_norm, "{:.3g}")),
        ("learning rate", _known(status.learning_rate, "{:.3g}")),
        ("tokens/s", _known(status.tokens_per_second, "{:,.0f}")),
        ("MFU", None if status.mfu is None else _percent(status.mfu)),
        ("a step takes", None if status.step_seconds is None else _seconds(status.step_seconds)),
        ("data wait", wait),
        ("loop's Python", None if status.host_seconds is None else _seconds(status.host_seconds)),
        ("device memory", _known(status.memory_gib, "{:.2f} GiB")),
        ("host memory", _known(status.host_memory_gib, "{:.2f} GiB")),
    ]
    known = [pair for pair in pairs if pair[1] is not None]
    if not known:
        return None
    table = Table.grid(padding=(0, 2))
    for start in range(0, len(known), across):
        cells = [Text(word, style, no_wrap=True) for pair in known[start : start + across]
                 for word, style in zip(pair, ("dim", ""), strict=True)]  # fmt: skip
        table.add_row(*cells)
    return table


def _goodput(status: Status) -> RenderableType | None:
    """Where the wall time went: the steps that count, then what was lost, most first."""
    if status.goodput is None:
        return None
    title = Text("goodput  ", "bold") + Text(_percent(status.goodput), "bold green")
    if status.wall_seconds:
        starts = f" in {status.starts} starts" if status.starts > 1 else ""
        title += Text(f" of {duration(status.wall_seconds)}{starts} went into steps that count")
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="yellow")
    most = max(status.lost_seconds.values(), default=0.0)
    for name, seconds in status.lost_seconds.items():
        share = seconds / status.wall_seconds if status.wall_seconds else None
        if share is not None and share < 5e-4:
            continue
        table.add_row(name, duration(seconds), "" if share is None else _percent(share), _bar(seconds / most))
    return Group(_cut(title), Padding(table, (0, 0, 0, 2)))


def _goodput_line(status: Status) -> RenderableType | None:
    if status.goodput is None:
        return None
    said = Text("goodput  ", "bold") + Text(_percent(status.goodput), "bold green")
    if status.wall_seconds:
        lost = ", ".join(f"{name} {_percent(seconds / status.wall_seconds)}"
                         for name, seconds in status.lost_seconds.items())  # fmt: skip
        said += Text(f" of {duration(status.wall_seconds)}; {lost}")
    return _cut(said)


def _checkpoints(status: Status) -> RenderableType | None:
    if not status.checkpoints:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for saved in reversed(status.checkpoints[-_CHECKPOINTS_SHOWN:]):
        whole = Text("sealed", "green") if saved.sealed else Text("not sealed", "yellow")
        age = f"{duration(status.unix - saved.unix)} ago"
        table.add_row(f"step {saved.step:,}", age, _size(saved.size_bytes), whole)
    number = len(status.checkpoints)
    return Group(Text("checkpoints  ", "bold") + Text(f"{number:,} kept"), Padding(table, (0, 0, 0, 2)))


def _checkpoints_line(status: Status) -> RenderableType | None:
    if not status.checkpoints:
        return None
    saved, number = status.checkpoints[-1], len(status.checkpoints)
    return _cut(Text("checkpoints  ", "bold") + Text(
        f"{number:,} kept; step {saved.step:,} {'sealed' if saved.sealed else 'not sealed'} "
        f"{duration(status.unix - saved.unix)} ago, {_size(saved.size_bytes)}"))  # fmt: skip


def _hosts(status: Status) -> RenderableType | None:
    hosts = status.hosts
    if hosts.processes == 1:
        return None
    said = f"{hosts.processes:,} processes"
    silent = f"; all heard within {SILENT_S:g} s" if not hosts.silent and status.state.live else ""
    if hosts.heard < hosts.processes:
        said += f", {hosts.heard:,} heard of"
    if hosts.slowest is not None:
        own = hosts.measure == "own"
        said += (f"; slowest {hosts.slowest} (process {hosts.process}): {_seconds(hosts.seconds)} "
                 f"{'a step for data and Python' if own else 'for a small product on its device'}, median "
                 f"{_seconds(hosts.median_seconds)}")  # fmt: skip
        share = f"{_percent(hosts.excess)}{' of a step' if own else ''}"
        style = "yellow" if hosts.excess >= _EXCESS_WORTH_TELLING else ""
        return Text("hosts  ", "bold") + Text(said) + Text(f": {share} more", style) + Text(silent)
    return Text("hosts  ", "bold") + Text(said + silent)


def _events(status: Status, number: int) -> RenderableType | None:
    if not status.events:
        return None
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    for event in status.events[-number:]:
        style = "bold red" if event.event in _BAD_EVENTS else ""
        what, text = Text(event.event.replace("_", " "), style), Text(event.text.replace("\n", " "), style)
        table.add_row(_clock(event.unix, status.unix), f"step {event.step:,}", what, text)
    return Group(Text("events", "bold"), Padding(table, (0, 0, 0, 2)))


# --- words


def _beside(*blocks: RenderableType | None) -> RenderableType | None:
    found = [block for block in blocks if block is not None]
    if not found:
        return None
    table = Table.grid(expand=True, padding=(0, 2))
    for _ in found:
        table.add_column(ratio=1)
    table.add_row(*found)
    return table


def _cut(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _bar(share: float, columns: int = 20) -> str:
    """A share of the longest bar, in eighths of a character."""
    eighths = round(share * columns * 8)
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.2f} s" if seconds < 10 else duration(seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _known(value: float | None, form: str) -> str | None:
    return None if value is None else form.format(value)


def _size(number: int) -> str:
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    raise AssertionError("unreachable")


def _clock(unix: float, now: float) -> str:
    """The time of day; with the day where it was another one."""
    then = time.localtime(unix)
    same = time.localtime(now)[:3] == then[:3]
    return time.strftime("%H:%M:%S" if same else "%b %d %H:%M", then)


def title(workdir: Path, now: float) -> str:
    """What stands over a live page."""
    return f"{workdir}  {time.strftime('%H:%M:%S', time.localtime(now))}  (Ctrl-C leaves; the run goes on)"

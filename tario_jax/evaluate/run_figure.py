"""The figure of `tario compare`: loss against steps and against hours."""

from pathlib import Path

from tario_jax.evaluate.figures import COHORT_COLOURS, INK, SOFT, TITLE, blank_figure, plain_axes, save_figure
from tario_jax.evaluate.run_comparison import losses_by_hours
from tario_jax.train.run_files import RunFiles

_SHOWN = 0.92  # of the losses lie within the axes: the first fall would flatten the rest


def draw_runs(path: Path, names: list[str], runs: list[RunFiles]) -> None:
    """Writes a PNG: a line for the loss of each run, dots for its validation.

    Raises `InputError` where matplotlib is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = blank_figure(11.0, 4.6)
    by_steps, by_time = figure.subplots(1, 2, sharey=True)
    handles, shown = [], []
    longest = max((hours for files in runs for hours in losses_by_hours(files)[1][-1:]), default=0.0)
    unit, of_hour = ("hours", 1) if longest >= 1 else ("minutes", 60)
    for number, (name, files) in enumerate(zip(names, runs, strict=True)):
        colour = COHORT_COLOURS[number % len(COHORT_COLOURS)]
        style = ("-", "--", ":")[number // len(COHORT_COLOURS) % 3]
        steps, hours, losses = losses_by_hours(files)
        times = [of_hour * one for one in hours]
        (line,) = by_steps.plot(steps, losses, color=colour, linestyle=style, linewidth=1.4, label=name)
        by_time.plot(times, losses, color=colour, linestyle=style, linewidth=1.4)
        handles.append(line)
        checks = [(one.step, one.nats_per_detection) for one in files.validation]
        time_of = dict(zip(steps, times, strict=True))
        for axis, at in ((by_steps, dict(zip(steps, steps, strict=True))), (by_time, time_of)):
            known = [(at[step], nats) for step, nats in checks if step in at]
            axis.plot(*zip(*known, strict=True) if known else ([], []), linestyle="", marker="o", markersize=4.5,
                      color=colour, markeredgecolor="white", markeredgewidth=0.8)  # fmt: skip
        shown += sorted(loss for loss in losses if loss == loss)[: max(1, round(_SHOWN * len(losses)))]
        shown += [nats for _, nats in checks[len(checks) // 10 :]]
    for axis, title, label in ((by_steps, "loss by steps", "steps"), (by_time, "loss by time", f"{unit} of training")):
        axis.set_title(title, **TITLE)
        axis.set_xlabel(label, fontsize=10, color=SOFT)
        axis.set_xlim(left=0)
        plain_axes(axis)
    if shown:
        margin = 0.04 * (max(shown) - min(shown) or 1.0)
        by_steps.set_ylim(min(shown) - margin, max(shown) + margin)
    by_steps.set_ylabel("nats a detection (dots: validation)", fontsize=10, color=SOFT)
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False, fontsize=10,
                  labelcolor=INK)  # fmt: skip
    save_figure(figure, path)

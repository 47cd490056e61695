"""What `tario decode` shows: the tables for people, and one figure."""

from pathlib import Path
from typing import Any

from tario_jax.evaluate.decoding.calibration import LEVELS
from tario_jax.evaluate.decoding.section import ONE_SHOT
from tario_jax.evaluate.figures import (
    COHORT_COLOURS,
    INK,
    RULE,
    SOFT,
    TITLE,
    blank_figure,
    head_figure,
    hide_unused,
    plain_axes,
    save_figure,
)
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION

_FORMS = {"counts_r": ("counts", COHORT_COLOURS[0]), "composition_r": ("composition", COHORT_COLOURS[3])}
_WHO = {"model": COHORT_COLOURS[0], ONE_SHOT: SOFT, "neighbours": COHORT_COLOURS[1]}


def decoding_tables(report: dict[str, Any]) -> str:
    """Ways of generating, what is given, gains by class of genes, and seconds, as text."""
    lines = [
        *filter(None, [report["banner"]]),
        *([SPLIT_BY_SECTION] if report["split_by"] == "section" else []),
        f"{report['sections']} sections of {report['patients']} patients, {report['bins']:,} bins "
        f"({report['bins_below_min_total']:,} of too few counts for composition), {report['genes']} "
        f"genes {report['chosen']}; means over genes; in brackets: "
        f"{'95 % patient bootstrap' if report['interval'] else 'one patient, no interval'}",
        "", f"{'generation':<26}{'r counts':>9}  {'over one-shot':<26}{'r compos.':>9}  {'over one-shot':<26}",
    ]  # fmt: skip
    lines += [_row(way, found, found.get("gain")) for way, found in report["ways"].items()]
    covered = "".join(f"{f'{100 * level:g} %':>8}" for level in LEVELS)
    lines += ["", f"{'calibration':<26}{'CRPS':>9}{'of draws':>9}{covered}  Moran's I of rates   of drawn counts   "
              f"(measured {_number(report['moran_measured'])})"]  # fmt: skip
    for way, found in report["ways"].items():
        covered = "".join(f"{_number(found[f'covered_{round(100 * level)}']):>8}" for level in LEVELS)
        lines.append(f"{way:<26}{_number(found['crps']):>9}{_number(found['crps_drawn']):>9}{covered}"
                     f"{_number(found['moran']):>20}{_number(found['moran_drawn']):>18}")  # fmt: skip
        covered = "".join(f"{_number(found[f'covered_poisson_{round(100 * level)}']):>8}" for level in LEVELS)
        lines.append(f"{'  if counts were Poisson':<26}{_number(found['crps_poisson']):>9}{'':>9}{covered}")
    lines += ["", "r in counts of the mean of samples as they were drawn, before it is set to one-shot's: " + ", ".join(
        f"{way} {_number(found['counts_r_of_mean'])}" for way, found in report["ways"].items()
    )]  # fmt: skip
    lines += ["", "variance of a count of mean m, from sections of validation: " + "; ".join(
        f"{way} {1 + found['spread']['bursts']:.2f} m + {found['spread']['uncertain']:.3f} m²"
        for way, found in report["ways"].items()
    )]  # fmt: skip
    if report["given"]:
        lines += [
            "",
            f"{'given, scored on the rest':<26}{'r counts':>9}  {'model over it':<26}{'r compos.':>9}  model over it",
        ]
    for name, found in report["given"].items():
        lines.append(_row(f"{name}: model", found["model"], None))
        lines += [_row(f"{name}: {who}", found[who], found["model"][f"gain over {who}"])
                  for who in (ONE_SHOT, "neighbours") if who in found]  # fmt: skip
    if report["classes"]:
        lines += ["", f"{'class, over one-shot':<35}{'genes':>6}  {'counts':<28}composition"]
    for of, number in report["classes"].items():
        ways = [(way, found["classes"][of]) for way, found in report["ways"].items() if way != ONE_SHOT]
        ways += [(f"given {name}", found["classes"][of]) for name, found in report["given"].items()]
        for way, scores in ways:
            counts, composed = (_gain(scores["gain"][form]) for form in _FORMS)
            lines.append(f"{of + ': ' + way:<35.35}{number:>6}  {counts:<28}{composed}")
    lines += ["", "seconds a section, median: " + ", ".join(f"{way} {s:.2f}" for way, s in report["seconds"].items())]
    return "\n".join(line.rstrip() for line in lines)


def draw_decoding(path: Path, report: dict[str, Any]) -> None:
    """What steps gain, coverage, smoothness and, where something was given, r beside one-shot and neighbours."""
    ways, given = report["ways"], report["given"]
    panels = [_draw_coverage, _draw_smoothness]
    panels = [*([_draw_gains] if len(ways) > 1 else []), *panels, *([_draw_given] if given else [])]
    rows = -(-len(panels) // 2)
    figure = blank_figure(11.5, 4.3 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    for axis, draw in zip(grid.flat, panels, strict=False):
        draw(axis, report)
        plain_axes(axis)
    hide_unused(grid, len(panels))
    if report["banner"]:
        head_figure(figure, "", report["banner"])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _draw_gains(axis, report: dict[str, Any]) -> None:
    ways = {way: found["gain"] for way, found in report["ways"].items() if way != ONE_SHOT}
    axis.axhline(0, color=RULE, linewidth=1, zorder=0)
    for aside, (form, (label, colour)) in zip((-0.08, 0.08), _FORMS.items(), strict=True):
        means = [_float(gain[form]["mean"]) for gain in ways.values()]
        ends = [[max(side * (_float(gain[form].get(end)) - mean), 0.0)
                 for gain, mean in zip(ways.values(), means, strict=True)]
                for end, side in (("low", -1), ("high", 1))]  # fmt: skip
        axis.errorbar([number + aside for number in range(len(ways))], means, ends, color=colour, marker="o",
                      linestyle="", capsize=3, label=label)  # fmt: skip
    axis.set_title("r over that of one-shot", **TITLE)
    axis.set_xticks(range(len(ways)), list(ways), rotation=30, ha="right", fontsize=9)
    axis.margins(x=0.2)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_coverage(axis, report: dict[str, Any]) -> None:
    for number, (way, found) in enumerate(report["ways"].items()):
        shown = [_float(found[f"covered_{round(100 * level)}"]) for level in LEVELS]
        axis.plot(LEVELS, shown, marker="o", markersize=4, color=COHORT_COLOURS[number % len(COHORT_COLOURS)],
                  linestyle=("-", "--", ":")[number // len(COHORT_COLOURS) % 3], label=way)  # fmt: skip
    axis.plot([0, 1], [0, 1], color=RULE, linewidth=1, zorder=0)
    axis.set_title("counts within central intervals", **TITLE)
    axis.set_xlabel("level of the interval", fontsize=10, color=SOFT)
    axis.set_xlim(0.45, 1.0)
    axis.set_ylim(0.3, 1.0)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower right")


def _draw_smoothness(axis, report: dict[str, Any]) -> None:
    ways = report["ways"]
    for key, label, colour in (("moran", "rates", _WHO["model"]), ("moran_drawn", "drawn counts", _WHO["neighbours"])):
        axis.plot(range(len(ways)), [_float(found[key]) for found in ways.values()], color=colour, marker="o",
                  linestyle="", label=label)  # fmt: skip
    axis.axhline(_float(report["moran_measured"]), color=INK, linewidth=1, linestyle="--", label="measured counts")
    axis.set_title("smoothness: mean Moran's I", **TITLE)
    axis.set_xticks(range(len(ways)), list(ways), rotation=30, ha="right", fontsize=9)
    axis.margins(x=0.2, y=0.15)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_given(axis, report: dict[str, Any]) -> None:
    given = report["given"]
    for aside, (who, colour) in zip((-0.12, 0.0, 0.12), _WHO.items(), strict=True):
        for form, marker in zip(_FORMS, ("o", "s"), strict=True):
            at = [number + aside for number, found in enumerate(given.values()) if who in found]
            values = [_float(found[who][form]) for found in given.values() if who in found]
            axis.plot(at, values, color=colour, marker=marker, linestyle="", label=f"{who}, {_FORMS[form][0]}")
    axis.set_title("r on what was not given", **TITLE)
    axis.set_xticks(range(len(given)), list(given), fontsize=9)
    axis.margins(x=0.2)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, 0.0), high + 0.35 * (high - min(low, 0.0)))
    axis.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=3, loc="upper center", columnspacing=0.8,
                handletextpad=0.1)  # fmt: skip


def _row(name: str, found: dict[str, Any], gain: dict[str, Any] | None) -> str:
    parts = [f"{name:<26.26}"]
    for form in _FORMS:
        parts.append(f"{_number(found[form]):>9}  {_gain(gain[form]) if gain else '':<26}")
    return "".join(parts)


def _gain(gain: dict[str, Any]) -> str:
    if gain["mean"] is None:
        return "undefined"
    low, high = gain.get("low"), gain.get("high")
    return f"{gain['mean']:+.4f}" + (f" [{low:+.4f}, {high:+.4f}]" if low is not None else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _float(value: float | None) -> float:
    return float("nan") if value is None else value

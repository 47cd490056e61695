"""How sizes and verdicts are written, in figures, page and table alike."""

from typing import Any

QUANTITIES = {
    "nats": "held-out loss, nats a detection", "gene_nats": "of it, which gene", "r/counts/top": "r, counts",
    "r/composition/top": "r, composition", "r/residual/top": "r, residual",
}  # fmt: skip


def size_text(axis: str, size: float) -> str:
    """A place on an axis: 93, 1.2M, 3.4e15, 288 µm; 18 µm bins."""
    if axis == "resolution":
        return f"{1000 / size:.3g} µm bins"
    if axis.startswith("context"):
        return f"{size:g} µm"
    if axis.startswith("compute"):
        return f"{size:.2g}".replace("e+", "e")
    return count_text(size)


def count_text(number: float) -> str:
    for least, unit, letter in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= 0.9995 * least:  # what three digits round up to it
            return f"{number / unit:.3g}{letter}"
    return f"{number:,.0f}"


def law_text(law: dict[str, Any]) -> str:
    """The verdict in a line, with its numbers."""
    if law["verdict"] == "not fitted":
        return f"not fitted: {law['why']}"
    of = "" if law["top"] is None else f"{law['of']} = "
    text = f"{law['verdict']}: {of}{law['text']}"
    if law["verdict"] == "refused":
        return f"{text}; {law['why']}"
    ends = {name: law["intervals"].get(name) for name in ("a", "b")}
    return text + "".join(f"; {name} in [{low:.3g}, {high:.3g}]" for name, (low, high) in
                          ((name, one) for name, one in ends.items() if one is not None))  # fmt: skip


def better_text(form: dict[str, Any]) -> str:
    """On how many genes it is better, beside what seeds do."""
    better = form["better"]
    null = [value for one in better["null"].values() for value in one]
    beside = "no configuration has a second seed: this fraction cannot be judged"
    if better["same_checkpoints"]:
        beside = "the same checkpoints: chance is 50 %"
    elif null:
        beside = f"two seeds of one configuration: {', '.join(percent(value) for value in null)}"
    return (f"better on {better['n']:,} of {better['genes']:,} genes ({percent(better['fraction'])}, patients "
            f"[{percent(better['low'])}, {percent(better['high'])}]; {beside})")  # fmt: skip


def comparison_name(comparison: dict[str, Any]) -> str:
    """What changes from what to what: 93 → 2,545 along an axis, or the runs' names."""
    before, after = comparison["before"], comparison["after"]
    if before["size"] is None:
        return f"{', '.join(before['runs'])} → {', '.join(after['runs'])}"
    ends = " → ".join(size_text(comparison["axis"], one["size"]) for one in (before, after))
    return f"{comparison['name']}: {ends}"


def percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.0f} %"


def signed(value: float | None, places: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:+.{places}f}".replace("-", "−")

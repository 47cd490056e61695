"""A folder of what `tario probe` found: probe.json, probe.html (one file, offline), aurocs.tsv, told.tsv, figures."""

import html
import json
from pathlib import Path
from typing import Any

from tario_jax.evaluate.page import notices, picture, table, whole_page
from tario_jax.evaluate.patients.outcomes import LOOKS, VECTORS, interval_text, lead_text, line_text, null_text
from tario_jax.evaluate.patients.patient_figures import draw_aurocs, draw_calibration
from tario_jax.evaluate.patients.probe_job import pairs_text
from tario_jax.evaluate.tables import plain
from tario_jax.whole_file import write_whole

_VIRTUAL = "Virtual patients: these figures test the software and say nothing about real tumours."
_SEEN = "{seen} of these patients were seen in training: no figure here holds for new patients."


def write_probe_report(folder: Path, result: dict[str, Any]) -> Path:
    """Returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "probe.json", json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
    write_whole(folder / "aurocs.tsv", _lines(result))
    write_whole(folder / "told.tsv", _told_lines(result))
    drawn = [draw_aurocs(folder / "aurocs.png", result), draw_calibration(folder / "calibration.png", result)]
    if "structure" in result:
        from tario_jax.evaluate.patients.structure_figures import draw_structure

        drawn += draw_structure(folder, result["structure"])
    page = folder / "probe.html"
    texts = [_VIRTUAL] if result["trained_on"] == "virtual" else []
    if result["seen_in_training"]:
        texts.append(_SEEN.format(seen=result["seen_in_training"]))
    outcomes = result["outcomes"]
    parts = [notices(texts), f"<p class=note>{html.escape(_summary(result))}</p>",
             table(["reported AUROC", *_HEADS], [_cells(one) for one in outcomes]), picture(drawn[0]),
             "<h2>What a confounder gives</h2>", table(*_confounders(outcomes)),
             "<h2>Calibration and null</h2>",
             table(["column", "slope", "intercept", "calibration error", "Brier, beside that of the shares",
                    "told by the shares alone", "shuffled labels", "p"], [_calibration(one) for one in outcomes]),
             picture(drawn[1])]  # fmt: skip
    for one in outcomes:
        if one["by_class"]:
            parts += [f"<h2>{html.escape(one['column'])}, class by class</h2>",
                      table(["class", "patients", "AUROC against the rest"],
                            [[name, str(one["classes"][name]), interval_text(told)]
                             for name, told in one["by_class"].items()])]  # fmt: skip
    if "structure" in result:
        parts += ["<h2>Which go together</h2>", *(picture(one) for one in drawn[2:]),
                  *(f"<p>{html.escape(line)}</p>" for line in pairs_text(result))]  # fmt: skip
        if result["structure"]["not_of_two"]:
            others = ", ".join(result["structure"]["not_of_two"])
            parts.append(f"<p class=note>Not among them, of more than two classes: {html.escape(others)}.</p>")
    parts += [
        "<h2>Left out</h2>",
        table(
            ["column", "patients"],
            [
                *([one["column"], _left_out(one)] for one in outcomes),
                *([name, f"all: {why}"] for name, why in result["too_few"].items()),
            ],
        ),
    ]
    write_whole(page, whole_page(f"Probes of {result['model']}", parts))
    return page


def _summary(result: dict[str, Any]) -> str:
    setting = result["setting"]
    seen = "" if result["seen_in_training"] else " that the model did not see"
    return (f"{result['patients']:,} patients{seen}. Linear probes of "
            f"{' and '.join(setting['vectors'])}, {setting['folds']} folds by patient, the penalty chosen "
            "within them, or the shares of the classes where no penalty tells more; 95 % intervals by "
            f"{setting['bootstraps']:,} bootstrap samples of patients. Where a confounder tells of a column by itself, "
            "what is reported is the AUROC over pairs of patients that are alike in it.")  # fmt: skip


_HEADS = ("over which pairs", "all patients", "stain and texture", "reachable from the H&E", "of the way",
          "patients of each class")  # fmt: skip


def _cells(one: dict[str, Any]) -> list[str]:
    lead, how = one["lead"], one["lead"]["how"]
    reachable, way = "–", "–"
    if "reachable" in one["auroc"]:
        at = one["auroc"] if how == "of all patients" else one["within"][how.removeprefix("within ")]
        reachable, way = interval_text(at["reachable"]), interval_text(one["way"][how], 2)
    counts = list(one["classes"].values())
    shown = ", ".join(f"{name}: {count}" for name, count in one["classes"].items()) if len(counts) < 4 else (
        f"{len(counts)} classes, {min(counts)} to {max(counts)}")  # fmt: skip
    return [f"{one['column']} {interval_text(lead)}", lead_text(one), interval_text(one["auroc"][VECTORS]),
            interval_text(one["auroc"][LOOKS]), reachable, way, shown]  # fmt: skip


def _confounders(outcomes: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for one in outcomes for name in one["auroc"] if name.endswith(" alone")))
    within = list(dict.fromkeys(name for one in outcomes for name in one["within"]))
    rows = []
    for one in outcomes:
        cells = [one["column"], *(interval_text(one["auroc"].get(name)) for name in names)]
        cells += [interval_text(one["within"].get(name, {}).get(VECTORS)) for name in within]
        cells.append(interval_text(one["above"][LOOKS], signed=True))
        cells.append(interval_text(one.get("beside_confounders"), signed=True))
        rows.append(cells)
    return ["column", *names, *(f"vectors, within {name}" for name in within), "above stain and texture",
            "vectors beside confounders add"], rows  # fmt: skip


def _calibration(one: dict[str, Any]) -> list[str]:
    of, null = one["calibration"], one["null"]
    told = ["–", "–"] if null is None else [null_text(null), line_text(null["p"], 3)]
    return [one["column"], line_text(of["slope"]), line_text(of["intercept"]), f"{of['error']:.3f}",
            f"{of['brier']:.3f}, {of['brier_of_shares']:.3f}", f"{one['by_shares']:.0%}", *told]  # fmt: skip


def _left_out(one: dict[str, Any]) -> str:
    return ", ".join(f"{name or 'not known'}: {count}" for name, count in one["left_out"].items()) or "none"


def _told_lines(result: dict[str, Any]) -> str:
    """What was told of each patient by probes that had not seen it."""
    lines = ["column\tpatient\twas\tclass\tprobability"]
    for one in result["outcomes"]:
        classes = list(one["classes"])
        for patient, label, chances in zip(*(one["told"][name] for name in ("patient", "label", "probability")),
                                           strict=True):  # fmt: skip
            lines += [f"{one['column']}\t{patient}\t{classes[label]}\t{name}\t{chance:.5g}"
                      for name, chance in zip(classes, chances, strict=True)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _lines(result: dict[str, Any]) -> str:
    lines = ["column\tpatients\tfeatures\tpairs\tauroc\tlow\thigh"]
    for one in result["outcomes"]:
        rows = [(name, "of all patients", told) for name, told in one["auroc"].items()]
        rows += [(name, f"within {of}", told) for of, each in one["within"].items() for name, told in each.items()]
        lines += [f"{one['column']}\t{one['patients']}\t{name}\t{pairs}\t{told['value']:.5g}\t{told['low']:.5g}\t"
                  f"{told['high']:.5g}" for name, pairs, told in rows]  # fmt: skip
    return "\n".join(lines) + "\n"

"""report.html (one file, offline) and report.json, written so that a killed run leaves no half of them."""

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.evaluate.figures import Drawn
from tario_jax.evaluate.moments import FORMS
from tario_jax.evaluate.page import notices, picture, table, whole_page
from tario_jax.evaluate.tables import Evaluation
from tario_jax.evaluate.uncertainty import BANDS
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION
from tario_jax.whole_file import write_whole

METHODS = {  # rows of the tables, in order
    "model": "<b>model</b>",
    "model_rates": "model, composition of its rates",
    "own_density": "model's own density control",
    "nuclear_density": "nuclear density",
    "ridge": "ridge, fitted to counts",
    "ridge_direct": "ridge, fitted to each form",
    "displaced_1": "model read one bin away",
    "displaced_2": "model read two bins away",
    "shuffled": "model against turned targets",
    "mean_composition": "mean composition",
    "true_total": "true total (no image)",
    "neighbours": "measurement, smoothed over neighbours",
    "reachable": "reachable from the H&E (V)",
    "true_rate": "true rate (T)",
    "ceiling": "noise ceiling",
}
SETS = {
    "top_moran": "Genes of highest Moran's I",
    "top_mean": "Genes of highest mean",
    "top_moran_c": "Genes of highest Moran-c (Moran's I of composition)",
}
DIFFERENCES = {
    "model_minus_own_density": "model − own density",
    "model_minus_nuclear_density": "model − nuclear density",
    "model_minus_ridge": "model − ridge, fitted to counts",
    "model_minus_ridge_direct": "model − ridge, fitted to each form",
    "model_minus_displaced_1": "model − model one bin away",
    "model_minus_displaced_2": "model − model two bins away",
}


def write_report(folder: Path, evaluation: Evaluation, figures: list[Drawn], title: str) -> Path:
    """Writes genes.tsv (one row a gene), report.html with the figures inside and, last, report.json; returns the page.

    The page needs no network: images are embedded, nothing is linked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "genes.tsv", _gene_lines(evaluation.genes))
    page = folder / "report.html"
    write_whole(page, render(evaluation.report, figures, title))
    write_whole(folder / "report.json", json.dumps(evaluation.report, indent=1, allow_nan=False) + "\n")
    return page


def banners(report: dict[str, Any]) -> list[str]:
    """What a reader must know before any number."""
    found = []
    if report["trained_on"] == "virtual" and report["corpus_kind"] == "real":
        found.append("This model was trained on virtual tissue; it knows no biology. "
                     "Its maps of real tissue are a test of the software only.")  # fmt: skip
    elif report["trained_on"] != report["corpus_kind"]:
        found.append(f"This model was trained on {report['trained_on']} tissue and is evaluated on "
                     f"{report['corpus_kind']} tissue.")  # fmt: skip
    elif report["corpus_kind"] == "virtual":
        found.append("Virtual tissue throughout: these figures test the software and say nothing about real tumours.")
    others = [start for start in report.get("provenance", {}).get("starts", [])
              if start["trained_on"] != report["trained_on"]]  # fmt: skip
    if others:
        kinds = " and ".join(sorted({start["trained_on"] for start in others}))
        named = "; ".join(f"{start['run']}, step {start['step']}" for start in others)
        found.append(f"This model was pretrained on {kinds} tissue ({named}), and then trained on "
                     f"{report['trained_on']} tissue.")  # fmt: skip
    null = report.get("null_class")
    if null and null.get("found"):
        found.append(f"Null genes are predicted: composition r {null['beyond_total']:.3f} beyond what a bin's total "
                     "tells. The model or this evaluation sees what it must not.")  # fmt: skip
    if report["split_by"] == "section":
        found.append(f"{SPLIT_BY_SECTION} Nothing here says that the model generalises to new patients.")
    if report["ranked_on"] != "training sections":
        why = "as published curves are, and not as a choice that knows nothing of them would be."
        if not report["sections"]["train"]:
            why = "since there are no training sections; the controls that need training are missing."
        found.append(f"Genes were ranked on the held-out sections themselves, {why}")
    return found


def render(report: dict[str, Any], figures: list[Drawn], title: str) -> str:
    """The whole page as HTML text."""
    parts = [
        notices(banners(report)),
        _tiles(report),
        f"<p class=note>{html.escape(_summary(report))}</p>",
        *(picture(drawn) for drawn in figures),
        *(_set_section(report, name, heading) for name, heading in SETS.items() if report["sets"][name]["genes"]),
        _cohorts(report),
        _bulk(report),
        _classes(report),
        _null_class(report),
        _uncertainty(report),
        _left_out(report),
    ]
    return whole_page(title, parts)


def _tiles(report: dict[str, Any]) -> str:
    headline, genes = report["headline"], report["headline"]["genes"]
    tiles = [
        ("spatial r, counts", headline["spatial_r_top100"],
         f"ridge {_r(headline['ridge_r_top100'])} · own density {_r(headline['own_density_r_top100'])} · "
         f"nuclear density {_r(headline['density_r_top100'])}"),
        ("spatial r, composition", headline["composition_r_top100"],
         f"ridge, fitted directly {_r(headline['ridge_composition_r_top100'])}"),
        ("bulk r, log-CPM", headline["bulk_r"], f"ridge {_r(headline['ridge_bulk_r'])}"
         if headline["bulk_r"] is not None else "needs 10 held-out patients in a cohort"),
    ]  # fmt: skip
    if headline["share_of_reachable_top100"] is not None:
        tiles.append(("share of the reachable r", headline["share_of_reachable_top100"], "r(P, X) / r(V, X), counts"))
    cells = "".join(
        f"<div class=tile><div class=name>{name}</div><div class=figure>{_r(value)}</div>"
        f"<div class=beside>{beside}</div></div>"
        for name, value, beside in tiles
    )
    return f"<div class=tiles>{cells}</div><p class=note>Over the {genes} genes of highest Moran's I.</p>"


def _summary(report: dict[str, Any]) -> str:
    sections, genes, kind = report["sections"], report["genes"], report["interval"]
    side = f" of {report['bin_um']:g} µm{read_at(report)}" if report.get("bin_um") else ""
    known = ""
    if genes.get("in_common", genes["panel"]) < max(genes.get("model_panel", 0), genes.get("corpus_panel", 0)):
        known = (f"The model's panel of {genes['model_panel']:,} genes and the corpus's of {genes['corpus_panel']:,} "
                 f"have {genes['in_common']:,} genes in common. ")  # fmt: skip
    return (
        f"{sections['held_out']} held-out sections of {sections['held_out_patients']} patients "
        f"({sections['held_out_bins']:,} bins{side}); {sections['train']} training sections of "
        f"{sections['train_patients']} patients. {known}{genes['evaluated']:,} of {genes['panel']:,} genes evaluated, "
        f"ranked on {report['ranked_on']}{_ranked_at(report)}. Intervals in brackets: 95 % {kind['kind']}, "
        f"{kind['samples']:,} samples ({kind['note']}). Composition: {report['composition']['scale']}, "
        f"{report['composition']['of_the_model']}; bins with fewer than {report['composition']['min_total']} counts "
        f"left out. Residual: {report['composition']['residual']}. Nats per detection under the predicted rates: "
        f"{_r(report['nats_per_detection']['genes'])} over genes, "
        f"{_r(report['nats_per_detection']['totals'])} of totals."
    )


def read_at(report: dict[str, Any]) -> str:
    """Where the model was read on other bins than those that are compared."""
    bin_um, read_um = report["bin_um"], report["read_um"]
    if read_um == bin_um:
        return ""
    nests = abs(bin_um / read_um - round(bin_um / read_um)) < 1e-6
    return f", predicted at {read_um:g} µm and summed up" + ("" if nests else " by area, since these do not nest")


def _ranked_at(report: dict[str, Any]) -> str:
    return f" by bins of {report['ranked_bin_um']:g} µm" if report.get("ranked_bin_um") else ""


def _set_section(report: dict[str, Any], name: str, heading: str) -> str:
    entry = report["sets"][name]
    rows = []
    for method, label in METHODS.items():
        forms = entry["methods"].get(method)
        if forms is None:
            continue
        cells = "".join(f"<td>{_cell(forms.get(form))}</td>" for form in FORMS)
        rows.append(f"<tr{' class=model' if method == 'model' else ''}><th>{label}</th>{cells}</tr>")
    differences = "".join(
        f"<tr><th>{label}</th>" + "".join(f"<td>{_cell(entry['differences'][key].get(f), True)}</td>" for f in FORMS)
        + "</tr>"
        for key, label in DIFFERENCES.items()
        if key in entry["differences"]
    )  # fmt: skip
    null, thinned = entry["ceiling_check"]["null"], entry["ceiling_check"]["thinned_counts"]
    notes = [f"Ceiling of tissue without structure: flat {_r(null['flat'])}, depth only {_r(null['depth_only'])}; "
             f"by thinning {_r(thinned['mean_r'])} (counts, shot noise only)."]  # fmt: skip
    excess = entry["excess_over_own_density"]
    if excess is not None:
        notes.append(f"Excess over the own density by gene (counts): median {_r(excess['quantiles']['50'], True)}, "
                     f"above 0 for {_share(excess['share_above_0'])} of genes, with its interval for "
                     f"{_share(excess['share_interval_above_0'])}.")  # fmt: skip
    if entry["share_of_reachable"]:
        shares = ", ".join(f"{form} {_cell(value | {'mean_r': value['share']})}"
                           for form, value in entry["share_of_reachable"].items())  # fmt: skip
        notes.append(f"Share of the reachable r: {shares}.")
    nearer = entry["nearer_than_measurement"]
    passes = ", ".join(f"{METHODS[m]} {_share(nearer[m]['share_certain'])}" for m in METHODS if m in nearer)
    notes.append("Genes nearer to the true rate than the counts are (r &gt; rho, interval above 0; shot noise only): "
                 f"{passes}.")  # fmt: skip
    if entry["nearer_truth"]:
        seen = ", ".join(f"{METHODS[m]} {_share(v['share_nearer'])}, r {_r(v['r'])}"
                         for m, v in entry["nearer_truth"].items() if m != "measured")  # fmt: skip
        notes.append(f"Seen against the true rate itself (virtual tissue), where the counts reach r "
                     f"{_r(entry['nearer_truth']['measured']['r'])}: genes nearer than they: {seen}.")  # fmt: skip
    return (
        f"<h2>{heading} ({entry['genes']})</h2><div class=scroll><table><thead><tr><th>mean r</th>"
        + "".join(f"<td>{form}</td>" for form in FORMS)
        + f"</tr></thead><tbody>{''.join(rows)}</tbody><tbody class=differences>{differences}</tbody></table></div>"
        + "".join(f"<p class=note>{note}</p>" for note in notes)
    )


def _cohorts(report: dict[str, Any]) -> str:
    shown = ("model", "ridge", "own_density", "nuclear_density", "reachable", "ceiling")
    shown = [m for m in shown if any(m in entry["methods"] for entry in report["by_cohort"].values())]
    rows = "".join(
        f"<tr><th>{html.escape(cohort)} · {entry['sections']} sections, {entry['patients']} patients</th>"
        + "".join(f"<td>{_cell(entry['methods'].get(m, {}).get('counts'))}</td>" for m in shown) + "</tr>"
        for cohort, entry in report["by_cohort"].items()
    )  # fmt: skip
    head = "".join(f"<td>{METHODS[method]}</td>" for method in shown)
    return (f"<h2>By cohort</h2><div class=scroll><table><thead><tr><th>mean r, counts, genes of highest Moran's I</th>"
            f"{head}</tr></thead><tbody>{rows}</tbody></table></div>")  # fmt: skip


def _bulk(report: dict[str, Any]) -> str:
    bulk = report["bulk"]
    rows = []
    for cohort, entry in bulk["by_cohort"].items():
        name = f"{html.escape(cohort)} · {entry['patients']} patients"
        if "not_estimable" in entry:
            reason = html.escape(entry["not_estimable"])
            rows.append(f"<tr><th>{name}</th><td colspan=3>not estimable: {reason}</td></tr>")
            continue
        for form in ("counts", "log_cpm"):
            cells = "".join(
                f"<td>{_cell({'mean_r': v['r'], **v} if (v := entry[form].get(method)) else None)}</td>"
                for method in ("model", "ridge", "total_only")
            )
            rows.append(f"<tr><th>{name}, {form.replace('_cpm', '-CPM')}</th>{cells}</tr>")
    note = ""
    if "pooled" in bulk:
        pooled = bulk["pooled"]["log_cpm"]
        note = (f"<p class=note>Pooled over cohorts ({bulk['pooled']['patients']} patients, log-CPM): model "
                f"{_r(pooled['model'])}, the cohort's training mean {_r(pooled['cohort_mean'])}: cancer type alone "
                "gives much of it.</p>")  # fmt: skip
    across = bulk["per_patient_across_genes"]
    note += (f"<p class=note>Per patient across genes: model {_r(across['model'])}, mean predictor "
             f"{_r(across['mean_predictor'])}.</p>")  # fmt: skip
    return ("<h2>Bulk: across patients of a cohort</h2><div class=scroll><table><thead><tr><th>mean r over genes</th>"
            "<td>model</td><td>ridge</td><td>total only</td></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table></div>{note}")  # fmt: skip


def _classes(report: dict[str, Any]) -> str:
    """Virtual tissue only."""
    shown = ("model", "own_density", "ridge", "ridge_direct", "reachable", "true_rate")
    rows = []
    for name, entry in report.get("classes", {}).items():
        for form in ("counts", "composition"):
            share = entry.get(form, {}).get("share")
            cells = "".join(f"<td>{_r(entry[form].get(m, {}).get('mean_r'))}</td>" for m in shown)
            cells += f"<td>{_cell({**share, 'mean_r': share['value']}) if share else '–'}</td>"
            rows.append(f"<tr><th>{name.replace('_', ' ')} · {entry['genes']:,} genes, {form}</th>{cells}</tr>")
    if not rows:
        return ""
    head = "".join(f"<td>{METHODS[method]}</td>" for method in shown)
    return (f"<h2>By what genes follow</h2><div class=scroll><table><thead><tr><th>mean r</th>{head}"
            f"<td>share of the reachable</td></tr></thead><tbody>{''.join(rows)}</tbody></table></div>")  # fmt: skip


def _null_class(report: dict[str, Any]) -> str:
    null = report.get("null_class")
    if not null:
        return ""
    if "not_judged" in null:
        return f"<p class=note>Null genes of virtual tissue: not judged, {html.escape(null['not_judged'])}.</p>"
    return (f"<p class=note>Null genes of virtual tissue, of which nothing tells: composition r {null['r']:.3f} over "
            f"{null['genes']} genes, beyond a bin's total {null['beyond_total']:+.3f} (standard error "
            f"{null['se']:.3f}; bins shuffled {null['shuffled_mean']:+.3f} ± {null['shuffled_sd']:.3f}). "
            f"{null['bins']:,} bins, {null['bins_left_out']:,} of low total left out.</p>")  # fmt: skip


def _uncertainty(report: dict[str, Any]) -> str:
    found, heading = report.get("uncertainty"), "<h2>How far counts lie from rates</h2>"
    if not found:
        return ""
    if "not_learnt" in found:
        return f"{heading}<p class=note>Not learnt: {html.escape(found['not_learnt'])}.</p>"
    levels = list(found["coverage"]["all"])
    rows = [[f"rates {band}" if band in BANDS else f"all {found['counts']:,}",
             *(f"{_share(found['coverage'][band][level])} ({_share(found['coverage_poisson'][band][level])})"
               for level in levels)] for band in found["coverage"]]  # fmt: skip
    return (f"{heading}<p class=note>A count of rate m varies by {1 + found['bursts']:.2f} m + "
            f"{found['uncertain']:.3f} m² (places of {found['size_um']:.3g} µm; fitted to "
            f"{found['validation_sections']} sections of validation). Tried on counts of {found['held_out_sections']} "
            "held-out sections, drawn by their rates: the share of them within central intervals, and in brackets if "
            "counts were Poisson.</p>"
            + table(["counts", *(f"interval of {level} %" for level in levels)], rows))  # fmt: skip


def _left_out(report: dict[str, Any]) -> str:
    skipped = report["skipped"]
    names = ", ".join(f"{html.escape(s['section_id'])} ({s['bins']})" for s in skipped["sections"][:20])
    lines = [
        f"Sections with fewer than {skipped['min_bins']} bins: {len(skipped['sections'])}"
        f"{': ' + names if names else ''}",
        f"Bins under the minimum total, left out of composition and residual: {skipped['bins_below_min_total']:,}",
        f"Genes constant in every held-out section (r undefined, left out): {skipped['constant_genes']:,}; "
        f"gene × section pairs: {skipped['constant_gene_sections']:,}",
    ]
    for name, label in (("sections_without_prediction", "Sections without a prediction (r = 0)"),
                        ("sections_without_he", "Held-out sections without an H&E"),
                        ("sections_without_counts", "Held-out sections without counts")):  # fmt: skip
        if skipped.get(name):
            lines.append(f"{html.escape(label)}: {html.escape(', '.join(skipped[name]))}")
    return "<h2>Left out</h2><ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def _cell(estimate: dict[str, Any] | None, signed: bool = False) -> str:
    if not estimate or estimate.get("mean_r") is None:
        return "–"
    text = _r(estimate["mean_r"], signed)
    if estimate.get("sd") is not None:
        return f"{text} <span>sd {_r(estimate['sd'])} over {estimate['runs']} runs</span>"
    if estimate.get("low") is not None and estimate["low"] != estimate["high"]:
        return f"{text} <span>[{_r(estimate['low'], signed)}, {_r(estimate['high'], signed)}]</span>"
    return text


def _r(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _gene_lines(columns: dict[str, np.ndarray]) -> str:
    names = list(columns)
    lines = ["\t".join(names)]
    for row in zip(*columns.values(), strict=True):
        lines.append("\t".join(str(value) if isinstance(value, str) else f"{value:.5g}" for value in row))
    return "\n".join(lines) + "\n"

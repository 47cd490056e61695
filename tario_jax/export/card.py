"""The model card of a bundle, filled from the run and from what was measured of it."""

from typing import Any

from tario_jax.model.build import model_sizes
from tario_jax.panel import Panel
from tario_jax.predict.gene_validation import ALL, GeneValidation
from tario_jax.train.provenance import Provenance

_SHOWN = 10  # genes


def genes_table(panel: Panel, validation: GeneValidation | None) -> str:
    """A row a gene, in the order of the panel; symbols and ids alone where nobody looked.

    By cohort: r on held-out patients, how far it stands above the model's own density control, the ceiling, and whether
    that was found beyond chance.
    """
    columns: dict[str, list[str]] = {"symbol": list(panel.symbols), "ensembl": list(panel.ids)}
    if validation is not None:
        for cohort in validation.cohorts:
            for name, values in validation.of(cohort, panel.symbols).items():
                columns[f"{name}_{cohort}"] = [f"{value:.4g}" for value in values.tolist()]
    rows = zip(*columns.values(), strict=True)
    return "\n".join(["\t".join(columns), *("\t".join(row) for row in rows)]) + "\n"


def model_card(provenance: Provenance, signature: dict[str, Any], validation: GeneValidation | None,
               report: dict[str, Any] | None) -> str:  # fmt: skip
    """Markdown. Says what is not known, too."""
    config, window = provenance.config, signature["window"]
    patients = len(provenance.train_patients or provenance.seen_patients)
    kind, (steps, _, _) = provenance.trained_on, signature["checkpoint"].partition("-")
    golden = "`golden.npz` is an input and its output, which every load checks; " if "golden" in signature else ""
    lines = [f"# {config.name}: from H&E to {len(provenance.panel):,} genes", ""]
    if signature["banner"]:
        lines += [f"> **{signature['banner']}**", ""]
    lines += [
        f"A model of tario-jax ({model_sizes(config, len(provenance.panel))}), exported from {signature['run']}, "
        f"checkpoint {signature['checkpoint']}, code {provenance.code}.",
        "", "## What it does", "",
        f"A window of {window['side_um']:g} µm of H&E at {window['um_per_px']:g} µm per px goes in; out comes the "
        "expected number of detections of every gene in squares of it. It was trained on squares of "
        f"{', '.join(f'{side:g}' for side in signature['inputs'][2]['trained'])} µm; others are read off, and were not "
        "measured.",
        "", "## What it was trained on", "",
        f"{kind} tissue: {len(provenance.train)} sections of {patients} patients, split by {provenance.split_by}; "
        f"corpus {provenance.corpus_seal}, panel {provenance.panel.hash}; "
        f"{steps} of {config.train.steps} steps of {config.data.rows * config.data.windows_per_row} windows. "
        f"{len(provenance.held_out)} sections were held out.",
        "", "## What was measured", "", *_measured(report, validation, signature["weights"]),
        "", "## What it is for, and what not", "",
        "Research on tissue like that of its training, scanned alike. **Not for clinical use**: nothing here was "
        "validated for diagnosis, prognosis or treatment. Predictions are expectations given an image: they show what "
        "usually goes with such tissue, and not what this patient's cells expressed. Genes that are not validated may "
        "be no more than cell density. Other scanners, stains, organs and assays than those of training are untested.",
        "", "## Files", "",
        f"`signature.json` says what goes in and out; `genes.tsv` what is known of each gene; {golden}`loader.py` "
        "reads the bundle without tario-jax. "
        f"Weights are {signature['weights']}, arithmetic is {signature['compute']}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _measured(report: dict[str, Any] | None, validation: GeneValidation | None, weights: str) -> list[str]:
    if validation is None:
        return ["Nothing: this checkpoint was not evaluated (`tario evaluate`)."]
    lines = []
    if weights != "float32":
        lines += [f"Of the checkpoint, before its weights were stored as {weights}.", ""]
    if report is not None:
        lines.append("| genes | form | model | own density | ridge |\n|---|---|---|---|---|")
        for name, of in report["sets"].items():
            for form in ("counts", "composition"):
                shown = [
                    of["methods"].get(who, {}).get(form, {}).get("mean_r") for who in ("model", "own_density", "ridge")
                ]
                lines.append(
                    f"| {name} | {form} | " + " | ".join("–" if r is None else f"{r:.3f}" for r in shown) + " |"
                )
        lines.append("")
    row = validation.cohorts.index(ALL) if ALL in validation.cohorts else 0
    known = validation.validated_CxG[row]
    lines.append(f"{int(known.sum()):,} of {len(known):,} genes are above the model's own density control on "
                 f"{int(validation.patients_C[row])} held-out patients (95 % interval over patients).")  # fmt: skip
    if spread := validation.about.get("count_spread"):
        lines += ["", f"Counts scatter around rates m with variance {1 + spread['bursts']:.2f} m + "
                  f"{spread['uncertain']:.3f} m², at places of {spread['size_um']:.3g} µm."]  # fmt: skip
    order = sorted((g for g in range(len(known)) if known[g]), key=lambda g: -validation.r_CxG[row, g])[:_SHOWN]
    if order:
        lines += ["", "| best of them | r | above density |", "|---|---|---|"]
        lines += [f"| {validation.symbols[g]} | {validation.r_CxG[row, g]:.3f} | {validation.excess_CxG[row, g]:+.3f} |"
                  for g in order]  # fmt: skip
    return lines

"""Skill by class of gene: on virtual tissue it is known what each gene follows."""

from typing import Any

import numpy as np

from tario_jax.evaluate.intervals import ends, weighted_mean
from tario_jax.evaluate.metrics import mean_defined
from tario_jax.evaluate.moments import FORMS
from tario_jax.evaluate.summary import Context

METHODS = ("model", "own_density", "nuclear_density", "ridge", "ridge_direct", "reachable", "true_rate")
_SAMPLES_AT_ONCE = 100  # [samples, genes] of a large class would be hundreds of megabytes


def class_report(context: Context, class_G: np.ndarray) -> dict[str, Any]:
    """Mean r by class, form and method over every evaluated gene, with patient intervals where there are patients.

    class_G: of the genes under evaluation; those of no class ("") are left out. share: ratio of the model's mean r to
    that of what can be reached from the H&E.
    """
    report = {}
    for name in dict.fromkeys(class_G.tolist()):
        genes = np.flatnonzero(class_G == name)
        if name:
            forms = {form: _of(context, genes, form) for form in FORMS}
            report[name] = {"genes": len(genes), **{form: entry for form, entry in forms.items() if entry}}
    return report


def _of(context: Context, genes: np.ndarray, form: str) -> dict[str, Any]:
    samples, entry = {}, {}
    for method in METHODS:
        scores = context.of(method, form)
        if scores is None:
            continue
        entry[method] = {"mean_r": float(mean_defined(scores.by_gene[genes]))}
        if context.resampling.by == "patient" and context.resampling.patients > 1:
            samples[method] = _samples(scores.r_SxG[:, genes], context.resampling.weights_BxS)
            entry[method] |= ends(samples[method])
    for name, (first, second) in {"share": ("model", "reachable"), "excess": ("model", "own_density")}.items():
        if first in entry and second in entry:
            ratio = name == "share"
            if ratio and not entry[second]["mean_r"] > 0.005:
                continue  # a share of next to nothing says nothing
            a, b = entry[first]["mean_r"], entry[second]["mean_r"]
            entry[name] = {"value": a / b if ratio else a - b}
            if first in samples:
                drawn = (samples[first], samples[second])
                entry[name] |= ends(np.divide(*drawn) if ratio else np.subtract(*drawn))
    return entry


def _samples(r_SxG: np.ndarray, weights_BxS: np.ndarray) -> np.ndarray:
    """Mean over the genes in every sample, [B]."""
    parts = [mean_defined(weighted_mean(r_SxG, weights_BxS[first : first + _SAMPLES_AT_ONCE]).T)
             for first in range(0, len(weights_BxS), _SAMPLES_AT_ONCE)]  # fmt: skip
    return np.concatenate(parts)

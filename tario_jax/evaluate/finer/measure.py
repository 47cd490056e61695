"""Finer readouts against virtual truth: what is gained by reading a model at 18 and 9 µm, and cell by cell.

Each section is measured once (`section.py`) and kept as a small file, so a job that was killed continues.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import BINS_UM
from tario_jax.evaluate.finer.gene_sets import SetMean, of_patients, split_told, with_interval
from tario_jax.evaluate.finer.nucleus_match import NEAR_UM, NucleusScore
from tario_jax.evaluate.finer.scored import scorable, score_sections
from tario_jax.evaluate.finer.section import measure_section
from tario_jax.evaluate.intervals import Resampling
from tario_jax.evaluate.metrics import FORMS
from tario_jax.predict.cells import GROW_UM
from tario_jax.predict.nuclei import NucleusSettings
from tario_jax.predict.predictor import Predictor

_VERSION = 3
TARGETS = ("truth", "counts")
PLACES = (*(f"{bin_um:g}" for bin_um in BINS_UM), "cells", "nuclei")
TITLES = {"36": "bins of 36 µm", "18": "bins of 18 µm", "9": "bins of 9 µm", "cells": "cells, outlines given",
          "nuclei": "cells, nuclei found"}  # fmt: skip
READERS = {
    "model": "model",
    "bins": "model, bins of 9 µm",
    "queries": "model, a query a cell",
    "coarse": "its 36 µm spread evenly",
    "density": "its density",
    "reachable": "reachable from the H&E",
    "measured": "the measurement",
}
_DIFFERENCES = (("model", "coarse"), ("model", "density"), ("bins", "coarse"), ("queries", "coarse"),
                ("queries", "bins"), ("bins", "density"))  # fmt: skip


def measure_finer(
    predictor: Predictor, corpus: Corpus, sections: Sequence[Section], folder: Path, config: EvaluateConfig, *,
    ranked_on: Sequence[Section] = (), say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Scores of the model on these sections of a virtual corpus, in bins of 36, 18 and 9 µm and in cells.

    ranked_on: training sections whose Moran's I says which genes are at the top; `sections` themselves where there are
    none. Writes a file a section into folder/finer; run again, it continues. Returns `scores[place][reader][target]
    [form][set]` and `differences[place]["a - b"]…` as {mean, low, high} (r over the genes of a set, patient bootstrap;
    low and high are None with one patient), `nuclei` (recall, precision and count error, likewise) and `table`.
    Sections that have nothing to be scored on are left out, and it says how many. Raises `InputError` for real tissue,
    and where none is left.
    """
    if corpus.kind != "virtual":
        raise InputError(f"corpus {corpus.root}: finer readouts are scored on virtual truth; this is {corpus.kind} "
                         "tissue; 'tario predict --cells' reads cells of any tissue")  # fmt: skip
    needs = {
        "an H&E and detections": lambda section: section.has_detections and section.holds("he"),
        "virtual truth": lambda section: bool(section.record["truth"]),
        f"two bins of {BINS_UM[0]:g} µm a side": lambda one: min(one.width_um, one.height_um) >= 2 * BINS_UM[0],
    }
    sections = scorable("finer", corpus, sections, needs, say)
    depends_on = {"format_version": _VERSION, "grow_um": GROW_UM, "near_um": NEAR_UM,
                  "nuclei": dataclasses.asdict(NucleusSettings())}  # fmt: skip

    def measure(section: Section, in_model: np.ndarray, in_corpus: np.ndarray) -> dict[str, np.ndarray]:
        return measure_section(predictor, section, in_model, in_corpus, config)

    scored = score_sections("finer", measure, predictor, corpus, sections, folder, config, depends_on=depends_on,
                            ranked_on=ranked_on, say=say)  # fmt: skip
    result = scored.about | {
        "trained_bins_um": _trained(predictor),
        "nuclei": _nuclei([scores["nuclei"] for scores in scored.found], scored.resampling),
    }
    result["scores"], result["differences"] = _summed(scored.found, scored.sets, scored.resampling)
    return result | {"table": finer_table(result)}


def _trained(predictor: Predictor) -> list[float]:
    return sorted(predictor.provenance.config.data.trained_bins_um, reverse=True)


def _summed(
    found: list[dict[str, np.ndarray]], sets: dict[str, np.ndarray], resampling: Resampling
) -> tuple[dict, dict]:
    """Means over sections and genes with their intervals, and paired differences between readers."""
    means: dict[tuple[str, str, str, str, str], SetMean] = {}
    for name in (name for name in found[0] if "/" in name):
        r_SxG = np.stack([scores[name] for scores in found]).astype(np.float64)
        for which, chosen in sets.items():
            means[(*name.split("/"), which)] = SetMean.of(r_SxG, chosen, resampling)
    scores: dict[str, Any] = {}
    for (place, reader, target, form, which), mean in means.items():
        at = scores.setdefault(place, {}).setdefault(reader, {}).setdefault(target, {}).setdefault(form, {})
        at[which] = mean.to_dict()
    differences: dict[str, Any] = {}
    for (place, reader, target, form, which), mean in means.items():
        for other in (b for a, b in _DIFFERENCES if a == reader and (place, b, target, form, which) in means):
            at = differences.setdefault(place, {}).setdefault(f"{reader} - {other}", {}).setdefault(target, {})
            paired = mean - means[(place, other, target, form, which)]
            at.setdefault(form, {})[which] = paired.to_dict()
    return scores, differences


def _nuclei(counted: list[np.ndarray], resampling: Resampling) -> dict[str, Any]:
    """Recall, precision and count error over all nuclei of the sections, with intervals over patients."""
    counted_Sx3 = np.stack(counted).astype(np.float64)
    samples = [NucleusScore(*drawn) for drawn in resampling.weights_BxS @ counted_Sx3]
    whole = NucleusScore(*(int(n) for n in counted_Sx3.sum(0)))
    result: dict[str, Any] = dataclasses.asdict(whole) | {"near_um": NEAR_UM}
    for name in ("recall", "precision", "count_error"):
        values_B = np.array([getattr(sample, name) for sample in samples])
        result[name] = SetMean.known(getattr(whole, name), values_B, resampling).to_dict()
    return result


def finer_table(result: dict[str, Any]) -> str:
    """For people: the top genes at every place, then classes against the truth."""
    top = result["sets"].get("top", 0)
    trained = ", ".join(f"{side:g}" for side in result["trained_bins_um"])
    lines = [
        *split_told(result),
        f"mean r over the {top} genes of highest Moran's I ({result['ranked_on']}), "
        f"{of_patients(result)}; the model was trained on bins of {trained} µm",
        f"{'':<26}{'':<26}" + "".join(f"{f'{target}, {form}':>24}" for target in TARGETS for form in FORMS),
    ]
    for place in PLACES:
        for reader, title in READERS.items():
            if reader in result["scores"][place]:
                cells = "".join(f"{with_interval(_entry(result['scores'], place, reader, t, f)):>24}"
                                for t in TARGETS for f in FORMS)  # fmt: skip
                lines.append(f"{TITLES[place] if reader in ('model', 'bins') else '':<26}{title:<26}{cells}")
        for pair, entry in result["differences"][place].items():
            cells = "".join(f"{with_interval(entry.get(t, {}).get(f, {}).get('top'), '+.3f'):>24}"
                            for t in TARGETS for f in FORMS)  # fmt: skip
            lines.append(f"{'':<26}{pair:<26}{cells}")
    heads = [(place, reader) for place in PLACES for reader in ("model", "bins", "coarse", "reachable")
             if reader in result["scores"][place]]  # fmt: skip
    lines += ["", "r with the truth in counts, by class of genes",
              f"{'':<16}{'genes':>7}" + "".join(f"{f'{place} {reader}':>18}" for place, reader in heads)]  # fmt: skip
    for name, number in result["sets"].items():
        cells = (f"{_entry(result['scores'], *head, 'truth', 'counts', name)['mean']:>18.3f}" for head in heads)
        lines.append(f"{name:<16}{number:>7,}" + "".join(cells))
    nuclei = result["nuclei"]
    lines += ["", f"nuclei found in the H&E, within {nuclei['near_um']:g} µm of a true one: "
              f"recall {with_interval(nuclei['recall'])}, precision {with_interval(nuclei['precision'])}, "
              f"number found over number drawn, less 1: {with_interval(nuclei['count_error'], '+.3f')}"]  # fmt: skip
    return "\n".join(lines)


def _entry(scores: dict[str, Any], place: str, reader: str, target: str, form: str, which: str = "top"):
    return scores[place][reader].get(target, {}).get(form, {}).get(which)

"""What registration costs: how r falls where the detections lie 2 to 36 µm beside their place on the H&E.

The same predictions are held against the detections moved in eight directions and binned again, in the bins that stay
measured wherever the detections are moved. `tario check` says how far a section is off (sources/registration.py); this
is the price list that goes with it. On virtual tissue V, the reader that sees all that the H&E shows, pays too.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import EvaluateConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.bins import BINS_UM, grid_places, whole_bins
from tario_jax.evaluate.finer.gene_sets import SetMean, of_patients, split_told, with_interval
from tario_jax.evaluate.finer.scored import scorable, score_sections
from tario_jax.evaluate.finer.shifted import Prediction, count_shifted, directions
from tario_jax.evaluate.metrics import FORMS, mean_defined
from tario_jax.evaluate.section_bins import least_total
from tario_jax.predict.predictor import Predictor
from tario_jax.virtual.section import truth_rates

_VERSION = 5
SHIFTS_UM = (0.0, 2.0, 9.0, 18.0, 36.0)
DIRECTIONS = 8
_LEAST_BINS = 16


def measure_registration_cost(
    predictor: Predictor, corpus: Corpus, sections: Sequence[Section], folder: Path, config: EvaluateConfig, *,
    ranked_on: Sequence[Section] = (), say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """r of the model with shifted counts, in bins of 36, 18 and 9 µm.

    ranked_on: training sections whose Moran's I says which genes are at the top; `sections` where there are none.
    Writes a file a section into folder/shift; run again, it continues. Returns `scores[bin][reader][shift][form][set]`
    and `falls` likewise, the paired change from no shift over the genes and sections that both are
    defined for, as {mean, low, high} (patient bootstrap; low and high are None with one patient), and `table`.
    Sections without H&E or detections, or too small to move anything, are left out, and it says how many. Raises
    `InputError` where none is left.
    """
    data = predictor.provenance.config.data
    least, forced = data.min_measured, data.force_adjacent
    sections = scorable(
        "shift", corpus, sections,
        {"an H&E and detections": lambda section: section.has_detections and section.holds("he"),
         "an H&E of the same section": lambda section: forced or section.record["registration"] != "adjacent",
         f"places that are known to {min(BINS_UM) / 2:g} µm":
             lambda section: 2 * section.place_precision_um <= min(BINS_UM),
         f"{_LEAST_BINS} bins of {BINS_UM[0]:g} µm that stay measured when it is moved by {max(SHIFTS_UM):g} µm":
             lambda section: len(_staying(section, BINS_UM[0], least)) >= _LEAST_BINS},  # of smaller ones it has more
        say,
    )  # fmt: skip
    depends_on = {"format_version": _VERSION, "shifts_um": SHIFTS_UM, "directions": DIRECTIONS, "bins_um": BINS_UM,
                  "min_measured": least}  # fmt: skip

    def measure(section: Section, in_model: np.ndarray, in_corpus: np.ndarray) -> dict[str, np.ndarray]:
        return _measure(predictor, corpus, section, in_model, in_corpus, config)

    scored = score_sections("shift", measure, predictor, corpus, sections, folder, config, depends_on=depends_on,
                            ranked_on=ranked_on, say=say)  # fmt: skip
    found, resampling = scored.found, scored.resampling
    result: dict[str, Any] = scored.about | {"directions": DIRECTIONS, "scores": {}, "falls": {}}
    told = [name for name in found[0] if all(name in scores for scores in found)]
    if len(told) < max(len(scores) for scores in found):
        say("shift: what the H&E can tell is left out: some sections hold no truth")
    for name in told:
        bin_um, reader, shift, form = name.split("/")
        unmoved_SxG, r_SxG = (np.stack([scores[f"{bin_um}/{reader}/{at}/{form}"] for scores in found]).astype(float)
                              for at in ("0", shift))  # fmt: skip
        for which, chosen in scored.sets.items():
            mean = SetMean.of(r_SxG, chosen, resampling)
            fall = SetMean.change(r_SxG, unmoved_SxG, chosen, resampling)
            for what, entry in (("scores", mean), ("falls", fall)):
                at = result[what].setdefault(bin_um, {}).setdefault(reader, {}).setdefault(shift, {})
                at.setdefault(form, {})[which] = entry.to_dict()
    return result | {"table": shift_table(result)}


def _measure(predictor: Predictor, corpus: Corpus, section: Section, in_model: np.ndarray, in_corpus: np.ndarray,
             config: EvaluateConfig) -> dict[str, np.ndarray]:  # fmt: skip
    """r of every gene as `bin/reader/shift/form` → float32 [G], the mean over the directions it is defined in."""
    found, scores = section.all_detections(), {}
    measured_G = section.measured_gene_G[in_corpus]
    for bin_um in BINS_UM:
        columns, rows = whole_bins(section, bin_um)
        kept = _staying(section, bin_um, predictor.provenance.config.data.min_measured)
        maps = predictor.predict_section(section, tissue=corpus.kind, bin_um=bin_um, overlap=config.overlap)
        x_um_N, y_um_N = grid_places(columns, rows, bin_um)
        rates_NxG = maps.rates_NxG[maps.rows_at(x_um_N[kept], y_um_N[kept])][:, in_model]
        readers = {"model": Prediction(rates_NxG, measured_G)}
        if section.truth is not None:
            _, reachable = truth_rates(section.truth, bin_um)
            readers["reachable"] = Prediction(reachable.reshape(columns * rows, -1)[kept][:, in_corpus], measured_G)
        least = least_total(config.min_total, bin_um, "square")
        r: dict[str, list[np.ndarray]] = {}
        for shift, move_um in _moves():
            counted = count_shifted(found, move_um, bin_um, columns, rows, kept, len(corpus.panel)).of(in_corpus)
            for reader, predicted in readers.items():
                for form, r_G in zip(FORMS, predicted.correlations(counted, least), strict=True):
                    r.setdefault(f"{bin_um:g}/{reader}/{shift:g}/{form}", []).append(r_G)
        scores |= {name: mean_defined(np.stack(ways)).astype(np.float32) for name, ways in r.items()}
    return scores


def _moves() -> list[tuple[float, np.ndarray]]:
    """Each shift in µm, and where it goes to: right and down."""
    return [(shift, shift * way) for shift in SHIFTS_UM for way in directions(DIRECTIONS if shift else 1)]


def _staying(section: Section, bin_um: float, least: float) -> np.ndarray:
    """Positions of the bins that are measured to `least` wherever the detections are moved."""
    x_um_N, y_um_N = grid_places(*whole_bins(section, bin_um), bin_um)
    kept_N = np.ones(len(x_um_N), bool)
    for _, (right, down) in _moves():  # a bin holds what came from where it was before
        kept_N &= section.measured_share(x_um_N - right, y_um_N - down, bin_um) >= least - 1e-6
    return np.flatnonzero(kept_N)


def shift_table(result: dict[str, Any]) -> str:
    """For people: r of the top genes at every shift, the fall, and what is left by class."""
    lines = [
        *filter(None, [result["banner"]]),
        *split_told(result),
        f"mean r over the {result['sets'].get('top', 0)} genes of highest Moran's I ({result['ranked_on']}), "
        f"{result['directions']} directions, {of_patients(result)}; fall: paired",
        f"{'bins':<8}{'reader':<12}{'shift':>8}"
        + "".join(f"{f'r, {form}':>16}{'left':>7}{'fall':>25}" for form in FORMS),
    ]
    for bin_um, readers in result["scores"].items():
        for reader, shifts in readers.items():
            for shift, forms in shifts.items():
                cells = ""
                for form in FORMS:
                    at, none = forms[form]["top"]["mean"], shifts["0"][form]["top"]["mean"]
                    fall = result["falls"][bin_um][reader][shift][form]["top"]
                    left = f"{1 + fall['mean'] / none:.0%}" if none > 0.005 else "-"  # of the pairs of the fall
                    change = with_interval(fall, "+.3f") if float(shift) else ""
                    cells += f"{at:>16.3f}{left:>7}{change:>25}"
                lines.append(f"{bin_um + ' µm':<8}{reader:<12}{shift + ' µm':>8}{cells}")
    heads = [(bin_um, reader, shift) for bin_um, readers in result["scores"].items() for reader in readers
             for shift in readers[reader]]  # fmt: skip
    lines += ["", "r in counts by class of genes: bins, reader, then a column a shift "
              f"({', '.join(f'{shift:g}' for shift in SHIFTS_UM)} µm)"]  # fmt: skip
    for name, number in result["sets"].items():
        for bin_um, reader in dict.fromkeys(head[:2] for head in heads):
            row = (entry["counts"][name]["mean"] for entry in result["scores"][bin_um][reader].values())
            cells = "".join(f"{value:>9.3f}" for value in row)
            lines.append(f"{name:<16}{number:>7,}  {bin_um + ' µm':<8}{reader:<12}{cells}")
    return "\n".join(lines)

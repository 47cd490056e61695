"""Which figures a report holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tario_jax.evaluate.figures import Drawn, draw_bulk, draw_curve
from tario_jax.evaluate.map_figures import GeneMap, Look, draw_maps
from tario_jax.evaluate.metrics import pearson_by_gene
from tario_jax.evaluate.section_bins import SectionBins
from tario_jax.evaluate.tables import Evaluation
from tario_jax.predict.maps import banner_of

# section, gene -> its bins, measured and predicted values of the gene, and what lies behind
Shown = tuple[SectionBins, np.ndarray, np.ndarray, Look]


def draw_figures(folder: Path, evaluation: Evaluation, shown: Callable[[str, str], Shown]) -> list[Drawn]:
    """Writes the curve, the triptychs of evaluation.examples and, with two or more patients, the bulk scatter.

    shown(section_id, symbol) gives what a triptych holds. Raises `InputError` where matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, banner = [], banner_of(evaluation.report["trained_on"], evaluation.report["corpus_kind"])
    if evaluation.report["curve"]["k"]:
        drawn.append(draw_curve(folder / "curve.png", evaluation.report))
    for number, (section_id, symbol) in enumerate(evaluation.examples, 1):
        drawn.append(draw_triptych(folder / f"triptych_{number}.png", symbol, *shown(section_id, symbol),
                                   banner=banner))  # fmt: skip
    if len(evaluation.bulk["patients"]) > 1:
        drawn.append(draw_bulk(folder / "bulk.png", evaluation))
    found = {*folder.glob("triptych_*.png"), folder / "curve.png", folder / "bulk.png"}
    for path in found - {one.path for one in drawn}:  # of an evaluation before this one
        path.unlink(missing_ok=True)
    return drawn


def draw_triptych(path: Path, symbol: str, section: SectionBins, measured_N: np.ndarray, predicted_N: np.ndarray,
                  look: Look, chosen: str = "by Moran's I and median r, not by its looks",
                  banner: str = "") -> Drawn:  # fmt: skip
    """Raw detections (or the H&E under the spots), binned truth and prediction of one gene, in one frame."""
    r = pearson_by_gene(measured_N[:, None], predicted_N[:, None])[0]
    per = "spot" if section.layout == "spots" else f"{section.pitch_um:g} µm bin"
    maps = [GeneMap(title, *section.where, values_N)
            for title, values_N in ((f"measured, per {per}", measured_N),
                                    (f"predicted from H&E · r = {r:.2f}", predicted_N))]  # fmt: skip
    heading = f"{symbol} · section {section.section_id} ({section.cohort})"
    caption = f"{symbol} in held-out section {section.section_id}: measured and predicted. Chosen {chosen}."
    return draw_maps(path, heading, [(look, maps)], caption, banner)

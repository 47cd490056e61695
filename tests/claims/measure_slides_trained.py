"""Blended windows beside one large window, and which slides are warned of: measure_slides_trained.py RUN OUT.json.

RUN: a workdir of configs/quickstart.py that has ended. Its held-out sections are read as slides.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb_from_hed

from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.predict.outside import LIMIT, look_at
from tario_jax.predict.predictor import Predictor, load
from tario_jax.predict.slide import SlideSection, section_as_slide
from tario_jax.predict.slide_job import Asked, predict_slide
from tario_jax.predict.stain_match import densities

SQUARES, GENES = 8, 100


def main() -> None:
    run, out = Path(sys.argv[1]), Path(sys.argv[2])
    predictor, corpus = load(run, allow_virtual_model=True), Corpus.open(run / "corpus")
    held_out = split_corpus(corpus, predictor.provenance.config.split).held_out
    result = one_window(predictor, held_out[:SQUARES]) | warned(predictor, held_out)
    result["table"] = "\n".join(result.pop("lines_window") + result.pop("lines_warned"))
    print(result["table"])
    out.write_text(json.dumps(result))


def one_window(predictor: Predictor, sections: list) -> dict:
    """The middle of one window twice as wide, beside blended windows, and the same windows at another overlap."""
    data = predictor.provenance.config.data
    wide = dataclasses.replace(data, window_um=2 * data.window_um)
    config = dataclasses.replace(predictor.provenance.config, data=wide)
    other = Predictor(dataclasses.replace(predictor.provenance, config=config), predictor.parameters,
                      predictor.calibration, checkpoint="wide", allow_virtual_model=True)  # fmt: skip
    found, apart = [], []
    for section in sections:
        with tempfile.TemporaryDirectory() as folder:
            side = round(wide.window_um / section.he_um_per_px)
            Image.fromarray(section.he()[:side, :side]).save(Path(folder) / "square.png")
            asking = Asked(um_per_px=section.he_um_per_px, everywhere=True, tissue="virtual", spread=True)
            blended, alone = (
                predict_slide(of, Path(folder) / "square.png", Path(folder) / f"{name}.maps", asking, say=str)
                for name, of in (("blended", predictor), ("alone", other))
            )
            x, y = blended.x_um_N / wide.window_um, blended.y_um_N / wide.window_um
            inside = (abs(x - 0.5) < 0.25) & (abs(y - 0.5) < 0.25)
            genes = np.argsort(-blended.mean_G)[:GENES]
            found.append([np.log(store.genes(genes)[inside].astype(float)) for store in (blended, alone)])
            apart.append(blended.genes(genes, "spread")[inside] / blended.genes(genes)[inside])
    differ = [np.abs(np.exp(blended - alone) - 1) for blended, alone in found]
    median, high = (float(np.quantile(np.concatenate([one.ravel() for one in differ]), at)) for at in (0.5, 0.95))
    r = float(np.corrcoef(*(np.concatenate([pair[side].ravel() for pair in found]) for side in (0, 1)))[0, 1])
    between = float(np.median(np.concatenate([one.ravel() for one in apart])))
    line = (f"blended windows beside one of {wide.window_um:g} µm, in its middle, {len(sections)} held-out sections: "
            f"rates of the {GENES} strongest genes differ by {median:.1%} (median), {high:.1%} (95 %); r of their "
            f"logarithms {r:.4f}. Blended windows deviate among themselves by {between:.1%} (median)")  # fmt: skip
    return {"window_median": median, "window_between": between, "window_high": high, "lines_window": [line]}


def warned(predictor: Predictor, sections: list) -> dict:
    """Sections as they are, and changed: how many are warned of."""
    changes: dict[str, Callable | None] = {
        "as they are": None, "blurred by 1 µm": blurred(1.0), "blurred by 2 µm": blurred(2.0),
        "stain half as dense": stained(0.5), "stain twice as dense": stained(2.0),
        "haematoxylin alone": lambda rgb: of_densities(densities(rgb) * (1, 0, 0)),
        "noise of 20 of 255": noisy(20.0), "grey": grey,
    }  # fmt: skip
    result, lines = {}, []
    for name, change in changes.items():
        looks = [look_of(predictor, section, change) for section in sections]
        share = float(np.mean([bool(look.outside()) for look in looks]))
        distances, most = [look.distance for look in looks], np.abs([look.shift_F for look in looks]).mean(0).argmax()
        result[name] = share
        lines.append(f"{name}: {share:.0%} of {len(sections)} sections are warned of; {np.median(distances):.2f} "
                     f"deviations from training in the median, {max(distances):.2f} at most, limit {LIMIT:g}; "
                     f"most in {looks[0].name_F[int(most)]}")  # fmt: skip
    others = [share for name, share in result.items() if name != "as they are"]
    return {"warned_as_they_are": result["as they are"], "warned_changed": float(np.mean(others)),
            "least_warned": min(others), "lines_warned": lines}  # fmt: skip


def look_of(predictor: Predictor, section, change: Callable | None):
    slide: SlideSection = section_as_slide(section, genes=len(predictor.panel))
    slide.changed = change
    cover = predictor.tissue_cover(slide, None, tissue="virtual", bin_um=None, overlap=0.0)
    return look_at(cover, None, predictor.call_on, predictor.rows)


def blurred(um: float) -> Callable:
    return lambda rgb: gaussian_filter(rgb, (um / 0.5, um / 0.5, 0))


def noisy(deviation: float) -> Callable:
    def change(rgb: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).normal(0, deviation, rgb.shape)
        return np.clip(rgb + noise, 0, 255).astype(np.uint8)

    return change


def grey(rgb: np.ndarray) -> np.ndarray:
    return np.repeat(rgb.mean(-1, keepdims=True), 3, -1).astype(np.uint8)


def stained(times: float) -> Callable:
    return lambda rgb: of_densities(densities(rgb) * times)


def of_densities(density: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(256.0 * np.exp(-(density @ rgb_from_hed)) - 1.0), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()

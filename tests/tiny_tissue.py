"""Tiny sections whose every pixel, detection and spot the test knows, and the smallest model that reads them."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.ndimage
from PIL import Image

from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections, SectionData, Spots
from tario_jax.corpus.write import begin_corpus, seal_corpus, write_section
from tario_jax.panel import Panel

PANEL = Panel(tuple(f"GENE{number}" for number in range(12)))


def tiny_section(
    name: str, patient_id: str, seed: int, *, width_um: float = 180.0, height_um: float = 150.0, um_per_px: float = 0.5,
    detections: int = 1500, **more,
) -> SectionData:  # fmt: skip
    """Tissue whose nuclear stain and genes follow one smooth field: even genes where it is dark, odd ones elsewhere."""
    rng = np.random.default_rng(seed)
    height_px, width_px = round(height_um / um_per_px), round(width_um / um_per_px)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((height_px, width_px)), 12.0 / um_per_px, mode="wrap")
    field = (field - field.min()) / np.ptp(field)
    density = 0.2 + np.stack([1.2 * field, 0.9 * field, 0.3 * field], -1)
    density += 0.05 * rng.standard_normal(density.shape)
    he = np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8)
    x_um, y_um = rng.uniform(0, width_um, detections), rng.uniform(0, height_um, detections)
    dark = field[(y_um / um_per_px).astype(int), (x_um / um_per_px).astype(int)] > rng.random(detections)
    gene = 2 * rng.integers(0, len(PANEL) // 2, detections) + ~dark
    kept = more.get("measured_gene_G", np.ones(len(PANEL), bool))[gene]  # an assay holds no gene that it cannot see
    found = Detections(x_um[kept], y_um[kept], gene[kept].astype(np.int32))
    return SectionData(name, patient_id, "LUAD", width_um, height_um, um_per_px, he, found, **more)


def spot_section(
    name: str, patient_id: str, seed: int, *, x_um, y_um, diameter_um: float = 20.0, **more
) -> SectionData:
    """The same tissue with spots at these places, and no detections."""
    rng = np.random.default_rng(seed)
    counts_NxG = rng.poisson(1.5, (len(x_um), len(PANEL)))
    spot_E, gene_E = np.nonzero(counts_NxG)
    indptr = np.concatenate([[0], np.cumsum((counts_NxG > 0).sum(1))])
    spots = Spots(np.asarray(x_um, float), np.asarray(y_um, float), diameter_um, indptr, gene_E.astype(np.int32),
                  counts_NxG[spot_E, gene_E].astype(np.int32), tuple(f"s{i}" for i in range(len(x_um))))  # fmt: skip
    return dataclasses.replace(tiny_section(name, patient_id, seed, **more), detections=None, spots=spots)


def write_corpus(root: Path, sections, *, panel: Panel = PANEL, kind: str = "virtual", split=None) -> Corpus:
    """A sealed corpus of these sections."""
    begin_corpus(root, panel, kind, {"made": "by a test"})
    for section in sections:
        write_section(root, panel, kind, section)
    return seal_corpus(root, panel, kind, split)


def tiny_config(**fields) -> Config:
    """A config that trains in seconds; `fields` are `group=dict(field=value)`."""
    data = {"window_um": 72.0, "tile_um": 36.0, "bin_um": 18.0, "he_um_per_px": 1.0, "patch_px": 9, "rows": 4}
    model = {"width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 64, "gene_dim": 16,
             "stem_width": 8, "loss_chunk": 16}  # fmt: skip
    optim = {"learning_rate": 5e-3, "warmup_steps": 3}
    train = {"steps": 30, "log_every": 1, "validate_every": 15, "checkpoint_every": 15, "validation_rows": 16,
             "calibration_rows": 8}  # fmt: skip
    return Config(
        name="tiny",
        data=DataConfig(**data | fields.pop("data", {})),
        model=ModelConfig(**model | fields.pop("model", {})),
        optim=OptimConfig(**optim | fields.pop("optim", {})),
        train=TrainConfig(**train | fields.pop("train", {})),
        **fields,
    )


def st_folder(folder: Path, sections: tuple[str, ...], side_px: int = 1600) -> Path:
    """Sections of 6 × 6 spots in the layout of her2st: 200 µm are 250 px."""
    folder.mkdir()
    array = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2)
    for seed, name in enumerate(sections):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(120, 250, (side_px, side_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=80)
        spots = pd.DataFrame({"x": array[:, 0], "y": array[:, 1], "new_x": array[:, 0], "new_y": array[:, 1],
                              "pixel_x": 150 + 250 * array[:, 0], "pixel_y": 150 + 250 * array[:, 1],
                              "selected": 1})  # fmt: skip
        spots.to_csv(folder / f"{name}_selection.tsv", sep="\t", index=False)
        counts = pd.DataFrame(rng.poisson(2.0, (36, 20)), columns=[f"G{gene}" for gene in range(20)])
        counts.index = [f"{x}x{y}" for x, y in array]
        counts.to_csv(folder / f"{name}.tsv", sep="\t")
    return folder

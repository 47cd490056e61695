"""Runs of a sweep as training and evaluation leave them, made without either.

`python tests/evaluate/scaling/made_sweep.py FOLDER` makes a small study to look at with `tario scaling FOLDER`.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import numpy as np

from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SourceConfig, SplitConfig, TrainConfig
from tario_jax.config_files import to_dict
from tario_jax.evaluate.scaling.measures import FORMS
from tario_jax.evaluate.score_file import ScoreTable
from tario_jax.model.build import model_sizes
from tario_jax.panel import Panel
from tario_jax.tokens.batch import make_layout, square_bins_per_tile
from tario_jax.train.provenance import Provenance
from tario_jax.train.seal import checkpoint_id

GENES = 60
CLASSES = ("type_marker", "hidden_state", "null")
MOST_PATIENTS = 1488


def made_config(*, patients: int = 372, width: int = 32, window_um: float = 144.0, rows: int = 8, steps: int = 400,
                seed: int = 0, warmup: int = 10, rate: float = 2e-3) -> Config:  # fmt: skip
    return Config(
        source=SourceConfig(train_patients=MOST_PATIENTS), split=SplitConfig(train_patients=patients),
        data=DataConfig(window_um=window_um, tile_um=min(144.0, window_um), rows=rows, seed=seed),
        model=ModelConfig(width=width, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=2 * width, gene_dim=16,
                          stem_width=2),
        optim=OptimConfig(learning_rate=rate, warmup_steps=warmup), train=TrainConfig(steps=steps, seed=seed),
    )  # fmt: skip


@functools.cache
def trunk(model: ModelConfig) -> int:
    return model_sizes(Config(model=model), GENES).trunk


def made_table(*, nats: float = 5.0, skill: float = 0.3, noise_seed: int = 0, read_um: float = 36.0, patients: int = 12,
               genes: int = GENES, bin_um: float = 36.0, seal: str = "sealed", prefix: str = "p",
               class_gain: float = 0.0, checkpoint: str = "", ranked_on: str = "training sections",
               settings: str = "{}") -> ScoreTable:  # fmt: skip
    """Two sections a patient. r is `skill` times a gene's share (falling with its rank), plus what its patient and the
    seed do; class_gain: more of it for type markers. The last gene is constant everywhere, the one before not ranked.
    """
    tissue, seed = np.random.default_rng(1), np.random.default_rng(100 + noise_seed)
    sections = tuple(f"{prefix}{p:02}_{region}" for p in range(patients) for region in ("core", "border"))
    names = tuple(section.split("_")[0] for section in sections)
    moran = np.linspace(0.5, 0.0, genes)
    moran[-2] = np.nan
    share_G = np.linspace(1.0, 0.3, genes)
    gene_class = tuple(CLASSES[g % 3] for g in range(genes))
    of_patient = np.repeat(tissue.normal(0, 0.05, patients), 2)[:, None]
    r = {}
    for form, scale in zip(FORMS, (1.0, 0.7, 0.4), strict=True):
        wobble = tissue.normal(0, 0.03, (len(sections), genes))
        gain_G = class_gain * np.array([name == "type_marker" for name in gene_class])
        values = (
            scale * (skill * share_G + gain_G) * (1 + 4 * of_patient)
            + of_patient
            + wobble
            + seed.normal(0, 0.004, genes)
        )
        values[:, -1] = np.nan
        r["model", form] = values.astype(np.float32)
    r["ridge", "counts"] = r["model", "counts"] - 0.1
    detections = tissue.integers(1000, 3000, len(sections)).astype(float)
    offset = tissue.normal(0, 0.2, len(sections))
    measured = tissue.gamma(2.0, 1.0, (patients, genes))
    return ScoreTable(
        bin_um, read_um, seal, checkpoint or f"1-{noise_seed}", ranked_on, settings, sections, names,
        ("LUAD",) * len(sections), tuple(f"G{g}" for g in range(genes)),
        gene_class, moran, np.tile(np.linspace(0.9, 0.5, genes), (len(sections), 1)),
        0.9 * nats + offset - np.average(offset, weights=detections), np.full(len(sections), 0.1 * nats), detections, r,
        names[::2], ("LUAD",) * patients, measured, measured.sum(1),
        skill * measured + (1 - skill) * tissue.gamma(2.0, 1.0, measured.shape), measured.sum(1),
    )  # fmt: skip


def write_run(workdir: Path, config: Config, table: ScoreTable | None, *, done: bool = True, checkpoint: bool = True,
              validation_nats: float = 5.5, seal: str = "sealed") -> Path:  # fmt: skip
    """A workdir that `tario scaling` reads; table None: not evaluated. The scores are of its checkpoint."""
    workdir.mkdir(parents=True)
    steps = config.train.steps
    (workdir / "config.json").write_text(json.dumps(to_dict(config)))
    (workdir / "metrics.jsonl").write_text(
        json.dumps({"step": steps, "validation_nats_per_detection": validation_nats}) + "\n"
    )
    if done:
        (workdir / "done.json").write_text(json.dumps({"step": steps, "unix": 1.7e9, "seconds": 60.0}))
    if checkpoint:
        genes = len(table.symbols) if table is not None else GENES
        layout = make_layout(config.data, genes, bins_per_tile=square_bins_per_tile(config.data), largest_bin_um=36.0,
                             count_capacity=128)  # fmt: skip
        trained = tuple(f"t{p:04}" for p in range(config.split.train_patients))
        provenance = Provenance(
            config, Panel(tuple(f"G{g}" for g in range(genes))), seal, "virtual", "patient",
            tuple(f"{name}_core" for name in trained), ("p00_core",), layout, trained, 36.0, code="made",
            train_patients=trained,
        )  # fmt: skip
        place = workdir / "checkpoints" / str(steps)
        place.mkdir(parents=True)
        (place / "provenance.json").write_text(json.dumps(provenance.to_json()))
        (place / "tario_seal.json").write_text(json.dumps({"files": {}, "of": workdir.name}))
    if table is not None:
        write_scores(workdir, steps, table)
    return workdir


def write_scores(workdir: Path, steps: int, table: ScoreTable, folder: str = "") -> None:
    """Scores of that checkpoint of the run, in its workdir or a folder of it."""
    (workdir / folder).mkdir(exist_ok=True)
    dataclasses.replace(table, checkpoint=checkpoint_id(workdir, steps)).write(workdir / folder / "scores.npz")


def write_study(folder: Path, *, patients=(93, 186, 372, 744, 1488), widths=(16, 32, 64, 128),
                windows=(144.0, 288.0), seeds=(0, 1), genes: int = GENES) -> Path:  # fmt: skip
    """Sweeps over patients (at equal steps and at equal epochs), parameters and context that cross in one point, at
    two seeds; 3 sizes × 2 contexts; the largest of patients is read at 18 and 9 µm too. Losses follow a law."""
    noise = np.random.default_rng(7)
    done: set[str] = set()

    def add(name: str, read_um: tuple[float, ...] = (), **fields) -> None:
        for seed in seeds:
            workdir = folder / f"{name}_s{seed}"
            if workdir.name in done:
                continue
            done.add(workdir.name)
            config = made_config(**fields, seed=seed)
            size, context = trunk(config.model), config.data.window_um / 144.0
            loss = 4.0 + 3.0 * config.split.train_patients**-0.35 + 10.0 * size**-0.3
            loss -= 0.02 * np.log2(context) * np.log(size / 5000)
            loss += noise.normal(0, 0.002)

            def table(read: float, loss=loss, seed=seed) -> ScoreTable:
                skill = 1.3 - 0.2 * loss + 0.02 * np.log2(36.0 / read)
                return made_table(nats=loss - 0.05 * np.log2(36.0 / read), skill=skill, noise_seed=seed, read_um=read,
                                  genes=genes)  # fmt: skip

            write_run(workdir, config, table(36.0), validation_nats=loss + 0.1)
            for read in read_um:
                write_scores(workdir, config.train.steps, table(read), f"read_{read:g}um")

    middle = dict(patients=patients[len(patients) // 2], width=widths[1], window_um=windows[0], rows=8)

    def named(of: dict) -> str:
        return f"p{of['patients']}_w{of['width']}_um{of['window_um']:g}"

    for number in patients:
        of = middle | {"patients": number}
        add(named(of), (18.0, 9.0) if number == patients[-1] else (), **of)
        steps = round(400 * number / middle["patients"])
        if steps != 400:
            add(f"{named(of)}_epochs", **of, steps=steps)
    for width in widths:
        add(named(middle | {"width": width}), **middle | {"width": width})
    for width in widths[:3]:
        for window_um in windows:
            rows = round(8 * (windows[0] / window_um) ** 2)
            of = middle | {"width": width, "window_um": window_um, "rows": rows}
            add(named(of), **of)
    return folder


if __name__ == "__main__":
    print(write_study(Path(sys.argv[1]), genes=int(sys.argv[2]) if len(sys.argv) > 2 else GENES))

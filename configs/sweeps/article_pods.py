"""The article's study on pods: 93 to 2,545 patients, 10M to 4B parameters, bins of 36, 18 and 9 µm; 90 runs.

Windows of 1,152 µm, 256 of them a step, 20,000 steps: every run reads as much tissue, so that along an axis nothing
else changes. Finer bins are more tokens of the same tissue: 7,232 a window at 36 µm, 13,376 at 18, 37,952 at 9.

    trunk   on           mesh
    10M     v5e:4x4      fsdp 16
    50M     v5e:8x8      replica 2 × fsdp 32
    200M    v5e:16x16    replica 2 × fsdp 128
    1B      v5p:4x8x8    replica 2 × fsdp 128
    4B      v5p:8x8x8    replica 2 × fsdp 128 × context 2

    python -m launch configs/sweeps/article_pods.py --dry-run

Cost: what that prints, with the memory of each program; launch/README.md says what it was. Needs TARIO_CORPUS, a
corpus of 2,545 patients for training. Not run here, so no outcome is promised: configs/sweeps/study.py is its small
sister.
"""

from pathlib import Path

from tario_jax.config import Config, MeshConfig, SourceConfig
from tario_jax.config_files import chosen, load_config
from tario_jax.sweeps import Variant, changed, product, runs, vary

PATIENTS = vary("p", "split.train_patients", (93, 186, 372, 744, 1488, 2545))
BINS_UM = (36, 18, 9)
# by size: chips, mesh, and for bins of 36, 18 and 9 µm what is kept for the backward pass, and parts of a batch
ON = {
    "10m": ("v5e:4x4", MeshConfig(fsdp=16), (("none", 4), ("save_attention", 2), ("full", 4))),
    "50m": ("v5e:8x8", MeshConfig(replica=2, fsdp=32), (("none", 2), ("save_attention", 2), ("full", 2))),
    "200m": ("v5e:16x16", MeshConfig(replica=2, fsdp=128), (("none", 1), ("save_attention", 1), ("full", 1))),
    "1b": ("v5p:4x8x8", MeshConfig(replica=2, fsdp=128), (("none", 1), ("none", 1), ("save_attention", 1))),
    "4b": ("v5p:8x8x8", MeshConfig(replica=2, fsdp=128, context=2),
           (("save_attention", 1), ("save_attention", 1), ("full", 1))),
}  # fmt: skip


def base(size: str) -> Config:
    config = load_config(str(Path(__file__).parents[1] / f"tario2_{size}.py"))
    return changed(config, {
        "name": "article", "source": SourceConfig(kind="corpus", path="$TARIO_CORPUS"), "mesh": ON[size][1],
        "data.window_um": 1152.0, "data.rows": 256, "train.steps": 20_000, "train.validation_rows": 256,
        "evaluate.top_genes": 1000, "evaluate.bin_um": 36.0,
    })  # fmt: skip


def resolutions(size: str) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{size}_{bin_um}um", {"data.bin_um": float(bin_um), "model.remat": remat, "train.accumulate": parts})
        for bin_um, (remat, parts) in zip(BINS_UM, ON[size][2], strict=True)
    )


def get_sweep() -> dict[str, Config]:
    found: dict[str, Config] = {}
    for size in ON:
        found |= runs(base(size), product(PATIENTS, resolutions(size)))
    return found


def get_topologies() -> dict[str, str]:
    return {name: ON[name.split("_")[1]][0] for name in get_sweep()}


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

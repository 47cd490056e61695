"""Windows of 128 to 1,024 µm at equal tokens seen, two seeds each: what it is worth to see more tissue at once.

    python -m launch configs/sweeps/context.py --workdir=sweeps/context --dry-run

The model is that of configs/tario2_50m.py; batches hold 64 windows of 128 µm or one of 1,024 µm, the same area of
tissue a step. Cost: 8 runs of 20,000 steps; for accelerators. Not run here, so no outcome is promised.
"""

from pathlib import Path

from tario_jax.config import Config, SourceConfig
from tario_jax.config_files import chosen, load_config
from tario_jax.sweeps import Variant, changed, product, runs

COHORT = SourceConfig(
    kind="virtual", train_patients=1488, validation_patients=64, held_out_patients=213, regions=("core", "large")
)
SIDES_UM = (128, 256, 512, 1024)
WINDOWS = tuple(
    Variant(
        f"w{side_um}", {"data.window_um": float(side_um), "data.tile_um": 128.0, "data.rows": (1024 // side_um) ** 2}
    )
    for side_um in SIDES_UM
)
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def get_sweep() -> dict[str, Config]:
    config = load_config(str(Path(__file__).parents[1] / "tario2_50m.py"))
    return runs(changed(config, {"name": "context", "source": COHORT}), product(WINDOWS, SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

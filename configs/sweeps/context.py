"""Windows of 144 to 1,152 µm at equal tokens seen, two seeds each: what it is worth to see more tissue at once.

    python -m launch configs/sweeps/context.py --workdir=sweeps/context --dry-run

The model is that of configs/tario2_50m.py; batches hold 512 windows of 144 µm or 8 of 1,152 µm, the same bins and the
same H&E a step: each window is whole bins of 36 µm. Cost: 8 runs, of as many steps as that config says; for
accelerators. Not run here, so no outcome is promised.
"""

from pathlib import Path

from tario_jax.config import Config, SourceConfig
from tario_jax.config_files import chosen, load_config
from tario_jax.sweeps import Variant, changed, product, runs

COHORT = SourceConfig(
    kind="virtual", train_patients=1488, validation_patients=64, held_out_patients=213, regions=("core", "large")
)
SIDES_UM = (144, 288, 576, 1152)
WINDOWS = tuple(
    Variant(f"w{side_um}", {"data.window_um": float(side_um), "data.rows": 8 * (1152 // side_um) ** 2})
    for side_um in SIDES_UM
)
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def get_sweep() -> dict[str, Config]:
    config = load_config(str(Path(__file__).parents[1] / "tario2_50m.py"))
    return runs(changed(config, {"name": "context", "source": COHORT}), product(WINDOWS, SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

"""From 93 to 2,545 patients: the article's comparison, at equal steps and at equal epochs, two seeds each.

Nested cohorts: of any two sizes one holds the other. 213 patients are held out, whatever the size. `steps`: all runs do
as many steps, so the smaller cohort is seen more often. `epochs`: steps, and those of the warm-up, in proportion to
patients.

    python -m launch configs/sweeps/patients.py --workdir=sweeps/patients --dry-run

The model is that of configs/tario2_50m.py. Cost: 22 runs, of at most as many steps as that config says; for
accelerators (docs/pods.md). Not run here, so no outcome is promised; configs/sweeps/study.py is its small sister.
"""

from pathlib import Path

from tario_jax.config import Config, SourceConfig
from tario_jax.config_files import chosen, load_config
from tario_jax.sweeps import Variant, chain, changed, product, runs, vary

SIZES = (93, 186, 372, 744, 1488, 2545)
COHORT = SourceConfig(
    kind="virtual", train_patients=SIZES[-1], validation_patients=64, held_out_patients=213,
    regions=("core", "border", "large"),
)  # fmt: skip
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def base() -> Config:
    config = load_config(str(Path(__file__).parents[1] / "tario2_50m.py"))
    return changed(config, {"name": "patients", "source": COHORT})


def shorter(config: Config, patients: int) -> dict[str, int]:
    """As many epochs of fewer patients as of all."""
    share = patients / SIZES[-1]
    return {"split.train_patients": patients, "train.steps": round(config.train.steps * share),
            "optim.warmup_steps": round(config.optim.warmup_steps * share)}  # fmt: skip


def get_sweep() -> dict[str, Config]:
    config = base()
    steps = vary("p", "split.train_patients", SIZES)
    epochs = tuple(Variant(f"p{patients}_epochs", shorter(config, patients)) for patients in SIZES[:-1])
    return runs(config, product(chain(steps, epochs), SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

"""93 against 2,545 patients, all 18,963 genes, two seeds each: the published comparison, for one H100.

    python -m launch configs/sweeps/article.py --workdir=sweeps/article

The cohort is simulated where it is trained (a core region of each of 2,822 patients, about a core-hour). Cost: four
runs of 3,000 steps, sized for about three minutes each on an H100, and the evaluation of 213 held-out patients. Not run
here, so no outcome is promised: it is the claim evaluation/article_patients. Killed, the same command goes on.
"""

from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig
from tario_jax.config_files import chosen
from tario_jax.sweeps import Variant, product, runs, vary

BASE = Config(
    name="article",
    source=SourceConfig(
        kind="virtual",
        train_patients=2545,
        validation_patients=64,
        held_out_patients=213,
        regions=("core",),
        workers=16,
    ),
    data=DataConfig(
        window_um=288.0,
        tile_um=288.0,
        he_um_per_px=1.0,
        patch_px=18,
        rows=64,
        stain_jitter=0.25,
        prefetch=8,
    ),
    model=ModelConfig(
        width=320, layers=8, heads=5, kv_heads=5, head_dim=64, mlp_width=800, gene_dim=128, stem_width=48
    ),
    optim=OptimConfig(learning_rate=2e-3, warmup_steps=200),
    train=TrainConfig(steps=3000, log_every=50, validate_every=1000, checkpoint_every=500),
    evaluate=EvaluateConfig(top_genes=1000),
)
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def get_sweep() -> dict[str, Config]:
    return runs(BASE, product(vary("p", "split.train_patients", (93, 2545)), SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

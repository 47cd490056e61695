"""The quickstart's patients, learnt in bins of 36, 18 and 9 µm by turns: a model for finer readouts.

Cost: about 9 minutes on two cores. Outcome on 30 held-out patients (`tario finer`, `tario shift`; docs/finer.md): read
at 18 and 9 µm it says more of the true rates than its own 36 µm spread evenly, and so it does cell by cell.
"""

from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="quickstart_fine",
        source=SourceConfig(
            kind="virtual",
            train_patients=93,
            validation_patients=7,
            held_out_patients=30,
            cohorts=("LUAD", "BRCA", "SKCM"),
            regions=("core",),
            panel="curated",
        ),
        data=DataConfig(
            bin_um=36.0,
            bin_mixture=((36.0, 0.4), (18.0, 0.3), (9.0, 0.3)),
            window_um=288.0,
            tile_um=288.0,
            he_um_per_px=1.0,
            patch_px=18,
            rows=8,
            stain_jitter=0.25,
            groups=((1, 0.7), (4, 0.2), (16, 0.1)),
        ),
        model=ModelConfig(width=128, layers=3, heads=4, kv_heads=2, head_dim=32, mlp_width=320),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=30),
        train=TrainConfig(steps=360, log_every=20, validate_every=120, checkpoint_every=120),
    )

"""TARIO-2 at 4B: a trunk of 3.9B parameters; gene tables come on top, by panel.

Windows of 1,152 µm at 36 µm bins: 5,184 H&E tokens, 1,024 contents and 1,024 queries a row. Three local layers to a
global one. Cost: 6 x trunk x tokens = 3.5e21 FLOPs for 80,000 steps of 256 rows, attention not counted. Outcome: not
run here (this needs a pod and a real cohort), so none is promised; needs --corpus or --config.source.path.
"""

from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="tario2_4b",
        source=SourceConfig(kind="corpus", path="$TARIO_CORPUS"),
        data=DataConfig(
            bin_um=36.0,
            window_um=1152.0,
            tile_um=144.0,
            he_um_per_px=0.5,
            patch_px=32,
            rows=256,
            groups=((1, 0.5), (4, 0.2), (16, 0.2), (0, 0.1)),
            prefetch=8,
        ),
        model=ModelConfig(
            width=3072,
            layers=36,
            heads=24,
            kv_heads=8,
            head_dim=128,
            mlp_width=8960,
            gene_dim=1536,
            stem_width=128,
            pattern=("local", "local", "local", "global"),
            attention_block=512,
            remat="full",
        ),
        optim=OptimConfig(learning_rate=0.0003, warmup_steps=1000),
        train=TrainConfig(steps=80000, log_every=50, validate_every=1000, validation_rows=256, checkpoint_every=500),
    )

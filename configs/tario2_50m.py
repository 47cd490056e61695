"""TARIO-2 at 50M: a trunk of 51M parameters; gene tables come on top, by panel.

Windows of 1,152 µm at 36 µm bins: 5,184 H&E tokens, 1,024 contents and 1,024 queries a row. Three local layers to a
global one. Cost: 6 x trunk x tokens = 2.1e18 FLOPs for 30,000 steps of 32 rows, attention not counted. Outcome: not
run here (this needs a GPU and a real cohort), so none is promised; needs --corpus or --config.source.path.
"""

from tario_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="tario2_50m",
        source=SourceConfig(kind="corpus", path="$TARIO_CORPUS"),
        data=DataConfig(
            bin_um=36.0,
            window_um=1152.0,
            tile_um=144.0,
            he_um_per_px=0.5,
            patch_px=32,
            rows=32,
            groups=((1, 0.5), (4, 0.2), (16, 0.2), (0, 0.1)),
            prefetch=8,
        ),
        model=ModelConfig(
            width=576,
            layers=12,
            heads=9,
            kv_heads=3,
            head_dim=64,
            mlp_width=1728,
            gene_dim=256,
            stem_width=96,
            pattern=("local", "local", "local", "global"),
            attention_block=512,
            remat="none",
        ),
        optim=OptimConfig(learning_rate=0.0012, warmup_steps=1000),
        train=TrainConfig(steps=30000, log_every=50, validate_every=1000, validation_rows=64, checkpoint_every=500),
    )

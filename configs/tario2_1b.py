"""TARIO-2 at 1B: a trunk of 992M parameters; gene tables come on top, by panel. Heads of 128.

Without an argument: rows of 5,184 H&E tokens, 1,024 contents and 1,024 queries, which are windows of 1,152 µm at 36 µm
bins, and a mesh of what is there. With one it is set up for what it names, as in
--config=configs/tario2_1b.py:v5e:16x16 (docs/pods.md tells which were compiled):

    on          window, µm tokens  rows  mesh                                remat
    v5e:16x16     1,728   16,272   128  fsdp 128 × context 2                save_attention
    v6e:16x16     1,728   16,272   256  replica 2 × fsdp 128                save_attention
    v5p:4x8x8     3,456   65,088   128  fsdp 128 × context 2                save_attention
    v5p:8x8x8     3,456   65,088   128  fsdp 128 × context 4                save_attention
    8xH100        1,728   16,272     8  fsdp 8                              save_attention

muP: the learning rate is that of 10M (docs/training_width.md).
Three local layers to a global one. Any window of whole tiles does, from one tile on (256 µm: --config.data.tile_um=128
--config.data.window_um=256). Cost: 6 x trunk x tokens = 3.3e20 FLOPs for 60,000 steps of 128 rows,
attention not counted. Outcome: not run here (this needs a pod and a real cohort), so none is promised; needs
--corpus or --config.source.path.
"""

from tario_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig
from tario_jax.config_files import chosen

# what it runs on: mesh, rows of the global batch, window in µm, remat
ON = {
    "": (MeshConfig(), 128, 1152.0, "save_attention"),
    "v5e:16x16": (MeshConfig(fsdp=128, context=2), 128, 1728.0, "save_attention"),
    "v6e:16x16": (MeshConfig(replica=2, fsdp=128), 256, 1728.0, "save_attention"),
    "v5p:4x8x8": (MeshConfig(fsdp=128, context=2), 128, 3456.0, "save_attention"),
    "v5p:8x8x8": (MeshConfig(fsdp=128, context=4), 128, 3456.0, "save_attention"),
    "8xH100": (MeshConfig(fsdp=8), 8, 1728.0, "save_attention"),
}


def get_config(on: str = "") -> Config:
    mesh, rows, window_um, remat = chosen(on, ON)
    return Config(
        name="tario2_1b",
        source=SourceConfig(kind="corpus", path="$TARIO_CORPUS"),
        mesh=mesh,
        data=DataConfig(
            bin_um=36.0,
            window_um=window_um,
            tile_um=144.0,
            he_um_per_px=0.5,
            patch_px=32,
            rows=rows,
            groups=((1, 0.5), (4, 0.2), (16, 0.2), (0, 0.1)),
            prefetch=8,
        ),
        model=ModelConfig(
            width=2048,
            layers=20,
            heads=16,
            kv_heads=4,
            head_dim=128,
            mlp_width=6144,
            gene_dim=1024,
            stem_width=128,
            pattern=("local", "local", "local", "global"),
            attention_block=512,
            remat=remat,
            zero_read_out=True,
            base_width=320,
            base_head_dim=64,
            base_gene_dim=128,
            base_stem_width=32,
        ),
        optim=OptimConfig(learning_rate=0.002, warmup_steps=1000),
        train=TrainConfig(steps=60000, log_every=50, validate_every=1000, validation_rows=128, checkpoint_every=500),
    )

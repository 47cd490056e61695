"""TARIO-2 at 4B: a trunk of 3.9B parameters; gene tables come on top, by panel. Heads of 128.

Without an argument: rows of 5,184 H&E tokens, 1,024 contents and 1,024 queries, which are windows of 1,152 µm at 36 µm
bins, and a mesh of what is there. With one it is set up for what it names, as in
--config=configs/tario2_4b.py:v5e:16x16 (docs/pods.md tells which were compiled):

    on          window, µm tokens  rows  mesh                                remat
    v5e:16x16     1,728   16,272   128  fsdp 128 × context 2                full
    v6e:16x16     1,728   16,272   128  fsdp 128 × context 2                save_attention
    v5p:4x8x8     3,456   65,088    64  fsdp 64 × context 4                 save_attention
    v5p:8x8x8     4,032  137,984    64  fsdp 64 × context 8                 save_attention
    2xv5p:8x8x8   4,096  294,912    64  replica 2 × fsdp 32 × context 16    save_attention
    8xH100        1,728   16,272     8  fsdp 8                              full

muP: the learning rate is that of 10M (docs/training_width.md).
Three local layers to a global one. Any window of whole tiles does, from one tile on (256 µm: --config.data.tile_um=128
--config.data.window_um=256). Cost: 6 x trunk x tokens = 3.5e21 FLOPs for 80,000 steps of 256 rows,
attention not counted. Outcome: not run here (this needs a pod and a real cohort), so none is promised; needs
--corpus or --config.source.path.
"""

from tario_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig
from tario_jax.config_files import chosen

# what it runs on: mesh, rows of the global batch, window in µm, remat
ON = {
    "": (MeshConfig(), 256, 1152.0, "full"),
    "v5e:16x16": (MeshConfig(fsdp=128, context=2), 128, 1728.0, "full"),
    "v6e:16x16": (MeshConfig(fsdp=128, context=2), 128, 1728.0, "save_attention"),
    "v5p:4x8x8": (MeshConfig(fsdp=64, context=4), 64, 3456.0, "save_attention"),
    "v5p:8x8x8": (MeshConfig(fsdp=64, context=8), 64, 4032.0, "save_attention"),
    "2xv5p:8x8x8": (MeshConfig(replica=2, fsdp=32, context=16), 64, 4096.0, "save_attention"),
    "8xH100": (MeshConfig(fsdp=8), 8, 1728.0, "full"),
}
# longer rows than 100,000 tokens: finer patches of the same tissue, (side of a tile in µm, of a patch in px)
PATCHES = {4032.0: (144.0, 24), 4096.0: (128.0, 16)}


def get_config(on: str = "") -> Config:
    mesh, rows, window_um, remat = chosen(on, ON)
    tile_um, patch_px = PATCHES.get(window_um, (144.0, 32))
    return Config(
        name="tario2_4b",
        source=SourceConfig(kind="corpus", path="$TARIO_CORPUS"),
        mesh=mesh,
        data=DataConfig(
            bin_um=36.0,
            window_um=window_um,
            tile_um=tile_um,
            he_um_per_px=0.5,
            patch_px=patch_px,
            rows=rows,
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
            remat=remat,
            zero_read_out=True,
            base_width=320,
            base_head_dim=64,
            base_gene_dim=128,
            base_stem_width=32,
        ),
        optim=OptimConfig(learning_rate=0.002, warmup_steps=1000),
        train=TrainConfig(steps=80000, log_every=50, validate_every=1000, validation_rows=256, checkpoint_every=500),
    )

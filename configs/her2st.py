"""HER2ST: sections C2, C3, C4 of one breast tumour for training, C5 for evaluation (a split by section).

The default at a size for four sections. Needs TARIO_REAL_DATA with her2st/ (Andersson et al. 2021). Cost: 10 to 15
minutes on two cores. Outcome on C5, over the 50 genes of highest Moran-c: composition r above 0.33, from scratch, and
counts 0.12 above the model's own density control; with data.frozen_encoder=efficientnet-lite0 above 0.40 and 0.12.
One patient: nothing here says that the model generalises. Sizes were chosen on C4, with C2 and C3 for training.
"""

from tario_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    SplitConfig,
    TrainConfig,
)


def get_config() -> Config:
    return Config(
        name="her2st",
        source=SourceConfig(
            kind="spots",
            path="$TARIO_REAL_DATA/her2st",
            sections=("C2", "C3", "C4", "C5"),
            patients=(("C", "BRCA"),),
            min_spot_total=100,
            min_gene_total=20,
        ),  # fmt: skip
        split=SplitConfig(by="section", train=("C2", "C3", "C4"), held_out=("C5",)),
        data=DataConfig(
            window_um=448.0,
            tile_um=448.0,
            he_um_per_px=1.0,
            patch_px=28,
            rows=8,
            stain_jitter=0.2,
            groups=((1, 0.6), (4, 0.2), (16, 0.2)),
        ),
        model=ModelConfig(
            width=64,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            mlp_width=128,
            gene_dim=16,
            stem_width=16,
            rare_gene_weight=0.5,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=30, weight_decay=0.1, optimiser="muon"),
        train=TrainConfig(steps=500, log_every=25, checkpoint_every=100),
        evaluate=EvaluateConfig(top_genes=50, mean_genes=300, min_detected=0.1, min_total=100),
    )

"""An hour on two cores: 533 virtual patients of three cancer types, all 18,963 genes, a model of about 2M parameters.

Trained on bins of 18 µm, compared at 36 µm. Cost: an hour and ten minutes on two cores, 6 of simulation, 50 of training
and a quarter of an hour of evaluation. Outcome on 45 held-out patients, over the 1,000 genes of highest Moran's I: at
least 0.90 of the r that the H&E can tell in counts and 0.80 in composition; above ridge on stain and texture features
by 0.02 in counts and 0.03 in composition, and over all genes by 0.05 in bulk (measured: docs/claims.md).
"""

from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="virtual_1h",
        source=SourceConfig(
            kind="virtual",
            train_patients=480,
            validation_patients=8,
            held_out_patients=45,
            cohorts=("LUAD", "BRCA", "SKCM"),
            regions=("core",),
            section_um=576.0,
        ),
        data=DataConfig(
            bin_um=18.0,
            window_um=288.0,
            tile_um=288.0,
            he_um_per_px=1.0,
            patch_px=18,
            rows=8,
            stain_jitter=0.25,
            groups=((1, 0.6), (4, 0.2), (16, 0.2)),
        ),
        model=ModelConfig(
            width=128,
            layers=4,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_width=320,
            stem_width=32,
            rare_gene_weight=0.5,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_steps=50, optimiser="muon"),
        train=TrainConfig(steps=1250, log_every=25, validate_every=125, checkpoint_every=250),
        evaluate=EvaluateConfig(bin_um=36.0, top_genes=1000, bootstraps=500),
    )

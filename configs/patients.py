"""Patients: 640 virtual patients of all eight cancer types, two sections each, for one space of all patients.

Cost: about 75 minutes on two cores, 15 of them simulation. Outcome on 213 held-out patients: their embeddings lie by
cancer type and diagnosis, and linear probes of them tell the mutations that the H&E shows (docs/patients.md holds the
measured figures).
"""

from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig


def get_config() -> Config:
    return Config(
        name="patients",
        source=SourceConfig(
            kind="virtual",
            train_patients=640,
            validation_patients=8,
            held_out_patients=213,
            regions=("core", "border"),
            panel="curated",
        ),
        data=DataConfig(
            bin_um=36.0,
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
        train=TrainConfig(steps=3600, log_every=25, validate_every=300, checkpoint_every=300),
        evaluate=EvaluateConfig(bin_um=36.0, top_genes=200),
    )

"""A whole small scaling study on virtual patients, for two cores: patients, parameters, context, resolution.

26 runs, two seeds each, all 18,963 genes, 45 held-out patients of three cancer types:

    axis        at                                             the others
    patients    16, 32, 64, 128, 256                           m, 288 µm
    parameters  xs, s, m, l (trunks of 0.25 to 3.3 million)    256 patients, 288 µm
    context     windows of 144, 288, 576 µm, as much tissue    256 patients, m
    resolution  one model of bins of 36, 18 and 9 µm, read at  256 patients, m, 288 µm
                each and compared at 36 µm
    grid        xs, m, l × 288, 576 µm                         256 patients

    python -m launch configs/sweeps/study.py --workdir=sweeps/study

Cost: about four hours on two cores; --only makes an axis of it, as docs/scaling_study.md tells, which also holds the
figures of the last time. Sizes share one learning rate by muP. Windows of 144 µm come in batches of 32, those of 576 µm
in batches of 2: equal tokens a step.
"""

from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, OptimConfig, SourceConfig, TrainConfig
from tario_jax.config_files import chosen
from tario_jax.sweeps import Variant, Variants, chain, product, runs, vary

BASE = Config(
    name="study",
    source=SourceConfig(
        kind="virtual",
        train_patients=256,
        validation_patients=8,
        held_out_patients=45,
        cohorts=("LUAD", "BRCA", "SKCM"),
        regions=("core",),
        section_um=576.0,
    ),
    data=DataConfig(
        window_um=288.0,
        tile_um=144.0,
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
        kv_heads=4,
        head_dim=32,
        mlp_width=320,
        gene_dim=64,
        stem_width=32,
        base_width=128,
        base_head_dim=32,
        base_gene_dim=64,
        base_stem_width=32,
        rare_gene_weight=0.5,
    ),
    optim=OptimConfig(learning_rate=2e-3, warmup_steps=40, optimiser="muon"),
    train=TrainConfig(steps=320, log_every=20, validate_every=160, checkpoint_every=160, keep_checkpoints=1),
    evaluate=EvaluateConfig(top_genes=1000, bootstraps=500),
)


def size(name: str, width: int, layers: int) -> Variant:
    heads = width // 32
    return Variant(name, {"model.width": width, "model.layers": layers, "model.heads": heads, "model.kv_heads": heads,
                          "model.mlp_width": width * 5 // 2})  # fmt: skip


XS, S, M, L = size("xs", 64, 2), size("s", 96, 3), size("m", 128, 4), size("l", 224, 5)
PATIENTS = vary("p", "split.train_patients", (16, 32, 64, 128))
ALL = vary("p", "split.train_patients", (256,))
SHORT, MIDDLE, LONG = (
    Variant(f"w{window_um}", {"data.window_um": float(window_um), "data.rows": rows})
    for window_um, rows in ((144, 32), (288, 8), (576, 2))
)
MIXED = Variant("mixed", {
    "data.bin_mixture": ((36.0, 0.5), (18.0, 0.3), (9.0, 0.2)), "data.rows": 4, "evaluate.read_um": (18.0, 9.0),
})  # fmt: skip
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def variants() -> Variants:
    cells = chain(
        product((*PATIENTS, *ALL), (M,), (MIDDLE,)),
        product(ALL, (XS, S, L), (MIDDLE,)),
        product(ALL, (M,), (SHORT, LONG)),
        product(ALL, (XS, L), (LONG,)),
        product(ALL, (M,), (MIXED,)),
    )
    return product(cells, SEEDS)


def get_sweep() -> dict[str, Config]:
    return runs(BASE, variants())


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

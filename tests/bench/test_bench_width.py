"""The checks of width: they tell muP from the standard parametrisation, and a bench that is run again goes on."""

from tiny_tissue import tiny_config

from tario_jax.bench.coordinates import STEPS
from tario_jax.bench.width import check_coordinates


def silent(line: str) -> None:
    pass


def small(**fields):
    data = {"rows": 1, "groups": ((1, 0.5), (4, 0.5))}
    model = {"head_dim": 8, "heads": 4, "kv_heads": 2, "layers": 1, "mlp_width": 64, "gene_dim": 16, "stem_width": 4}
    return tiny_config(data=data | fields.pop("data", {}), model=model | fields.pop("model", {}),
                       optim={"learning_rate": 1e-3, "warmup_steps": 2} | fields.pop("optim", {}), **fields)  # fmt: skip


def test_the_coordinate_check_is_flat_under_mup_and_not_without(tiny_corpus, tmp_path):
    result = check_coordinates(small(), tiny_corpus, widths=[32, 64, 128, 256], seeds=1, workdir=tmp_path,
                               figure=tmp_path / "figure.png", say=silent)  # fmt: skip
    print(result["table"])
    assert result["mup"]["largest"] < 0.25
    grows = {name for step in STEPS for name, slope in result["standard"]["slopes"][str(step)].items() if slope > 0.25}
    assert {"change of logits", "attention 1"} <= grows and result["standard"]["largest"] > 0.6
    assert (tmp_path / "figure.png").stat().st_size > 10_000

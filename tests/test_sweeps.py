"""Combinators of sweeps, and the sweeps that are here."""

import pytest
from refusals import refused

from launch.sweep_file import read_sweep
from tario_jax.config import Config
from tario_jax.config_files import load_config
from tario_jax.model.build import model_sizes
from tario_jax.sweeps import Variant, chain, changed, product, runs, subsample, vary, zipped

SWEEPS = ("ablation", "article", "article_pods", "context", "parameters", "patients", "resolution", "study")


def names(variants):
    return [variant.name for variant in variants]


def test_combinators_make_the_runs_that_they_say():
    patients, widths = vary("p", "split.train_patients", (93, 186)), vary("w", "model.width", (32, 64))
    assert names(product(patients, widths)) == ["p93_w32", "p93_w64", "p186_w32", "p186_w64"]
    assert names(zipped(patients, widths)) == ["p93_w32", "p186_w64"]
    assert names(chain(patients, patients, widths)) == ["p93", "p186", "w32", "w64"]
    drawn = subsample(product(patients, widths), 2, seed=3)
    assert drawn == subsample(product(patients, widths), 2, seed=3) and len(set(names(drawn))) == 2
    made = runs(Config(name="base"), zipped(patients, widths))
    assert made["p186_w64"].split.train_patients == 186 and made["p186_w64"].model.width == 64
    assert made["p186_w64"].name == "base_p186_w64" and made["p93_w32"].model.width == 32


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda: changed(Config(), {"model.widht": 3}), ("model.widht", "no such field")),
        (lambda: changed(Config(), {"model.width": "wide"}), ("model.width is 'wide'", "int")),
        (lambda: changed(Config(), {"model.width": 0}), ("model.width is 0",)),
        (lambda: product(vary("a", "seed", (1,)), vary("b", "seed", (2,))), ("seed is changed by two axes",)),
        (lambda: zipped(vary("a", "x", (1,)), vary("b", "y", (1, 2))), ("1, 2 values",)),
        (lambda: chain((Variant("a", {"x": 1}),), (Variant("a", {"x": 2}),)), ("'a' differ",)),
        (lambda: subsample(vary("a", "x", (1,)), 2), ("2 of 1 runs",)),
    ],
)
def test_a_mistake_in_a_sweep_is_told(attempt, words):
    refused(attempt, *words)


@pytest.mark.parametrize("name", SWEEPS)
def test_every_run_of_a_sweep_is_a_config_that_a_job_can_load(name, repository):
    file = repository / f"configs/sweeps/{name}.py"
    runs_of = read_sweep(str(file)).configs
    assert len(runs_of) >= 2
    for run in (next(iter(runs_of)), list(runs_of)[-1]):
        config = load_config(f"{file}:{run}")
        assert config.name.endswith(run) and config == runs_of[run]
    refused(lambda: load_config(f"{file}:nothing"), "expected one of")


def test_the_study_is_as_large_as_it_says(repository):
    study = {name: load_config(f"{repository / 'configs/sweeps/study.py'}:{name}") for name in (
        "p16_m_w288_seed0", "p256_m_w288_seed1", "p256_xs_w288_seed0", "p256_l_w288_seed0", "p256_m_w144_seed0",
        "p256_m_w576_seed0", "p256_m_mixed_seed0",
    )}  # fmt: skip
    assert study["p16_m_w288_seed0"].split.train_patients * 16 == study["p256_m_w288_seed1"].split.train_patients
    sizes = [model_sizes(study[f"p256_{size}_w288_seed0"], 18_963).trunk for size in ("xs", "l")]
    assert sizes[0] < 3e5 and 2.5e6 < sizes[1] < 4e6
    tissue = {c.data.rows * c.data.window_um**2 for name, c in study.items() if "mixed" not in name}
    assert len(tissue) == 1  # equal tokens a step
    assert study["p256_m_mixed_seed0"].data.trained_bins_um == (36.0, 18.0, 9.0)

"""Combinators of sweeps, the sweeps that are here, and what `python -m launch` does with one."""

import subprocess
import sys

import pytest
from refusals import refused

from tario_jax.config import Config
from tario_jax.config_files import load_config
from tario_jax.model.build import model_sizes
from tario_jax.sweeps import Variant, chain, changed, product, runs, subsample, vary, zipped

SWEEPS = ("ablation", "article", "context", "parameters", "patients", "resolution", "study")


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
    listed = launch(repository, str(file), "--workdir=runs/none", "--status").stdout.splitlines()
    assert len(listed) >= 2 and all(line.endswith("not begun") for line in listed)
    for run in (listed[0].split()[0], listed[-1].split()[0]):
        config = load_config(f"{file}:{run}")
        assert config.name.endswith(run)
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


def launch(repository, *words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "launch", *words], cwd=repository, capture_output=True, text=True,
                          timeout=240, check=False)  # fmt: skip


def test_launch_tells_mistakes_and_prints_what_it_would_do(repository, tmp_path):
    study = "configs/sweeps/study.py"
    done = launch(repository, study, f"--workdir={tmp_path}", "--dry-run", "--only=p16_*")
    assert done.returncode == 0
    jobs = [line.split()[1] for line in done.stdout.splitlines()]
    assert jobs == ["simulate", "train", "evaluate", "train", "evaluate", "scaling"] and not list(tmp_path.iterdir())
    for words, answer in (
        ((study, "--only=q*"), "no run of"),
        (("configs/none.py",), "no such file"),
        (("configs/quickstart.py",), "has no get_sweep"),
    ):
        done = launch(repository, *words, f"--workdir={tmp_path}")
        assert done.returncode == 2 and answer in done.stderr and "Traceback" not in done.stderr


SMALL = """
from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, SourceConfig, TrainConfig
from tario_jax.sweeps import runs, vary

BASE = Config(
    name="small",
    source=SourceConfig(train_patients=2, validation_patients=1, held_out_patients=2, regions=("core",),
                        section_um=216.0, panel="curated", workers=1),
    data=DataConfig(window_um=72.0, tile_um=72.0, rows=2),
    model=ModelConfig(width=16, layers=1, heads=1, kv_heads=1, head_dim=16, mlp_width=16, gene_dim=8, stem_width=8),
    train=TrainConfig(steps=2, validation_rows=2, calibration_rows=2, checkpoint_every=2, validate_every=2),
    evaluate=EvaluateConfig(top_genes=20, bootstraps=20, examples=0, read_um=(18.0,)),
)


def get_sweep():
    return runs(BASE, vary("rate", "optim.warmup_steps", (1, 2)) + vary("bad", "data.count_capacity", (1,)))


def get_config(name):
    return get_sweep()[name]
"""


@pytest.mark.slow
def test_a_sweep_is_made_one_bad_run_stops_no_other_and_it_goes_on(repository, tmp_path):
    (tmp_path / "small.py").write_text(SMALL)
    command = (str(tmp_path / "small.py"), f"--workdir={tmp_path / 'sweep'}")
    done = launch(repository, *command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "bad1" in done.stdout and "capacity" in done.stdout
    status = launch(repository, *command, "--status").stdout.split()
    assert status == ["rate1", "evaluated", "rate2", "evaluated", "bad1", "begun"] or status[-1] == "begun"
    for run in ("rate1", "rate2"):
        assert (tmp_path / "sweep" / run / "read_18um/scores.npz").exists()
    assert (tmp_path / "sweep/scaling.html").exists()
    again = launch(repository, *command, "--only=rate*")
    assert again.returncode == 0 and [line.split()[2] for line in again.stdout.splitlines()] == ["simulate", "scaling"]

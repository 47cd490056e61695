"""The checks of width: they tell muP from the standard parametrisation, and a bench that is run again goes on."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_config

from tario_jax.bench import width, width_runs
from tario_jax.bench.coordinates import slopes
from tario_jax.bench.width import _until_inside, check_coordinates, check_learning_rate, check_optimisers
from tario_jax.bench.width_runs import Batches, Results, Trainer, best_rate, model_of_width
from tario_jax.cli import main as cli
from tario_jax.config import ModelConfig
from tario_jax.train.run import Run
from tario_jax.train.start import start

ONE_SHOT = {"rows": 1, "groups": ((1, 1.0),)}
SMALL = {"heads": 4, "kv_heads": 2, "head_dim": 8, "layers": 1, "stem_width": 4}


def silent(line: str) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("widths", [[32, 256], [32, 64, 128, 256]])
def test_the_coordinate_check_is_flat_under_mup_and_not_without(widths, tiny_corpus, tmp_path):
    config = tiny_config(data=ONE_SHOT, model=SMALL, optim={"learning_rate": 1e-3})
    result = check_coordinates(config, tiny_corpus, widths=widths, seeds=4, workdir=tmp_path,
                               figure=tmp_path / "figure.png", say=silent)  # fmt: skip
    assert result["mup"]["largest"] < 0.2, result["table"]
    standard = result["standard"]["slopes"]
    assert standard["8"]["change of logits"] > 0.6, result["table"]
    inside = max(slope for of_step in standard.values() for name, slope in of_step.items()
                 if name != "change of logits")  # fmt: skip
    assert inside > max(0.15, 2 * result["mup"]["largest"]), result["table"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_slopes_are_those_of_power_laws():
    sizes = {
        width: [{"flat": 2.0 * noise, "grows": width**0.5 * noise} for noise in (0.5, 2.0)] for width in (8, 16, 64)
    }
    assert slopes(sizes) == pytest.approx({"flat": 0.0, "grows": 0.5}, abs=1e-9)


def test_sizes_grow_in_proportion_and_the_base_is_the_configs_own():
    base = ModelConfig(width=64, head_dim=16, mlp_width=160, gene_dim=32, stem_width=24)
    wide, standard = (model_of_width(base, 256, kind) for kind in ("mup", "standard"))
    assert (wide.head_dim, wide.mlp_width, wide.gene_dim, wide.stem_width, wide.heads) == (64, 640, 128, 96, base.heads)
    assert (wide.base_width, wide.base_head_dim, wide.base_gene_dim, wide.base_stem_width) == (64, 16, 32, 24)
    assert standard.base_width == standard.base_gene_dim == 0 and standard.width == 256
    refused(lambda: model_of_width(base, 65, "mup"), "--widths=65", "model.head_dim would be 16.25")


def test_the_best_rate_lies_at_the_bottom_of_the_parabola():
    losses = {2.0**x: (x - 0.3) ** 2 for x in (-2, -1, 0, 1, 2)}
    assert best_rate(losses) == (pytest.approx(2**0.3), True)
    assert best_rate({rate: loss for rate, loss in losses.items() if rate <= 1}) == (1.0, False)
    assert best_rate(losses | {2.0: math.nan}) == (1.0, True)


def test_rates_go_on_until_the_best_is_inside():
    asked = []

    def loss(rate: float) -> float:
        asked.append(rate)
        return abs(math.log2(rate) - 3.1)

    found = _until_inside(loss, [0.5, 1.0, 2.0])
    assert asked == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0] and list(found) == sorted(asked)
    asked.clear()
    assert list(_until_inside(loss, [16.0, 32.0])) == [4.0, 8.0, 16.0, 32.0] and asked == [16.0, 32.0, 8.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "kind"), [(64, "mup"), (32, "mup"), (64, "standard")])
def test_it_starts_as_a_run_does(size, kind, tiny_corpus):
    base = tiny_config(data=ONE_SHOT | {"rows": 3}, model=SMALL | {"gene_dim": 8})
    config = dataclasses.replace(base, model=model_of_width(base.model, size, kind))
    found = Trainer(config, Batches.read(base, tiny_corpus)).start(config.train.seed)
    _, expected = start(Run.of(config, tiny_corpus), silent)
    for part in ("parameters", "calibration"):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, part), jax.device_get(getattr(expected, part)))
    assert np.abs(found.parameters["gene_table"]).max() > 0


def test_the_step_is_made_in_the_parts_of_the_config(tiny_corpus, monkeypatch):
    made = {}
    for name in ("make_train_step", "make_loss"):
        monkeypatch.setattr(width_runs, name, lambda *given, name=name: made.update({name: given[-1]}))
    config = tiny_config(data=ONE_SHOT | {"rows": 4}, train={"accumulate": 2})
    batches = Batches([], [], len(PANEL), [], {}, {})
    Trainer(config, batches)
    assert made == {"make_train_step": 2, "make_loss": 2}
    odd = dataclasses.replace(config, data=dataclasses.replace(config.data, rows=3))
    refused(lambda: Trainer(odd, batches), "--config.data.rows=3", "train.accumulate")


def test_the_rate_of_muon_is_not_that_of_adamw(tmp_path, monkeypatch):
    """--config.optim.muon_rate is of one of the two that are compared."""
    optims = []

    def measured(config, *_):
        optims.append(config.optim)
        return SimpleNamespace(loss=lambda rate: abs(math.log(rate / 2)))

    monkeypatch.setattr(width, "_Measured", measured)
    monkeypatch.setattr(Batches, "read", lambda config, corpus: None)
    config = tiny_config(optim={"optimiser": "muon", "muon_rate": 5.0})
    check_optimisers(config, SimpleNamespace(seal="seal"), rates=[1.0, 2.0, 4.0], seeds=1, workdir=tmp_path)
    assert [(optim.optimiser, optim.muon_rate) for optim in optims] == [("adamw", 10.0), ("muon", 5.0)]


def test_what_is_measured_is_not_measured_again(tmp_path):
    config, path = tiny_config(), tmp_path / "run" / "found.json"
    assert Results(path, config, "seal").once("a", lambda: 1.5) == 1.5
    again = Results(path, config, "seal")
    assert again.once("a", lambda: pytest.fail("measured twice")) == 1.5 and again.once("b", lambda: 2.5) == 2.5
    for other in ((tiny_config(optim={"b1": 0.5}), "seal"), (config, "another")):
        refused(lambda other=other: Results(path, *other), str(path), "another config or corpus", "--workdir")


@pytest.mark.slow
def test_losses_by_width_and_rate_are_the_same_again_and_the_base_is_trained_once(tiny_corpus, tmp_path):
    config = tiny_config(data=ONE_SHOT, model=SMALL, train={"steps": 4, "validation_rows": 4})
    said = []
    told = check_learning_rate(config, tiny_corpus, widths=[32, 64], rates=[1e-3, 4e-3], seeds=2, workdir=tmp_path,
                               say=said.append)  # fmt: skip
    assert told["mup"]["losses"][32] == told["standard"]["losses"][32] and len(told["mup"]["losses"][32]) >= 3
    for rate in told["mup"]["losses"][64].keys() & told["standard"]["losses"][64].keys():
        assert told["mup"]["losses"][64][rate] != told["standard"]["losses"][64][rate]
    stored = json.loads((tmp_path / "learning_rate.json").read_text())["found"]
    assert not any(name.startswith("standard, width 32") for name in stored)
    (tmp_path / "learning_rate.json").unlink()
    again = check_learning_rate(config, tiny_corpus, widths=[32, 64], rates=[1e-3, 4e-3], seeds=2, workdir=tmp_path,
                                say=silent)  # fmt: skip
    assert again == told


@pytest.mark.slow
def test_adamw_and_muon_at_equal_steps(tiny_corpus, tmp_path):
    config = tiny_config(data=ONE_SHOT, model=SMALL, train={"steps": 6, "validation_rows": 4})
    told = check_optimisers(config, tiny_corpus, rates=[1e-3, 4e-3], seeds=1, workdir=tmp_path, say=silent)
    assert told["difference"] == told["muon"]["loss"] - told["adamw"]["loss"] != 0
    assert np.isfinite(list(told["muon"]["losses"].values())).all() and told["steps"] == 6
    assert told["muon"]["loss"] == min(told["muon"]["losses"].values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--check=coordinates", "--steps=3"], ("--steps", "--check=coordinates")),
        (["--check=optimisers", "--widths=32,64"], ("--widths", "--check=optimisers")),
        (["--check=learning-rate", "--figure=a.png"], ("--figure", "--check=learning-rate")),
        (["--check=learning-rate", "--widths=64,32"], ("--widths=64,32", "rising whole numbers")),
        (["--check=learning-rate", "--rates=1,2"], ("--rates=1,2", "at least 3 rising numbers")),
        (["--check=learning-rate", "--rates=1,2,x"], ("--rates=1,2,x", "rising numbers")),
    ],
)
def test_flags_that_do_not_fit(words, told, tmp_path, capsys, repository):
    config = f"--config={repository / 'configs' / 'quickstart.py'}"
    assert cli.main(["bench", "width", config, f"--workdir={tmp_path / 'run'}", *words]) != 0
    said = capsys.readouterr()
    assert all(word in said.out + said.err for word in told) and not (tmp_path / "run").exists()

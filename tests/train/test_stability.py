"""What a step judges of its loss, the running mean of the parameters, and what a checkpoint keeps of both."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.config import InputError
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.predict.predictor import load
from tario_jax.train.checkpoint import Checkpoints, CheckpointWriter
from tario_jax.train.loop import train
from tario_jax.train.stability import Health, averaged, judged


def silent(line: str) -> None:
    pass


def healthy() -> Health:
    return Health(*(np.zeros((), kind.dtype) for kind in Health.abstract()))


def judge_all(losses: list[float], deviations: float) -> list[Health]:
    found, health, judge = [], healthy(), jax.jit(judged, static_argnums=3)
    for loss in losses:
        health = judge(health, np.float32(loss), np.isfinite(loss), deviations)
        found.append(jax.device_get(health))
    return found


def test_skipped_steps_are_counted_and_leave_the_usual_loss_alone():
    found = judge_all([3.0, 2.0, np.nan, np.inf, 2.5, np.nan], 0.0)
    assert [int(health.skipped) for health in found] == [0, 0, 1, 2, 2, 3]
    assert [int(health.skipped_in_row) for health in found] == [0, 0, 1, 2, 0, 1]
    assert float(found[3].usual_loss) == 2.5 and float(found[4].usual_loss) == pytest.approx(2.5)
    assert int(found[-1].looked_at) == 3 and not any(int(health.unusual_in_row) for health in found)


def test_a_loss_is_unusual_where_it_stands_far_above_the_running_mean():
    """Against the same in plain Python: a mean of all losses, of the last 50 or so where there are more."""
    rng = np.random.default_rng(0)
    losses = [*(3 + np.exp(-np.arange(80) / 10) + 0.02 * rng.standard_normal(80)), 5.2, 5.3, 3.01, np.nan, 5.4]
    mean = departure = 0.0
    expected, looked, row = [], 0, 0
    for loss in losses:
        if not np.isfinite(loss):
            expected.append(row)
            continue
        unusual = looked >= 20 and loss > mean + 6 * max(departure, 1e-3)
        row = row + 1 if unusual else 0
        expected.append(row)
        if not unusual:
            if looked:
                departure += (abs(loss - mean) - departure) / min(looked, 50)
            mean += (loss - mean) / min(looked + 1, 50)
            looked += 1
    found = judge_all(losses, 6.0)
    assert [int(health.unusual_in_row) for health in found] == expected == [0] * 80 + [1, 2, 0, 0, 1]
    assert float(found[-1].usual_loss) == pytest.approx(mean, rel=1e-5)
    assert float(found[-1].usual_departure) == pytest.approx(departure, rel=1e-4)
    assert not any(int(health.unusual_in_row) for health in judge_all(losses, 0.0))


def test_a_loss_that_is_no_number_goes_on_with_a_spike_and_begins_none():
    """So a spike begins where its first loss stood, and a rollback lands before that."""
    usual = [3 + 0.02 * (-1) ** step for step in range(40)]
    found = judge_all([*usual, 9.0, np.nan, 9.1, 3.0, np.nan, 9.2], 6.0)
    assert [int(health.unusual_in_row) for health in found[40:]] == [1, 2, 3, 0, 0, 1]


def test_the_running_mean_is_of_the_last_steps():
    mean, expected = {"w": np.float32(5.0)}, 5.0
    for step in range(40):
        mean = averaged(mean, {"w": np.float32(step)}, np.int32(step), 0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(mean["w"]) == pytest.approx(expected, rel=1e-5)
    assert 30 < expected < 36  # of some ten steps before the last
    assert averaged({}, {"w": np.float32(1)}, np.int32(0), 0.0) == {}


@pytest.mark.slow
def test_the_running_mean_is_saved_and_is_what_predicts(tiny_corpus, tmp_path):
    config = tiny_config(train={"steps": 6, "checkpoint_every": 3, "validate_every": 3, "ema_decay": 0.8})
    state = train(config, tiny_corpus, tmp_path / "run", silent)
    average, parameters = jax.device_get((state.average, state.parameters))
    assert not np.array_equal(average["gene_table"], parameters["gene_table"])
    predictor = load(tmp_path / "run")
    for ours, theirs in zip(jax.tree.leaves(predictor.parameters), jax.tree.leaves(average), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    plain = train(tiny_config(train={"steps": 6, "checkpoint_every": 3, "validate_every": 3}), tiny_corpus,
                  tmp_path / "plain", silent)  # fmt: skip
    for ours, theirs in zip(jax.tree.leaves(plain.parameters), jax.tree.leaves(parameters), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # another program, which may round otherwise
    # a run that goes on has the mean of all of its steps
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    again = train(config, tiny_corpus, tmp_path / "run", silent)
    np.testing.assert_array_equal(again.average["gene_table"], average["gene_table"])


@pytest.mark.slow
def test_z_loss_is_told_and_pulls(tiny_corpus, tmp_path):
    """Beside the plain run: log²Z is told, and after some steps it is smaller than with next to no weight."""
    short = {"steps": 12, "checkpoint_every": 12, "validate_every": 12}
    told = {}
    for weight in (1e-6, 0.3):
        workdir = tmp_path / str(weight)
        train(tiny_config(train=short, optim={"z_loss": weight}), tiny_corpus, workdir, silent)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        told[weight] = next(line for line in reversed(lines) if "z_nats" in line)["z_nats"] / weight
    assert 0 < told[0.3] < 0.5 * told[1e-6]


@pytest.mark.slow
def test_a_run_in_the_constant_part_of_its_schedule_can_be_made_longer(tiny_corpus, tmp_path):
    def config(steps: int, **optim):
        return tiny_config(train={"steps": steps, "checkpoint_every": 5, "validate_every": 30, "keep_checkpoints": 9},
                           optim={"schedule": "wsd", "decay_share": 0.5} | optim)  # fmt: skip

    long, grown = tmp_path / "long", tmp_path / "grown"
    whole = train(config(20), tiny_corpus, long, silent)
    train(config(10), tiny_corpus, grown, silent)
    with pytest.raises(InputError, match=r"checkpoints/10: was trained with train.steps = 10, now 20"):
        train(config(20), tiny_corpus, grown, silent)  # its rate has fallen already
    shutil.rmtree(grown / "checkpoints" / "10")
    with pytest.raises(InputError, match=r"checkpoints/5: was trained with optim.learning_rate = 0.005, now 0.004"):
        train(config(20, learning_rate=4e-3), tiny_corpus, grown, silent)
    found = train(config(20), tiny_corpus, grown, silent)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        # the schedules of 10 and of 20 steps are two programs, which may round differently
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_newest_checkpoints_stay_and_those_at_a_multiple(tiny_corpus, tmp_path):
    config = tiny_config(train={"steps": 12, "checkpoint_every": 2, "validate_every": 12, "keep_checkpoints": 2,
                                "keep_every": 4})  # fmt: skip
    train(config, tiny_corpus, tmp_path / "run", silent)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [4, 8, 10, 12]


@pytest.mark.parametrize("fault", ["absent", "shorter", "longer", "other bytes", "no seal", "torn seal"])
def test_any_damage_of_a_checkpoint_is_found(tiny_run, tmp_path, fault):
    shutil.copytree(tiny_run / "checkpoints", tmp_path / "checkpoints")
    newest, seal = tmp_path / "checkpoints" / "30", tmp_path / "checkpoints" / "30" / "tario_seal.json"
    sealed = sorted(json.loads(seal.read_text())["files"])
    assert len(sealed) > 10
    for name in sealed if "seal" not in fault else sealed[:1]:
        path = newest / name
        content = path.read_bytes()
        match fault:
            case "absent":
                path.unlink()
            case "shorter":
                path.write_bytes(content[:-1])
            case "longer":
                path.write_bytes(content + b" ")
            case "other bytes":
                path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            case "no seal":
                seal.unlink()
            case "torn seal":
                seal.write_text(seal.read_text()[:-9])
        said = []
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.newest(said.append) == 15
        (line,) = said
        assert line.startswith(f"{newest}: is damaged: ") and line.endswith("; step 15 is used")
        assert (name if "seal" not in fault else "tario_seal.json") in line
        path.write_bytes(content)
    if "seal" not in fault:
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.newest(silent) == 30
    (tmp_path / "checkpoints" / "15" / "tario_seal.json").unlink()
    seal.unlink(missing_ok=True)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=r"30: .*15: .*none is whole"):
        checkpoints.newest(silent)


def test_what_a_killed_run_left_half_written_goes_and_what_is_damaged_stays(tmp_path):
    folder = tmp_path / "checkpoints"
    for name in ("5", "10", "15.orbax-checkpoint-tmp", "2.deleting", "7.damaged"):
        (folder / name).mkdir(parents=True)
        (folder / name / "some").write_text("bytes")
    with CheckpointWriter(tmp_path, keep=2, keep_every=0, say=silent) as checkpoints:
        assert sorted(path.name for path in folder.iterdir()) == ["10", "5", "7.damaged"]
        checkpoints.set_aside(after=5)
        assert sorted(path.name for path in folder.iterdir()) == ["10.damaged", "5", "7.damaged"]


def test_a_model_is_read_without_its_moments(tiny_run):
    config = tiny_config()
    built = build(config.model, len(PANEL), config.data.patch_px, content=False)
    with Checkpoints(tiny_run) as checkpoints:
        parameters, calibration = checkpoints.model(30, built, make_mesh(config.mesh))
    assert jax.tree.structure(parameters) == jax.tree.structure(built.abstract()[0])
    assert float(calibration["he_encoder"]["density_scale"][0]) > 0

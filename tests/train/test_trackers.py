"""TensorBoard and W&B: what was written is read back, a resumed run is one run, and a fault stops no training."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest
from refusals import refused

from tario_jax.config import Config, TrainConfig
from tario_jax.config_files import override
from tario_jax.train import trackers as module
from tario_jax.train.trackers import trackers


def needs(name: str):
    found = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not found, reason=f"{name} is not installed; pip install -e '.[track]'")


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def fake_wandb(monkeypatch) -> list[FakeRun]:
    """The runs that were begun at a W&B of which only the door is there."""
    runs = []

    def init(**options):
        runs.append(FakeRun(options))
        return runs[-1]

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings = init, lambda **settings: settings
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere/netrc")
    return runs


# --- config


def test_a_tracker_that_does_not_exist_is_refused_in_the_config():
    assert override(Config(), {"train.track": "('tensorboard', 'wandb')"}).train.track == ("tensorboard", "wandb")
    refused(lambda: override(Config(), {"train.track": "('tensorbord',)"}), "--config.train.track", "tensorboard")
    refused(lambda: TrainConfig(track=("tensorbord",)), "train.track holds 'tensorbord'", "tensorboard, wandb")


def test_no_tracker_takes_numbers_too(tmp_path):
    none = trackers((), tmp_path, Config(), 0)
    none.write(1, {"loss": 1.0})
    none.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_one_line(monkeypatch, tmp_path, name):
    for part in (name, "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, part, None)  # as Python marks a module that cannot be imported
    refused(lambda: trackers((name,), tmp_path, Config(), 0), "train.track:", name, "pip install -e '.[track]'")


# --- TensorBoard


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@needs("tensorboard")
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    names = ("tensorboard",)
    first = trackers(names, tmp_path, Config(), 0)
    for step in range(1, 9):
        first.write(step, {"loss": float(step), "mfu": None})
    first.write(8, {"validation": 0.5})
    first.close()
    second = trackers(names, tmp_path, Config(), 5)  # from the checkpoint of step 5
    for step in range(6, 11):
        second.write(step, {"loss": 100.0 + step})
    second.write(10, {"validation": 0.25})
    second.close()
    shown = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in shown["loss"]] == list(range(1, 11))
    assert [value for _, value in shown["loss"]] == [1, 2, 3, 4, 5, 106, 107, 108, 109, 110]
    assert shown["validation"] == [(10, 0.25)] and "mfu" not in shown


@needs("tensorboard")
def test_tensorboard_forgets_the_steps_that_a_rollback_did_again(tmp_path):
    tracker = trackers(("tensorboard",), tmp_path, Config(), 0)
    for step in (1, 2, 3, 4, 3, 4, 5):
        tracker.write(step, {"loss": float(step)})
    tracker.close()
    assert scalars(tmp_path / "tensorboard")["loss"] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]


@needs("tensorboard")
def test_tensorboard_needs_no_tensorflow_and_has_what_was_written_before_a_kill(tmp_path, repository):
    program = f"""
import os, sys, time
from pathlib import Path
from tario_jax.config import Config
from tario_jax.train.trackers import trackers
if __name__ == "__main__":
    tracker = trackers(("tensorboard",), Path({str(tmp_path)!r}), Config(), 0)
    for step in range(1, 6):
        tracker.write(step, {{"loss": float(step)}})
        time.sleep(0.1)
    assert not {{"tensorflow", "torch", "jax"}} & set(sys.modules)
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert len(scalars(tmp_path / "tensorboard")["loss"]) >= 4


# --- W&B


def test_wandb_continues_the_same_run_and_takes_a_step_once(fake_wandb, tmp_path):
    said = []
    first = trackers(("wandb",), tmp_path, Config(name="mine"), 0, said.append)
    for step in (10, 20, 30):
        first.write(step, {"loss": float(step), "mfu": None})
    first.write(30, {"validation": 0.5})
    first.close()
    second = trackers(("wandb",), tmp_path, Config(name="mine"), 20, said.append)
    for step in (30, 40, 50, 40, 50, 60):  # 40 and 50 again after a rollback: W&B would refuse 40
        second.write(step, {"loss": -1.0})
    second.close()
    one, two = fake_wandb
    assert one.logged == [(10, {"loss": 10.0}), (20, {"loss": 20.0}), (30, {"loss": 30.0}), (30, {"validation": 0.5})]
    assert [step for step, _ in two.logged] == [40, 50, 50, 60]
    assert one.options["id"] == two.options["id"] == json.loads((tmp_path / "wandb_run.json").read_text())["id"]
    assert two.options["resume"] == "allow" and two.options["name"] == "mine" and one.finished and two.finished
    assert one.options["config"]["train"]["steps"] == 500 and one.options["dir"] == str(tmp_path)
    assert one.options["project"] == "tario-jax"


def test_wandb_is_offline_without_a_key_and_says_so(fake_wandb, monkeypatch, tmp_path):
    said = []

    def mode() -> str:
        trackers(("wandb",), tmp_path, Config(), 0, said.append)
        return fake_wandb[-1].options["mode"]

    assert mode() == "offline" and len(said) == 1 and "finds no key" in said[0] and "wandb sync" in said[0]
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    said.clear()
    assert mode() == "disabled" and not said


def test_a_wandb_that_does_not_start_is_one_line(fake_wandb, monkeypatch, tmp_path):
    def init(**options):
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(sys.modules["wandb"], "init", init)
    refused(lambda: trackers(("wandb",), tmp_path, Config(), 0, lambda line: None), "no route to host", "WANDB_MODE")


def wandb_records(path: Path):
    """The records of a .wandb file: LevelDB's log format, in blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if left < 7 or kind == 0:
            at += left
            continue
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


@needs("wandb")
@pytest.mark.slow
def test_wandb_itself_keeps_a_resumed_run_offline(tmp_path, repository):
    program = """
import sys
from pathlib import Path
from tario_jax.config import Config
from tario_jax.train.trackers import trackers
if __name__ == "__main__":
    first, last = int(sys.argv[2]), int(sys.argv[3])
    tracker = trackers(("wandb",), Path(sys.argv[1]), Config(name="mine"), first)
    for step in range(first + 1, last + 1):
        tracker.write(step, {"loss": step / 8, "mfu": None})
    tracker.write(last, {"validation": 0.5})
    tracker.close()
"""
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    for first, last in ((0, 8), (5, 12)):
        command = [sys.executable, "-c", program, str(tmp_path), str(first), str(last)]
        done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    runs, losses, checks = set(), [], []
    for path in sorted(tmp_path.rglob("*.wandb")):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "run":
                runs.add((record.run.run_id, record.run.display_name))
            if record.WhichOneof("record_type") == "history":
                values = {"".join(item.nested_key) or item.key: json.loads(item.value_json)
                          for item in record.history.item}  # fmt: skip
                losses.append((values["_step"], values["loss"]))
                checks += [values["_step"]] if "validation" in values else []
    assert runs == {(json.loads((tmp_path / "wandb_run.json").read_text())["id"], "mine")}
    assert losses == [(step, step / 8) for step in range(1, 13)] and checks == [8, 12]


# --- faults


def test_a_tracker_that_fails_is_left_out_and_said_to_be(fake_wandb, tmp_path):
    said = []
    tracker = trackers(("wandb",), tmp_path, Config(), 0, said.append)
    said.clear()

    def log(values, step):
        raise OSError(28, "No space left on device")

    fake_wandb[0].log = log
    tracker.write(1, {"loss": 1.0})
    tracker.write(2, {"loss": 1.0})
    tracker.close()
    assert len(said) == 1 and said[0].startswith("wandb: OSError:") and "metrics.jsonl" in said[0]


def test_one_tracker_fails_and_the_other_goes_on():
    class Sink:
        def __init__(self, fails):
            self.fails, self.steps = fails, []

        def write(self, step, values):
            if self.fails:
                raise RuntimeError("gone")
            self.steps.append(step)

        def close(self):
            self.steps.append("closed")

    good, bad, said = Sink(False), Sink(True), []
    both = module._Together({"bad": bad, "good": good}, said.append)
    both.write(1, {})
    both.write(2, {})
    both.close()
    assert good.steps == [1, 2, "closed"] and bad.steps == [] and len(said) == 1

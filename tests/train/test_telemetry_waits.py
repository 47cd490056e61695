"""Lines of a run are made while the device computes: nothing of them may wait for the step that was dispatched."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.model.model import Loss
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.train.clock import Clock
from tario_jax.train.optimiser import learning_rate
from tario_jax.train.stability import Health
from tario_jax.train.state import StepMetrics
from tario_jax.train.stop import Stop
from tario_jax.train.telemetry import Telemetry


@pytest.fixture
def telemetry(tiny_corpus, tmp_path):
    """Makes one in a workdir, with (clock, say)."""
    config = tiny_config()
    layout = corpus_layout(tiny_corpus.sections, config.data, len(PANEL))
    return lambda clock, say=print, skipped=0: Telemetry(
        tmp_path, config, layout, clock, first=0, skipped=skipped, flops=1.0, stop=Stop(), say=say,
        schedule=learning_rate(config.optim, 30),
    )  # fmt: skip


def of_step(**health: int) -> StepMetrics:
    one, none = np.float32(1), np.int32(0)
    counts = dict.fromkeys(Health._fields, none) | {name: np.int32(count) for name, count in health.items()}
    return StepMetrics(Loss(*[one] * len(Loss._fields)), one, Health(**counts))


@pytest.fixture(scope="module")
def begin_step():
    """Something that the device is busy with for a while."""
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.eye(512)
    step(x).block_until_ready()
    return lambda: step(x)


def test_a_line_does_not_wait_for_the_step_that_runs(telemetry, begin_step):
    with telemetry(Clock()) as tell:
        tell.step(1, of_step())
        began = time.monotonic()
        running = begin_step()
        tell.step(2, of_step())
        told_s = time.monotonic() - began
        running.block_until_ready()
        assert told_s < 0.5 * (time.monotonic() - began)


def test_a_batch_that_comes_while_the_step_runs_was_not_waited_for(telemetry, begin_step):
    clock = Clock()
    with telemetry(clock) as tell:
        began = time.monotonic()
        running = begin_step()
        tell.dispatched(of_step()._replace(gradient_norm=running))
        tell.enter("data")
        running.block_until_ready()
        step_s = time.monotonic() - began
        time.sleep(2 * step_s)
        tell.enter("place")
        seconds = clock.seconds()
        assert 0.5 * step_s < seconds["wait"] < 1.5 * step_s
        assert 1.5 * step_s < seconds["data"] < 2.5 * step_s
        tell.enter("data")
        time.sleep(step_s)
        tell.enter("place")
        assert clock.seconds()["wait"] == seconds["wait"]


def test_a_step_that_is_skipped_first_is_told_and_one_of_before_is_not(telemetry, tmp_path):
    said = []
    with telemetry(Clock(), said.append, skipped=2) as tell:
        tell.step(1, of_step(skipped=2))
        assert not [line for line in said if "skipped" in line]
        tell.step(2, of_step(skipped=3, skipped_in_row=1))
    assert [line for line in said if line.startswith("step 2: loss or gradients are not finite")]
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "skipped"]


def test_a_torn_last_event_does_not_swallow_the_next(telemetry, tmp_path):
    (tmp_path / "events.jsonl").write_text('{"unix": 1.0, "st')
    with telemetry(Clock()):
        pass
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert lines[0] == '{"unix": 1.0, "st' and json.loads(lines[1])["event"] == "started"


def test_a_trace_that_cannot_be_written_is_told_and_training_goes_on(telemetry, tmp_path, monkeypatch):
    def full():
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    (tmp_path / "trace.request").write_text('{"steps": 1}')
    said = []
    with telemetry(Clock(), said.append) as tell:
        for step in (1, 2, 3):
            tell.before_step(step, None)
            tell.step(step, of_step())
        tell.finished(3)
    (line,) = [line for line in said if "no profiler trace" in line]
    assert "traces/step_000001" in line and "No space left" in line and line.endswith("training goes on")
    assert (tmp_path / "done.json").exists()

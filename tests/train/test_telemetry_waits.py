"""Lines of a run are made while the device computes: nothing of them may wait for the step that was dispatched."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from tiny_tissue import PANEL, tiny_config

from tario_jax.model.model import Loss
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.train.clock import Clock
from tario_jax.train.optimiser import learning_rate
from tario_jax.train.stability import Health
from tario_jax.train.state import StepMetrics
from tario_jax.train.stop import Stop
from tario_jax.train.telemetry import Telemetry


def test_a_line_does_not_wait_for_the_step_that_runs(tiny_corpus, tmp_path):
    config = tiny_config()
    layout = corpus_layout(tiny_corpus.sections, config.data, len(PANEL))
    one, none = np.float32(1), np.int32(0)
    of_step = StepMetrics(Loss(*[one] * len(Loss._fields)), one, Health(*[none] * len(Health._fields)))
    step = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda _, y: jnp.tanh(y @ y), x))
    x = jnp.eye(512)
    step(x).block_until_ready()
    with Telemetry(tmp_path, config, layout, Clock(), first=0, flops=1.0, schedule=learning_rate(config.optim, 30),
                   stop=Stop(), say=print) as tell:  # fmt: skip
        tell.step(1, of_step)
        began = time.monotonic()
        running = step(x)
        tell.step(2, of_step)
        told_s = time.monotonic() - began
        running.block_until_ready()
        assert told_s < 0.5 * (time.monotonic() - began)

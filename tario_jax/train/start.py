"""Step 0 of a run."""

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tario_jax.config import Config
from tario_jax.corpus.split import Split
from tario_jax.model.build import Built
from tario_jax.tokens.batch import Layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.calibrate import calibrate
from tario_jax.train.stability import Stability
from tario_jax.train.state import TrainState, state_of

_STREAM = 2


def start(config: Config, built: Built, optimiser, mesh: Mesh, split: Split, layout: Layout, genes: int) -> TrainState:
    """Parameters from the seed, statistics from the first windows of training."""
    parameters, calibration = built.initialise(config.train.seed, mesh)
    steps = max(1, -(-config.train.calibration_rows // config.data.rows))
    source = BatchSource(split.train, config.data, layout, steps=steps, stream=_STREAM, augment=False)
    batches = [source[t] for t in range(steps)]
    changed, calibration = calibrate(built, parameters, jax.device_get(calibration), batches, list(split.train), genes)
    # every process read the same batches; where their processors round differently, the first one's numbers count
    ours = {name: changed[name] for name in ("gene_bias", "total_bias")}
    ours, calibration = multihost_utils.broadcast_one_to_all((ours, calibration))
    shardings = built.shardings(mesh)
    parameters = jax.device_put({**parameters, **ours}, shardings[0])
    calibration = jax.device_put(calibration, shardings[1])
    return state_of(parameters, calibration, built, optimiser, mesh, Stability.of(config))

"""Step 0 of a run: its parameters come from the seed, or from a checkpoint."""

import functools
from collections.abc import Callable, Sequence

import jax
from jax.experimental import multihost_utils

from tario_jax.model.build import Tree
from tario_jax.model.width import Growth
from tario_jax.parallel.mesh import local_rows
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.calibrate import calibrate, calibrate_he
from tario_jax.train.fine_tune import StartPoint
from tario_jax.train.run import Run
from tario_jax.train.stability import Stability
from tario_jax.train.state import TrainState, state_of

_STREAM = 2


def start(run: Run, say: Callable[[str], None]) -> tuple[Run, TrainState]:
    """The state of step 0, and the run with where it comes from.

    Raises `InputError` where a checkpoint cannot be started from.
    """
    begin = functools.partial(_from_seed, say=say)
    if run.config.start.checkpoint:
        point = StartPoint.find(run.config.start, say)
        if point.learns == "he":
            parameters, calibration = point.of_he(run, begin, say)
        else:
            own_rows = _batches(run, local_rows(run.mesh, run.config.data.rows))
            parameters, calibration = point.parameters(run, own_rows, say)
        run = run.started(point.origin)
    else:
        parameters, calibration = begin(run)
    stability = Stability.of(run.config)
    return run, state_of(parameters, calibration, run.built, run.optimiser, run.mesh, stability)


def _from_seed(run: Run, say: Callable[[str], None]) -> tuple[Tree, Tree]:
    """Parameters from the seed, statistics and the table of genes from the first windows of training."""
    model, shardings = run.config.model, run.built.shardings(run.mesh)
    parameters, calibration = run.built.initialise(run.config.train.seed, run.mesh)
    # a batch of a pod is too much for the memory of one process, and more than what is asked for
    source = _batches(run, range(min(run.config.data.rows, run.config.train.calibration_rows)))
    batches = [source[t] for t in range(len(source))]
    if run.config.train.learns == "he":
        calibration = calibrate_he(run.built, parameters, jax.device_get(calibration), batches)
        return parameters, jax.device_put(multihost_utils.broadcast_one_to_all(calibration), shardings[1])
    if model.principal_start:
        windows = len(batches) * len(source.rows) * run.config.data.windows_per_row
        say(f"the table of genes starts at the axes along which bins of {windows} windows differ: looking for them")
    changed, calibration = calibrate(run.built, parameters, jax.device_get(calibration), batches,
                                     list(run.split.train), len(run.provenance.panel),
                                     gene_base=model.gene_dim / Growth.of(model).gene_dim,
                                     principal=model.principal_start,
                                     rare_gene_weight=model.rare_gene_weight, seed=run.config.train.seed)  # fmt: skip
    # every process read the same batches; where their processors round differently, the first one's numbers count
    ours = {name: value for name, value in changed.items() if value is not parameters[name]}
    ours, calibration = multihost_utils.broadcast_one_to_all((ours, calibration))
    return jax.device_put({**parameters, **ours}, shardings[0]), jax.device_put(calibration, shardings[1])


def _batches(run: Run, rows: Sequence[int]) -> BatchSource:
    """Windows of training as they are; rows: those that this process makes."""
    data = run.config.data
    steps = max(1, -(-run.config.train.calibration_rows // data.rows))
    return BatchSource(run.split.train, data, run.layout, steps=steps, stream=_STREAM, rows=rows, augment=False)

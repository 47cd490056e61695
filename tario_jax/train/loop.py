"""The loop of a run. One command starts and resumes it.

The order is a contract. Batch t is dispatched, then the metrics of step t − 1 are fetched, so that the device never
waits for the log. Where something is due after step t, its metrics are fetched first; a spike of the loss sends the run
back; then it is validated, its lines are written, and its state is saved. Then only comes the next batch. So no state
is saved whose loss nobody looked at, and a run that resumes has written all lines up to there. The data have no state
of their own: step t reads batch t, and whatever a rollback passed over is counted in the state.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from tario_jax.config import Config, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.model.flops import step_flops
from tario_jax.parallel.hosts import is_first
from tario_jax.train.alone import alone_in
from tario_jax.train.checkpoint import CheckpointWriter
from tario_jax.train.clock import Clock
from tario_jax.train.compiled import compiled, compiled_kept
from tario_jax.train.optimiser import learning_rate
from tario_jax.train.probe import DeviceProbe
from tario_jax.train.provenance import refuse_other_run
from tario_jax.train.run import Run
from tario_jax.train.start import start
from tario_jax.train.state import StepMetrics, TrainState, to_devices
from tario_jax.train.stop import Stop, Stopped
from tario_jax.train.telemetry import Telemetry
from tario_jax.train.validation import Validation
from tario_jax.whole_file import write_whole


def train(config: Config, corpus: Corpus, workdir: Path, say: Callable[[str], None] = print) -> TrainState:
    """Trains `config` on `corpus` until its last step, resuming from the newest whole checkpoint of `workdir`.

    Writes config.json, checkpoints/, compiled/ and what docs/telemetry.md tells into `workdir`; where the run has
    several processes, the first one does, and all write their shards of the checkpoints. Raises `InputError` where the
    workdir belongs to another run, or the processes differ in it, in the config or in the corpus, and `Stopped` where
    the run was told to end and has saved its state.
    """
    clock = Clock()
    workdir.mkdir(parents=True, exist_ok=True)
    run = Run.of(config, corpus)
    kept = config.train
    with (
        Stop() as stop,
        alone_in(workdir),
        compiled_kept(workdir),
        CheckpointWriter(
            workdir,
            keep=kept.keep_checkpoints,
            keep_every=kept.keep_every,
            say=say,
            reach=kept.spike_steps if kept.spike_deviations else 0,
        ) as checkpoints,
    ):
        damaged: list[str] = []
        first = checkpoints.newest(damaged.append)
        run.refuse_different(first)
        if first is None:
            run, state = start(run, say)
        else:
            found, where = checkpoints.provenance(first), f"{workdir}/checkpoints/{first}"
            for line in refuse_other_run(found, run.provenance, first, where):
                say(line)
            run = run.resumed(found)
            checkpoints.set_aside(after=first)
            state = checkpoints.restore(first, run.abstract)
        if is_first():
            write_whole(workdir / "config.json", json.dumps(run.provenance.to_json()["config"], indent=1))
        run.describe(say)
        with Telemetry(
            workdir, config, run.layout, clock, first=first or 0, skipped=int(state.health.skipped),
            flops=step_flops(config, run.layout).total, schedule=learning_rate(config.optim, config.train.steps),
            stop=stop, say=say,
        ) as tell:  # fmt: skip
            for line in damaged:
                tell.event("damaged", first, line, printed=line)
            checkpoints.tell = tell.of_checkpoint
            if first is None and kept.spike_deviations:  # what a spike before the first checkpoint goes back to
                checkpoints.save(state, run.provenance)
            state = _steps(run, state, checkpoints, tell, stop, say)
            tell.enter("save")
            checkpoints.finish()
            tell.finished(config.train.steps)
    return state


def _steps(run: Run, state: TrainState, checkpoints: CheckpointWriter, tell: Telemetry, stop: Stop,
           say: Callable[[str], None]) -> TrainState:  # fmt: skip
    """The contract of this module, from the state's step to the last one."""
    config, last = run.config.train, run.config.train.steps
    t, passed = int(state.step), int(state.health.passed_batches)
    if t == last:
        return state
    tell.enter("compile")
    train_step = compiled(run.train_step(), (run.abstract, run.abstract_batch), say)
    probe = DeviceProbe(run.dtype)
    tell.probe(probe)
    tell.enter("start")
    validate = Validation(run.config, run.split.validation, run.layout, run.built, run.mesh, tell.clock.beat)
    tell.enter("compile")  # now: at the first validation, a long one would look like a hang
    validate.compile(run.abstract, run.abstract_batch)
    tell.enter("start")
    batches = run.batches(t, passed, say)
    stop.has_work = True
    if t and t % config.validate_every == 0 and tell.lacks_validation(t):
        # told to end at this step, the run saved it first, and had no time left for this
        tell.enter("validate")
        tell.validation(t, validate(state, lambda: stop.signal_s is None))
    metrics: StepMetrics | None = None  # of the step before, not looked at yet
    while t < last:
        tell.before_step(t + 1, metrics)
        tell.enter("data")
        batch = next(batches)
        tell.enter("place")
        batch = to_devices(batch, run.mesh)
        tell.enter("dispatch")
        # an array of numpy that slips into the step would be sent at each one, and the device wait for it
        with jax.transfer_guard("disallow"):
            state, dispatched = train_step(state, batch)
        tell.dispatched(dispatched)
        fetched = tell.step(t, metrics)
        metrics, t = dispatched, t + 1

        leaves = stop.asked(t) and t < last
        saves = leaves or t == last or t % config.checkpoint_every == 0
        validates = t == last or t % config.validate_every == 0
        if (saves or validates) and not _spiked(fetched, config):
            fetched, metrics = tell.step(t, metrics), None
        if _spiked(fetched, config):
            state = _back(run, fetched, t if metrics is None else t - 1, checkpoints, tell)
            t, passed, metrics = int(state.step), int(state.health.passed_batches), None
            batches = run.batches(t, passed, say)
            continue
        if validates and not leaves:
            tell.enter("validate")
            tell.probe(probe)
            tell.validation(t, validate(state, lambda done=t == last: stop.signal_s is None or done))
            leaves = stop.signal_s is not None and t < last
        if leaves:
            tell.event("stopping", t, stop.signal.name)
        if saves or leaves:
            tell.enter("save")
            checkpoints.save(state, run.provenance)
            tell.saving(t)
        if leaves:
            checkpoints.finish()  # within the grace, which the watch counts
            if validates:  # what is left of the grace is for it
                tell.enter("validate")
                tell.validation(t, validate(state))
            text = f"{stop.signal.name}: step {t} of {last} is saved; the same command continues"
            raise Stopped(text, 128 + stop.signal)
    return state


def _spiked(fetched: StepMetrics | None, config) -> bool:
    return fetched is not None and int(fetched.health.unusual_in_row) >= config.spike_steps


def _back(run: Run, fetched: StepMetrics, spike: int, checkpoints: CheckpointWriter, tell: Telemetry) -> TrainState:
    """The state of the newest checkpoint before the spike; the batches from there to the spike are passed over.

    A run that is killed on its way from there meets the same spike, and does the same.
    """
    config, number = run.config.train, int(fetched.health.rollbacks) + 1
    usual = f"{float(fetched.health.usual_loss):.4f} nats per {'value' if config.learns == 'he' else 'detection'}"
    if number > config.rollback_limit:
        raise InputError(
            f"step {spike}: the loss stands {config.spike_deviations:g} usual departures above the usual {usual} for "
            f"{config.spike_steps} steps, for the {number}th time (train.rollback_limit = {config.rollback_limit}); "
            "lower optim.learning_rate, or look for faults with 'tario check'"
        )
    tell.enter("rollback")
    to = checkpoints.go_back(spike - config.spike_steps, lambda line: tell.event("damaged", spike, line, printed=line))
    if to is None:
        raise InputError(f"step {spike}: a spike of the loss, and no checkpoint before it to go back to; all are kept")
    state = checkpoints.restore(to, run.abstract)
    passed = int(fetched.health.passed_batches) + spike - to
    counts = {"passed_batches": passed, "rollbacks": number}
    placed = {name: jax.device_put(np.int32(count), state.step.sharding) for name, count in counts.items()}
    tell.rolled_back(
        to, spike, int(state.health.skipped),
        f"step {spike}: the loss stood above the usual {usual} for {config.spike_steps} steps; back to the "
        f"checkpoint of step {to}, past {spike - to} batches (rollback {number} of {config.rollback_limit} allowed)",
    )  # fmt: skip
    return state._replace(health=state.health._replace(**placed))

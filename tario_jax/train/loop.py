"""The loop of a run. One command starts and resumes it.

The order is a contract. Batch t is dispatched, then the metrics of step t − 1 are fetched, so that the device never
waits for the log. Where something is due after step t, its metrics are fetched first; a spike of the loss sends the run
back; then it is validated, its lines are written, and its state is saved. Then only comes the next batch. So no state
is saved whose loss nobody looked at, and a run that resumes has written all lines up to there. The data have no state
of their own: step t reads batch t, and whatever a rollback passed over is counted in the state.
"""

import dataclasses
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from tario_jax.config import Config, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import Split, split_corpus
from tario_jax.model.build import Built, build, model_sizes
from tario_jax.model.decoder import choose_attention, compute_dtype
from tario_jax.model.flops import step_flops
from tario_jax.parallel.hosts import is_first, refuse_different
from tario_jax.parallel.mesh import check_host_memory, check_rows, local_rows, make_mesh, traced_on
from tario_jax.tokens.batch import Batch, Layout, batch_bytes
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.deal import check_tiles
from tario_jax.tokens.pipeline import BatchSource, load_batches, trained_bin_um
from tario_jax.train.checkpoint import CheckpointWriter
from tario_jax.train.clock import Clock
from tario_jax.train.compiled import compiled, compiled_kept
from tario_jax.train.optimiser import learning_rate, make_optimiser
from tario_jax.train.probe import DeviceProbe
from tario_jax.train.provenance import Provenance, refuse_other_run
from tario_jax.train.stability import Stability
from tario_jax.train.start import start
from tario_jax.train.state import StepMetrics, TrainState, abstract_batch, abstract_state, make_train_step, to_devices
from tario_jax.train.stop import Stop, Stopped
from tario_jax.train.telemetry import Telemetry
from tario_jax.train.validation import Validation


def train(config: Config, corpus: Corpus, workdir: Path, say: Callable[[str], None] = print) -> TrainState:
    """Trains `config` on `corpus` until its last step, resuming from the newest whole checkpoint of `workdir`.

    Writes config.json, checkpoints/, compiled/ and what docs/telemetry.md tells into `workdir`; where the run has
    several processes, the first one does, and all write their shards of the checkpoints. Raises `InputError` where the
    workdir belongs to another run, or the processes differ in it, in the config or in the corpus, and `Stopped` where
    the run was told to end and has saved its state.
    """
    clock = Clock()
    workdir.mkdir(parents=True, exist_ok=True)
    run = _Run.of(config, corpus)
    kept = config.train
    with (
        Stop() as stop,
        compiled_kept(workdir),
        CheckpointWriter(workdir, keep=kept.keep_checkpoints, keep_every=kept.keep_every, say=say) as checkpoints,
    ):
        first = checkpoints.newest(say)
        run.refuse_different(first)
        if first is None:
            state = start(config, run.built, run.optimiser, run.mesh, run.split, run.layout, len(corpus.panel))
        else:
            for line in refuse_other_run(
                checkpoints.provenance(first), run.provenance, f"{workdir}/checkpoints/{first}"
            ):
                say(line)
            checkpoints.set_aside(after=first)
            state = checkpoints.restore(first, run.abstract)
        if is_first():
            (workdir / "config.json").write_text(json.dumps(run.provenance.to_json()["config"], indent=1))
        run.describe(say)
        with Telemetry(
            workdir, config, run.layout, clock, first=first or 0, flops=step_flops(config, run.layout).total,
            schedule=learning_rate(config.optim, config.train.steps), stop=stop, say=say,
        ) as tell:  # fmt: skip
            checkpoints.saved = lambda step: tell.event("saved", step, f"checkpoint of step {step}")
            if first is None and kept.spike_deviations:  # what a spike before the first checkpoint goes back to
                checkpoints.save(state, run.provenance)
            state = _steps(run, state, checkpoints, tell, stop, say)
            checkpoints.finish()
            tell.finished(config.train.steps)
    return state


def _steps(run: "_Run", state: TrainState, checkpoints: CheckpointWriter, tell: Telemetry, stop: Stop,
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
    batches = run.batches(t, passed)
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
        told = tell.step(t, metrics)
        metrics, t = dispatched, t + 1

        leaves = stop.asked(t) and t < last
        saves = leaves or t == last or t % config.checkpoint_every == 0
        validates = t == last or t % config.validate_every == 0
        if (saves or validates) and not _spiked(told, config):
            told, metrics = tell.step(t, metrics), None
        if _spiked(told, config):
            state = _back(run, told, t if metrics is None else t - 1, checkpoints, tell)
            t, passed, metrics = int(state.step), int(state.health.passed_batches), None
            batches = run.batches(t, passed)
            continue
        if validates and not leaves:
            tell.enter("validate")
            tell.probe(probe)
            tell.validation(t, validate(state))
        if saves:
            tell.enter("save")
            checkpoints.save(state, run.provenance)
            tell.saving(t)
        if leaves:
            checkpoints.finish()
            if validates:  # what is left of the grace is for it
                tell.validation(t, validate(state))
            text = f"{stop.signal.name}: step {t} of {last} is saved; the same command continues"
            tell.event("stopped", t, text)
            raise Stopped(text, 128 + stop.signal)
    return state


def _spiked(told: StepMetrics | None, config) -> bool:
    return told is not None and int(told.health.unusual_in_row) >= config.spike_steps


def _back(run: "_Run", told: StepMetrics, spike: int, checkpoints: CheckpointWriter, tell: Telemetry) -> TrainState:
    """The state of the newest checkpoint before the spike; the batches from there to the spike are passed over.

    A run that is killed on its way from there meets the same spike, and does the same.
    """
    config, number = run.config.train, int(told.health.rollbacks) + 1
    usual = f"{float(told.health.usual_loss):.4f} nats per detection"
    if number > config.rollback_limit:
        raise InputError(
            f"step {spike}: the loss stands {config.spike_deviations:g} usual departures above the usual {usual} for "
            f"{config.spike_steps} steps, for the {number}th time (train.rollback_limit = {config.rollback_limit}); "
            "lower optim.learning_rate, or look for faults with 'tario check'"
        )
    tell.enter("rollback")
    checkpoints.forget(after=spike - config.spike_steps)
    to = checkpoints.newest(lambda line: tell.event("damaged", spike, line, said=line))
    if to is None:
        raise InputError(f"step {spike}: a spike of the loss, and no checkpoint before it to go back to")
    state = checkpoints.restore(to, run.abstract)
    passed = int(told.health.passed_batches) + spike - to
    counts = {"passed_batches": passed, "rollbacks": number}
    placed = {name: jax.device_put(np.int32(count), state.step.sharding) for name, count in counts.items()}
    tell.rolled_back(
        to, spike, f"step {spike}: the loss stood above the usual {usual} for {config.spike_steps} steps; back to the "
        f"checkpoint of step {to}, past {spike - to} batches (rollback {number} of {config.rollback_limit} allowed)",
    )  # fmt: skip
    return state._replace(health=state.health._replace(**placed))


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is trained, on what, where."""

    config: Config
    split: Split
    layout: Layout
    provenance: Provenance
    mesh: Mesh
    built: Built
    optimiser: optax.GradientTransformation

    @classmethod
    def of(cls, config: Config, corpus: Corpus) -> "_Run":
        """Raises `InputError` where the config does not fit the corpus or the devices."""
        split = split_corpus(corpus, config.split)
        layout = corpus_layout(split.train + split.validation, config.data, len(corpus.panel))
        provenance = Provenance(
            config, corpus.panel, corpus.seal, corpus.kind, split.by,
            tuple(s.id for s in split.train), tuple(s.id for s in split.held_out), layout,
            tuple(sorted({s.patient for s in split.train + split.validation})),
            trained_bin_um(split.train, config.data),
        )  # fmt: skip
        mesh = make_mesh(config.mesh)
        check_rows(mesh, config.data.rows, config.train.accumulate)
        check_tiles(layout.tiles, mesh.shape["context"])
        check_host_memory(jax.local_devices(), config.model.remat)
        built = build(config.model, len(corpus.panel), config.data.patch_px, content=not config.data.one_shot)
        optimiser = make_optimiser(config.optim, config.train.steps, built)
        return cls(config, split, layout, provenance, mesh, built, optimiser)

    @property
    def abstract(self) -> TrainState:
        return abstract_state(self.built, self.optimiser, self.mesh, Stability.of(self.config))

    @property
    def abstract_batch(self) -> Batch:
        return abstract_batch(self.config.data.rows, self.layout, self.mesh)

    @property
    def dtype(self):
        return traced_on(self.mesh, compute_dtype)(self.config.model)

    def train_step(self):
        return make_train_step(self.built, self.optimiser, self.mesh, self.config.train.accumulate,
                               Stability.of(self.config))  # fmt: skip

    def batches(self, first: int, passed: int) -> Iterator[Batch]:
        """Those of the steps from `first` on, `passed` batches further than their numbers."""
        data = self.config.data
        source = BatchSource(self.split.train, data, self.layout, steps=self.config.train.steps + passed,
                             rows=local_rows(self.mesh, data.rows))  # fmt: skip
        return load_batches(source, first=first + passed, prefetch=data.prefetch, workers=data.workers)

    def refuse_different(self, first: int | None) -> None:
        of_run = zlib.crc32(json.dumps(self.provenance.to_json(), sort_keys=True).encode()) >> 1
        refuse_different({
            "the config, the corpus or the code": of_run,
            "the newest checkpoint of --workdir": -1 if first is None else first,
        })  # fmt: skip

    def describe(self, say: Callable[[str], None]) -> None:
        config, layout, genes = self.config, self.layout, len(self.provenance.panel)
        bins = layout.tiles * layout.bins_per_tile
        seen = layout.tiles * layout.patches_per_tile + (0 if config.data.one_shot else bins)
        rows = config.data.rows // config.train.accumulate
        attention = traced_on(self.mesh, choose_attention)(config.model, rows, seen, bins)
        say(
            f"{config.name}: {model_sizes(config, genes)}; {genes} genes; a row holds {layout.windows_per_row} windows "
            f"= {seen} tokens and {bins} queries; {config.data.rows} rows a step; attention: {attention}; "
            f"mesh {dict(self.mesh.shape)} of {jax.devices()[0].device_kind}"
        )
        held = max(config.data.workers, 1) * config.data.prefetch + 1
        of_bytes = batch_bytes(len(local_rows(self.mesh, config.data.rows)), layout)
        say(
            f"batches of {of_bytes / 1e6:.1f} MB a process, made by "
            + (f"{config.data.workers} workers" if config.data.workers else "threads")
            + f": {held} are held, {held * of_bytes / 1e6:.0f} MB"
        )
        split = self.split
        say(
            f"sections: {len(split.train)} train, {len(split.validation)} validation, {len(split.held_out)} held out "
            f"(split by {split.by})"
        )

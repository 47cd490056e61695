"""The loop of a run. One command starts and resumes it.

The order is a contract: batch t is dispatched, then the metrics of step t − 1 are fetched (so that the device never
waits for the log), then, where it is due, the state after step t is validated, its metrics are written, and it is
saved. The data have no state of their own: step t reads batch t.
"""

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from tario_jax.config import Config, InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import Split, split_corpus
from tario_jax.model.build import build, model_sizes
from tario_jax.model.decoder import choose_attention
from tario_jax.parallel.hosts import is_first, refuse_different
from tario_jax.parallel.mesh import check_host_memory, check_rows, local_rows, make_mesh, traced_on
from tario_jax.tokens.batch import Layout, batch_bytes
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.deal import check_tiles
from tario_jax.tokens.pipeline import BatchSource, load_batches, trained_bin_um
from tario_jax.train.calibrate import calibrate
from tario_jax.train.checkpoint import Checkpoints, Provenance, refuse_other_run
from tario_jax.train.compiled import compiled, compiled_kept
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import (
    StepMetrics,
    TrainState,
    abstract_batch,
    abstract_state,
    initial_state,
    make_loss,
    make_train_step,
    to_devices,
)

_VALIDATION_STREAM, _CALIBRATION_STREAM = 1, 2


def train(config: Config, corpus: Corpus, workdir: Path, say: Callable[[str], None] = print) -> TrainState:
    """Trains `config` on `corpus` until its last step, resuming from the newest checkpoint of `workdir`.

    Writes config.json, metrics.jsonl, checkpoints/ and compiled/ into `workdir`; where the run has several processes,
    the first one does, and all write their shards of the checkpoints. Raises `InputError` where the workdir belongs to
    another run, or the processes differ in it, in the config or in the corpus.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    split = split_corpus(corpus, config.split)
    layout = corpus_layout(split.train + split.validation, config.data, len(corpus.panel))
    provenance = Provenance(
        config, corpus.panel, corpus.seal, corpus.kind, split.by,
        tuple(s.id for s in split.train), tuple(s.id for s in split.held_out), layout,
        tuple(sorted({s.patient for s in split.train + split.validation})), trained_bin_um(split.train, config.data),
    )  # fmt: skip
    mesh = make_mesh(config.mesh)
    check_rows(mesh, config.data.rows, config.train.accumulate)
    check_tiles(layout.tiles, mesh.shape["context"])
    check_host_memory(jax.local_devices(), config.model.remat)
    built = build(config.model, len(corpus.panel), config.data.patch_px, content=not config.data.one_shot)
    optimiser = make_optimiser(config.optim, config.train.steps, built)
    with compiled_kept(workdir), Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
        first = checkpoints.latest_step or 0
        of_run = zlib.crc32(json.dumps(provenance.to_json(), sort_keys=True).encode()) >> 1
        refuse_different({"the config or the corpus": of_run, "the newest checkpoint of --workdir": first})
        if first:
            refuse_other_run(checkpoints.provenance(first), provenance, f"{workdir}/checkpoints/{first}")
            state = checkpoints.restore(first, abstract_state(built, optimiser, mesh))
            say(f"resumed at step {first} of {config.train.steps}")
        else:
            state = _start(config, built, optimiser, mesh, split, layout, len(corpus.panel))
        _describe(config, layout, len(corpus.panel), split, mesh, say)
        if is_first():
            (workdir / "config.json").write_text(json.dumps(provenance.to_json()["config"], indent=1))
        rows = local_rows(mesh, config.data.rows)
        source = BatchSource(split.train, config.data, layout, steps=config.train.steps, rows=rows)
        if first < config.train.steps:
            arrays = abstract_state(built, optimiser, mesh), abstract_batch(config.data.rows, layout, mesh)
            train_step = compiled(make_train_step(built, optimiser, mesh, config.train.accumulate), arrays, say)
        validate = _Validation(config, split, layout, built, mesh)
        with _Log(workdir / "metrics.jsonl", config, first, layout, say) as log:
            pending: StepMetrics | None = None
            batches = load_batches(source, first=first, prefetch=config.data.prefetch, workers=config.data.workers)
            for t in range(first, config.train.steps):
                batch = to_devices(next(batches), mesh)
                # an array of numpy that slips into the step would be sent at each one, and the device wait for it
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, batch)
                if pending is not None:
                    log.step(t, pending)
                pending = metrics
                done = t + 1
                if done == config.train.steps or done % config.train.validate_every == 0:
                    log.validation(done, validate(state))
                if done == config.train.steps or done % config.train.checkpoint_every == 0:
                    log.step(done, pending)  # before the save: a run that resumes here does not do this step again
                    pending = None
                    checkpoints.save(state, provenance)
    return state


def _start(config: Config, built, optimiser, mesh, split: Split, layout: Layout, genes: int) -> TrainState:
    """Step 0: parameters from the seed, statistics from the first windows of training."""
    state = initial_state(built, optimiser, mesh, config.train.seed)
    steps = max(1, -(-config.train.calibration_rows // config.data.rows))
    source = BatchSource(split.train, config.data, layout, steps=steps, stream=_CALIBRATION_STREAM, augment=False)
    batches = [source[t] for t in range(steps)]
    parameters, calibration = calibrate(
        built, state.parameters, jax.device_get(state.calibration), batches, list(split.train), genes
    )
    # every process read the same batches; where their processors round differently, the first one's numbers count
    ours = {name: parameters[name] for name in ("gene_bias", "total_bias")}
    ours, calibration = multihost_utils.broadcast_one_to_all((ours, calibration))
    parameters = {**parameters, **ours}
    shardings = built.shardings(mesh)
    return state._replace(
        parameters=jax.device_put(parameters, shardings[0]), calibration=jax.device_put(calibration, shardings[1])
    )


def _describe(config: Config, layout: Layout, genes: int, split: Split, mesh, say) -> None:
    bins = layout.tiles * layout.bins_per_tile
    seen = layout.tiles * layout.patches_per_tile + (0 if config.data.one_shot else bins)
    rows = config.data.rows // config.train.accumulate
    attention = traced_on(mesh, choose_attention)(config.model, rows, seen, bins)
    say(
        f"{config.name}: {model_sizes(config, genes)}; {genes} genes; a row holds {layout.windows_per_row} windows = "
        f"{seen} tokens and {bins} queries; {config.data.rows} rows a step; attention: {attention}; "
        f"mesh {dict(mesh.shape)} of {jax.devices()[0].device_kind}"
    )
    held = max(config.data.workers, 1) * config.data.prefetch + 1
    of_bytes = batch_bytes(len(local_rows(mesh, config.data.rows)), layout)
    say(
        f"batches of {of_bytes / 1e6:.1f} MB a process, made by "
        + (f"{config.data.workers} workers" if config.data.workers else "threads")
        + f": {held} are held, {held * of_bytes / 1e6:.0f} MB"
    )
    say(
        f"sections: {len(split.train)} train, {len(split.validation)} validation, {len(split.held_out)} held out "
        f"(split by {split.by})"
    )


class _Validation:
    """Loss on fixed windows of the validation sections; None where the split has none."""

    def __init__(self, config: Config, split: Split, layout: Layout, built, mesh):
        self._mesh, self._batches = mesh, []
        if split.validation:
            steps = max(1, config.train.validation_rows // config.data.rows)
            # window by window from the H&E alone, as in inference, whatever is trained
            one_shot = dataclasses.replace(config.data, groups=((1, 1.0),), bin_mixture=(), sequence="window")
            source = BatchSource(split.validation, one_shot, layout, steps=steps, stream=_VALIDATION_STREAM,
                                 rows=local_rows(mesh, config.data.rows), augment=False)  # fmt: skip
            self._batches = [source[t] for t in range(steps)]
            self._loss = make_loss(built, mesh, config.train.accumulate)

    def __call__(self, state: TrainState) -> float | None:
        if not self._batches:
            return None
        nats = detections = 0.0
        for batch in self._batches:
            nll = self._loss(state.parameters, state.calibration, to_devices(batch, self._mesh))
            nats += float(nll.total_nats) + float(nll.gene_nats)
            detections += float(nll.detections)
        return nats / max(detections, 1.0)


class _Log:
    """metrics.jsonl, by the first process, and the progress line."""

    def __init__(self, path: Path, config: Config, first: int, layout: Layout, say: Callable[[str], None]):
        self._config, self._say, self._first = config, say, first
        self._tokens = config.data.rows * layout.tiles * (
            layout.patches_per_tile + layout.bins_per_tile * (1 if config.data.one_shot else 2)
        )  # fmt: skip
        self._file = None
        if not is_first():
            return
        kept = []
        if path.exists():  # steps after the checkpoint are done again: their old lines go
            kept = [
                line
                for line in path.read_text().splitlines()
                if line.endswith("}") and json.loads(line)["step"] <= first
            ]
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        partial.replace(path)  # killed here, the log is the old one or the new one
        self._file = path.open("a")

    def __enter__(self) -> "_Log":
        self._began = self._last = time.monotonic()
        self._last_step = self._first
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def step(self, step: int, metrics: StepMetrics) -> None:
        if step % self._config.train.log_every and step != self._config.train.steps:
            return
        total, gene, detections, norm = (float(value) for value in metrics)
        now = time.monotonic()
        rate = (step - self._last_step) * self._tokens / max(now - self._last, 1e-9)
        # the first steps hold the compilation: they are left out of the estimate once there are others
        eta = (self._config.train.steps - step) * (now - self._last) / max(step - self._last_step, 1)
        self._last, self._last_step = now, step
        loss = (total + gene) / max(detections, 1.0)
        if not math.isfinite(loss):
            raise InputError(
                f"step {step}: the loss is {loss}; the run diverged: lower optim.learning_rate, raise "
                "optim.warmup_steps, or look for faults with 'tario check'"
            )
        self._write(step=step, loss_nats_per_detection=loss, gene_nats=gene / max(detections, 1.0),
                    total_nats=total / max(detections, 1.0), gradient_norm=norm, tokens_per_second=rate,
                    seconds=now - self._began)  # fmt: skip
        self._say(
            f"step {step:>6}/{self._config.train.steps}  loss {loss:.4f} nats/detection  "
            f"gradient {norm:.2f}  {rate:,.0f} tokens/s  ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        )

    def validation(self, step: int, loss: float | None) -> None:
        if loss is not None:
            self._write(step=step, validation_nats_per_detection=loss)
            self._say(f"step {step:>6}/{self._config.train.steps}  validation {loss:.4f} nats/detection")

    def _write(self, **values) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

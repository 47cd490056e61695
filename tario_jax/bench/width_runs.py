"""Small models of several widths that train on the same batches, each at several learning rates."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tario_jax.config import Config, InputError, ModelConfig
from tario_jax.config_files import to_dict
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.model.build import Tree, build
from tario_jax.model.width import Growth
from tario_jax.parallel.mesh import check_rows, make_mesh
from tario_jax.tokens.batch import Batch
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.calibrate import calibrate, gene_table
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import TrainState, initial_state, make_loss, make_train_step, to_devices
from tario_jax.whole_file import write_whole

_VERSION = 2  # of how a model starts: what began otherwise is measured anew

GROWING = ("width", "head_dim", "mlp_width", "gene_dim", "stem_width")
PARAMETRISATIONS = ("mup", "standard")


@dataclasses.dataclass(frozen=True)
class Batches:
    """What all models of a bench read, in memory."""

    train: list[Batch]
    validation: list[Batch]
    genes: int
    calibration: list[Batch]
    biases: Tree  # of the head, and the statistics of the H&E: what a model starts from, whatever its width
    statistics: Tree

    @classmethod
    def read(cls, config: Config, corpus: Corpus) -> "Batches":
        """Of train.steps steps; validation windows are seen from the H&E alone, as in `tario train`.

        Raises `InputError` where the corpus has no sections for validation.
        """
        if config.data.frozen_encoder:
            raise InputError(f"--config.data.frozen_encoder={config.data.frozen_encoder}: widths are compared without "
                             "stored features; leave it out")  # fmt: skip
        split = split_corpus(corpus, config.split)
        if not split.validation:
            raise InputError(f"{corpus.root}: no section for validation, on which rates are compared; name some with "
                             "--config.split.validation, or give another --corpus")  # fmt: skip
        layout = corpus_layout(split.train + split.validation, config.data, len(corpus.panel))

        def read(sections, data, rows, stream, augment) -> list[Batch]:
            steps = max(1, rows // data.rows)
            source = BatchSource(sections, data, layout, steps=steps, stream=stream, augment=augment)
            return [source[t] for t in range(steps)]

        one_shot = config.data.of_one_scale(groups=((1, 1.0),), bin_mixture=(), sequence="window")
        data, run = config.data, config.train
        built = build(config.model, len(corpus.panel), data.patch_px, content=not data.one_shot)
        start = jax.device_get(built.initialise(0, make_mesh(config.mesh)))
        whole = -(-run.calibration_rows // data.rows) * data.rows
        calibration = read(split.train, data, whole, 2, False)
        parameters, statistics = calibrate(built, *start, calibration, list(split.train), len(corpus.panel),
                                           principal=False,  # of each model, by its own width
                                           rare_gene_weight=config.model.rare_gene_weight)  # fmt: skip
        return cls(
            read(split.train, data, run.steps * data.rows, 0, True),
            read(split.validation, one_shot, run.validation_rows, 1, False),
            len(corpus.panel), calibration, {name: parameters[name] for name in ("gene_bias", "total_bias")},
            statistics,
        )  # fmt: skip


def model_of_width(base: ModelConfig, width: int, parametrisation: str) -> ModelConfig:
    """`base` with all its sizes but layers and heads in proportion. mup: with `base` as what its rate was found on.

    Raises `InputError` where a size is not a whole number.
    """
    sizes = {name: getattr(base, name) * width / base.width for name in GROWING}
    for name, size in sizes.items():
        if size != int(size):
            raise InputError(f"--widths={width}: model.{name} would be {size:g}; expected a width that keeps its ratio "
                             f"to model.width, {getattr(base, name)} to {base.width}, in whole numbers")  # fmt: skip
    bases = {f"base_{name}": getattr(base, name) if parametrisation == "mup" else 0
             for name in ("width", "head_dim", "gene_dim", "stem_width")}  # fmt: skip
    return dataclasses.replace(base, **{name: int(size) for name, size in sizes.items()}, **bases)


class Trainer:
    """A model and its compiled step, for any learning rate."""

    def __init__(self, config: Config, batches: Batches):
        self.config, self.batches = config, batches
        self.mesh = make_mesh(config.mesh)
        check_rows(self.mesh, config.data.rows, config.train.accumulate)
        self.built = build(config.model, batches.genes, config.data.patch_px, content=not config.data.one_shot)
        at_one = dataclasses.replace(config.optim, learning_rate=1.0)
        self.optimiser = _times_rate(make_optimiser(at_one, config.train.steps, self.built))
        self._step = make_train_step(self.built, self.optimiser, self.mesh, config.train.accumulate)
        self._loss = make_loss(self.built, self.mesh, config.train.accumulate)

    def start(self, seed: int) -> TrainState:
        """Calibrated as a run of `tario train` is, on the host."""
        state, model = initial_state(self.built, self.optimiser, self.mesh, seed), self.config.model
        parameters = state.parameters | self.batches.biases
        if model.principal_start:
            shape, gene_base = parameters["gene_table"].shape, model.gene_dim / Growth.of(model).gene_dim
            parameters["gene_table"] = gene_table(self.batches.calibration, self.batches.genes, shape, gene_base, seed)
        return jax.device_get(state._replace(parameters=parameters, calibration=self.batches.statistics))

    def train(self, start: TrainState, rate: float, batches: list[Batch],
              watch: Callable[[int, TrainState], None] | None = None) -> TrainState:  # fmt: skip
        """The state after a step on each batch, at `rate` times the schedule; watch(steps done, state) after each."""
        moments, _ = start.optimiser
        state = jax.device_put(start._replace(optimiser=(moments, np.float32(rate))))
        for done, batch in enumerate(batches, 1):
            state, _ = self._step(state, to_devices(batch, self.mesh))
            if watch is not None:
                watch(done, state)
        return state

    def validation(self, state: TrainState) -> float:
        """Nats per detection; NaN or inf where the run diverged."""
        nats = detections = 0.0
        for batch in self.batches.validation:
            nll = self._loss(state.parameters, state.calibration, to_devices(batch, self.mesh))
            nats += float(nll.total_nats) + float(nll.gene_nats)
            detections += float(nll.detections)
        return nats / detections


def _times_rate(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """Updates of an optimiser of rate 1, times a rate that lies in the state: one program for all rates."""

    def init(parameters):
        return optimiser.init(parameters), jnp.ones((), jnp.float32)

    def update(updates, state, parameters=None):
        moments, rate = state
        updates, moments = optimiser.update(updates, moments, parameters)
        return jax.tree.map(lambda x: rate * x, updates), (moments, rate)

    return optax.GradientTransformation(init, update)


class Results:
    """What is measured already, as JSON: a bench that is run again goes on."""

    def __init__(self, path: Path, config: Config, seal: str):
        """Raises `InputError` where the file holds results of another config or corpus, or of another start."""
        settings = json.loads(json.dumps({"version": _VERSION, "corpus": seal, "config": to_dict(config)}))
        self._path, self._settings, self._found = path, settings, {}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["settings"] != settings:
                raise InputError(f"{path}: holds results of another config or corpus, or of an earlier tario; give "
                                 "another --workdir, or delete the file")  # fmt: skip
            self._found = stored["found"]

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """The result of this name, measured now if it is not there."""
        if name not in self._found:
            self._found[name] = measure()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, json.dumps({"settings": self._settings, "found": self._found}, indent=1) + "\n")
        return self._found[name]


def best_rate(losses: dict[float, float]) -> tuple[float, bool]:
    """The rate of least loss, and whether rates on both sides of it were tried.

    Refined by the parabola through log2(rate) of the best and its two neighbours, where both trained.
    """
    rates = sorted(losses)
    finite = {rate: loss if math.isfinite(loss) else math.inf for rate, loss in losses.items()}
    at = min(range(len(rates)), key=lambda number: finite[rates[number]])
    if at in (0, len(rates) - 1):
        return rates[at], False
    three = rates[at - 1 : at + 2]
    if not all(math.isfinite(finite[rate]) for rate in three):
        return rates[at], True
    a, b, _ = np.polyfit(np.log2(three) - np.log2(rates[at]), [losses[rate] for rate in three], 2)
    return float(rates[at] * 2 ** (-b / (2 * a))) if a > 0 else rates[at], True

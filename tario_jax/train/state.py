"""What a run carries from step to step, and the step itself."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tario_jax.config import BATCH_AXES
from tario_jax.model.build import Built, Tree
from tario_jax.model.model import Loss
from tario_jax.parallel.mesh import batch_shardings, of_all_processes, traced_on
from tario_jax.parallel.rules import like_parameters
from tario_jax.tokens.batch import Batch, Layout, batch_arrays
from tario_jax.tokens.deal import deal
from tario_jax.train.frozen import filled, only
from tario_jax.train.stability import PLAIN, Health, Stability, averaged, judged


class TrainState(NamedTuple):
    """Everything that a checkpoint holds of the numbers of a run."""

    step: jax.Array  # int32, steps done
    parameters: Tree
    calibration: Tree
    optimiser: optax.OptState
    average: Tree  # running mean of the parameters; {} where none is asked for
    health: Health

    @classmethod
    def begin(
        cls, parameters: Tree, calibration: Tree, moments: optax.OptState, stability: Stability = PLAIN
    ) -> "TrainState":
        """Step 0."""
        health = jax.tree.map(lambda kind: np.zeros((), kind.dtype), Health.abstract())
        return cls(np.int32(0), parameters, calibration, moments, parameters if stability.ema_decay else {}, health)


def state_shardings(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh,
                    stability: Stability = PLAIN) -> TrainState:  # fmt: skip
    """Where each part of the state lives: moments and the average follow their parameters."""
    parameters, calibration = built.shardings(mesh)
    abstract, _ = built.abstract()
    moments = jax.eval_shape(optimiser.init, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        whole, parameters, calibration, like_parameters(moments, abstract, parameters, mesh),
        parameters if stability.ema_decay else {}, jax.tree.map(lambda _: whole, Health.abstract()),
    )  # fmt: skip


def abstract_state(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh,
                   stability: Stability = PLAIN) -> TrainState:  # fmt: skip
    """Shapes, types and places of a state, to restore into."""
    parameters, calibration = built.abstract()
    moments = jax.eval_shape(optimiser.init, parameters)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    average = parameters if stability.ema_decay else {}
    shapes = TrainState(step, parameters, calibration, moments, average, Health.abstract())
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes, state_shardings(built, optimiser, mesh, stability),
    )  # fmt: skip


def initial_state(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh, seed: int,
                  stability: Stability = PLAIN) -> TrainState:  # fmt: skip
    """Step 0, each array made where it lives."""
    parameters, calibration = built.initialise(seed, mesh)
    return state_of(parameters, calibration, built, optimiser, mesh, stability)


def state_of(parameters: Tree, calibration: Tree, built: Built, optimiser: optax.GradientTransformation, mesh: Mesh,
             stability: Stability = PLAIN) -> TrainState:  # fmt: skip
    """Step 0 of these parameters, which lie where they live."""
    shardings = state_shardings(built, optimiser, mesh, stability)
    moments = jax.jit(optimiser.init, out_shardings=shardings.optimiser)(parameters)
    begun = TrainState.begin({}, {}, (), stability)
    # of its own memory: the step gives that of the parameters away
    average = jax.tree.map(jnp.copy, parameters) if stability.ema_decay else {}
    return TrainState(jax.device_put(begun.step, shardings.step), parameters, calibration, moments, average,
                      jax.device_put(begun.health, shardings.health))  # fmt: skip


def abstract_batch(rows: int, layout: Layout, mesh: Mesh) -> Batch:
    """Shapes, types and places of a batch of `rows` rows in all."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        batch_arrays(rows, layout), batch_shardings(mesh),
    )  # fmt: skip


class StepMetrics(NamedTuple):
    """What a step says of itself: scalars, over the global batch."""

    sums: Loss
    gradient_norm: jax.Array  # of the mean over detections, before it is clipped
    health: Health  # after the step


def make_train_step(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh, parts: int = 1,
                    stability: Stability = PLAIN, trained: Tree | None = None):  # fmt: skip
    """The jitted step: (state, batch) -> (state, metrics). The old state's memory is given to the new one.

    The gradients of `parts` parts of the batch are made one after the other and summed in float32: what exists between
    the passes is of one part, the step is that of the whole. A step whose loss or gradients are not finite changes
    nothing but the number of steps and of those that were skipped. trained: see frozen.py; the optimiser's is the same.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        def nats(moving, part: Batch):
            parameters = filled(moving, state.parameters, trained)
            sums = built.merge(parameters, state.calibration).loss(part, stability.z_loss, as_trained=True)
            return sums.objective, sums

        gradients, sums = _sum_over_parts(
            lambda part: jax.grad(nats, has_aux=True)(only(state.parameters, trained), part),
            batch, parts, mesh, (only(shardings.parameters, trained), whole),
        )  # fmt: skip
        with jax.named_scope("optimiser"):
            gradients = jax.tree.map(lambda x: x / jnp.maximum(sums.detections, 1.0), gradients)  # of the whole batch's
            norm = optax.tree.norm(gradients)
            loss = (sums.total_nats + sums.gene_nats) / jnp.maximum(sums.detections, 1.0)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            if trained is not None:  # the optimiser asks for all, and leaves the others at 0
                gradients = filled(gradients, jax.tree.map(jnp.zeros_like, state.parameters), trained)
            updates, moments = optimiser.update(gradients, state.optimiser, state.parameters)
            parameters = filled(optax.apply_updates(state.parameters, updates), state.parameters, trained)
            average = averaged(state.average, parameters, state.step, stability.ema_decay)
            changed = parameters, moments, average
            kept = state.parameters, state.optimiser, state.average
            parameters, moments, average = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, kept)
            health = judged(state.health, loss, finite, stability.spike_deviations)
        state = TrainState(state.step + 1, parameters, state.calibration, moments, average, health)
        return state, StepMetrics(sums, norm, health)

    shardings = state_shardings(built, optimiser, mesh, stability)
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(traced_on(mesh, step), donate_argnums=0, in_shardings=(shardings, batch_shardings(mesh)),
                   out_shardings=(shardings, whole))  # fmt: skip


def make_loss(built: Built, mesh: Mesh, parts: int = 1):
    """The jitted loss without gradients: (parameters, calibration, batch) -> `Loss`, summed part by part."""

    def loss(parameters: Tree, calibration: Tree, batch: Batch):
        return _sum_over_parts(built.merge(parameters, calibration).loss, batch, parts, mesh, whole)

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(traced_on(mesh, loss), in_shardings=(*built.shardings(mesh), batch_shardings(mesh)),
                   out_shardings=whole)  # fmt: skip


def make_totals(built: Built, mesh: Mesh, parts: int = 1):
    """The jitted (parameters, calibration, batch) -> (expected, found) detections of the batch's bins."""

    def totals(parameters: Tree, calibration: Tree, batch: Batch):
        def nats(total_bias, part: Batch):
            sums = built.merge({**parameters, "total_bias": total_bias}, calibration).loss(part)
            return sums.total_nats, sums.detections

        # of a Poisson, d nats / d log rate = expected − found
        excess, found = _sum_over_parts(
            lambda part: jax.grad(nats, has_aux=True)(parameters["total_bias"], part), batch, parts, mesh, whole
        )
        return excess + found, found

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(traced_on(mesh, totals), in_shardings=(*built.shardings(mesh), batch_shardings(mesh)),
                   out_shardings=(whole, whole))  # fmt: skip


def _sum_over_parts(function, batch: Batch, parts: int, mesh: Mesh, shardings):
    """`function` of each part of a batch, summed: a tree that lies as `shardings` say (a prefix of it)."""
    if parts == 1:
        return function(batch)

    def placed(tree):
        return jax.lax.with_sharding_constraint(tree, shardings)

    def add(total, number):
        return placed(jax.tree.map(jnp.add, total, function(_part(batch, number, parts, mesh)))), None

    shapes = jax.eval_shape(lambda: function(_part(batch, 0, parts, mesh)))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, placed(zeros), jnp.arange(parts))[0]


def _part(batch: Batch, number: jax.Array | int, parts: int, mesh: Mesh) -> Batch:
    """Part `number` of a batch: of each device some of the rows that it holds, so that none travels."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH_AXES)

    def cut(x_Bx, sharding: NamedSharding):
        rows = x_Bx.shape[0] // (devices * parts)
        of_devices = x_Bx.reshape(devices, parts, rows, *x_Bx.shape[1:])
        part = jax.lax.dynamic_index_in_dim(of_devices, number, axis=1, keepdims=False)
        return jax.lax.with_sharding_constraint(part.reshape(devices * rows, *x_Bx.shape[1:]), sharding)

    return jax.tree.map(cut, batch, batch_shardings(mesh))


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch as arrays of the whole mesh, their tiles dealt over context."""
    batch = deal(batch, mesh.shape["context"])
    if jax.process_count() == 1:  # all arrays in one call: half the time
        return jax.device_put(batch, batch_shardings(mesh))
    return jax.tree.map(of_all_processes, batch, batch_shardings(mesh))

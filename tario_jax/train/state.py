"""What a run carries from step to step, and the step itself."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tario_jax.config import BATCH_AXES
from tario_jax.model.build import Built, Tree
from tario_jax.parallel.mesh import batch_shardings, local_tiles, traced_on
from tario_jax.parallel.rules import like_parameters
from tario_jax.tokens.batch import Batch, Layout, batch_arrays, has_tiles
from tario_jax.tokens.deal import deal


class TrainState(NamedTuple):
    """Everything that a checkpoint holds of the numbers of a run."""

    step: jax.Array  # int32, steps done
    parameters: Tree
    calibration: Tree
    optimiser: optax.OptState


def state_shardings(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Where each part of the state lives: optimiser moments follow their parameters."""
    parameters, calibration = built.shardings(mesh)
    abstract, _ = built.abstract()
    moments = jax.eval_shape(optimiser.init, abstract)
    whole = NamedSharding(mesh, PartitionSpec())
    return TrainState(whole, parameters, calibration, like_parameters(moments, abstract, parameters, mesh))


def abstract_state(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and places of a state, to restore into."""
    parameters, calibration = built.abstract()
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), parameters, calibration, jax.eval_shape(optimiser.init, parameters)
    )
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes, state_shardings(built, optimiser, mesh),
    )  # fmt: skip


def initial_state(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh, seed: int) -> TrainState:
    shardings = state_shardings(built, optimiser, mesh)
    parameters, calibration = built.initialise(seed, mesh)
    moments = jax.jit(optimiser.init, out_shardings=shardings.optimiser)(parameters)
    step = jax.device_put(jnp.zeros((), jnp.int32), shardings.step)
    return TrainState(step, parameters, calibration, moments)


def abstract_batch(rows: int, layout: Layout, mesh: Mesh) -> Batch:
    """Shapes, types and places of a batch of `rows` rows in all."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        batch_arrays(rows, layout), batch_shardings(mesh),
    )  # fmt: skip


class StepMetrics(NamedTuple):
    """Sums over the global batch, float32 scalars."""

    total_nats: jax.Array
    gene_nats: jax.Array
    detections: jax.Array
    gradient_norm: jax.Array


def make_train_step(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh, parts: int = 1):
    """The jitted step: (state, batch) -> (state, metrics). The old state's memory is given to the new one.

    The gradients of `parts` parts of the batch are made one after the other and summed in float32: what exists between
    the passes is of one part, the step is that of the whole.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        def nats(parameters, part: Batch):
            nll = built.merge(parameters, state.calibration).loss(part)
            return nll.total_nats + nll.gene_nats, nll

        sums, nll = _sum_over_parts(
            lambda part: jax.grad(nats, has_aux=True)(state.parameters, part),
            batch, parts, mesh, (shardings.parameters, whole),
        )  # fmt: skip
        with jax.named_scope("optimiser"):
            gradients = jax.tree.map(lambda x: x / jnp.maximum(nll.detections, 1.0), sums)  # of the whole batch's
            updates, moments = optimiser.update(gradients, state.optimiser, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
            metrics = StepMetrics(nll.total_nats, nll.gene_nats, nll.detections, optax.tree.norm(gradients))
        return TrainState(state.step + 1, parameters, state.calibration, moments), metrics

    shardings, whole = state_shardings(built, optimiser, mesh), NamedSharding(mesh, PartitionSpec())
    return jax.jit(traced_on(mesh, step), donate_argnums=0, in_shardings=(shardings, batch_shardings(mesh)),
                   out_shardings=(shardings, whole))  # fmt: skip


def make_loss(built: Built, mesh: Mesh, parts: int = 1):
    """The jitted loss without gradients: (parameters, calibration, batch) -> CountNLL sums, part by part."""

    def loss(parameters: Tree, calibration: Tree, batch: Batch):
        return _sum_over_parts(built.merge(parameters, calibration).loss, batch, parts, mesh, whole)

    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(traced_on(mesh, loss), in_shardings=(*built.shardings(mesh), batch_shardings(mesh)),
                   out_shardings=whole)  # fmt: skip


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
        of_devices = x_Bx.reshape(devices, parts, -1, *x_Bx.shape[1:])
        part = jax.lax.dynamic_index_in_dim(of_devices, number, axis=1, keepdims=False)
        return jax.lax.with_sharding_constraint(part.reshape(-1, *x_Bx.shape[1:]), sharding)

    return jax.tree.map(cut, batch, batch_shardings(mesh))


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch as arrays of the whole mesh, their tiles dealt over context."""
    batch = deal(batch, mesh.shape["context"])
    tiles = local_tiles(mesh, batch.segment_BxT.shape[1])
    here = Batch(*(array[:, tiles.start : tiles.stop] if has_tiles(name) else array
                   for name, array in batch._asdict().items()))  # fmt: skip
    return jax.tree.map(
        lambda sharding, array: jax.make_array_from_process_local_data(sharding, array), batch_shardings(mesh), here
    )

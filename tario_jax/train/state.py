"""What a run carries from step to step, and the step itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tario_jax.config import OptimConfig
from tario_jax.model.build import Built, Tree
from tario_jax.parallel.mesh import batch_shardings, local_tiles, traced_on
from tario_jax.parallel.rules import like_parameters
from tario_jax.tokens.batch import Batch, has_tiles
from tario_jax.tokens.deal import deal


class TrainState(NamedTuple):
    """Everything that a checkpoint holds of the numbers of a run."""

    step: jax.Array  # int32, steps done
    parameters: Tree
    calibration: Tree
    optimiser: optax.OptState


def make_optimiser(config: OptimConfig, steps: int, built: Built) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, linear warm-up and a cosine to zero. Vectors and gene biases do not decay."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)
    decays = built.by_axes(lambda axes: len([axis for axis in axes if axis != "layers"]) > 1)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decays),
    )


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


class StepMetrics(NamedTuple):
    """Sums over the global batch, float32 scalars."""

    total_nats: jax.Array
    gene_nats: jax.Array
    detections: jax.Array
    gradient_norm: jax.Array


def make_train_step(built: Built, optimiser: optax.GradientTransformation, mesh: Mesh):
    """The jitted step: (state, batch) -> (state, metrics). The old state's memory is given to the new one."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        def loss(parameters):
            nll = built.merge(parameters, state.calibration).loss(batch)
            return (nll.total_nats + nll.gene_nats) / jnp.maximum(nll.detections, 1.0), nll

        (_, nll), gradients = jax.value_and_grad(loss, has_aux=True)(state.parameters)
        with jax.named_scope("optimiser"):
            updates, moments = optimiser.update(gradients, state.optimiser, state.parameters)
            parameters = optax.apply_updates(state.parameters, updates)
            metrics = StepMetrics(nll.total_nats, nll.gene_nats, nll.detections, optax.tree.norm(gradients))
        return TrainState(state.step + 1, parameters, state.calibration, moments), metrics

    shardings = state_shardings(built, optimiser, mesh)
    return jax.jit(traced_on(mesh, step), donate_argnums=0, in_shardings=(shardings, batch_shardings(mesh)),
                   out_shardings=(shardings, NamedSharding(mesh, PartitionSpec())))  # fmt: skip


def make_loss(built: Built, mesh: Mesh):
    """The jitted loss without gradients: (parameters, calibration, batch) -> CountNLL sums."""

    def loss(parameters: Tree, calibration: Tree, batch: Batch):
        return built.merge(parameters, calibration).loss(batch)

    return jax.jit(traced_on(mesh, loss), in_shardings=(*built.shardings(mesh), batch_shardings(mesh)))


def to_devices(batch: Batch, mesh: Mesh) -> Batch:
    """This process's rows of a batch as arrays of the whole mesh, their tiles dealt over context."""
    batch = deal(batch, mesh.shape["context"])
    tiles = local_tiles(mesh, batch.segment_BxT.shape[1])
    here = Batch(*(array[:, tiles.start : tiles.stop] if has_tiles(name) else array
                   for name, array in batch._asdict().items()))  # fmt: skip
    return jax.tree.map(
        lambda sharding, array: jax.make_array_from_process_local_data(sharding, array), batch_shardings(mesh), here
    )

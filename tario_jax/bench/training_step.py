"""The step that `tario train` runs with a config, for what times it."""

from collections.abc import Callable

from jax.sharding import Mesh

from tario_jax.config import Config
from tario_jax.model.build import build_of
from tario_jax.train.frozen import trained_parameters
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.stability import Stability
from tario_jax.train.state import TrainState, initial_state, make_train_step


def training_step(config: Config, genes: int, frozen_features: int, mesh: Mesh) -> tuple[TrainState, Callable]:
    """The state of step 0 from the config's seed, and the step, which is not compiled yet."""
    built = build_of(config, genes, frozen_features)
    trained, stability = trained_parameters(built, config.start), Stability.of(config)
    optimiser = make_optimiser(config.optim, config.train.steps, built, trained)
    state = initial_state(built, optimiser, mesh, config.train.seed, stability)
    return state, make_train_step(built, optimiser, mesh, config.train.accumulate, stability, trained)

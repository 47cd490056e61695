"""How gradients become updates."""

import optax

from tario_jax.config import OptimConfig
from tario_jax.model.build import Built


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates made before."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, steps)


def make_optimiser(config: OptimConfig, steps: int, built: Built) -> optax.GradientTransformation:
    """AdamW with global-norm clipping, linear warm-up and a cosine to zero. Vectors and gene biases do not decay."""
    schedule = learning_rate(config, steps)
    decays = built.by_axes(lambda axes: len([axis for axis in axes if axis != "layers"]) > 1)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decays),
    )

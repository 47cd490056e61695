"""What keeps a run on its way: steps that are skipped, losses that stand out, an average of the parameters.

All of it is arithmetic of the step, on scalars and trees that a checkpoint holds: a run that is started again judges as
it did before.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from tario_jax.config import Config

_USUAL_STEPS = 50.0  # horizon of the running means of the loss
_LEAST_LOOKED_AT = 20  # losses before any of them is called unusual
_LEAST_DEPARTURE = 1e-3  # nats per detection: a loss that hardly moves makes no spike of noise


class Stability(NamedTuple):
    """What of a config the step needs beside the model and the optimiser. 0: without."""

    z_loss: float = 0.0  # weight of log² of the softmax's denominator, per detection
    ema_decay: float = 0.0
    spike_deviations: float = 0.0

    @classmethod
    def of(cls, config: Config) -> "Stability":
        return cls(config.optim.z_loss, config.train.ema_decay, config.train.spike_deviations)


PLAIN = Stability()


class Health(NamedTuple):
    """How the run fares: scalars, the same on all devices."""

    skipped: jax.Array  # int32, steps whose loss or gradients were not finite: they changed nothing
    skipped_in_row: jax.Array  # int32, such steps up to now, without one between them
    usual_loss: jax.Array  # float32, running mean of nats per detection
    usual_departure: jax.Array  # float32, running mean of |loss − usual_loss|
    looked_at: jax.Array  # int32, losses that these two are made of
    unusual_in_row: jax.Array  # int32, steps up to now whose loss stood far above the usual one
    passed_batches: jax.Array  # int32, batches that rollbacks left out: step t reads batch t + passed_batches
    rollbacks: jax.Array  # int32

    @staticmethod
    def abstract() -> "Health":
        whole, real = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
        return Health(whole, whole, real, real, whole, whole, whole, whole)


def judged(health: Health, loss: jax.Array, finite: jax.Array, spike_deviations: float) -> Health:
    """`health` after a step of this loss (nats per detection).

    A loss is unusual where it stands more than `spike_deviations` usual departures above the usual loss; such losses,
    and those that are not finite, do not enter the running means. 0: none is.
    """
    departure = jnp.abs(loss - health.usual_loss)
    bound = spike_deviations * jnp.maximum(health.usual_departure, _LEAST_DEPARTURE)
    unusual = finite & (loss > health.usual_loss + bound) & (health.looked_at >= _LEAST_LOOKED_AT)
    unusual &= spike_deviations > 0
    usual = finite & ~unusual
    # a plain mean while there are few, so that the first losses, which fall fast, are soon forgotten
    rate = 1.0 / jnp.minimum(health.looked_at + 1.0, _USUAL_STEPS)
    departure_rate = jnp.where(health.looked_at > 0, 1.0 / jnp.clip(health.looked_at, 1.0, _USUAL_STEPS), 0.0)

    def moved(mean, value, rate):
        return jnp.where(usual, mean + rate * (value - mean), mean)

    return health._replace(
        skipped=health.skipped + ~finite,
        skipped_in_row=jnp.where(finite, 0, health.skipped_in_row + 1),
        usual_loss=moved(health.usual_loss, loss, rate),
        usual_departure=moved(health.usual_departure, departure, departure_rate),
        looked_at=health.looked_at + usual,
        # one that is no number goes on with a row, and begins none
        unusual_in_row=jnp.where(unusual | ~finite & (health.unusual_in_row > 0), health.unusual_in_row + 1, 0),
    )


def averaged(average, parameters, step: jax.Array, decay: float):
    """The running mean of the parameters after `step` + 1 steps: of the last 1 / (1 − decay) of them, and of a tenth of
    all where those are fewer. An empty tree stays empty."""
    if not decay:
        return average
    warm = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, new: mean + (1.0 - warm) * (new - mean), average, parameters)

"""How gradients become updates: clipping, AdamW or Muon, width, decay, the rate of each step."""

import math
from collections.abc import Callable

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from tario_jax.config import OptimConfig
from tario_jax.model.build import Built, Tree

MATRICES: dict[tuple[str, ...], int] = {
    ("embed", "heads", "head_dim"): 1,
    ("embed", "kv_heads", "head_dim"): 1,
    ("heads", "head_dim", "embed"): 2,
    ("embed", "mlp"): 1,
    ("mlp", "embed"): 1,
    ("hidden", "stem"): 1,
    ("neighbours", "stem"): 1,
    ("pixels", "hidden"): 1,
    ("features", "hidden"): 1,
}
"""Muon's matrices: logical axes beside "layers", and how many of the first ones are summed over.

All else is AdamW's: tables of genes, norms and biases.
"""


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """The rate of step 0, 1, …: linear from 0 over the warm-up, then as `schedule` says, to final_share at `steps`.

    cosine: half a cosine. wsd: constant, then over the last decay_share of the steps a straight line (such a fall can
    be started from any checkpoint of the constant part). A warm-up of all steps or more ends one step before the last.
    """
    warmup, highest = min(config.warmup_steps, max(steps - 1, 0)), config.learning_rate
    last = config.final_share * highest
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, highest, warmup, steps, last)
    decay = decay_steps(config, steps)
    rise, fall = optax.linear_schedule(0.0, highest, warmup), optax.linear_schedule(highest, last, decay)
    return optax.join_schedules([rise, optax.constant_schedule(highest), fall], [warmup, steps - decay])


def decay_steps(config: OptimConfig, steps: int) -> int:
    """Steps over which the rate of a wsd schedule falls."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return min(max(1, round(config.decay_share * steps)), max(steps - warmup, 1))


def make_optimiser(
    config: OptimConfig, steps: int, built: Built, trained: Tree | None = None
) -> optax.GradientTransformation:
    """Gradients clipped by their global norm, then AdamW; with optimiser=muon, Muon for hidden matrices.

    The rates of muP (model/width.py) multiply Adam's direction before the decay is added, so that a weight decays by
    rate · weight_decay a step whatever the width. Vectors and gene biases do not decay.

    trained: a bool for every parameter; where it is False there are no moments, the update is 0 and the norm of the
    clipping leaves it out.
    """
    decays = built.by_axes(lambda axes: len(_without_layers(axes)) > 1)
    schedule = learning_rate(config, steps)
    chains = {"adamw": _adamw(config, schedule, decays, built.rates())}
    if config.optimiser == "muon":
        chains["muon"] = _muon(config, schedule, built)
    kinds = built.by_axes(lambda axes: "muon" if "muon" in chains and _without_layers(axes) in MATRICES else "adamw")
    clip = optax.clip_by_global_norm(config.clip_norm)
    if trained is not None:
        chains["frozen"] = optax.set_to_zero()
        kinds = jax.tree.map(lambda kind, is_trained: kind if is_trained else "frozen", kinds, trained)
        clip = optax.masked(clip, trained)
    return optax.chain(clip, chains["adamw"] if len(chains) == 1 else optax.partition(chains, kinds))


def _adamw(config: OptimConfig, schedule: optax.Schedule, decays: Tree, rates: Tree) -> optax.GradientTransformation:
    if all(rate == 1 for rate in jax.tree.leaves(rates)):
        return optax.adamw(schedule, config.b1, config.b2, weight_decay=config.weight_decay, mask=decays)
    by_path = dict(jax.tree.leaves_with_path(rates))
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2),
        _multiplied(lambda path, _: by_path[path]),
        optax.add_decayed_weights(config.weight_decay, decays),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(config: OptimConfig, schedule: optax.Schedule, built: Built) -> optax.GradientTransformation:
    """Momentum (0.95, Nesterov), orthogonalised layer by layer, times muon_rate · sqrt(max(1, fan_out / fan_in)).

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon). The decay is that of AdamW: muon_rate is not in it.
    """
    axes = dict(jax.tree.leaves_with_path(built.by_axes(lambda axes: axes), is_leaf=lambda x: isinstance(x, tuple)))

    def sides(updates: Tree) -> Tree:
        return jax.tree.map_with_path(lambda path, _: _sides(axes[path]), updates)

    def length(path, shape: tuple[int, ...]) -> float:
        into, out = (math.prod(shape[axis] for axis in side) for side in _sides(axes[path]))
        return config.muon_rate * max(1.0, out / into) ** 0.5

    return optax.chain(
        scale_by_muon(weight_dimension_numbers=sides),
        _multiplied(length),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
    )


def _sides(axes: tuple[str, ...]) -> MuonDimensionNumbers:
    """Dimensions of a hidden matrix that are summed over, and those that come out."""
    first = len(axes) - len(_without_layers(axes))
    middle = first + MATRICES[_without_layers(axes)]
    return MuonDimensionNumbers(tuple(range(first, middle)), tuple(range(middle, len(axes))))


def _without_layers(axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis != "layers")


def _multiplied(factor: Callable) -> optax.GradientTransformation:
    """Each update times `factor(path, shape)`. By path, since other chains' parameters are masked out of the tree."""
    return optax.stateless(
        lambda updates, _: jax.tree.map_with_path(lambda path, x: factor(path, x.shape) * x, updates)
    )

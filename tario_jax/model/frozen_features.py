"""Stored features of a frozen H&E encoder as a part of each patch's token.

They come standardised, and turned to the axes along which they differ most in training tissue. An axis of variance v is
divided by √(v + 2), in units of one standardised feature: leading axes are of about unit variance, and those that hold
less than a feature of its own stay as small as they are. So a step moves along what many features say together before
it moves along what one says alone, which is what a ridge does too, and what few patients bear.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.declare import statistic, weight
from tario_jax.ops.project import project

SHRINKAGE = 2.0  # in variances of one feature
CLIP_SD = 5.0  # what lies further out than any training tissue is held there


class FrozenFeatures(nnx.Module):
    """A linear map of the leading axes of the features."""

    def __init__(self, config: ModelConfig, features: int, rngs: nnx.Rngs):
        axes = min(config.frozen_axes, features)
        self.mean = statistic((features,), 0.0)
        self.scale = statistic((features,), 1.0)
        self.axes_FxK = statistic((features, axes), 0.0)
        self.into = weight(rngs, (axes, config.width), ("features", "hidden"), axes)

    def __call__(self, features_BxTxPxF: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[B, T, P, d]."""
        standard = (features_BxTxPxF.astype(jnp.float32) - self.mean[...]) / self.scale[...]
        standard = jnp.clip(standard, -CLIP_SD, CLIP_SD)
        leading = project("btpf,fk->btpk", standard.astype(dtype), self.axes_FxK[...])
        return project("btpk,kd->btpd", leading, self.into[...])


def leading_axes(covariance_FxF: np.ndarray, axes: int) -> np.ndarray:
    """The axes of most variance of standardised features, each divided as above: float32 [F, axes]."""
    variance_F, axis_FxF = np.linalg.eigh(covariance_FxF)
    order = np.argsort(-variance_F)[:axes]
    of_axis_K = np.maximum(variance_F[order], 0.0)
    axis_FxK = axis_FxF[:, order]
    axis_FxK = axis_FxK * np.sign(axis_FxK[np.abs(axis_FxK).argmax(0), np.arange(axes)])  # the sign is free: fixed here
    return (axis_FxK / np.sqrt(of_axis_K + SHRINKAGE)).astype(np.float32)

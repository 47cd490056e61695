"""Patches under bins, and how far their means and the gradient are from float64."""

import jax
import numpy as np

from tario_jax.ops.pooling import weighted_means


def case(rows=4, patches=48, bins=16, under=5, width=6):
    """tokens, number, weight, and a gradient of the means."""
    rng = np.random.default_rng(0)
    number = rng.integers(0, patches, (rows, bins, under)).astype(np.int32)
    number[..., 1] = number[..., 0]  # one patch twice
    weight = rng.random((rows, bins, under)).astype(np.float32)
    weight[:, -3:] = 0  # padding
    tokens, d_mean = (rng.normal(size=(rows, size, width)).astype(np.float32) for size in (patches, bins))
    return tokens, number, weight, d_mean


@jax.jit
def means_and_gradient(tokens, number, weight, d_mean):
    mean, pull = jax.vjp(lambda x: weighted_means(x, number, weight), tokens)
    return mean, pull(d_mean)[0]


def worst_error(tokens, number, weight, d_mean, dtype="float32"):
    """The larger relative error of means and gradient."""
    found = means_and_gradient(tokens.astype(dtype), number, weight, d_mean.astype(dtype))
    assert {str(x.dtype) for x in found} == {dtype}
    tokens, weight, d_mean = (x.astype(np.float64) for x in (tokens, weight, d_mean))
    row = np.arange(len(tokens))[:, None, None]
    d_tokens = np.zeros(tokens.shape)
    np.add.at(d_tokens, (row, number), weight[..., None] * d_mean[:, :, None])
    expected = (weight[..., None] * tokens[row, number]).sum(2), d_tokens
    return max(abs(np.asarray(x, np.float64) - y).max() / abs(y).max() for x, y in zip(found, expected, strict=True))

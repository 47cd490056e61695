"""The negative binomial of totals against float64, where no logarithm of Γ is taken of anything large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tario_jax.ops.negative_binomial import negative_binomial_nats

COUNTS = (0, 1, 5, 30, 100, 3000, 100_000)
LOG_SIZES = (-3, -1, 0, 1, 2, 2.08, 3, 5, 8, 11, 14, 16, 18, 20)


def expected(n: int, log_mean: float, log_size: float) -> tuple[float, float, float]:
    """Nats, and their derivatives by log mu and log r; Γ(n + r) / (Γ(r) rⁿ) is the product of the 1 + k / r."""
    mean, r, k = np.exp(log_mean), np.exp(log_size), np.arange(n)
    nats = (n + r) * np.log1p(mean / r) - n * log_mean - np.log1p(k / r).sum() + special.gammaln(n + 1)
    by_log_size = r * np.log1p(mean / r) - (n + r) * mean / (mean + r) + (k / (k + r)).sum()
    return nats, (mean - n) / (1 + mean / r), by_log_size


@pytest.mark.parametrize("n", COUNTS)
def test_nats_and_gradients_at_every_size(n):
    log_means = np.log([0.01, *(max(n, 1) * np.array([0.1, 0.4, 0.6, 0.97, 1.0, 1.002, 1.1, 1.9, 2.2, 30]))])
    at = np.stack(np.meshgrid(log_means, LOG_SIZES), -1).reshape(-1, 2).astype(np.float32)
    found = jax.vmap(jax.value_and_grad(negative_binomial_nats, (1, 2)), (None, 0, 0))(jnp.float32(n), *at.T)
    found_Px3 = np.stack([found[0], *found[1]], 1)
    told_Px3 = np.array([expected(n, *map(float, each)) for each in at])
    error_Px3 = np.abs(found_Px3 - told_Px3)
    allowed_Px3 = 1e-5 + 1e-5 * np.abs(told_Px3)
    # mu = exp(log mu) is rounded, and mu − n is then off by mu's last digit
    allowed_Px3[:, 1] += 3e-7 * np.exp(at[:, 0].astype(np.float64))
    worst = np.unravel_index((error_Px3 / allowed_Px3).argmax(), error_Px3.shape)
    assert (error_Px3 <= allowed_Px3).all(), (at[worst[0]], found_Px3[worst[0]], told_Px3[worst[0]])

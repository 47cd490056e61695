"""The negative log-likelihood of counts n under a negative binomial of mean mu and variance mu + mu² / r.

As it is written down, log Γ(n + r), log Γ(r) and r log r are millions where r is large, and what is left of them in
float32 is noise. So the large terms are combined by hand, as Loader (Fast and accurate computation of binomial
probabilities, 2000) does for the binomial:

    least:   what it is at mu = n, of Stirling's errors s(x) = log Γ(x) − (x − ½) log x + x − ½ log 2π, all small
    beyond:  n log(n (mu + r) / (mu (n + r))) + r log((mu + r) / (n + r)), which is 0 at mu = n
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

_STIRLING = 8.0  # from here on three terms of Stirling's series are float32's last digit
_NEAR = 0.7  # |log(1 + x)| below which x is taken from it by a series


def negative_binomial_nats(n: jax.Array, log_mean: jax.Array, log_size: jax.Array) -> jax.Array:
    """−log P(n) in nats, float32 and of n's shape; log_size: log r. There is no derivative by n."""
    n = lax.stop_gradient(n)
    size, n_or_1 = jnp.exp(log_size), jnp.maximum(n, 1)
    of_n = jnp.where(n > 0, 0.5 * jnp.log(2 * math.pi * n_or_1) + _stirling_error(n_or_1), 0)
    of_size = _stirling_error(size) - _stirling_error(n + size) + 0.5 * jnp.log1p(n / size)
    return of_n + of_size + _beyond_least(n, log_mean, log_size)


def _stirling_error(x: jax.Array) -> jax.Array:
    small, large = jnp.minimum(x, _STIRLING), jnp.maximum(x, _STIRLING)
    direct = lax.lgamma(small) - (small - 0.5) * jnp.log(small) + small - 0.5 * math.log(2 * math.pi)
    inverse = 1 / large
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    return jnp.where(x < _STIRLING, direct, series)


@jax.custom_jvp
def _beyond_least(n: jax.Array, log_mean: jax.Array, log_size: jax.Array) -> jax.Array:
    mean, size, n_or_1 = jnp.exp(log_mean), jnp.exp(log_size), jnp.maximum(n, 1)
    of_n = jax.nn.softplus(log_size - log_mean) - jnp.log1p(size / n_or_1)
    far = n * of_n + size * _log_ratio(n, log_mean, log_size)
    # near mu = n both logarithms are x + (log(1 + x) − x), and what is linear in mu − n adds up to a square
    off, whole = mean - n, n + size
    square = size * off * off / (whole * mean)
    near = n * _log1p_less(-size * off / (whole * mean)) + size * _log1p_less(off / whole) + square
    return jnp.where(jnp.abs(log_mean - jnp.log(n)) < _NEAR, near, far)


def _by_log_mean(tangent, _, n, log_mean, log_size):
    return tangent * (jnp.exp(log_mean) - n) * jax.nn.sigmoid(log_size - log_mean)


def _by_log_size(tangent, _, n, log_mean, log_size):
    size, off = jnp.exp(log_size), jnp.exp(log_mean) - n
    whole = n + size
    x, log = off / whole, _log_ratio(n, log_mean, log_size)
    share = jnp.exp(-jnp.logaddexp(log_mean, log_size))  # 1 / (mu + r)
    more = jnp.where(jnp.abs(log) < _NEAR, _log1p_less(x) + x * off * share, log - off * share)
    return tangent * size * more


_beyond_least.defjvps(None, _by_log_mean, _by_log_size)


def _log_ratio(n, log_mean, log_size) -> jax.Array:
    """log((mu + r) / (n + r)), which cancels near mu = n alone."""
    return jax.nn.softplus(log_mean - log_size) - jnp.log1p(n * jnp.exp(-log_size))


def _log1p_less(x: jax.Array) -> jax.Array:
    """log(1 + x) − x where |log(1 + x)| < 0.7, and nothing cancels: by the series of 2 artanh(x / (2 + x))."""
    v = x / (2 + x)
    series = jnp.polyval(jnp.asarray([1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3], x.dtype), v * v)
    return v * (2 * v * v * series - x)

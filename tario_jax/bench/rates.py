"""What one device of this machine does: products, loops over memory, exponentials."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.model.declare import rms_norm
from tario_jax.ops.products import precision
from tario_jax.ops.project import project
from tario_jax.parallel.chips import Rates

_LEAST_SECONDS = 0.2  # of a measurement
_CACHED = {"cpu": 1 << 18, "elsewhere": 1 << 24}  # 1 MiB of float32 on a CPU: the scores of a few blocks of attention
_SIDE = {"cpu": 2048, "elsewhere": 8192}  # of a product's squares


class Work(NamedTuple):
    """A program that is called again and again, and how much it does at a time."""

    call: Callable[[], object]
    amount: float

    def rate(self, least_seconds: float = _LEAST_SECONDS) -> float:
        """How much a second; called until so many are over. What an accelerator is given is queued."""
        jax.block_until_ready(self.call())
        at_once = 1 if jax.default_backend() == "cpu" else 16
        calls, began = 0, time.perf_counter()
        while not calls or time.perf_counter() - began < least_seconds:
            for _ in range(at_once):
                last = self.call()
            jax.block_until_ready(last)
            calls += at_once
        return calls * self.amount / (time.perf_counter() - began)


class Sizes(NamedTuple):
    """Of a product [tokens, inputs] × [inputs, outputs]."""

    tokens: int
    inputs: int
    outputs: int


def measure_rates(dtype: str, product: Sizes, rounds: int = 5) -> Rates:
    """Medians over rounds in which the three take turns.

    All are of the sizes of a step, which are smaller than peaks ask for: products, forward and for both gradients;
    memory by a norm of the tokens and its gradient, two arrays read or written forward and three backward; exponentials
    in float32, of an array that the caches hold, as those of attention are.
    """
    cached = _CACHED.get(jax.default_backend(), _CACHED["elsewhere"])
    exponentials = _work(jnp.exp, _placed((cached,), "float32"), amount=float(cached))
    works = (_three_products(dtype, product), _norm(dtype, product), exponentials)
    found = [[work.rate() for work in works] for _ in range(rounds)]
    return Rates(*map(statistics.median, zip(*found, strict=True)), overlap=jax.default_backend() != "cpu")


def _three_products(dtype: str, sizes: Sizes) -> Work:
    x, dy = _placed((sizes.tokens, sizes.inputs), dtype), _placed((sizes.tokens, sizes.outputs), dtype)
    weight = _placed((sizes.inputs, sizes.outputs), "float32")

    def three(x, weight, dy):
        y, pull = jax.vjp(functools.partial(project, "ad,df->af"), x, weight)
        return y, *pull(dy)

    return _work(three, x, weight, dy, amount=6.0 * sizes.tokens * sizes.inputs * sizes.outputs)


def _norm(dtype: str, sizes: Sizes) -> Work:
    x, dy = (_placed((sizes.tokens, sizes.inputs), dtype) for _ in range(2))
    scale = _placed((sizes.inputs,), "float32")

    def both(x, scale, dy):
        y, pull = jax.vjp(rms_norm, x, scale)
        return y, *pull(dy)

    return _work(both, x, scale, dy, amount=5.0 * x.nbytes)


def matmul(dtype: str) -> Work:
    """FLOPs of a plain product of squares on the first device, as large as it needs to show its rate."""
    side = _SIDE.get(jax.default_backend(), _SIDE["elsewhere"])
    given = [_placed((side, side), dtype) for _ in range(2)]
    return _work(functools.partial(jnp.matmul, precision=precision(*given)), *given, amount=2.0 * side**3)


def _work(function, *given: jax.Array, amount: float) -> Work:
    program = jax.jit(function).lower(*given).compile()
    return Work(lambda: program(*given), amount)


def _placed(shape: tuple[int, ...], dtype: str) -> jax.Array:
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    return jax.device_put(jnp.asarray(numbers, dtype), jax.devices()[0])

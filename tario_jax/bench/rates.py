"""What one device of this machine does: a plain product, a plain sum, exponentials."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.parallel.chips import Rates

_LEAST_SECONDS = 0.2  # of a measurement
_STREAMED = {"cpu": 1 << 25, "elsewhere": 1 << 28}  # elements of an array that no cache holds
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


def measure_rates(dtype: str, rounds: int = 5) -> Rates:
    """Medians over rounds in which the three take turns.

    The product and the sum are of `dtype`. The sum is x + y of arrays that no cache holds, two read and one written;
    the exponentials are float32 and of an array that the caches hold, as those of attention are.
    """
    streamed, cached = (sizes.get(jax.default_backend(), sizes["elsewhere"]) for sizes in (_STREAMED, _CACHED))
    x, y, scores = _placed((streamed,), dtype), _placed((streamed,), dtype), _placed((cached,), "float32")
    works = (matmul(dtype), _sum(x, y), _work(jnp.exp, scores, amount=float(cached)))
    found = [[work.rate() for work in works] for _ in range(rounds)]
    return Rates(*map(statistics.median, zip(*found, strict=True)), overlap=jax.default_backend() != "cpu")


def matmul(dtype: str) -> Work:
    """FLOPs of a plain product of squares on the first device, as large as it needs to show its rate."""
    side = _SIDE.get(jax.default_backend(), _SIDE["elsewhere"])
    given = [_placed((side, side), dtype) for _ in range(2)]
    return _work(jnp.matmul, *given, amount=2.0 * side**3)


def _sum(x: jax.Array, y: jax.Array) -> Work:
    """Bytes that x + y moves, into the memory of x: fresh memory costs its pages, too."""
    program = jax.jit(jnp.add, donate_argnums=0).lower(x, y).compile()
    held = [x]

    def call() -> jax.Array:
        held[0] = program(held[0], y)
        return held[0]

    return Work(call, 3.0 * x.nbytes)


def _work(function, *given: jax.Array, amount: float) -> Work:
    program = jax.jit(function).lower(*given).compile()
    return Work(lambda: program(*given), amount)


def _placed(shape: tuple[int, ...], dtype: str) -> jax.Array:
    numbers = np.random.default_rng(0).standard_normal(shape, np.float32)
    return jax.device_put(jnp.asarray(numbers, dtype), jax.devices()[0])

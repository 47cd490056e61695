"""A plain product on each device of this process: what MFU is told of where no peak is known, and how a slow device
shows, which in a step makes all others wait."""

import statistics
import time

import jax
import jax.numpy as jnp

from tario_jax.ops.products import precision
from tario_jax.parallel.chips import chip_of_device

_SIDE = {"cpu": 512}
_SIDE_ELSEWHERE = 4096
_ROUNDS = 5


class DeviceProbe:
    """A square product of the step's own type, compiled once for each local device."""

    def __init__(self, dtype: jnp.dtype):
        devices = jax.local_devices()
        self._side = _SIDE.get(devices[0].platform, _SIDE_ELSEWHERE)
        ones = jnp.ones((self._side, self._side), dtype)
        self._operands = [jax.device_put(ones, device) for device in devices]
        self._product = jax.jit(lambda x: jnp.matmul(x, x, precision=precision(x, x)))
        for x in self._operands:
            self._product(x).block_until_ready()

    def seconds(self) -> float:
        """Of a product on the slowest local device. To be called while nothing else runs there."""
        return max(self._of_device(x) for x in self._operands)

    def _of_device(self, x: jax.Array) -> float:
        found = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            self._product(x).block_until_ready()
            found.append(time.perf_counter() - began)
        return statistics.median(found)

    def peak_flops(self) -> float:
        """FLOP/s that MFU is a share of, of all devices of the run: the chips' peak in bfloat16, else, as on a CPU, the
        rate of this product, where all local devices share the cores."""
        chip = chip_of_device(jax.devices()[0].device_kind)
        if chip is not None:
            return chip.rates.matmul_flops * jax.device_count()
        alone = 2 * self._side**3 / self.seconds()
        return alone * (jax.process_count() if jax.devices()[0].platform == "cpu" else jax.device_count())

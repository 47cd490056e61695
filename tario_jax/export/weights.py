"""How a bundle stores weights: float32, bfloat16, or int8 with a scale for each output.

int8: matrices and the table of genes alone. w ≈ q · scale, where scale = max |w| / 127 over the axes that a product
sums over; so each weight is off by at most half a scale. Biases, norms and statistics are float32 in all of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from tario_jax.export.stored import StoredLeaves
from tario_jax.export.tensor_file import Tensor
from tario_jax.model.build import Built
from tario_jax.train.optimiser import MATRICES

KINDS = ("float32", "bfloat16", "int8")
SCALE = ".scale"
_PIECE_BYTES = 512 << 20  # shards hold all layers of a part of a matrix: each piece reads every shard of its array


class Leaf(NamedTuple):
    """An array of the model, and the axes that a product with it sums over; none: it is no matrix."""

    name: str
    shape: tuple[int, ...]
    summed: tuple[int, ...]

    @property
    def is_statistic(self) -> bool:
        return self.name.startswith("calibration.")

    def stored(self, kind: str) -> dict[str, jax.ShapeDtypeStruct]:
        """What a bundle holds of it, by name."""
        if not self.summed or kind == "float32":
            return {self.name: jax.ShapeDtypeStruct(self.shape, jnp.float32)}
        if kind == "bfloat16":
            return {self.name: jax.ShapeDtypeStruct(self.shape, jnp.bfloat16)}
        return {self.name: jax.ShapeDtypeStruct(self.shape, jnp.int8),
                self.name + SCALE: jax.ShapeDtypeStruct(self.scale_shape, jnp.float32)}  # fmt: skip

    @property
    def scale_shape(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.summed else size for axis, size in enumerate(self.shape))

    def read(self, tensors: dict[str, jax.Array]) -> jax.Array:
        """The float32 array of what is stored, in a traced function."""
        value = tensors[self.name].astype(jnp.float32)
        return value * tensors[self.name + SCALE] if self.name + SCALE in tensors else value


def leaves_of(built: Built) -> dict[str, Leaf]:
    """Every parameter and statistic of a model, statistics with "calibration." before their names."""
    found = {}
    for prefix, state in (("", built.parameters), ("calibration.", built.calibration)):
        for path, variable in nnx.to_flat_state(state):
            name = prefix + ".".join(map(str, path))
            found[name] = Leaf(name, tuple(variable.shape), () if prefix else _summed(variable.axes))
    return found


def _summed(axes: tuple[str, ...]) -> tuple[int, ...]:
    if "genes" in axes:  # logits are sums over the table's columns
        return (len(axes) - 1,)
    layers = axes[:1] == ("layers",)
    number = MATRICES.get(axes[1:] if layers else axes, 0)
    return tuple(range(int(layers), int(layers) + number))


def tensors_of(leaf: Leaf, kind: str, stored: StoredLeaves) -> list[Tensor]:
    """What is written of a leaf, read from the checkpoint when its turn comes."""
    name = leaf.name.removeprefix("calibration.")
    found = []
    for of, array in leaf.stored(kind).items():
        is_scale = of.endswith(SCALE)

        def pieces(is_scale=is_scale, dtype=array.dtype) -> Iterator[np.ndarray]:
            if kind == "int8" and leaf.summed and 0 in leaf.summed:  # the scale is of all rows
                scale = _scale(leaf, stored.parts(name, _PIECE_BYTES))
                if is_scale:
                    yield scale
                    return
                for part in stored.parts(name, _PIECE_BYTES):
                    yield _quantised(part, scale)
                return
            for part in stored.parts(name, _PIECE_BYTES):
                if kind != "int8" or not leaf.summed:
                    yield part.astype(ml_dtypes.bfloat16) if dtype == jnp.bfloat16 else part
                    continue
                scale = np.maximum(np.abs(part).max(leaf.summed, keepdims=True), 1e-30) / 127
                yield scale.astype(np.float32) if is_scale else _quantised(part, scale)

        found.append(Tensor(of, np.dtype(array.dtype).name, tuple(array.shape), pieces))
    return found


def _scale(leaf: Leaf, parts: Iterator[np.ndarray]) -> np.ndarray:
    most = np.zeros(leaf.scale_shape, np.float32)
    for part in parts:
        most = np.maximum(most, np.abs(part).max(leaf.summed, keepdims=True))
    return np.maximum(most, 1e-30) / np.float32(127)


def _quantised(part: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(part / scale), -127, 127).astype(np.int8)

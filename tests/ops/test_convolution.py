"""The convolution, and the gradient of its weights at once and by neighbour, against sums written out in float64."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.ops.convolution import convolve3x3

SHAPE, OUT = (2, 4, 3, 5, 6, 7), 8  # [B, T, P, Y, X, C]


def case():
    rng = np.random.default_rng(0)
    return rng.normal(size=SHAPE), rng.normal(size=(9 * SHAPE[-1], OUT)), rng.normal(size=(*SHAPE[:-1], OUT))


def oracle(x, weight, dy):
    """Outputs and both gradients of Σ y · dy, float64."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    y, dx, dweight = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for number in range(9):
        i, j = divmod(number, 3)
        rows = slice(number * SHAPE[-1], (number + 1) * SHAPE[-1])
        seen = padded[..., i : i + SHAPE[3], j : j + SHAPE[4], :]
        y += seen @ weight[rows]
        dx[..., i : i + SHAPE[3], j : j + SHAPE[4], :] += dy @ weight[rows].T
        dweight[rows] = np.einsum("btpyxc,btpyxe->ce", seen, dy)
    return y, dx[..., 1:-1, 1:-1, :], dweight


@pytest.mark.parametrize("by_neighbour", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
def test_outputs_and_gradients(by_neighbour, dtype, tolerance):
    x, weight, dy = case()
    y, pull = jax.vjp(lambda *given: convolve3x3(*given, by_neighbour=by_neighbour), jnp.asarray(x, dtype),
                      jnp.asarray(weight, "float32"))  # fmt: skip
    found = (y, *pull(jnp.asarray(dy, dtype)))
    assert [part.dtype.name for part in found] == [dtype, dtype, "float32"]
    for part, expected in zip(found, oracle(x, weight, dy), strict=True):
        assert np.linalg.norm(np.float64(part) - expected) < tolerance * np.linalg.norm(expected)


_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from tario_jax.ops.convolution import convolve3x3

x, weight, dy = (jnp.asarray(part, "float32") for part in np.load(sys.argv[1]).values())
def all_of(x, weight, dy):
    y, pull = jax.vjp(lambda *given: convolve3x3(*given, by_neighbour=False), x, weight)
    return y, *pull(dy)
alone = jax.jit(all_of)(x, weight, dy)
mesh = jax.make_mesh((2, 1, 4), ("fsdp", "replica", "context"), axis_types=(AxisType.Auto,) * 3)
of_cells, whole = NamedSharding(mesh, P("fsdp", "context")), NamedSharding(mesh, P())
with jax.set_mesh(mesh):
    program = jax.jit(all_of, in_shardings=(of_cells, whole, of_cells), out_shardings=(of_cells, of_cells, whole))
    spread = program(x, weight, dy)
    text = program.lower(x, weight, dy).compile().as_text()
print(json.dumps({"errors": [float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
                             for a, b in zip(jax.device_get(spread), alone)],
                  "gathers": text.count("all-gather"), "sums": text.count(" all-reduce(")}))
"""


def test_on_a_mesh_only_the_gradient_of_the_weights_is_sent(devices8, tmp_path):
    np.savez(tmp_path / "case.npz", *case())
    told = json.loads(devices8(_PROGRAM, str(tmp_path / "case.npz")))
    assert max(told["errors"]) < 1e-6
    assert told["gathers"] == 0 and told["sums"] >= 1

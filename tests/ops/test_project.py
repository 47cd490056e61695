"""Products with weights: what is rounded and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.ops.project import project

EQUATIONS = {"bad,dhk->bahk": ((2, 300, 16), (16, 4, 8)), "bahk,hkd->bad": ((2, 300, 4, 8), (4, 8, 16)),
             "baf,fd->bad": ((2, 300, 12), (12, 16))}  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_gradients_of_weights_are_not_rounded_to_the_type_of_tokens(equation):
    rng = np.random.default_rng(0)
    x, weight = (rng.normal(size=shape) for shape in EQUATIONS[equation])
    x, weight = jnp.asarray(x, "bfloat16"), jnp.asarray(weight, "float32")
    y, pull = jax.vjp(lambda *given: project(equation, *given), x, weight)
    dy = jnp.asarray(rng.normal(size=y.shape), "bfloat16")
    dx, dweight = pull(dy)
    assert (y.dtype, dx.dtype, dweight.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    left, right = equation.partition("->")[0].split(",")
    out = equation.partition("->")[2]
    x, weight, dy = np.float64(x), np.float64(weight.astype("bfloat16")), np.float64(dy)
    for found, expected, tolerance in (
        (y, np.einsum(equation, x, weight), 4e-3), (dx, np.einsum(f"{out},{right}->{left}", dy, weight), 4e-3),
        (dweight, np.einsum(f"{left},{out}->{right}", x, dy), 1e-6),
    ):  # fmt: skip
        assert np.linalg.norm(np.float64(found) - expected) < tolerance * np.linalg.norm(expected)


def test_a_float32_product_is_that_of_einsum():
    rng = np.random.default_rng(1)
    x, weight = (jnp.asarray(rng.normal(size=shape), "float32") for shape in EQUATIONS["baf,fd->bad"])
    both = [jax.value_and_grad(lambda *given, f=f: (f("baf,fd->bad", *given) ** 2).sum(), (0, 1))(x, weight)
            for f in (project, jnp.einsum)]  # fmt: skip
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-3), *both)

"""What is said to be float32 is float32 everywhere: no product of float32 is left to TF32 or bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.bench.made_batch import made_batch
from tario_jax.model.build import build
from tario_jax.ops import convolution, project
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.hidden import of_he
from tario_jax.train.aot import pod_layout
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import abstract_state, make_train_step

GENES = len(PANEL)
PRODUCTS = {"dot_general", "conv_general_dilated"}


def products(jaxpr):
    """Equations of products, also of the programs within."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield equation
        for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            if inner := getattr(part, "jaxpr", part if hasattr(part, "eqns") else None):
                yield from products(inner)


@pytest.mark.parametrize(("dtype", "platform"), [("float32", "cpu"), ("float32", "gpu"), ("bfloat16", "gpu")])
def test_products_of_float32_are_made_in_float32(monkeypatch, dtype, platform):
    for module in (convolution, project):  # which make gradients otherwise on an accelerator
        monkeypatch.setattr(module, "ambient_platform", lambda: platform)
    config = tiny_config(data={"groups": ((1, 1.0), (4, 1.0))}, model={"compute_dtype": dtype})
    built, mesh = build(config.model, GENES, config.data.patch_px, content=True), make_mesh(config.mesh)
    optimiser = make_optimiser(config.optim, config.train.steps, built)
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)
    step = make_train_step(built, optimiser, mesh)
    found = list(products(step.trace(abstract_state(built, optimiser, mesh), batch).jaxpr.jaxpr))
    assert {equation.primitive.name for equation in found} == PRODUCTS
    types = set()
    for equation in found:
        of_operands = {operand.aval.dtype for operand in equation.invars}
        types |= of_operands
        is_highest = equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
        assert is_highest == (of_operands == {jnp.dtype("float32")}), equation
    assert types == {jnp.dtype("float32"), jnp.dtype(dtype)}


@pytest.mark.parametrize("learns", ["counts", "he"])
def test_no_gradient_is_summed_in_bfloat16(learns):
    """Of what was added up in float32, some digits are beyond bfloat16."""
    config = tiny_config(data={"groups": ((4, 1.0),)}, model={"compute_dtype": "bfloat16"}, train={"learns": learns})
    data = of_he(config.data) if learns == "he" else config.data
    built = build(config.model, GENES, data.patch_px, content=True, learns=learns)
    config = dataclasses.replace(config, data=data)
    batch = made_batch(config, pod_layout(config, GENES), GENES, 0)
    rng = np.random.default_rng(0)
    parameters, calibration = (
        jax.tree.map(lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), tree)
        for tree in built.abstract()
    )
    calibration = jax.tree.map(lambda leaf: 1 + abs(leaf), calibration)
    gradient = jax.jit(jax.grad(lambda moving: built.merge(moving, calibration).loss(batch).objective))(parameters)
    rounded = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(gradient)
               if leaf.any() and (leaf == leaf.astype("bfloat16")).all()]  # fmt: skip
    assert not rounded

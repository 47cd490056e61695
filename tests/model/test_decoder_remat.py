"""Remat changes what is kept between the passes, not the numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.decoder import Decoder
from tario_jax.model.streams import Visibility
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

B, S, Q, D = 2, 12, 5, 16


def gradients_and_program(remat: str):
    config = ModelConfig(width=D, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=24, remat=remat)
    graph, weights = nnx.split(Decoder(config, nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    seen, queries = (
        jnp.asarray(rng.normal(size=(B, S, D)), "float32"),
        jnp.asarray(rng.normal(size=(B, Q, D)), "float32"),
    )
    places = rng.uniform(0, 100, (B, S + Q, 2)).astype("float32")
    of_seen, of_queries = jnp.zeros((B, S), jnp.int32), jnp.zeros((B, Q), jnp.int32)
    visibility = {"global": Visibility(*(QueryVisibility(x, x) for x in (of_seen, of_queries)),
                                       KeyVisibility(of_seen, of_seen))}  # fmt: skip

    def loss(weights):
        _, out = nnx.merge(graph, weights)(seen, queries, places[:, :S], places[:, S:], visibility)
        return (out**2).sum()

    return jax.jit(jax.value_and_grad(loss))(weights), str(jax.make_jaxpr(jax.grad(loss))(weights))


@pytest.mark.parametrize("remat", ["full", "save_attention", "offload"])
def test_remat_keeps_loss_and_gradients(remat):
    (loss, gradients), _ = gradients_and_program("none")
    (again, others), program = gradients_and_program(remat)
    np.testing.assert_allclose(loss, again, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), gradients, others)
    assert "remat" in program or "checkpoint" in program

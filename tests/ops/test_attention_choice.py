"""Which strategy `auto` takes, and what cannot be had is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh

from tario_jax.config import InputError
from tario_jax.ops.attention import attention, choose_strategy
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility


def chosen(tokens, strategy="auto", context=None, **axes):
    """On a mesh of no real size: choosing looks at its axes alone."""
    q, k = (jax.ShapeDtypeStruct((2, tokens, heads, 16), jnp.float32) for heads in (4, 2))
    if context is None:
        return choose_strategy(q, k, strategy=strategy)
    with jax.sharding.use_abstract_mesh(_mesh(context, **axes)):
        return choose_strategy(q, k, strategy=strategy)


def _mesh(context, tensor=1, fsdp=1):
    axes = ("fsdp", "context", "tensor")
    one = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), axes, axis_types=(AxisType.Auto,) * 3)
    return one.abstract_mesh.update(axis_sizes=(fsdp, context, tensor))


def test_over_context_a_ring_once_there_are_many_keys():
    assert str(chosen(4096, context=8)) == "all-gather over context, blocks in plain XLA (no kernel for cpu)"
    assert str(chosen(16384, context=8)) == "ring over context, blocks in plain XLA (no kernel for cpu)"
    assert chosen(16384, context=1).strategy == "blockwise"  # nothing to spread
    assert chosen(16384, "ring", context=1).strategy == "ring"  # a ring of one


def test_a_kernel_is_asked_for_what_one_device_meets(monkeypatch):
    """512 rows of 16,384 tokens are more blocks than the TPU kernels can number; a device of a pod has few of them."""
    monkeypatch.setattr("tario_jax.ops.attention.ambient_platform", lambda: "tpu")
    q, k = (jax.ShapeDtypeStruct((512, 16384, heads, 128), jnp.bfloat16) for heads in (16, 4))
    assert "too many to number" in str(choose_strategy(q, k))
    with jax.sharding.use_abstract_mesh(_mesh(1, fsdp=256)):
        assert str(choose_strategy(q, k)) == "TPU kernel"
    with jax.sharding.use_abstract_mesh(_mesh(16, fsdp=16)):
        assert str(choose_strategy(q, k)) == "ring over context, TPU kernel"
        assert str(choose_strategy(q, k, strategy="all_gather")) == "all-gather over context, TPU kernel"


def test_a_mesh_without_devices_is_taken_as_of_this_machine():
    with jax.sharding.use_abstract_mesh(AbstractMesh((8,), ("context",), axis_types=(AxisType.Auto,))):
        assert str(chosen(16384)) == "ring over context, blocks in plain XLA (no kernel for cpu)"


@pytest.mark.parametrize(
    ("strategy", "context", "message"),
    [
        ("ring", None, "'ring' without a mesh; expected one with the axis context"),
        ("blockwise", 4, "'blockwise' with context=4; expected ring or all_gather"),
        ("pallas", None, "'pallas': no kernel for cpu; expected auto or blockwise"),
        ("flash", None, "'flash'; expected one of auto, reference, blockwise, pallas, ring, all_gather"),
    ],
)
def test_what_cannot_be_had_is_refused(strategy, context, message):
    with pytest.raises(InputError, match=message):
        chosen(1024, strategy, context)


def test_heads_and_rows_that_devices_cannot_share_are_refused():
    zeros = jnp.zeros((2, 64), jnp.int32)
    visibility = QueryVisibility(zeros, zeros), KeyVisibility(zeros, zeros)
    q, k = jnp.zeros((2, 64, 3, 8)), jnp.zeros((2, 64, 3, 8))
    with jax.sharding.use_abstract_mesh(_mesh(2, tensor=2)):
        with pytest.raises(InputError, match="--config.mesh: 3 key heads do not divide over tensor = 2"):
            attention(q, k, k, *visibility, strategy="ring")

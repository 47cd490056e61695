"""Which way attention is computed, and that way over the mesh, with its derivative.

The derivative is our own: loops whose trip counts are known only at run time have none, and nothing of Sq × Sk is kept.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec

from tario_jax.config import BATCH_AXES, InputError
from tario_jax.ops.attention import all_gather, ring
from tario_jax.ops.attention.inner import Inner
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

# The name under which a remat policy finds what attention's backward pass needs: its output and log-sum-exp.
# jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT) spares the second forward pass.
ATTENTION_OUT = "attention_out"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is spread over `context`, what computes it on a device, and the mesh's axes that matter."""

    spread: Literal["none", "ring", "all_gather"]
    inner: Inner
    axes: tuple[tuple[str, int], ...]

    def ranks(self, *names: str) -> int:
        return math.prod(size for axis, size in self.axes if axis in names)

    def forward(self, *arrays, **numbers):
        return self._on_mesh(functools.partial(self._way("forward"), **numbers), arrays, (4, 3))

    def backward(self, *arrays, **numbers):
        return self._on_mesh(functools.partial(self._way("backward"), **numbers), arrays, (4, 4, 4))

    def _way(self, direction: str):
        if self.spread == "none":
            return getattr(self.inner, direction)
        return functools.partial(getattr(ring if self.spread == "ring" else all_gather, direction), self.inner)

    def _on_mesh(self, function, arrays, out_ndims: tuple[int, ...]):
        """`function` on what each device holds: every array's axes are rows, tokens, heads, width."""
        if not self.axes:
            return function(*arrays)
        names = [axis for axis, _ in self.axes]
        by_axis = [
            tuple(axis for axis in of if axis in names) or None for of in (BATCH_AXES, ("context",), ("tensor",))
        ]
        in_specs = jax.tree.map(lambda x: PartitionSpec(*by_axis[: x.ndim]), arrays)
        out_specs = tuple(PartitionSpec(*by_axis[:ndim]) for ndim in out_ndims)
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)


def mesh_axes(mesh: AbstractMesh, spread: str) -> tuple[tuple[str, int], ...]:
    """Axes of the ambient mesh (`jax.set_mesh`) that matter: those of more than one device, and the one of the ring."""
    return tuple(
        (axis, mesh.shape[axis])
        for axis in mesh.auto_axes
        if mesh.shape[axis] > 1 or (axis == "context" and spread != "none")
    )


def check_divides(plan: Plan, batch: int, heads: int, kv_heads: int) -> None:
    """Raises `InputError` where rows or heads cannot be shared equally."""
    rows, tensor = plan.ranks(*BATCH_AXES), plan.ranks("tensor")
    if batch % rows:
        raise InputError(f"attention: {batch} rows; expected a multiple of replica × fsdp = {rows}")
    if kv_heads % tensor:
        raise InputError(f"attention: {heads} heads on {kv_heads} key heads; expected a multiple of tensor = {tensor}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def planned_attention(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    plan: Plan,
    scale: float,
) -> jax.Array:
    """[B, Sq, H, D] in the dtype of q; see `tario_jax.ops.attention.attention`. Lengths divide over `context`."""
    arrays = (q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility)
    return plan.forward(*arrays, scale=scale, out_dtype=q_BxSqxHxD.dtype)[0]


def _forward_rule(q, k, v, q_visibility, kv_visibility, plan, scale):
    arrays = (q, k, v, q_visibility, kv_visibility)
    out, lse = plan.forward(*arrays, scale=scale, out_dtype=q.dtype)
    out, lse = checkpoint_name(out, ATTENTION_OUT), checkpoint_name(lse, ATTENTION_OUT)
    return out, (*arrays, out, lse)


def _backward_rule(plan, scale, residuals, d_out_BxSqxHxD):
    q, k, v, q_visibility, kv_visibility, out, lse_BxSqxH = residuals
    delta_BxSqxH = jnp.sum(d_out_BxSqxHxD.astype(jnp.float32) * out.astype(jnp.float32), -1)
    arrays = (q, k, v, q_visibility, kv_visibility, d_out_BxSqxHxD, lse_BxSqxH, delta_BxSqxH)
    return *plan.backward(*arrays, scale=scale, grad_dtype=q.dtype), None, None


planned_attention.defvjp(_forward_rule, _backward_rule)

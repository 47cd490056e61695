"""Which way attention is computed, and that way over the mesh, with its derivative.

The derivative is our own: loops whose trip counts are known only at run time have none, and nothing of Sq × Sk is kept.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from tario_jax.config import BATCH_AXES
from tario_jax.ops.attention import all_gather, ring
from tario_jax.ops.attention.inner import Inner
from tario_jax.ops.ranks import Ranks
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

# The name under which a remat policy finds what attention's backward pass needs: its output and log-sum-exp.
# jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT) spares the second forward pass.
ATTENTION_OUT = "attention_out"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is spread over `context`, what computes it on a device, and the axes of the mesh."""

    spread: Literal["none", "ring", "all_gather"]
    inner: Inner
    ranks: Ranks

    def forward(self, *arrays, **numbers):
        return self._on_mesh(functools.partial(self._way("forward"), **numbers), arrays, (4, 3))

    def backward(self, *arrays, **numbers):
        return self._on_mesh(functools.partial(self._way("backward"), **numbers), arrays, (4, 4, 4))

    def _way(self, direction: str):
        if self.spread == "none":
            return getattr(self.inner, direction)
        return functools.partial(getattr(ring if self.spread == "ring" else all_gather, direction), self.inner)

    def _on_mesh(self, function, arrays, out_ndims: tuple[int, ...]):
        """`function` on what each device holds."""
        in_specs = jax.tree.map(lambda x: self._spec(x.ndim), arrays)
        out_specs = tuple(self._spec(ndim) for ndim in out_ndims)
        return self.ranks.run(function, in_specs, out_specs)(*arrays)

    def placed(self, arrays):
        """The same where the devices want them, on a mesh with Explicit axes."""
        return jax.tree.map(lambda x: jax.sharding.reshard(x, self._spec(x.ndim)), arrays)

    def _spec(self, ndim: int) -> PartitionSpec:
        """Every array's axes are rows, tokens, heads, width."""
        return self.ranks.spec(*(BATCH_AXES, "context", "tensor", None)[:ndim])


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

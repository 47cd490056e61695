"""What computes attention on one device: blocks in plain XLA, or a kernel where there is one for the backend."""

import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp

from tario_jax.ops.attention import blockwise


@dataclasses.dataclass(frozen=True)
class Inner:
    """A module's `forward` and `backward` over the keys that one device holds; see `blockwise` for what they take.

    They give and take the float32 log-sum-exp, so that parts of attention over different keys can be added up.
    """

    strategy: str
    name: str
    module: ModuleType
    options: tuple[tuple[str, int], ...] = ()
    silences: bool = True  # whether its `backward` itself leaves out what queries that see nothing hold

    @property
    def forward(self):
        return functools.partial(self.module.forward, **dict(self.options))

    @property
    def backward(self):
        backward = functools.partial(self.module.backward, **dict(self.options))
        return backward if self.silences else functools.partial(_silenced, backward)


def blockwise_inner(block: int) -> Inner:
    """Plain XLA, in blocks of at most `block` tokens."""
    return Inner("blockwise", "blocks in plain XLA", blockwise, (("block", block),))


def kernel(platform: str, q_BxSqxHxD: jax.Array, k_BxSkxKxD: jax.Array) -> Inner | str:
    """The Pallas kernel for these arrays on a platform, or why there is none."""
    if platform == "tpu":
        from tario_jax.ops.attention import tpu  # imported where it is used: Pallas takes a second

        return tpu.unsupported(q_BxSqxHxD, k_BxSkxKxD) or Inner("pallas", "TPU kernel", tpu)
    if platform in ("gpu", "cuda"):
        from tario_jax.ops.attention import gpu

        return gpu.unsupported(q_BxSqxHxD, k_BxSkxKxD) or Inner("pallas", "GPU kernel", gpu, silences=False)
    return f"no kernel for {platform}"


def _silenced(backward, q_BxSqxHxD, k, v, q_visibility, kv_visibility, d_out_BxSqxHxD, lse_BxSqxH, delta_BxSqxH,
              **numbers):  # fmt: skip
    """`backward` of arrays in which a query that sees nothing is 0: a weight of 0 does not silence a NaN in it."""
    sees_BxSqxH = lse_BxSqxH != jnp.inf
    q, d_out = (jnp.where(sees_BxSqxH[..., None], x, 0) for x in (q_BxSqxHxD, d_out_BxSqxHxD))
    delta_BxSqxH = jnp.where(sees_BxSqxH, delta_BxSqxH, 0)
    return backward(q, k, v, q_visibility, kv_visibility, d_out, lse_BxSqxH, delta_BxSqxH, **numbers)

"""What computes attention on one device: blocks in plain XLA, or a kernel where there is one for the backend."""

import dataclasses
import functools
from types import ModuleType

import jax

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

    @property
    def forward(self):
        return functools.partial(self.module.forward, **dict(self.options))

    @property
    def backward(self):
        return functools.partial(self.module.backward, **dict(self.options))


def blockwise_inner(block: int) -> Inner:
    """Plain XLA, in blocks of at most `block` tokens."""
    return Inner("blockwise", "blocks in plain XLA", blockwise, (("block", block),))


def kernel(platform: str, q_BxSqxHxD: jax.Array, k_BxSkxKxD: jax.Array) -> Inner | str:
    """The Pallas kernel for these arrays on a platform, or why there is none."""
    return f"no kernel for {platform}"

"""Attention under the visibility rule; one file a strategy."""

import math

import jax
from jax.ad_checkpoint import checkpoint_name

from tario_jax.config import InputError
from tario_jax.ops.attention.blockwise import blockwise_attention
from tario_jax.ops.attention.reference import reference_attention
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

__all__ = ["ATTENTION_OUT", "STRATEGIES", "attention", "choose_strategy"]

# The name under which a remat policy finds what attention's backward pass needs: its output, and in blockwise the
# log-sum-exp too. jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT) spares the second forward pass.
ATTENTION_OUT = "attention_out"

STRATEGIES = ("reference", "blockwise")
_LARGEST_DENSE = 256**2


def choose_strategy(sq: int, sk: int) -> str:
    """The strategy that `auto` stands for: dense while a head's scores are few, blockwise beyond."""
    return "reference" if sq * sk <= _LARGEST_DENSE else "blockwise"


def attention(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    *,
    strategy: str = "auto",
    block: int = 256,
    scale: float | None = None,
) -> jax.Array:
    """Softmax attention [B, Sq, H, D] in the dtype of q, where each query sees what the visibility rule grants it.

    Head h reads key head h // (H / K). `scale` defaults to 1 / sqrt(D); `block` is the greatest number of tokens of a
    block of the blockwise strategy. The softmax is in float32 throughout.

    A query that sees nothing gives exactly 0, and sends and receives gradients of exactly 0. A key that nobody sees
    does not matter, whatever it holds: NaN and inf in it reach neither outputs nor gradients.

    Raises `InputError` for an unknown strategy, for heads that do not divide, and for arrays that do not fit together.
    """
    if strategy != "auto" and strategy not in STRATEGIES:
        raise InputError(f"attention strategy is {strategy!r}; expected one of auto, {', '.join(STRATEGIES)}")
    if block < 1:
        raise InputError(f"attention block is {block}; expected at least 1")
    batch, sq, heads, width = q_BxSqxHxD.shape
    sk, kv_heads = k_BxSkxKxD.shape[1:3]
    if heads % kv_heads:
        raise InputError(f"attention has {heads} heads on {kv_heads} key heads; expected a multiple of the key heads")
    if k_BxSkxKxD.shape != (batch, sk, kv_heads, width) or v_BxSkxKxD.shape != k_BxSkxKxD.shape:
        raise InputError(
            f"attention: q is {q_BxSqxHxD.shape}, k {k_BxSkxKxD.shape}, v {v_BxSkxKxD.shape}; "
            "expected [B, Sq, H, D] and twice [B, Sk, K, D]"
        )
    for name, fields, length in (("q", q_visibility, sq), ("kv", kv_visibility, sk)):
        for field in fields:
            if field.shape != (batch, length):
                raise InputError(f"attention: {name}_visibility is {field.shape}; expected {(batch, length)}")
    if strategy == "auto":
        strategy = choose_strategy(sq, sk)
    scale = 1 / math.sqrt(width) if scale is None else scale
    if strategy == "reference":
        out = reference_attention(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, scale)
    else:
        out = blockwise_attention(
            q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility, block, scale, ATTENTION_OUT
        )
    return checkpoint_name(out, ATTENTION_OUT)

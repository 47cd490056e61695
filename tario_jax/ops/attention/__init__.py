"""Attention under the visibility rule.

One public function. `reference` is dense; `blockwise` and `pallas` compute on one device, in plain XLA or by a kernel
of the project's own; `ring` and `all_gather` spread them over the mesh axis `context`.
"""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from tario_jax.config import BATCH_AXES, InputError
from tario_jax.ops.attention.inner import Inner, blockwise_inner, kernel
from tario_jax.ops.attention.plan import ATTENTION_OUT, Plan, planned_attention
from tario_jax.ops.attention.reference import reference_attention
from tario_jax.ops.attention.work import padded
from tario_jax.ops.ranks import Ranks, ambient_platform
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

__all__ = ["ATTENTION_OUT", "STRATEGIES", "Choice", "attention", "choose_strategy"]

STRATEGIES = ("reference", "blockwise", "pallas", "ring", "all_gather")
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
_LARGEST_DENSE = 256**2  # scores of a head
_LONGEST_GATHERED = 8192  # keys: up to here all of them on every device are cheaper than a ring


@dataclasses.dataclass(frozen=True)
class Choice:
    """What computes attention; `str` of it is for the log."""

    strategy: str
    plan: Plan | None  # None: dense
    why: str = ""

    def __str__(self) -> str:
        if self.plan is None:
            return self.strategy
        words = {"none": "", "ring": "ring over context, ", "all_gather": "all-gather over context, "}
        return words[self.plan.spread] + self.plan.inner.name + (f" ({self.why})" if self.why else "")


def choose_strategy(
    q_BxSqxHxD: jax.Array | jax.ShapeDtypeStruct,
    k_BxSkxKxD: jax.Array | jax.ShapeDtypeStruct,
    *,
    strategy: str = "auto",
    block: int = 256,
) -> Choice:
    """What `attention` does with arrays of these shapes and dtypes, on the ambient mesh or else the default backend.

    `auto`: dense while a head's scores are few; over `context` a ring, or all-gather while the keys are few; on a
    device the kernel of its platform, or else plain XLA by blocks, and then `why` says what is missing.

    Raises `InputError` for an unknown strategy and for one that cannot be had here.
    """
    if strategy != "auto" and strategy not in STRATEGIES:
        raise InputError(f"attention strategy is {strategy!r}; expected one of auto, {', '.join(STRATEGIES)}")
    if "context" in jax.sharding.get_abstract_mesh().manual_axes:
        raise InputError("attention is inside a jax.shard_map over context; expected outside: it maps over it itself")
    ranks = Ranks.ambient(keep="context")
    context = ranks.count("context")
    sq, sk = q_BxSqxHxD.shape[1], k_BxSkxKxD.shape[1]
    if strategy == "auto":
        if context > 1:
            strategy = "ring" if sk > _LONGEST_GATHERED else "all_gather"
        elif sq * sk <= _LARGEST_DENSE:
            strategy = "reference"
    if strategy == "reference":
        return Choice(strategy, None)
    if strategy in ("ring", "all_gather") and not ranks.present("context"):
        raise InputError(f"attention strategy is {strategy!r} without a mesh; expected one with the axis context")
    if strategy in ("blockwise", "pallas") and context > 1:
        raise InputError(f"attention strategy is {strategy!r} with context={context}; expected ring or all_gather")
    tokens = () if strategy == "all_gather" else ("context",)
    q, k = _of_a_device(q_BxSqxHxD, ranks, "context"), _of_a_device(k_BxSkxKxD, ranks, *tokens)
    inner, why = _inner(strategy, q, k, block)
    if strategy in ("ring", "all_gather"):
        return Choice(strategy, Plan(strategy, inner, ranks), why)
    return Choice(inner.strategy, Plan("none", inner, Ranks.ambient()), why)


def _of_a_device(x_BxSxHxD, ranks: Ranks, *of_tokens: str) -> jax.ShapeDtypeStruct:
    """What a device meets at once of an array whose tokens are split over the axes `of_tokens`."""
    (rows, tokens, heads, width), dtype = x_BxSxHxD.shape, x_BxSxHxD.dtype
    parts = ranks.count(*BATCH_AXES), ranks.count(*of_tokens), ranks.count("tensor")
    here = (math.ceil(size / part) for size, part in zip((rows, tokens, heads), parts, strict=True))
    return jax.ShapeDtypeStruct((*here, width), dtype)


def _inner(strategy: str, q, k, block: int) -> tuple[Inner, str]:
    """What computes on a device, where it meets q and k of these shapes, and why it is not the kernel."""
    if strategy == "blockwise":
        return blockwise_inner(block), ""
    found = kernel(ambient_platform(), q, k)
    if isinstance(found, Inner):
        return found, ""
    if strategy == "pallas":
        raise InputError(f"attention strategy is 'pallas': {found}; expected auto or blockwise")
    return blockwise_inner(block), found


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

    Arrays are float32, bfloat16 or float16, visibilities int32. Head h reads key head h // (H / K). `scale` is above 0
    and by default 1 / sqrt(D); `block` is the greatest number of tokens of a block in plain XLA. The softmax is in
    float32 throughout. But for `reference`, derivatives are the first ones in reverse mode alone.

    Under an ambient mesh (`jax.set_mesh`) rows are split over replica × fsdp, tokens over context, heads over tensor;
    tokens are best dealt in `stripes`. Inside a `jax.shard_map` (with check_vma=False) over some of these axes, but not
    context, what it is given is one part.

    A query that sees nothing gives exactly 0, and sends and receives gradients of exactly 0. A key that nobody sees
    does not matter, whatever it holds: NaN and inf in it reach neither outputs nor gradients.

    Raises `InputError` for an unknown strategy or one that cannot be had, and for arrays that do not fit together.
    """
    arrays = jax.tree.map(jnp.asarray, (q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, q_visibility, kv_visibility))
    _check_arrays(*arrays)
    _check_numbers(block, scale)
    scale = q_BxSqxHxD.shape[-1] ** -0.5 if scale is None else float(scale)
    choice = choose_strategy(*arrays[:2], strategy=strategy, block=block)
    if choice.plan is None or 0 in (*q_BxSqxHxD.shape, *k_BxSkxKxD.shape):  # nothing to cut into blocks
        return jax.ad_checkpoint.checkpoint_name(reference_attention(*arrays, scale), ATTENTION_OUT)
    choice.plan.ranks.part(q_BxSqxHxD.shape[0], "rows", *BATCH_AXES)
    choice.plan.ranks.part(k_BxSkxKxD.shape[2], "key heads", "tensor")
    context = choice.plan.ranks.count("context")
    explicit = AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types
    if explicit:
        for length, what in ((q_BxSqxHxD.shape[1], "queries"), (k_BxSkxKxD.shape[1], "keys")):
            choice.plan.ranks.part(length, f"{what} on a mesh of Explicit axes", "context")
    q, k, v = (padded(x, context, 0) for x in arrays[:3])
    q_visibility, kv_visibility = jax.tree.map(lambda x: padded(x, context, -1), arrays[3:])
    if explicit:  # where axes are Auto, XLA places them by itself
        q, k, v, q_visibility, kv_visibility = choice.plan.placed((q, k, v, q_visibility, kv_visibility))
    out = planned_attention(q, k, v, q_visibility, kv_visibility, choice.plan, scale)
    return out[:, : q_BxSqxHxD.shape[1]]


def _check_arrays(q, k, v, q_visibility: QueryVisibility, kv_visibility: KeyVisibility) -> None:
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not fits:
        raise InputError(
            f"attention: q is {q.shape}, k {k.shape}, v {v.shape}; expected [B, Sq, H, D] and twice [B, Sk, K, D]"
        )
    heads, kv_heads = q.shape[2], k.shape[2]
    if not kv_heads or heads % kv_heads:
        raise InputError(f"attention has {heads} heads on {kv_heads} key heads; expected a multiple of the key heads")
    if not q.dtype == k.dtype == v.dtype:
        raise InputError(f"attention: q is {q.dtype}, k {k.dtype}, v {v.dtype}; expected one dtype")
    if q.dtype not in _DTYPES:
        raise InputError(f"attention: q, k and v are {q.dtype}; expected float32, bfloat16 or float16")
    for name, fields, of in (("q", q_visibility, q), ("kv", kv_visibility, k)):
        for field in fields:
            if field.shape != of.shape[:2]:
                raise InputError(f"attention: {name}_visibility is {field.shape}; expected {of.shape[:2]}")
            if field.dtype != jnp.int32:  # −1 is padding; mixed types would be rounded where they travel as one message
                raise InputError(f"attention: {name}_visibility is {field.dtype}; expected int32")


def _check_numbers(block: int, scale: float | None) -> None:
    if block < 1:
        raise InputError(f"attention block is {block}; expected at least 1")
    if scale is not None and not (isinstance(scale, numbers.Real) and 0 < scale < math.inf):
        raise InputError(f"attention scale is {scale}; expected a positive number that is known before tracing")

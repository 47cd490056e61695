"""Attention by TPU kernels (Pallas, Mosaic): forward, and backward in two kernels, dQ and then dK with dV.

What there is to compute is known at run time only, so it is the grid: its length is the number of pairs of blocks
that are listed, over all rows of the batch, and the index maps read the list. So an empty pair costs neither time nor
memory traffic and a full one no mask, and while one pair is computed the blocks of the next are fetched, also from one
block of queries to the next and from one row to the next. Sums are in the order of the list: every run has the same
bits.

The list stands in scalar memory, one integer an entry. Where it could be too long for that (one row of more than
185,000 tokens, or eight of more than 65,536), a kernel runs several times, each over a part of its own blocks.

Axes: M tokens of queries and N of keys, all rows of the batch end to end, each row padded to whole blocks.
"""

import functools
import math

import jax
import jax.numpy as jnp

from tario_jax.ops.attention.tpu_grid import Blocks, Step, parts
from tario_jax.ops.attention.tpu_kernels import (
    KIND_BITS,
    LOG2_E,
    d_keys_kernel,
    d_queries_kernel,
    forward_kernel,
)
from tario_jax.ops.attention.work import block_pairs, blocked
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

# Tokens of a block. A step costs about 0.35 µs beside its arithmetic (Pallas' documentation), and a pair of 512 × 512
# at D = 128 keeps a v5e's matrix unit busy for 0.7 µs a head forward, 1.0 and 1.4 backward. Blocks of 1,024 compute
# more in vain at the borders of masks, and one head's scores, 4 MiB in float32, leave no room for a second head's.
BLOCK = 512
_LANES = 128
_LARGEST_WIDTH = 256


def unsupported(q_BxSqxHxD: jax.Array, k_BxSkxKxD: jax.Array) -> str | None:
    """Why the kernels cannot take arrays of these shapes and dtypes, or None."""
    width = q_BxSqxHxD.shape[-1]
    if q_BxSqxHxD.dtype not in (jnp.bfloat16, jnp.float32):
        return f"{q_BxSqxHxD.dtype} is neither bfloat16 nor float32"
    if k_BxSkxKxD.dtype != q_BxSqxHxD.dtype:
        return f"queries are {q_BxSqxHxD.dtype}, keys {k_BxSkxKxD.dtype}"
    if width % 8 or width > _LARGEST_WIDTH:
        return f"heads are {width} wide, not a multiple of 8 up to {_LARGEST_WIDTH}"
    blocks_q, blocks_k = (x.shape[0] * math.ceil(x.shape[1] / BLOCK) for x in (q_BxSqxHxD, k_BxSkxKxD))
    if blocks_q.bit_length() + blocks_k.bit_length() + KIND_BITS > 31:
        return f"{blocks_q} blocks of queries and {blocks_k} of keys are too many to number"
    return None


def forward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    *,
    scale: float,
    out_dtype: jax.typing.DTypeLike,
    interpret: bool = False,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Output [B, Sq, H, D] in `out_dtype` and natural log-sum-exp float32 [B, Sq, H].

    A query that sees nothing has an output of exactly 0 and a log-sum-exp of +inf. What a key holds that nobody sees
    does not matter, NaN included. `interpret` runs the kernels on any backend, slowly. `block` is the greatest number
    of tokens of a block; on a TPU a multiple of 128.
    """
    batch, sq, _, width = q_BxSqxHxD.shape
    blocks = Blocks(_block_size(sq, block), _block_size(k_BxSkxKxD.shape[1], block))
    q_HxDxM = _tokens_last(q_BxSqxHxD, blocks.q)
    k_KxDxN, v_KxDxN = (_tokens_last(x, blocks.k) for x in (k_BxSkxKxD, v_BxSkxKxD))
    sight_2xM, mark_2xN = _fields(q_visibility, blocks.q, -1), _fields(kv_visibility, blocks.k, -2)

    outs = []
    for part in parts(block_pairs(q_visibility, kv_visibility, *blocks), by_keys=False):
        step = Step.of(part, blocks, q_HxDxM, k_KxDxN, by_keys=False)
        outs.append(
            step.run(
                functools.partial(forward_kernel, other_bits=part.other_bits, scale=scale),
                operands=(
                    (q_HxDxM, step.queries(width)),
                    (k_KxDxN, step.keys(width)),
                    (v_KxDxN, step.keys(width)),
                    (sight_2xM, step.sight()),
                    (mark_2xN, step.mark()),
                ),
                results=(step.result(width, out_dtype), step.result(1, jnp.float32)),
                scratch=(
                    ((step.heads, 1, blocks.q), jnp.float32),
                    ((step.heads, 1, blocks.q), jnp.float32),
                    ((step.heads, width, blocks.q), jnp.float32),
                ),
                products=2,
                interpret=interpret,
            )
        )
    out_HxDxM, lse_Hx1xM = _joined(outs)
    return _tokens_second(out_HxDxM, batch, sq), _tokens_second(lse_Hx1xM, batch, sq)[..., 0]


def backward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    d_out_BxSqxHxD: jax.Array,
    lse_BxSqxH: jax.Array,
    delta_BxSqxH: jax.Array,
    *,
    scale: float,
    grad_dtype: jax.typing.DTypeLike,
    interpret: bool = False,
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v in `grad_dtype`, from float32 log-sum-exp and delta = rowsum(d_out ∘ out).

    The log-sum-exp may be of more keys than these, as in a ring: the gradients are then the share of these keys. A
    query that sees nothing (+inf) sends nothing, even if it or its cotangent holds NaN. See `forward` for `interpret`
    and `block`.
    """
    (batch, sq, _, width), sk = q_BxSqxHxD.shape, k_BxSkxKxD.shape[1]
    blocks = Blocks(_block_size(sq, block), _block_size(sk, block))
    sees_BxSqxH = lse_BxSqxH != jnp.inf
    q, d_out = (jnp.where(sees_BxSqxH[..., None], x, 0).astype(q_BxSqxHxD.dtype) for x in (q_BxSqxHxD, d_out_BxSqxHxD))
    q_HxDxM, d_out_HxDxM = _tokens_last(q, blocks.q), _tokens_last(d_out, blocks.q)
    delta_BxSqxH = jnp.where(sees_BxSqxH, delta_BxSqxH, 0)
    k_KxDxN, v_KxDxN = (_tokens_last(x, blocks.k) for x in (k_BxSkxKxD, v_BxSkxKxD))
    of_row_Hx2xM = _tokens_last(jnp.stack([LOG2_E * lse_BxSqxH, delta_BxSqxH], -1), blocks.q)
    sight_2xM, mark_2xN = _fields(q_visibility, blocks.q, -1), _fields(kv_visibility, blocks.k, -2)
    pairs = block_pairs(q_visibility, kv_visibility, *blocks)

    def results(kernel, *, by_keys, products):
        found = []
        for part in parts(pairs, by_keys=by_keys):
            step = Step.of(part, blocks, q_HxDxM, k_KxDxN, by_keys=by_keys)
            turned, mark = ((step.kv_heads, blocks.k, width), q_HxDxM.dtype), ((blocks.k, 2), jnp.int32)
            of_keys = ((step.kv_heads, blocks.k, width), jnp.float32)
            of_queries = ((step.heads, width, blocks.q), jnp.float32)
            found.append(
                step.run(
                    functools.partial(kernel, other_bits=part.other_bits, scale=scale),
                    operands=(
                        (q_HxDxM, step.queries(width)),
                        (d_out_HxDxM, step.queries(width)),
                        (k_KxDxN, step.keys(width)),
                        (v_KxDxN, step.keys(width)),
                        (of_row_Hx2xM, step.queries(2)),
                        (sight_2xM, step.sight()),
                        (mark_2xN, step.mark()),
                    ),
                    results=[step.result(width, grad_dtype)] * (2 if by_keys else 1),
                    scratch=(turned, turned, mark, of_keys, of_keys) if by_keys else (of_queries,),
                    products=products,
                    interpret=interpret,
                )
            )
        return _joined(found)

    (dq_HxDxM,) = results(d_queries_kernel, by_keys=False, products=3)
    dk_KxDxN, dv_KxDxN = results(d_keys_kernel, by_keys=True, products=4)
    return (
        _tokens_second(dq_HxDxM, batch, sq),
        _tokens_second(dk_KxDxN, batch, sk),
        _tokens_second(dv_KxDxN, batch, sk),
    )


def _block_size(length: int, block: int) -> int:
    """`block`, or the even share of as many blocks where that is less, so that padding stays small."""
    share, unit = math.ceil(length / math.ceil(length / block)), min(block, _LANES)
    return min(block, math.ceil(share / unit) * unit)


def _tokens_last(x_BxSxHxD: jax.Array, block: int) -> jax.Array:
    """[H, D, M]: rows padded to whole blocks and set end to end."""
    _, length, heads, width = x_BxSxHxD.shape
    padding = [(0, 0), (0, -length % block), (0, 0), (0, 0)]
    return jnp.pad(x_BxSxHxD, padding).transpose(2, 3, 0, 1).reshape(heads, width, -1)


def _tokens_second(x_HxDxM: jax.Array, batch: int, length: int) -> jax.Array:
    """[B, S, H, D], the inverse of `_tokens_last`."""
    heads, width, _ = x_HxDxM.shape
    return x_HxDxM.reshape(heads, width, batch, -1)[..., :length].transpose(2, 3, 0, 1)


def _fields(visibility: QueryVisibility | KeyVisibility, block: int, padding: int) -> jax.Array:
    """int32 [2, M]: segment and step. Padding of queries and of keys gets numbers that are never equal."""
    segment_BxS, step_BxS = visibility
    segment_BxS = jnp.where(segment_BxS < 0, padding, segment_BxS)
    return jnp.stack([blocked(segment_BxS, block, padding).ravel(), blocked(step_BxS, block).ravel()])


def _joined(results_of_parts: list[list[jax.Array]]) -> list[jax.Array]:
    """Each result over all parts, whose tokens follow one another."""
    return [x[0] if len(x) == 1 else jnp.concatenate(x, -1) for x in zip(*results_of_parts, strict=True)]

"""Attention kernels for NVIDIA Hopper (Pallas Mosaic GPU): forward and backward under the visibility rule.

`forward` and `backward` are the inner block of every strategy: they return and take the float32 log-sum-exp, so that
ring attention can merge what it computes of one set of keys with what it knows of others.

Lists of work, made at run time for each row of the batch, say which pairs of blocks to compute: full ones, in a loop
that knows no mask, and partial ones, masked by the three integers of the tokens. All others cost nothing. There are no
atomics: the same inputs give the same bits.
"""

import jax
import jax.numpy as jnp

from tario_jax.ops.attention.gpu_backward import BACKWARD_TILES, BackwardTiles, gradient_of_queries, gradients_of_keys
from tario_jax.ops.attention.gpu_forward import FORWARD_TILES, ForwardTiles, attention_forward
from tario_jax.ops.attention.gpu_tiles import LOG2_E
from tario_jax.ops.attention.gpu_work import plan
from tario_jax.ops.attention.work import padded
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

_HOPPER = ("H100", "H200")


def unsupported(q_BxSqxHxD: jax.Array, k_BxSkxKxD: jax.Array) -> str | None:
    """None where the kernels can run on these arrays, or the reason why they cannot: on the devices of the ambient mesh
    where those are GPUs that are not here, else on this machine."""
    width = q_BxSqxHxD.shape[-1]
    for x in (q_BxSqxHxD, k_BxSkxKxD):
        if x.dtype != jnp.bfloat16:
            return f"the GPU kernels take bfloat16, not {x.dtype}"
    if width not in FORWARD_TILES:
        return f"the GPU kernels take heads of width {' or '.join(map(str, FORWARD_TILES))}, not {width}"
    target, here = jax.sharding.get_abstract_mesh().abstract_device, jax.local_devices()[0]
    elsewhere = target is not None and target.platform in ("gpu", "cuda") and target.device_kind != here.device_kind
    if jax.default_backend() != "gpu" and not elsewhere:
        return f"the GPU kernels need an NVIDIA GPU; jax runs on {jax.default_backend()}"
    if jax.__version_info__ < (0, 11):
        return f"the GPU kernels are tested from jax 0.11 on; this is {jax.__version__}"
    if elsewhere:
        of_hopper = any(name in target.device_kind for name in _HOPPER)
        return None if of_hopper else f"the GPU kernels are for Hopper; the mesh is of {target.device_kind}"
    capability = getattr(here, "compute_capability", "unknown")
    if capability != "9.0":
        return f"the GPU kernels need compute capability 9.0 (Hopper); this GPU has {capability}"
    return None


def forward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    q_visibility: QueryVisibility,
    kv_visibility: KeyVisibility,
    *,
    scale: float,
    out_dtype,
    interpret=False,
    tiles: ForwardTiles | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention [B, Sq, H, D] in `out_dtype`, and its natural log-sum-exp float32 [B, Sq, H].

    A query that sees nothing gives exactly 0 and +inf. `scale` is positive: the kernel scales after it takes the
    maximum. `interpret` takes the parameters of jax's interpreter of GPU kernels, for a machine without one.
    """
    tiles = tiles or FORWARD_TILES[q_BxSqxHxD.shape[-1]]
    sq = q_BxSqxHxD.shape[1]
    pairs = plan(q_visibility, kv_visibility, tiles.block_q, tiles.block_k)
    out_BxSqxHxD, lse_BxHxSq = attention_forward(
        padded(q_BxSqxHxD, tiles.block_q),
        padded(k_BxSkxKxD, tiles.block_k),
        padded(v_BxSkxKxD, tiles.block_k),
        pairs.tokens,
        pairs.by_queries(),
        scale=scale,
        out_dtype=out_dtype,
        tiles=tiles,
        interpret=interpret,
    )
    return out_BxSqxHxD[:, :sq], lse_BxHxSq.swapaxes(1, 2)[:, :sq]


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
    grad_dtype,
    interpret=False,
    tiles: BackwardTiles | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of q, k and v in `grad_dtype`, from the gradient of the output.

    `delta` is the sum over the width of d_out · out, float32. `lse` may be of more keys than these, as in ring
    attention; +inf is a query that sees nothing, whose q and d_out must be 0. `scale` is positive.
    """
    tiles = tiles or BACKWARD_TILES[q_BxSqxHxD.shape[-1]]
    sq, sk = q_BxSqxHxD.shape[1], k_BxSkxKxD.shape[1]
    pairs = plan(q_visibility, kv_visibility, tiles.block_q, tiles.block_k)
    # A padding query has q, d_out and delta of 0 and a log-sum-exp of +inf: its weights are 0.
    lse_BxSqxH = padded(lse_BxSqxH * LOG2_E, tiles.block_q, jnp.inf)
    rows_BxHx2xSq = jnp.stack([lse_BxSqxH, padded(delta_BxSqxH, tiles.block_q)]).transpose(1, 3, 0, 2)
    arguments = (
        padded(q_BxSqxHxD, tiles.block_q),
        padded(k_BxSkxKxD, tiles.block_k),
        padded(v_BxSkxKxD, tiles.block_k),
        padded(d_out_BxSqxHxD, tiles.block_q),
        rows_BxHx2xSq,
        pairs.tokens,
    )
    static = dict(scale=scale, grad_dtype=grad_dtype, tiles=tiles, interpret=interpret)
    dq_BxSqxHxD = gradient_of_queries(*arguments, pairs.by_queries(), **static)
    dk_BxSkxKxD, dv_BxSkxKxD = gradients_of_keys(*arguments, pairs.by_keys(), **static)
    return dq_BxSqxHxD[:, :sq], dk_BxSkxKxD[:, :sk], dv_BxSkxKxD[:, :sk]

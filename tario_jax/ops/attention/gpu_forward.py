"""The forward pass on Hopper: softmax attention of blocks of queries over lists of blocks of keys.

A program of the grid owns one block of queries of one head. One warpgroup copies keys and values into shared memory, a
few blocks ahead; each of the others computes 64 rows. The scores of block n and the weighted values of block n − 1 are
on the matrix unit together, so that the softmax of n hides behind the values of n − 1, an idea of FlashAttention-3
(Shah et al., arXiv 2407.08608). Where registers allow it, the scores can be a block further ahead: then the softmax
waits for no product at all. The online softmax is that of FlashAttention-2 (Dao, arXiv 2307.08691).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tario_jax.ops.attention.gpu_tiles import (
    LN_2,
    LOG2_E,
    LOWEST,
    ROWS,
    TILE,
    WARPGROUP_ROWS,
    Hopper,
    Interpreted,
    Masks,
    across,
    folded,
    memory_registers,
    tile_buffer,
)
from tario_jax.ops.attention.gpu_work import Tokens, Work


@dataclasses.dataclass(frozen=True)
class ForwardTiles:
    warpgroups: int  # that compute; each owns 64 queries of a block
    block_k: int
    stages: int  # blocks of keys, and of values, in shared memory
    registers: int  # of a thread of a computing warpgroup
    ahead: bool  # whether the scores of a block are computed during the softmax of the one before

    def __post_init__(self):
        if self.ahead and self.stages < 3:  # else values and keys would wait for each other
            raise ValueError(f"scores ahead need at least 3 stages, not {self.stages}")

    @property
    def block_q(self) -> int:
        return self.warpgroups * WARPGROUP_ROWS


# By the width of heads: the fastest of those measured on one H100, without a mask, 16 heads, 8,192 tokens. TFLOP/s of
# width 128: block_k 128 616, block_k 64 525, three warpgroups and block_k 64 513; taking turns to issue products, as
# FlashAttention-3 does, 594 to 615. Of width 64: 411 to 428; three warpgroups 394 to 412 (they gain 4 % at 16,384
# tokens, but blocks of 192 queries cut across tiles); block_k 192 377. `ahead` has no registers left at width 128.
FORWARD_TILES = {
    64: ForwardTiles(warpgroups=2, block_k=128, stages=3, registers=240, ahead=False),
    128: ForwardTiles(warpgroups=2, block_k=128, stages=2, registers=240, ahead=False),
}


def attention_forward(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    tokens: Tokens,
    work: Work,
    *,
    scale: float,
    out_dtype,
    tiles: ForwardTiles,
    interpret,
) -> tuple[jax.Array, jax.Array]:
    """Output [B, Sq, H, D] and natural log-sum-exp float32 [B, H, Sq]; Sq and Sk are whole blocks.

    `work` lists, for each block of queries, the blocks of keys that it meets.
    """
    batch, sq, heads, width = q_BxSqxHxD.shape
    blocks_of_keys = work.other_BxXxY.shape[-1]
    repeats = heads // k_BxSkxKxD.shape[2]
    block_q, block_k, stages, warpgroups = tiles.block_q, tiles.block_k, tiles.stages, tiles.warpgroups
    core = Interpreted if interpret else Hopper
    scale_log2 = scale * LOG2_E
    rows, tile, dtype = WARPGROUP_ROWS, (WARPGROUP_ROWS, block_k), k_BxSkxKxD.dtype

    def kernel(q_gmem, k_gmem, v_gmem, segment_q, read_step, segment_kv, write_step, *refs):
        other, full, seen, listed, out_gmem, lse_gmem, buffers, barriers = refs
        q_smem, k_smem, v_smem, tokens_smem, lse_smem = buffers
        q_here, k_here, v_here, tokens_here, k_free, v_free, blanked = barriers
        b, h = lax.axis_index("b"), lax.axis_index("h")
        x = sq // block_q - 1 - lax.axis_index("x")  # a causal mask gives the last blocks most: they go first
        warpgroup = lax.axis_index("warpgroup")
        full, seen, listed = full[b, x], seen[b, x], listed[b, x]
        steps = jnp.maximum(listed, 1)  # what sees nothing meets one block, which its mask blanks out

        @pl.when(warpgroup < warpgroups)
        def _compute():
            plgpu.set_max_registers(tiles.registers, action="increase")
            mine = pl.ds(x * block_q + warpgroup * rows, rows)
            q_tile = q_smem.at[warpgroup]
            plgpu.copy_gmem_to_smem(q_gmem.at[b, mine, h], q_tile, q_here.at[warpgroup])
            my_tokens = (core.load_global(field.at[b, mine], ROWS) for field in (segment_q, read_step))
            masks = Masks(core, tuple(my_tokens), tokens_smem, tokens_here, rows_are_queries=True)
            plgpu.barrier_wait(q_here.at[warpgroup])

            def masked(scores, n):
                tokens_slot = lax.rem(n, stages + 2)
                masks.wait(tokens_slot)
                return jnp.where(masks.visible(tokens_slot), scores, -jnp.inf)

            def softmax(scores, top, total):
                """Weights of these scores, the new top and total, and the factor of all that was summed so far."""
                highest = folded(scores, jnp.maximum)
                new_top = jnp.maximum(top, highest.max(axis=1) * scale_log2)
                weights = jnp.exp2(scores * scale_log2 - across(new_top, tile))
                factor = jnp.exp2(top - new_top)
                total = total * across(factor, total.shape) + folded(weights, jnp.add)
                return weights, new_top, total, factor

            def blank_unseen_values(n):
                slots = lax.rem(n, stages), lax.rem(n, stages + 2)
                masks.blank_unseen(v_smem, *slots, warpgroup, warpgroups, blanked)

            def use(scores, n, kind, top, total):
                return softmax(scores if kind == "full" else masked(scores, n), top, total)

            def wait_for_keys(n):
                @pl.when(n <= steps)
                def _():
                    plgpu.barrier_wait(k_here.at[lax.rem(n, stages)])

            def step_ahead(n, state, kind):
                """State: scores of n, weights of n − 1 and what they count with."""
                scores, acc, weights, top, total = state
                slot, before, after = (lax.rem(n + stages + d, stages) for d in (0, -1, 1))
                (weights, top, total, factor), scores, acc = core.add_products(
                    (None, q_tile, core.transposed(k_smem.at[after])),
                    (acc, weights, v_smem.at[before]),
                    start=lambda: plgpu.barrier_wait(v_here.at[slot]),
                    use=lambda: use(scores, n, kind, top, total),
                    wait=lambda: wait_for_keys(n + 2),
                )
                plgpu.barrier_arrive(k_free.at[after])
                plgpu.barrier_arrive(v_free.at[before])
                acc *= across(factor, acc.shape)
                if kind == "unseen":
                    blank_unseen_values(n)
                return scores, acc, weights.astype(dtype), top, total

            def step(n, state, kind):
                _, acc, weights, top, total = state
                slot, before = lax.rem(n, stages), lax.rem(n + stages - 1, stages)

                def use_scores(scores):
                    plgpu.barrier_arrive(k_free.at[slot])
                    return use(scores, n, kind, top, total)

                plgpu.barrier_wait(k_here.at[slot])
                (weights, top, total, factor), acc = core.product_beside(
                    (q_tile, core.transposed(k_smem.at[slot])),
                    (acc, weights, v_smem.at[before]),
                    use=use_scores,
                    wait=lambda: plgpu.barrier_wait(v_here.at[slot]),
                )
                plgpu.barrier_arrive(v_free.at[before])
                acc *= across(factor, acc.shape)
                if kind == "unseen":
                    blank_unseen_values(n)
                return (), acc, weights.astype(dtype), top, total

            # The first block stands apart: there are no values before it. It always takes the mask.
            first = jnp.int32(0)
            top, total = core.full((rows,), LOWEST, ROWS), core.full((rows, 8), 0, TILE)
            plgpu.barrier_wait(k_here.at[0])
            scores = core.product(q_tile, core.transposed(k_smem.at[0]))
            plgpu.barrier_arrive(k_free.at[0])
            if tiles.ahead:
                plgpu.barrier_wait(k_here.at[1])
                (weights, top, total, _), scores = core.add_products(
                    (None, q_tile, core.transposed(k_smem.at[1])),
                    start=lambda: plgpu.barrier_wait(v_here.at[0]),
                    use=lambda: use(scores, first, "partial", top, total),
                    wait=lambda: wait_for_keys(first + 2),
                )
                plgpu.barrier_arrive(k_free.at[1])
            else:
                weights, top, total, _ = use(scores, first, "partial", top, total)
                scores = ()
                plgpu.barrier_wait(v_here.at[0])

            @pl.when(seen == 0)
            def _first_block_has_unseen_keys():
                blank_unseen_values(first)

            state = scores, core.full((rows, width), 0, TILE), weights.astype(dtype), top, total
            for kind, begin, end in (("full", 0, full), ("partial", full, seen), ("unseen", seen, listed)):
                body = functools.partial(step_ahead if tiles.ahead else step, kind=kind)
                state = lax.fori_loop(jnp.maximum(begin, 1), end, body, state)
            _, acc, weights, top, total = state
            last = lax.rem(steps - 1, stages)
            _, acc = core.add_products((acc, weights, v_smem.at[last]))
            plgpu.barrier_arrive(v_free.at[last])

            total = total.sum(axis=1)
            blind = total == 0
            acc *= across(jnp.where(blind, 0, 1 / jnp.where(blind, 1, total)), acc.shape)
            lse_smem[warpgroup] = jnp.where(blind, jnp.inf, (top + jnp.log2(total)) * LN_2)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(lse_smem.at[warpgroup], lse_gmem.at[b, h, mine])
            core.store_tile(acc.astype(out_dtype), q_tile, out_gmem.at[b, mine, h])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(warpgroup == warpgroups)
        def _copy():
            plgpu.set_max_registers(memory_registers(tiles.registers), action="decrease")

            def wait_until_read(free, n):
                @pl.when(n >= stages)
                def _():
                    plgpu.barrier_wait(free.at[lax.rem(n, stages)])

            @pl.loop(0, steps + tiles.ahead)
            def _one(n):
                slot = lax.rem(n, stages)
                block = other[b, x, jnp.minimum(n, steps - 1)]
                keys = pl.ds(lax.rem(block, blocks_of_keys) * block_k, block_k)
                wait_until_read(k_free, n)
                plgpu.copy_gmem_to_smem(k_gmem.at[b, keys, h // repeats], k_smem.at[slot], k_here.at[slot])

                @pl.when((n == 0) | (n >= full) & (n < steps))
                def _():
                    # Two slots more than keys have: a step is done with its tokens only after later keys were read.
                    tokens_slot = lax.rem(n, stages + 2)
                    for i, field in enumerate((segment_kv, write_step)):
                        buffer = tokens_smem.at[tokens_slot, i]
                        plgpu.copy_gmem_to_smem(field.at[b, keys], buffer, tokens_here.at[tokens_slot])

                @pl.when(n < steps)
                def _():
                    wait_until_read(v_free, n)
                    plgpu.copy_gmem_to_smem(v_gmem.at[b, keys, h // repeats], v_smem.at[slot], v_here.at[slot])

            def until_all_is_read(free, copies):
                @pl.loop(jnp.maximum(copies - stages, 0), copies)
                def _(n):
                    plgpu.barrier_wait(free.at[lax.rem(n, stages)])

            until_all_is_read(k_free, steps + tiles.ahead)
            until_all_is_read(v_free, steps)

    here = functools.partial(plgpu.Barrier, num_arrivals=1)
    free = functools.partial(plgpu.Barrier, num_arrivals=warpgroups, num_barriers=stages)
    run = plgpu.kernel(
        kernel,
        out_type=(
            jax.ShapeDtypeStruct(q_BxSqxHxD.shape, out_dtype),
            jax.ShapeDtypeStruct((batch, heads, sq), jnp.float32),
        ),
        grid=(batch, heads, sq // block_q),  # the last runs fastest: neighbours share keys and values in the cache
        grid_names=("b", "h", "x"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        scratch_types=(
            (
                tile_buffer(warpgroups, rows, width, dtype=dtype),
                tile_buffer(stages, block_k, width, dtype=dtype),
                tile_buffer(stages, block_k, width, dtype=dtype),
                plgpu.SMEM((stages + 2, 2, block_k), jnp.int32),
                plgpu.SMEM((warpgroups, rows), jnp.float32),
            ),
            (
                *(here(num_barriers=n) for n in (warpgroups, stages, stages)),
                plgpu.Barrier(num_arrivals=2, num_barriers=stages + 2),
                *(free(), free()),
                plgpu.Barrier(num_arrivals=warpgroups),
            ),
        ),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret or None,
    )
    return run(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, *tokens, *work)

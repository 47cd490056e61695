"""The backward pass on Hopper, in two kernels: one sums dQ over keys, one sums dK and dV over queries.

Both recompute the weights of a pair of blocks from the log-sum-exp. Two kernels do seven matrix products where one for
all sums would do five, but every sum stays in the registers of one warpgroup, in one order: no atomics, no partial sums
in memory, the same bits each time. The formulas are those of FlashAttention-2 (Dao, arXiv 2307.08691): with P the
weights, dP = dO Vᵀ and dS = P ∘ (dP − delta): dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dO.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tario_jax.ops.attention.gpu_tiles import (
    COLUMNS,
    LOG2_E,
    ROWS,
    TILE,
    WARPGROUP_ROWS,
    Hopper,
    Interpreted,
    Masks,
    across,
    down,
    memory_registers,
    tile_buffer,
)
from tario_jax.ops.attention.gpu_work import Tokens, Work


@dataclasses.dataclass(frozen=True)
class BackwardTiles:
    """A block of queries, and one of keys, is the share of all computing warpgroups: 64 tokens each."""

    warpgroups: int
    stages_k: int  # for dQ: blocks of keys, and of values, in shared memory
    part_q: int  # for dK and dV: queries of one step, a part of a block
    stages_q: int  # such parts in shared memory
    registers: int  # of a thread of a computing warpgroup

    @property
    def block_q(self) -> int:
        return self.warpgroups * WARPGROUP_ROWS

    block_k = block_q


# By the width of heads: the fastest of those measured on one H100, as for the forward pass. In TFLOP/s of the products
# computed: width 128, dQ 702 (blocks of 64 keys 626), dK and dV 662; width 64, dQ 611 (three warpgroups 513), dK and dV
# 609 (parts of 128 queries, which spill registers, 338).
BACKWARD_TILES = {
    64: BackwardTiles(warpgroups=2, stages_k=3, part_q=64, stages_q=3, registers=240),
    128: BackwardTiles(warpgroups=2, stages_k=2, part_q=64, stages_q=2, registers=240),
}


def gradient_of_queries(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    d_out_BxSqxHxD: jax.Array,
    rows_BxHx2xSq: jax.Array,
    tokens: Tokens,
    work: Work,
    *,
    scale: float,
    grad_dtype,
    tiles: BackwardTiles,
    interpret,
) -> jax.Array:
    """dQ [B, Sq, H, D]; Sq and Sk are whole blocks.

    `rows` are float32: the log-sum-exp in units of ln 2, then delta. `work` lists, for each block of queries, the
    blocks of keys that it meets.
    """
    batch, sq, heads, width = q_BxSqxHxD.shape
    blocks_of_keys = work.other_BxXxY.shape[-1]
    repeats = heads // k_BxSkxKxD.shape[2]
    block_q, block_k, stages, warpgroups = tiles.block_q, tiles.block_k, tiles.stages_k, tiles.warpgroups
    core = Interpreted if interpret else Hopper
    rows, tile, dtype = WARPGROUP_ROWS, (WARPGROUP_ROWS, block_k), k_BxSkxKxD.dtype

    def kernel(q_gmem, k_gmem, v_gmem, d_out_gmem, rows_gmem, segment_q, read_step, segment_kv, write_step, *refs):
        other, full, seen, listed, dq_gmem, buffers, barriers = refs
        q_smem, d_out_smem, k_smem, v_smem, tokens_smem = buffers
        q_here, k_here, v_here, tokens_here, k_free, v_free, blanked = barriers
        b, h = lax.axis_index("b"), lax.axis_index("h")
        x = sq // block_q - 1 - lax.axis_index("x")  # a causal mask gives the last blocks most: they go first
        warpgroup = lax.axis_index("warpgroup")
        full, seen, listed = full[b, x], seen[b, x], listed[b, x]

        @pl.when(warpgroup < warpgroups)
        def _compute():
            plgpu.set_max_registers(tiles.registers, action="increase")
            mine = pl.ds(x * block_q + warpgroup * rows, rows)
            q_tile, d_out_tile = q_smem.at[warpgroup], d_out_smem.at[warpgroup]
            plgpu.copy_gmem_to_smem(q_gmem.at[b, mine, h], q_tile, q_here.at[warpgroup])
            plgpu.copy_gmem_to_smem(d_out_gmem.at[b, mine, h], d_out_tile, q_here.at[warpgroup])
            my_tokens = (core.load_global(field.at[b, mine], ROWS) for field in (segment_q, read_step))
            masks = Masks(core, tuple(my_tokens), tokens_smem, tokens_here, rows_are_queries=True)
            lse, delta = (core.load_global(rows_gmem.at[b, h, i, mine], ROWS) for i in range(2))
            plgpu.barrier_wait(q_here.at[warpgroup])

            def step(n, dq, kind):
                slot = lax.rem(n, stages)
                plgpu.barrier_wait(k_here.at[slot])
                if kind != "full":
                    masks.wait(slot)
                if kind == "unseen":
                    masks.blank_unseen(k_smem, slot, slot, warpgroup, warpgroups, blanked)
                plgpu.barrier_wait(v_here.at[slot])
                weights, d_weights = core.product_beside(
                    (q_tile, core.transposed(k_smem.at[slot])),
                    (None, d_out_tile, core.transposed(v_smem.at[slot])),
                    use=lambda scores: jnp.exp2(scores * (scale * LOG2_E) - across(lse, tile)),
                )
                plgpu.barrier_arrive(v_free.at[slot])
                d_scores = weights * (d_weights - across(delta, tile))
                if kind != "full":
                    d_scores = jnp.where(masks.visible(slot), d_scores, 0)
                _, dq = core.add_products((dq, d_scores.astype(dtype), k_smem.at[slot]))
                plgpu.barrier_arrive(k_free.at[slot])
                return dq

            dq = core.full((rows, width), 0, TILE)
            for kind, begin, end in (("full", 0, full), ("partial", full, seen), ("unseen", seen, listed)):
                dq = lax.fori_loop(begin, end, functools.partial(step, kind=kind), dq)
            core.store_tile((dq * scale).astype(grad_dtype), q_tile, dq_gmem.at[b, mine, h])

        @pl.when(warpgroup == warpgroups)
        def _copy():
            plgpu.set_max_registers(memory_registers(tiles.registers), action="decrease")

            @pl.loop(0, listed)
            def _one(n):
                slot = lax.rem(n, stages)
                keys = pl.ds(lax.rem(other[b, x, n], blocks_of_keys) * block_k, block_k)

                @pl.when(n >= stages)
                def _():
                    plgpu.barrier_wait(k_free.at[slot])

                plgpu.copy_gmem_to_smem(k_gmem.at[b, keys, h // repeats], k_smem.at[slot], k_here.at[slot])

                @pl.when(n >= full)
                def _():
                    for i, field in enumerate((segment_kv, write_step)):
                        plgpu.copy_gmem_to_smem(field.at[b, keys], tokens_smem.at[slot, i], tokens_here.at[slot])

                @pl.when(n >= stages)
                def _():
                    plgpu.barrier_wait(v_free.at[slot])

                plgpu.copy_gmem_to_smem(v_gmem.at[b, keys, h // repeats], v_smem.at[slot], v_here.at[slot])

            @pl.loop(jnp.maximum(listed - stages, 0), listed)
            def _until_all_is_read(n):
                plgpu.barrier_wait(k_free.at[lax.rem(n, stages)])
                plgpu.barrier_wait(v_free.at[lax.rem(n, stages)])

    here = functools.partial(plgpu.Barrier, num_barriers=stages)
    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(q_BxSqxHxD.shape, grad_dtype),
        grid=(batch, heads, sq // block_q),
        grid_names=("b", "h", "x"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        scratch_types=(
            (
                tile_buffer(warpgroups, rows, width, dtype=dtype),
                tile_buffer(warpgroups, rows, width, dtype=dtype),
                tile_buffer(stages, block_k, width, dtype=dtype),
                tile_buffer(stages, block_k, width, dtype=dtype),
                plgpu.SMEM((stages, 2, block_k), jnp.int32),
            ),
            (
                plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
                *(here(num_arrivals=n) for n in (1, 1, 2, warpgroups, warpgroups)),
                plgpu.Barrier(num_arrivals=warpgroups),
            ),
        ),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret or None,
    )
    return run(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, d_out_BxSqxHxD, rows_BxHx2xSq, *tokens, *work)


def gradients_of_keys(
    q_BxSqxHxD: jax.Array,
    k_BxSkxKxD: jax.Array,
    v_BxSkxKxD: jax.Array,
    d_out_BxSqxHxD: jax.Array,
    rows_BxHx2xSq: jax.Array,
    tokens: Tokens,
    work: Work,
    *,
    scale: float,
    grad_dtype,
    tiles: BackwardTiles,
    interpret,
) -> tuple[jax.Array, jax.Array]:
    """dK and dV [B, Sk, K, D]: `work` lists, for each block of keys, the blocks of queries that it meets.

    Tiles are keys by queries, and a block of keys sums over all the query heads that read it. Keys that nobody sees
    need no blanking: whatever they hold stays in their own rows, where the mask removes it.
    """
    batch, _, heads, width = q_BxSqxHxD.shape
    sk, kv_heads = k_BxSkxKxD.shape[1:3]
    blocks_of_queries = work.other_BxXxY.shape[-1]
    block_q, block_k, part_q, stages = tiles.block_q, tiles.block_k, tiles.part_q, tiles.stages_q
    parts, repeats, warpgroups = block_q // part_q, heads // kv_heads, tiles.warpgroups
    steps_of_block = parts * repeats
    core = Interpreted if interpret else Hopper
    rows, tile, dtype = WARPGROUP_ROWS, (WARPGROUP_ROWS, part_q), k_BxSkxKxD.dtype

    def kernel(q_gmem, k_gmem, v_gmem, d_out_gmem, rows_gmem, segment_q, read_step, segment_kv, write_step, *refs):
        other, full, _, listed, dk_gmem, dv_gmem, buffers, barriers = refs
        k_smem, v_smem, q_smem, d_out_smem, rows_smem, tokens_smem = buffers
        kv_here, q_here, tokens_here, free = barriers
        b, kv_h, x = lax.axis_index("b"), lax.axis_index("h"), lax.axis_index("x")
        warpgroup = lax.axis_index("warpgroup")
        full, listed = full[b, x], listed[b, x]

        @pl.when(warpgroup < warpgroups)
        def _compute():
            plgpu.set_max_registers(tiles.registers, action="increase")
            mine = pl.ds(x * block_k + warpgroup * rows, rows)
            k_tile, v_tile = k_smem.at[warpgroup], v_smem.at[warpgroup]
            plgpu.copy_gmem_to_smem(k_gmem.at[b, mine, kv_h], k_tile, kv_here.at[warpgroup])
            plgpu.copy_gmem_to_smem(v_gmem.at[b, mine, kv_h], v_tile, kv_here.at[warpgroup])
            my_tokens = (core.load_global(field.at[b, mine], ROWS) for field in (segment_kv, write_step))
            masks = Masks(core, tuple(my_tokens), tokens_smem, tokens_here, rows_are_queries=False)
            plgpu.barrier_wait(kv_here.at[warpgroup])

            def step(n, sums, kind):
                dk, dv = sums
                slot = lax.rem(n, stages)
                plgpu.barrier_wait(q_here.at[slot])
                lse, delta = (core.load(rows_smem.at[slot, i], COLUMNS) for i in range(2))
                weights, d_weights = core.product_beside(
                    (k_tile, core.transposed(q_smem.at[slot])),
                    (None, v_tile, core.transposed(d_out_smem.at[slot])),
                    use=lambda scores: jnp.exp2(scores * (scale * LOG2_E) - down(lse, tile)),
                )
                d_scores = weights * (d_weights - down(delta, tile))
                if kind == "partial":
                    masks.wait(slot)
                    visible = masks.visible(slot)
                    weights, d_scores = jnp.where(visible, weights, 0), jnp.where(visible, d_scores, 0)
                _, dv, dk = core.add_products(
                    (dv, weights.astype(dtype), d_out_smem.at[slot]), (dk, d_scores.astype(dtype), q_smem.at[slot])
                )
                plgpu.barrier_arrive(free.at[slot])
                return dk, dv

            sums = core.full((rows, width), 0, TILE), core.full((rows, width), 0, TILE)
            for kind, begin, end in (("full", 0, full), ("partial", full, listed)):
                body = functools.partial(step, kind=kind)
                sums = lax.fori_loop(begin * steps_of_block, end * steps_of_block, body, sums)
            dk, dv = sums
            core.store_tile((dk * scale).astype(grad_dtype), k_tile, dk_gmem.at[b, mine, kv_h])
            core.store_tile(dv.astype(grad_dtype), v_tile, dv_gmem.at[b, mine, kv_h])

        @pl.when(warpgroup == warpgroups)
        def _copy():
            plgpu.set_max_registers(memory_registers(tiles.registers), action="decrease")

            @pl.loop(0, listed)
            def _block(i):
                first = lax.rem(other[b, x, i], blocks_of_queries) * block_q

                @pl.loop(0, steps_of_block)
                def _part(j):
                    n, h = i * steps_of_block + j, kv_h * repeats + j // parts
                    slot = lax.rem(n, stages)
                    queries = pl.ds(first + lax.rem(j, parts) * part_q, part_q)

                    @pl.when(n >= stages)
                    def _():
                        plgpu.barrier_wait(free.at[slot])

                    plgpu.copy_gmem_to_smem(q_gmem.at[b, queries, h], q_smem.at[slot], q_here.at[slot])
                    plgpu.copy_gmem_to_smem(rows_gmem.at[b, h, :, queries], rows_smem.at[slot], q_here.at[slot])
                    plgpu.copy_gmem_to_smem(d_out_gmem.at[b, queries, h], d_out_smem.at[slot], q_here.at[slot])

                    @pl.when(i >= full)
                    def _():
                        for field, buffer in ((segment_q, 0), (read_step, 1)):
                            buffer = tokens_smem.at[slot, buffer]
                            plgpu.copy_gmem_to_smem(field.at[b, queries], buffer, tokens_here.at[slot])

            steps = listed * steps_of_block

            @pl.loop(jnp.maximum(steps - stages, 0), steps)
            def _until_all_is_read(n):
                plgpu.barrier_wait(free.at[lax.rem(n, stages)])

    run = plgpu.kernel(
        kernel,
        out_type=(jax.ShapeDtypeStruct(k_BxSkxKxD.shape, grad_dtype),) * 2,
        grid=(batch, kv_heads, sk // block_k),
        grid_names=("b", "h", "x"),
        num_threads=warpgroups + 1,
        thread_name="warpgroup",
        scratch_types=(
            (
                tile_buffer(warpgroups, rows, width, dtype=dtype),
                tile_buffer(warpgroups, rows, width, dtype=dtype),
                tile_buffer(stages, part_q, width, dtype=dtype),
                tile_buffer(stages, part_q, width, dtype=dtype),
                plgpu.SMEM((stages, 2, part_q), jnp.float32),
                plgpu.SMEM((stages, 2, part_q), jnp.int32),
            ),
            (
                plgpu.Barrier(num_arrivals=2, num_barriers=warpgroups),
                *(plgpu.Barrier(num_arrivals=n, num_barriers=stages) for n in (3, 2, warpgroups)),
            ),
        ),
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret or None,
    )
    return run(q_BxSqxHxD, k_BxSkxKxD, v_BxSkxKxD, d_out_BxSqxHxD, rows_BxHx2xSq, *tokens, *work)

"""What the GPU kernels are made of: the few operations on tiles that Hopper does, and their plain equals for a CPU.

A *warpgroup* is four warps that issue one matrix product together (wgmma); a tile of 64 rows by n columns lies in its
registers. The kernels say how an array lies there by `TILE`, `ROWS` (one number a row of the tile) and `COLUMNS` (one a
column).

`Interpreted` has the same methods without registers and layouts: jax's interpreter of Mosaic GPU kernels simulates
copies, barriers and threads, but not accumulators that are read while another product runs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from tario_jax.ops.attention.gpu_work import NOBODY

WARPGROUP_ROWS = 64  # of one wgmma
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
LOWEST = -1e30  # below every score; finite, so that the difference of two is never NaN

TILE = plgpu.Layout.WGMMA
ROWS = plgpu.Layout.WGMMA.reduce(1)
COLUMNS = plgpu.Layout.WGMMA.reduce(0)


def tile_buffer(*shape: int, dtype):
    """Shared memory for tiles [..., rows, columns] in the order that copy engine and matrix unit want: in swizzles of
    128 bytes."""
    transforms = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize)), plgpu.SwizzleTransform(128)
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def memory_registers(registers: int) -> int:
    """What is left for a thread of the warpgroup that copies, of 65,536 in all."""
    return 24 if registers > 200 else 32


def across(x_rows: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """One number a row, over the columns of a tile."""
    return lax.broadcast_in_dim(x_rows, shape, (0,))


def down(x_columns: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """One number a column, over the rows of a tile."""
    return lax.broadcast_in_dim(x_columns, shape, (1,))


def folded(x: jax.Array, combine: Callable) -> jax.Array:
    """A tile [64, n] folded to [64, 8] by halves: every thread combines its own numbers, none waits for a neighbour.

    Eight columns are what the four threads of a row hold of the smallest tile.
    """
    while x.shape[1] > 8:
        half = x.shape[1] // 2
        x = combine(x[:, :half], x[:, half:])
    return x


def _nothing():
    pass


class Hopper:
    """On the GPU."""

    @staticmethod
    def full(shape, value, layout) -> jax.Array:
        return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)

    @staticmethod
    def load(ref, layout) -> jax.Array:
        """From shared memory."""
        return plgpu.load(ref, layout=layout)

    @staticmethod
    def load_global(ref, layout) -> jax.Array:
        return plgpu.load(ref, layout=layout, optimized=False)

    @staticmethod
    def transposed(ref):
        """A view, for an operand of a product."""
        return ref.transpose((1, 0))

    @staticmethod
    def product(a, b) -> jax.Array:
        """a @ b, float32. `a` is in shared memory or in registers, `b` in shared memory."""

        def issue(acc):
            plgpu.wgmma(acc, a, b)
            return acc[...]

        return pl.run_scoped(issue, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))

    @staticmethod
    def add_products(*terms, start: Callable = _nothing, use: Callable = _nothing, wait: Callable = _nothing):
        """(use(), total + a @ b of each term (total, a, b), …), all under way together; a total of None is 0.

        `start` runs when they are under way, then `use`, which does not need them, then `wait`.
        """

        def issue(*accs):
            for acc, (total, a, b) in zip(accs, terms, strict=True):
                if total is not None:
                    acc[...] = total
                plgpu.wgmma(acc, a, b)
            start()
            used = use()
            if used is not None:
                used = lax.optimization_barrier(used)
            wait()
            return used, *(acc[...] for acc in accs)

        shapes = ((a.shape[0], b.shape[1]) for _, a, b in terms)
        return pl.run_scoped(issue, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))

    @staticmethod
    def product_beside(first, second, use: Callable, start: Callable = _nothing, wait: Callable = _nothing):
        """(use(a @ b), total + c @ d) for first = (a, b), second = (total, c, d); a total of None is 0.

        `start` runs when both are under way, `use` as soon as the first is there, while the second still runs, and
        then `wait`.
        """
        (a, b), (total, c, d) = first, second

        def issue(acc_first, acc_second):
            if total is not None:
                acc_second[...] = total
            plgpu.wgmma(acc_first, a, b)
            plgpu.wgmma(acc_second, c, d)
            start()
            # Two compilers would move the work of `use` behind the wait for the second product: this barrier holds
            # back LLVM; where it pays to hold back ptxas too, `wait` waits for a barrier in shared memory: a loop.
            used = lax.optimization_barrier(use(plgpu.wgmma_accumulator_load(acc_first, wait_n=1)))
            wait()
            return used, acc_second[...]

        shapes = (a.shape[0], b.shape[1]), (c.shape[0], d.shape[1])
        return pl.run_scoped(issue, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))

    @staticmethod
    def store_tile(x: jax.Array, buffer, destination) -> None:
        """To global memory: by the copy engine where `buffer` in shared memory has the dtype of x, else directly."""
        if buffer.dtype == x.dtype:
            buffer[...] = x
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(buffer, destination)
            plgpu.wait_smem_to_gmem(0)
        else:
            destination[...] = x


class Interpreted:
    """On a CPU, inside jax's interpreter: the same numbers."""

    @staticmethod
    def full(shape, value, layout):
        return jnp.full(shape, value, jnp.float32)

    @staticmethod
    def load(ref, layout):
        return ref[...]

    @staticmethod
    def transposed(ref):
        return ref[...].T

    @staticmethod
    def product(a, b):
        a, b = (x if isinstance(x, jax.Array) else x[...] for x in (a, b))
        return jnp.dot(a, b, preferred_element_type=jnp.float32)

    @classmethod
    def add_products(cls, *terms, start=_nothing, use=_nothing, wait=_nothing):
        start()
        used = use()
        wait()
        products = (cls.product(a, b) if total is None else total + cls.product(a, b) for total, a, b in terms)
        return used, *products

    @classmethod
    def product_beside(cls, first, second, use, start=_nothing, wait=_nothing):
        start()
        used = use(cls.product(*first))
        wait()
        total, c, d = second
        return used, cls.product(c, d) if total is None else total + cls.product(c, d)

    load_global = load
    store_tile = Hopper.store_tile


class Masks:
    """What a warpgroup with its 64 tokens, one a row of its tiles, needs to mask partial pairs of blocks.

    `rows` are segment and step of its tokens, `columns` a buffer [slots, 2, block] of those of the others.
    """

    def __init__(self, core, rows, columns, columns_here, rows_are_queries: bool):
        self.core, self.rows, self.columns, self.columns_here = core, rows, columns, columns_here
        self.rows_are_queries = rows_are_queries

    def wait(self, slot):
        plgpu.barrier_wait(self.columns_here.at[slot])

    def visible(self, slot) -> jax.Array:
        """bool [64, block], of the tokens in a slot that were waited for."""
        tile = WARPGROUP_ROWS, self.columns.shape[-1]
        segment, step = (across(x, tile) for x in self.rows)
        other_segment, other_step = (down(self.core.load(self.columns.at[slot, i], COLUMNS), tile) for i in range(2))
        written = other_step <= step if self.rows_are_queries else step <= other_step
        return (segment == other_segment) & written

    def blank_unseen(self, buffer, slot, tokens_slot, warpgroup, warpgroups: int, blanked):
        """Sets the rows of buffer[slot] that belong to keys that nobody sees to 0; the warpgroups share the work."""

        def blank(part):
            unseen = self.core.load(self.columns.at[tokens_slot, 0, part], ROWS) == NOBODY
            x = self.core.load(buffer.at[slot, part], TILE)
            buffer[slot, part] = jnp.where(across(unseen, x.shape), jnp.zeros_like(x), x)

        for i in range(buffer.shape[1] // WARPGROUP_ROWS):
            share = functools.partial(blank, pl.ds(i * WARPGROUP_ROWS, WARPGROUP_ROWS))
            pl.when(warpgroup == i % warpgroups)(share)
        plgpu.commit_smem()
        plgpu.barrier_arrive(blanked)
        plgpu.barrier_wait(blanked)

"""The grids of the TPU kernels: lists of pairs of blocks, and which operands each step of a kernel takes.

Terms: a kernel has *own* blocks, whose results it writes, and *other* blocks that they meet: by queries (forward, dQ)
own blocks are of queries and others of keys, by keys (dK, dV) the other way round.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tario_jax.ops.attention.tpu_kernels import END, FULL, IDLE, KIND_BITS, PARTIAL
from tario_jax.ops.attention.work import Pairs

# A step takes several heads, up to so many scores of all of them: they share the cost of a step, the mask, and the keys
# where they read the same ones, and the products of one run beside the exponentials of another. They are written out
# one after another in the program, which sets the bound: at 2^20 scores a kernel has 2 MB and compiles in 2 to 4 s. A
# product in float32 takes six passes.
_SCORES = {"bfloat16": 2**20, "float32": 2**18}
_HEADS = 8
_LONGEST_LIST = 2**17  # entries: half of the scalar memory of a core, 1 MiB
_VMEM_BYTES = 2**25  # of 2^26 (v5p, v7x) or 2^27 (v5e, v6e); blocks of 1,024 and D = 256 take more than 2^24


class Blocks(NamedTuple):
    """Tokens of a block."""

    q: int
    k: int


class Part(NamedTuple):
    """Some own blocks, of all rows of the batch end to end, and the list of their pairs.

    An entry is one integer: own block (counted from `start`), kind, other block. The list is in the order of these
    codes: an own block's entries stand together, full ones first.
    """

    start: int
    blocks: int
    other_bits: int
    codes: jax.Array  # int32, with at least one END behind the entries
    entries: jax.Array  # int32, how many they are


def parts(pairs: Pairs, *, by_keys: bool) -> list[Part]:
    """The lists of a kernel: one, or more where it could be too long for the scalar memory.

    An own block without a pair has one idle entry: its result is to be written all the same.
    """
    possible_BxXxY, full_BxXxY = (x.swapaxes(1, 2) if by_keys else x for x in pairs)
    batch, own, others = possible_BxXxY.shape
    other_bits = max(1, (batch * others - 1).bit_length())
    other_Bx1xY = jnp.arange(batch * others, dtype=jnp.int32).reshape(batch, 1, others)
    idle_BxXxY = ~possible_BxXxY.any(-1, keepdims=True) & (jnp.arange(others) == 0)
    kind_BxXxY = jnp.where(full_BxXxY, FULL, jnp.where(possible_BxXxY, PARTIAL, IDLE))
    code = (kind_BxXxY << other_bits | other_Bx1xY).reshape(-1, others)
    listed = (possible_BxXxY | idle_BxXxY).reshape(-1, others)

    found = []
    most = max(1, _LONGEST_LIST // others)
    for start in range(0, batch * own, most):
        blocks = min(most, batch * own - start)
        here = slice(start, start + blocks)
        of_own = jnp.arange(blocks, dtype=jnp.int32)[:, None] << (other_bits + KIND_BITS)
        codes = lax.sort(jnp.where(listed[here], of_own | code[here], END).ravel(), is_stable=False)
        codes = jnp.append(codes, jnp.int32(END))
        found.append(Part(start, blocks, other_bits, codes, listed[here].sum(dtype=jnp.int32)))
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step takes: `heads` heads of queries and the `kv_heads` key heads that they read.

    The grid is (groups of heads, entries), by keys (groups of key heads, entries, shares): where a key head is read by
    more heads than a step takes, `shares` steps follow one another with the same keys.
    """

    part: Part
    blocks: Blocks
    by_keys: bool
    heads: int
    kv_heads: int
    shares: int
    groups: int

    @classmethod
    def of(cls, part: Part, blocks: Blocks, q_HxDxM: jax.Array, k_KxDxN: jax.Array, *, by_keys: bool) -> "Step":
        heads, kv_heads = q_HxDxM.shape[0], k_KxDxN.shape[0]
        repeats = heads // kv_heads
        most = max(1, min(_HEADS, _SCORES[q_HxDxM.dtype.name] // (blocks.q * blocks.k)))

        def taking(count: int) -> Step:
            keys, shares = max(1, count // repeats), max(1, repeats // count)
            groups = kv_heads // keys if by_keys else heads // count
            return cls(part, blocks, by_keys, count, keys, shares, groups)

        whole = [n for n in range(most, 0, -1) if not (heads % n or (repeats % n and n % repeats))]
        steps = [taking(n) for n in whole]
        # The two cores of a v4 or v5p chip share the groups out: an even number of them keeps both busy.
        return next((step for step in steps if step.groups % 2 == 0), steps[0])

    @property
    def own_shape(self) -> tuple[int, int]:
        """Heads and tokens of a step's own block."""
        return (self.kv_heads, self.blocks.k) if self.by_keys else (self.heads, self.blocks.q)

    def queries(self, rows: int) -> pl.BlockSpec:
        """Of an operand [heads, rows, tokens of queries]."""
        return self._spec((self.heads, rows, self.blocks.q), self._q_group, own=not self.by_keys)

    def keys(self, rows: int) -> pl.BlockSpec:
        """Of an operand [key heads, rows, tokens of keys]."""
        return self._spec((self.kv_heads, rows, self.blocks.k), self._kv_group, own=self.by_keys)

    def sight(self) -> pl.BlockSpec:
        """Of an operand [2, tokens of queries]."""
        return self._spec((2, self.blocks.q), None, own=not self.by_keys)

    def mark(self) -> pl.BlockSpec:
        """Of an operand [2, tokens of keys]."""
        return self._spec((2, self.blocks.k), None, own=self.by_keys)

    def result(self, rows: int, dtype: jax.typing.DTypeLike) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """Of a result [all heads, rows, tokens of the part's own blocks]."""
        heads, tokens = self.own_shape
        shape = self.groups * heads, rows, self.part.blocks * tokens
        spec = self._spec((heads, rows, tokens), lambda group, *_: group, own=True, start=0)
        return jax.ShapeDtypeStruct(shape, dtype), spec

    def _q_group(self, group, _, share=0):
        return group * self.shares + share if self.by_keys else group

    def _kv_group(self, group, *_):
        return group if self.by_keys or self.shares == 1 else lax.div(group, jnp.int32(self.shares))

    def _spec(self, shape: tuple, group_of: Callable | None, *, own: bool, start: int | None = None) -> pl.BlockSpec:
        start, other_bits = self.part.start if start is None else start, self.part.other_bits

        def index(*place_and_codes):
            *place, codes = place_and_codes
            code = codes[place[1]]
            block = start + (code >> (other_bits + KIND_BITS)) if own else code & (2**other_bits - 1)
            return (0, block) if group_of is None else (group_of(*place), 0, block)

        return pl.BlockSpec(shape, index)

    def run(
        self,
        kernel: Callable,
        operands: Sequence[tuple[jax.Array, pl.BlockSpec]],
        results: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: Sequence[tuple[tuple[int, ...], jax.typing.DTypeLike]],
        *,
        products: int,
        interpret: bool,
    ) -> list[jax.Array]:
        """The kernel over the list; of each head and pair it makes `products` products of the pair's size."""
        (arrays, in_specs), (shapes, out_specs) = zip(*operands, strict=True), zip(*results, strict=True)
        grid = (self.groups, self.part.entries) + ((self.shares,) if self.by_keys else ())
        pairs = self.groups * self.heads * (self.shares if self.by_keys else 1) * self.part.codes.size // 2
        scores, width = pairs * self.blocks.q * self.blocks.k, arrays[0].shape[1]
        moved = sum(array.size * array.dtype.itemsize for array in (*arrays, *shapes))
        return pl.pallas_call(
            kernel,
            out_shape=shapes,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=grid,
                in_specs=in_specs,
                out_specs=out_specs,
                scratch_shapes=[pltpu.VMEM(*each) for each in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",) + ("arbitrary",) * (len(grid) - 1), vmem_limit_bytes=_VMEM_BYTES
            ),
            # As if half of all pairs were listed: XLA weighs by it what transfers the kernel can hide.
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * width, transcendentals=scores, bytes_accessed=moved
            ),
            name=f"visibility_attention_{kernel.func.__name__}",
            interpret=interpret,
        )(self.part.codes, *arrays)

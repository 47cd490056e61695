"""Attention tile by tile is attention under the rule with tiles for segments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.ops.attention import attention
from tario_jax.ops.attention import tiles as of_tiles
from tario_jax.ops.attention.tiles import Tiles, tile_attention
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

ROWS, TILES, HEADS, KV_HEADS, WIDTH = 2, 6, 4, 2, 8
LAID = Tiles((5, 3, 3), (5, 3))


def case(dtype="float32", seed=0):
    """q, k, v and visibilities; a padded tile and padded bins hold poison."""
    rng = np.random.default_rng(seed)

    def fields(stretches, queries):
        segments, steps = [], []
        for number, tokens in enumerate(stretches):
            segment = np.repeat(np.arange(TILES), tokens)[None].repeat(ROWS, 0)
            if number:
                segment = np.where(rng.random(segment.shape) < 0.2, -1, segment)
            segments.append(np.where(segment == 1, -1, segment))  # tile 1 is padding
            steps.append(rng.integers(0, 4, segment.shape) if number else np.zeros_like(segment))
        return (np.concatenate(part, 1).astype(np.int32) for part in (segments, steps))

    sight, mark = QueryVisibility(*fields(LAID.queries, True)), KeyVisibility(*fields(LAID.keys, False))
    q, k, v = (rng.normal(size=(ROWS, of.segment_BxS.shape[1], heads, WIDTH)).astype(np.float32)
               for of, heads in ((sight, HEADS), (mark, KV_HEADS), (mark, KV_HEADS)))  # fmt: skip
    q[sight.segment_BxS < 0] = np.nan
    for x in (k, v):
        x[mark.segment_BxS < 0] = np.inf
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), sight, mark


def outputs_and_gradients(way, q, k, v, sight, mark):
    out, pull = jax.vjp(lambda *qkv: way(*qkv, sight, mark), q, k, v)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(out.dtype))


def by_tiles(*given):
    return tile_attention(*given, LAID)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 2e-2)])
def test_it_is_dense_attention_by_the_rule(dtype, tolerance):
    given = case(dtype)
    exact = [jnp.asarray(x, "float32") for x in given[:3]]
    expected = outputs_and_gradients(lambda *g: attention(*g, strategy="reference"), *exact, *given[3:])
    for found, right in zip(outputs_and_gradients(by_tiles, *given), expected, strict=True):
        assert found.dtype == dtype and np.isfinite(np.float32(found)).all()
        assert np.linalg.norm(np.float32(found) - np.float32(right)) < tolerance * np.linalg.norm(np.float32(right))
    out = outputs_and_gradients(by_tiles, *given)[0]
    assert not np.float32(out)[given[3].segment_BxS < 0].any()  # exactly 0


def test_groups_of_tiles_give_the_same(monkeypatch):
    given = case()
    whole = outputs_and_gradients(by_tiles, *given)
    monkeypatch.setattr(of_tiles, "_BUDGET_BYTES", 4 * HEADS * 11 * 8 * 3)
    for found, right in zip(outputs_and_gradients(by_tiles, *given), whole, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)
    assert "scan" in str(jax.make_jaxpr(by_tiles)(*given))


def test_large_tiles_are_not_dense():
    assert Tiles((81, 16, 16), (81, 16)).are_small and not Tiles((1024, 100), (1024,)).are_small


_PROGRAM = """
import json
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import sys
sys.path.insert(0, "TESTS")
from test_tile_attention import LAID, by_tiles, case, outputs_and_gradients

q, k, v, sight, mark = case()
def dealt(x, stretches):  # two ranks, each its tiles of every stretch
    ends = np.cumsum([0, *(6 * tokens for tokens in stretches)])
    return np.concatenate([np.asarray(x)[:, begin + rank * (end - begin) // 2 : begin + (rank + 1) * (end - begin) // 2]
                           for rank in range(2) for begin, end in zip(ends, ends[1:])], 1)
given = (dealt(q, LAID.queries), dealt(k, LAID.keys), dealt(v, LAID.keys),
         jax.tree.map(lambda x: dealt(x, LAID.queries), sight), jax.tree.map(lambda x: dealt(x, LAID.keys), mark))
alone = outputs_and_gradients(by_tiles, q, k, v, sight, mark)[0]
mesh = jax.make_mesh((2, 2, 2), ("fsdp", "context", "tensor"), axis_types=(AxisType.Auto,) * 3)
def place(x):
    axes = ("fsdp", "context", "tensor") if x.ndim == 4 else ("fsdp", "context")
    return jax.device_put(x, NamedSharding(mesh, P(*axes)))
placed = jax.tree.map(place, given)
with jax.set_mesh(mesh):
    program = jax.jit(lambda *g: outputs_and_gradients(by_tiles, *g)).lower(*placed).compile()
out = np.asarray(program(*placed)[0])
text = program.as_text()
kinds = ("all-gather", "collective-permute", "all-to-all", "all-reduce(")
print(json.dumps({"error": float(np.abs(out - dealt(alone, LAID.queries)).max()),
                  "sent": [kind for kind in kinds if kind in text]}))
"""


def test_on_a_mesh_nothing_is_sent(devices8, repository):
    told = json.loads(devices8(_PROGRAM.replace("TESTS", str(repository / "tests" / "ops"))))
    assert told["error"] < 2e-6 and told["sent"] == []

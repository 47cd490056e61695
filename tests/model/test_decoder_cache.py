"""Generation in K steps: a cache that is written group by group gives what one pass over everything gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.cache import DecoderCache
from tario_jax.model.decoder import Decoder
from tario_jax.model.streams import Visibility
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

B, HE, BINS, D, K = 2, 10, 12, 16, 4


class Tissue:
    """H&E tokens, and contents and queries of bins that are written in K groups, in another order in each row."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.he, self.content, self.query = (
            rng.normal(size=(B, n, D)).astype(np.float32) for n in (HE, BINS, BINS)
        )  # fmt: skip
        self.he_xy, self.bin_xy = (rng.uniform(0, 100, (B, n, 2)).astype(np.float32) for n in (HE, BINS))
        self.step = rng.permuted(np.tile(np.repeat(np.arange(1, K + 1), BINS // K), (B, 1)), axis=1).astype(np.int32)
        self.he_tile, self.bin_tile = (rng.integers(0, 2, (B, n)).astype(np.int32) for n in (HE, BINS))

    def fields(self, kind):
        """Segment and step of the seen tokens, and segment of the queries, for a layer of this kind."""
        he = self.he_tile if kind == "local" else np.zeros((B, HE), np.int32)
        bins = self.bin_tile if kind == "local" else np.zeros((B, BINS), np.int32)
        zeros = np.zeros((B, HE), np.int32)
        seen, step = (np.concatenate(pair, 1) for pair in ((he, bins), (zeros, self.step)))
        return seen, step, bins


def everything(tissue, config):
    visibility = {}
    for kind in dict.fromkeys(config.pattern):
        seen, step, bins = tissue.fields(kind)
        visibility[kind] = Visibility(QueryVisibility(seen, step), QueryVisibility(bins, tissue.step - 1),
                                      KeyVisibility(seen, step))  # fmt: skip
    seen = np.concatenate([tissue.he, tissue.content], 1), np.concatenate([tissue.he_xy, tissue.bin_xy], 1)
    return seen[0], tissue.query, seen[1], tissue.bin_xy, visibility


def taken(x_BxNx___, at_Bxn):
    return np.stack([row[at] for row, at in zip(x_BxNx___, at_Bxn, strict=True)])


@pytest.mark.parametrize("pattern", [("global",), ("local", "global")])
def test_group_by_group_is_one_pass(pattern):
    config = ModelConfig(width=D, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=24, pattern=pattern)
    decoder, tissue = Decoder(config, nnx.Rngs(0)), Tissue()
    seen, query, seen_xy, bin_xy, visibility = everything(tissue, config)
    _, expected = decoder(seen, query, seen_xy, bin_xy, visibility)

    cache = DecoderCache.empty(config, B, HE + BINS, jnp.float32)
    extend = jax.jit(lambda cache, *arguments: decoder.extend(cache, *arguments))
    wrote_at = np.tile(np.arange(HE), (B, 1))  # the H&E first, with the queries of group 1
    found = np.zeros_like(expected)
    for group in range(1, K + 1):
        asked = np.stack([np.flatnonzero(row == group) for row in tissue.step])
        step_visibility = {
            kind: Visibility(
                QueryVisibility(*(taken(field, wrote_at) for field in visibility[kind].seen)),
                QueryVisibility(*(taken(field, asked) for field in visibility[kind].queries)),
                KeyVisibility(*(taken(field, wrote_at) for field in visibility[kind].keys)),
            )
            for kind in visibility
        }
        cache, out = extend(cache, wrote_at.astype(np.int32), taken(seen, wrote_at), taken(query, asked),
                            taken(seen_xy, wrote_at), taken(bin_xy, asked), step_visibility)  # fmt: skip
        for row in range(B):
            found[row, asked[row]] = out[row]
        wrote_at = HE + asked
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    # the content matters: without it, queries of later groups come out otherwise
    one_shot = {kind: fields._replace(queries=fields.queries._replace(read_step_BxS=np.zeros_like(tissue.step)))
                for kind, fields in visibility.items()}  # fmt: skip
    _, without = decoder(seen, query, seen_xy, bin_xy, one_shot)
    later = tissue.step > 1
    assert np.abs(np.asarray(without) - expected)[later].max() > 1e-3


def test_padding_is_not_kept():
    config = ModelConfig(width=D, layers=2, heads=2, kv_heads=1, head_dim=8, mlp_width=24)
    decoder = Decoder(config, nnx.Rngs(0))
    rng = np.random.default_rng(1)
    tokens, places = rng.normal(size=(B, 3, D)).astype(np.float32), np.zeros((B, 3, 2), np.float32)
    zeros = np.zeros((B, 3), np.int32)
    visibility = {"global": Visibility(*[QueryVisibility(zeros, zeros)] * 2, KeyVisibility(zeros, zeros))}
    slot = np.array([[4, -1, 0], [-1, 2, 1]], np.int32)
    cache = DecoderCache.empty(config, B, 5, jnp.float32)
    cache, _ = decoder.extend(cache, slot, tokens, tokens, places, places, visibility)
    written = np.asarray(cache.visibility["global"].segment_BxS) >= 0
    np.testing.assert_array_equal(written, [[True, False, False, False, True], [False, True, True, False, False]])
    np.testing.assert_array_equal(np.asarray(cache.k_LxBxSxKxD).any((0, 3, 4)), written)

"""The decoder: layers of visibility attention and gated MLPs, scanned.

Two streams: tokens that are seen (H&E and contents) and queries that nobody sees. Both are updated by the same
layers; keys and values are made for the first stream only.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tario_jax.config import ModelConfig
from tario_jax.model.cache import DecoderCache, kept_at
from tario_jax.model.declare import constant, rms_norm, start_of, weight
from tario_jax.model.reach import reach_constants
from tario_jax.model.streams import Streams, Visibility, context_ranks
from tario_jax.model.width import Growth
from tario_jax.ops.attention import ATTENTION_OUT, Choice, attention, choose_strategy
from tario_jax.ops.attention.tiles import Tiles, tile_attention
from tario_jax.ops.project import project
from tario_jax.ops.ranks import ambient_platform
from tario_jax.ops.rotary import Turns, rotate, turns_at
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

SHORTEST_UM, LONGEST_UM = 16.0, 8192.0
_PERIOD_IN = "period_in"  # the name under which a remat policy finds what enters a period of layers


class Decoder(nnx.Module):
    """Layers stacked along the first axis of every parameter."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        L, d, H, K, D, F = (
            config.layers, config.width, config.heads, config.kv_heads, config.head_dim, config.mlp_width,
        )  # fmt: skip
        out_gain = (2 * L) ** -0.5  # residual branches add up to variance 1
        grown = Growth.of(config)
        n = grown.width
        # scores · 1 / D of muP in place of 1 / √D
        self.score_gain = grown.head_dim**-0.5
        self.attention_norm = constant((L, d), ("layers", "vector"), 1.0)
        self.q = weight(rngs, (L, d, H, D), ("layers", "embed", "heads", "head_dim"), d, grown=n)
        self.k = weight(rngs, (L, d, K, D), ("layers", "embed", "kv_heads", "head_dim"), d, grown=n)
        self.v = weight(rngs, (L, d, K, D), ("layers", "embed", "kv_heads", "head_dim"), d, grown=n)
        self.q_norm = constant((L, D), ("layers", "vector"), 1.0)
        self.k_norm = constant((L, D), ("layers", "vector"), 1.0)
        of_heads = reach_constants(H, K, D, config.reach_um, shortest_um=SHORTEST_UM, longest_um=LONGEST_UM)
        self.q_reach, self.k_reach = (
            start_of(np.broadcast_to(start.ravel(), (L, start.size)), ("layers", "vector")) for start in of_heads
        )
        self.attention_out = weight(rngs, (L, H, D, d), ("layers", "heads", "head_dim", "embed"), H * D, out_gain,
                                    grown=n)  # fmt: skip
        self.mlp_norm = constant((L, d), ("layers", "vector"), 1.0)
        self.mlp_gate = weight(rngs, (L, d, F), ("layers", "embed", "mlp"), d, grown=n)
        self.mlp_in = weight(rngs, (L, d, F), ("layers", "embed", "mlp"), d, grown=n)
        self.mlp_out = weight(rngs, (L, F, d), ("layers", "mlp", "embed"), F, out_gain, grown=n)

    def __call__(self, seen_BxSxd, queries_BxQxd, seen_xy_um, query_xy_um, visibility: dict[str, Visibility],
                 tiles: Tiles | None = None, attend: Callable[..., jax.Array] | None = None):  # fmt: skip
        """Both streams after all layers.

        seen_xy_um [B, S, 2], query_xy_um [B, Q, 2]: places; visibility: that of "global" and of "local" layers; tiles:
        how they lie on each device, for local layers to attend tile by tile; attend(kind, q, k, v, looking, keys): in
        place of the config's attention.
        """
        config = self.config
        streams = Streams(seen_BxSxd.shape[1], context_ranks())
        turns = _turns(config, streams.together(seen_xy_um, query_xy_um))
        sees = {kind: (streams.looking(fields), fields.keys) for kind, fields in visibility.items()}
        dense = config.attention == "reference"  # of whole rows, in all layers
        small = tiles if tiles is not None and tiles.are_small and not dense else None

        def attends(kind, *qkv):
            if attend is not None:
                return attend(kind, *qkv, *sees[kind])
            if kind == "local" and small is not None:
                with jax.named_scope("attention"):
                    return tile_attention(*qkv, *sees[kind], small)
            return _attend(config, *qkv, *sees[kind])

        def layers_of_a_period(x, weights):
            x = checkpoint_name(x, _PERIOD_IN)
            for kind, layer in zip(config.pattern, weights, strict=True):
                x = _layer(layer, x, streams, turns, functools.partial(attends, kind))
            return x, None

        x = streams.together(seen_BxSxd, queries_BxQxd)
        x, _ = jax.lax.scan(_remat(config.remat)(layers_of_a_period), x, self._by_period())
        return streams.seen(x), streams.queries(x)

    def extend(self, cache: DecoderCache, slot_Bxn, seen_Bxnxd, queries_BxQxd, seen_xy_um, query_xy_um,
               visibility: dict[str, Visibility]) -> tuple[DecoderCache, jax.Array]:  # fmt: skip
        """Writes more seen tokens into the cache, and reads it with them and with queries.

        Returns the cache, and the queries [B, Q, d] after all layers.

        slot_Bxn: int32, where in the cache each of the n tokens belongs; a negative one is padding and is not kept.
        Written group by group, first the H&E and then the contents of one group after the other, queries come out as
        from one pass over all of them: what is not yet written is not visible to anyone.
        """
        config = self.config
        streams = Streams(seen_Bxnxd.shape[1], ranks=1)
        turns = _turns(config, streams.together(seen_xy_um, query_xy_um))
        looking = {kind: streams.looking(fields) for kind, fields in visibility.items()}
        cache = cache.marked(slot_Bxn, {kind: fields.keys for kind, fields in visibility.items()})

        def layers_of_a_period(x, of_period):
            weights, kept_PxBxSxKxD = of_period
            written = []
            for kind, layer, kept in zip(config.pattern, weights, zip(*kept_PxBxSxKxD, strict=True), strict=True):

                def attend(q, k, v, kind=kind, kept=kept):
                    written.append(cached := kept_at(slot_Bxn, kept, (k, v)))
                    return _attend(config, q, *cached, looking[kind], cache.visibility[kind])

                x = _layer(layer, x, streams, turns, attend)
            return x, tuple(jnp.stack(parts) for parts in zip(*written, strict=True))

        x = streams.together(seen_Bxnxd, queries_BxQxd)
        period = len(config.pattern)
        kept = tuple(y.reshape(-1, period, *y.shape[1:]) for y in (cache.k_LxBxSxKxD, cache.v_LxBxSxKxD))
        x, kept = jax.lax.scan(layers_of_a_period, x, (self._by_period(), kept))
        k, v = (y.reshape(-1, *y.shape[2:]) for y in kept)
        return cache._replace(k_LxBxSxKxD=k, v_LxBxSxKxD=v), streams.queries(x)

    def _by_period(self) -> list[dict[str, jax.Array]]:
        """Weights of each layer of a period, [L / period, …] each."""
        stacked = {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}
        if self.score_gain != 1:
            stacked["q_norm"] = stacked["q_norm"] * self.score_gain
        period = len(self.config.pattern)
        return [{name: value[number::period] for name, value in stacked.items()} for number in range(period)]


def choose_attention(config: ModelConfig, rows: int, seen: int, queries: int) -> Choice:
    """How global layers attend on the ambient mesh, and local ones with large tiles: what a log tells."""
    dtype = compute_dtype(config)
    q = jax.ShapeDtypeStruct((rows, seen + queries, config.heads, config.head_dim), dtype)
    k = jax.ShapeDtypeStruct((rows, seen, config.kv_heads, config.head_dim), dtype)
    return choose_strategy(q, k, strategy=config.attention, block=config.attention_block)


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """Of the layers' arithmetic; parameters and accumulators are float32."""
    choice = config.compute_dtype
    if choice == "auto":
        choice = "float32" if ambient_platform() == "cpu" else "bfloat16"
    return jnp.dtype(choice)


def _layer(p: dict, x_BxAxd, streams: Streams, turns: Turns, attend):
    """One layer over all A tokens; the seen ones have keys and values. `attend(q, k, v)` -> [B, A, H, D]."""
    h = rms_norm(x_BxAxd, p["attention_norm"])
    q = rms_norm(project("bad,dhk->bahk", h, p["q"]), p["q_norm"])
    k = rms_norm(project("bsd,dhk->bshk", streams.seen(h), p["k"]), p["k_norm"])
    # in float32, cast after: so their gradients are summed over tokens in float32
    q, k = ((x + reach.reshape(x.shape[2:])).astype(x.dtype) for x, reach in ((q, p["q_reach"]), (k, p["k_reach"])))
    v = project("bsd,dhk->bshk", streams.seen(h), p["v"])
    read = attend(rotate(q, turns), rotate(k, jax.tree.map(streams.seen, turns)), v)
    x = x_BxAxd + project("bahk,hkd->bad", read, p["attention_out"])
    h = rms_norm(x, p["mlp_norm"])
    hidden = jax.nn.silu(project("bad,df->baf", h, p["mlp_gate"])) * project("bad,df->baf", h, p["mlp_in"])
    return x + project("baf,fd->bad", hidden, p["mlp_out"])


def _turns(config: ModelConfig, xy_um_BxAx2: jax.Array) -> Turns:
    return turns_at(xy_um_BxAx2, config.head_dim, shortest_um=SHORTEST_UM, longest_um=LONGEST_UM)


def _attend(config: ModelConfig, q, k, v, looking: QueryVisibility, keys: KeyVisibility) -> jax.Array:
    with jax.named_scope("attention"):
        return attention(q, k, v, looking, keys, strategy=config.attention, block=config.attention_block)


def _remat(policy: str):
    """What the backward pass finds of a period of layers; it computes the rest again.

    none: everything; full: what entered the period; save_attention: that, and attention's output with its sums;
    offload: the same as save_attention, but in the memory of the host.
    """
    policies = jax.checkpoint_policies
    match policy:
        case "none":
            return lambda layers: layers
        case "full":
            kept = policies.nothing_saveable
        case "save_attention":
            kept = policies.save_only_these_names(ATTENTION_OUT)
        case "offload":  # what enters is among them: else the scan would keep its carry of every period on the device
            kept = policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[], names_which_can_be_offloaded=[_PERIOD_IN, ATTENTION_OUT],
                offload_src="device", offload_dst="pinned_host",
            )  # fmt: skip
    return functools.partial(jax.checkpoint, policy=kept)

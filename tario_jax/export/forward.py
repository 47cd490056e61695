"""What a bundle computes: rates of every gene in squares of a window of H&E, in one pass, in plain XLA.

Rows and squares may be any number: their axes are symbolic when the function is exported, so nothing here looks at
their length. It is the model's own one-shot prediction (DESIGN's K = 1); attention walks the keys, which are the H&E
patches of the window, block by block.

Axes: B rows, N squares, Y and X px of the window, T tiles of it, P patches of a tile, S = T·P, A = S + N tokens,
M patches under a square, K key heads, R query heads a key head, D width of a head, G genes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from tario_jax.config import DataConfig
from tario_jax.model.model import Tario
from tario_jax.model.streams import Visibility
from tario_jax.ops.attention.blockwise import LOWEST
from tario_jax.ops.products import dot
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility, visible
from tario_jax.tokens.batch import Batch

_BLOCK = 512  # most keys of a block


class WindowShape(NamedTuple):
    """What of a window is fixed."""

    tiles_per_side: int
    patches_per_side: int  # of a tile
    patch_px: int
    patch_um: float
    patches_across: int  # that a square may touch along a side
    genes: int

    @classmethod
    def of(cls, data: DataConfig, genes: int, largest_um: float) -> "WindowShape":
        """largest_um: side of the largest square that may be asked."""
        return cls(round(data.window_um / data.tile_um), round(data.tile_um / data.patch_um), data.patch_px,
                   data.patch_um, math.ceil(largest_um / data.patch_um - 1e-6) + 1, genes)  # fmt: skip

    @property
    def side_px(self) -> int:
        return self.tiles_per_side * self.patches_per_side * self.patch_px

    @property
    def tile_um(self) -> float:
        return self.patches_per_side * self.patch_um


def window_rates(model: Tario, shape: WindowShape, he_BxYxXx3: jax.Array, xy_um_BxNx2: jax.Array,
                 side_um_BxN: jax.Array) -> jax.Array:  # fmt: skip
    """Expected detections [B, N, G], float32.

    he: uint8; xy: centres of squares from the window's upper left corner, y downwards, float32; side: of the squares.
    """
    batch = _batch(shape, he_BxYxXx3, xy_um_BxNx2, side_um_BxN)
    he_BxTxPxd = model.he_encoder(batch, jnp.dtype(model.config.compute_dtype))
    # squares lie in no tile of their own: all of a row stand in one
    of_squares = batch._replace(tile_BxT=batch.tile_BxT[:, :1])
    query_BxNxd = model.bin_encoder.query(of_squares, he_BxTxPxd, model.gene_bias[...], he_BxTxPxd.dtype)[:, 0]
    places = batch.patch_xy_um_BxTxPx2
    he_BxSxd, patch_xy_um_BxSx2 = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (he_BxTxPxd, places))
    visibility = {
        kind: _visibility(batch, shape, local=kind == "local") for kind in dict.fromkeys(model.config.pattern)
    }
    of_tiles = {"local": shape.tiles_per_side**2}
    _, queries_out = model.decoder(
        he_BxSxd, query_BxNxd, patch_xy_um_BxSx2, xy_um_BxNx2, visibility,
        attend=lambda kind, *qkv_and_who: _attend(*qkv_and_who, parts=of_tiles.get(kind, 1)),
    )  # fmt: skip
    predicted = model.read_out(queries_out, side_um_BxN, jnp.ones_like(side_um_BxN))
    known_G = jnp.arange(len(model.gene_bias[...])) < shape.genes
    whole = jnp.broadcast_to(known_G, (side_um_BxN.shape[0], 1, *known_G.shape))
    return model.rates_of(predicted, whole, jnp.zeros_like(side_um_BxN, jnp.int32))[:, :, : shape.genes]


def _batch(shape: WindowShape, he_BxYxXx3: jax.Array, xy_um_BxNx2: jax.Array, side_um_BxN: jax.Array) -> Batch:
    """The window as the model's encoders take it; what prediction does not read is left out."""
    B, tiles, patches, px = he_BxYxXx3.shape[0], shape.tiles_per_side, shape.patches_per_side, shape.patch_px
    he = he_BxYxXx3.reshape(B, tiles, patches, px, tiles, patches, px, 3).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    centre = (jnp.arange(tiles * patches) + 0.5).reshape(tiles, patches) * shape.patch_um
    x_um = jnp.broadcast_to(centre[None, :, None, :], (tiles, tiles, patches, patches))
    y_um = jnp.broadcast_to(centre[:, None, :, None], (tiles, tiles, patches, patches))
    places_TxPx2 = jnp.stack([x_um, y_um], -1).reshape(tiles**2, patches**2, 2).astype(jnp.float32)
    patch_BxNxM, weight_BxNxM = _patches_under(shape, xy_um_BxNx2, side_um_BxN)
    nothing = dict.fromkeys(Batch._fields)
    return Batch(**nothing | {
        "he_BxTxPxYxXx3": he.reshape(B, tiles**2, patches**2, px, px, 3),
        "stain_mix_BxTx3x3": jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32), (B, tiles**2, 3, 3)),
        "patch_xy_um_BxTxPx2": jnp.broadcast_to(places_TxPx2, (B, *places_TxPx2.shape)),
        "tile_BxT": jnp.broadcast_to(jnp.arange(tiles**2, dtype=jnp.int32), (B, tiles**2)),
        "bin_xy_um_BxTxNx2": xy_um_BxNx2[:, None],
        "bin_size_um_BxTxN": side_um_BxN[:, None],
        "pool_patch_BxTxNxM": patch_BxNxM[:, None],
        "pool_weight_BxTxNxM": weight_BxNxM[:, None],
        "measured_gene_BxWxG": jnp.ones((B, 1, 1), bool),
        "log_depth_BxW": jnp.full((B, 1), -jnp.inf, jnp.float32),
    })  # fmt: skip


def _patches_under(shape: WindowShape, xy_um_BxNx2: jax.Array, side_um_BxN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Patches that a square covers, tile by tile, and their shares of its area within the window, [B, N, M] each."""
    side = shape.tiles_per_side * shape.patches_per_side
    low_BxNx2, high_BxNx2 = (xy_um_BxNx2 + sign * side_um_BxN[..., None] / 2 for sign in (-1, 1))
    first_BxNx2 = jnp.floor(low_BxNx2 / shape.patch_um + 1e-4)
    patch_BxNx2xM = first_BxNx2[..., None] + jnp.arange(shape.patches_across)
    begins = jnp.maximum(low_BxNx2[..., None], patch_BxNx2xM * shape.patch_um)
    covered = jnp.minimum(high_BxNx2[..., None], (patch_BxNx2xM + 1) * shape.patch_um) - begins
    covered = jnp.where((patch_BxNx2xM >= 0) & (patch_BxNx2xM < side), jnp.maximum(covered, 0.0), 0.0)
    patch = jnp.clip(patch_BxNx2xM, 0, side - 1).astype(jnp.int32)
    column, row = patch[:, :, 0, None, :], patch[:, :, 1, :, None]
    tile = row // shape.patches_per_side * shape.tiles_per_side + column // shape.patches_per_side
    within = row % shape.patches_per_side * shape.patches_per_side + column % shape.patches_per_side
    weight = covered[:, :, 1, :, None] * covered[:, :, 0, None, :]
    number_BxNxM, weight_BxNxM = (x.reshape(*side_um_BxN.shape, -1) for x in
                                  (tile * shape.patches_per_side**2 + within, weight))  # fmt: skip
    return number_BxNxM, weight_BxNxM / jnp.maximum(weight_BxNxM.sum(-1, keepdims=True), 1e-9)


def _visibility(batch: Batch, shape: WindowShape, *, local: bool) -> Visibility:
    """All patches of a window see each other and are seen by its squares; in local layers those of a tile."""
    xy_um_BxNx2 = batch.bin_xy_um_BxTxNx2[:, 0]
    tile_BxT = batch.tile_BxT if local else jnp.zeros_like(batch.tile_BxT)
    patch_BxS = jnp.repeat(tile_BxT, shape.patches_per_side**2, axis=1)
    at = jnp.clip(xy_um_BxNx2 // shape.tile_um, 0, shape.tiles_per_side - 1).astype(jnp.int32)
    square_BxN = at[..., 1] * shape.tiles_per_side + at[..., 0] if local else jnp.zeros_like(at[..., 0])
    of_patches, of_squares = jnp.zeros_like(patch_BxS), jnp.zeros_like(square_BxN)
    return Visibility(QueryVisibility(patch_BxS, of_patches), QueryVisibility(square_BxN, of_squares),
                      KeyVisibility(patch_BxS, of_patches))  # fmt: skip


def _attend(q_BxAxHxD, k_BxSxKxD, v_BxSxKxD, looking: QueryVisibility, keys: KeyVisibility, *, parts: int):
    """[B, A, H, D]. parts: equal stretches of the patches that see themselves alone: the tiles of a local layer."""
    patches = k_BxSxKxD.shape[1]
    of_squares = jax.tree.map(lambda x: x[:, patches:], looking)
    squares = _by_keys(q_BxAxHxD[:, patches:], k_BxSxKxD, v_BxSxKxD, of_squares, keys)
    if parts == 1:
        of_patches = jax.tree.map(lambda x: x[:, :patches], looking)
        return jnp.concatenate([_by_keys(q_BxAxHxD[:, :patches], k_BxSxKxD, v_BxSxKxD, of_patches, keys), squares], 1)
    q, k, v = (x[:, :patches].reshape(x.shape[0], parts, -1, *x.shape[2:]) for x in (q_BxAxHxD, k_BxSxKxD, v_BxSxKxD))
    q = q.reshape(*q.shape[:3], k.shape[3], -1, q.shape[-1])
    scores = dot("btqkrd,btskd->btkrqs", q, k) * q.shape[-1] ** -0.5
    out = dot("btkrqs,btskd->btqkrd", jax.nn.softmax(scores, -1).astype(v.dtype), v).astype(q.dtype)
    return jnp.concatenate([out.reshape(*q_BxAxHxD[:, :patches].shape), squares], 1)


def _by_keys(q_BxNxHxD, k_BxSxKxD, v_BxSxKxD, looking: QueryVisibility, keys: KeyVisibility) -> jax.Array:
    """Softmax attention by an online softmax over blocks of keys (Rabe & Staats, arXiv 2112.05682)."""
    S, kv_heads = k_BxSxKxD.shape[1:3]
    blocks = math.ceil(S / _BLOCK)
    size = math.ceil(S / blocks)
    padding = blocks * size - S

    def by_block(x, fill):
        x = jnp.pad(x, ((0, 0), (0, padding), *((0, 0),) * (x.ndim - 2)), constant_values=fill)
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, size, *x.shape[2:]), 1, 0)

    q = q_BxNxHxD.reshape(*q_BxNxHxD.shape[:2], kv_heads, -1, q_BxNxHxD.shape[-1])

    def one(carry, block):
        top, total, out = carry
        k, v, who = block
        scores = dot("bnkrd,bskd->bnkrs", q, k) * q.shape[-1] ** -0.5
        mask = visible(looking, who)[:, :, None, None]
        scores = jnp.where(mask, scores, LOWEST)
        new_top = jnp.maximum(top, scores.max(-1))
        weight = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0)
        shrink = jnp.exp(top - new_top)
        part = dot("bnkrs,bskd->bnkrd", weight.astype(v.dtype), v)
        return (new_top, shrink * total + weight.sum(-1), shrink[..., None] * out + part), None

    start = (jnp.full_like(q[..., 0], LOWEST, jnp.float32), jnp.zeros_like(q[..., 0], jnp.float32),
             jnp.zeros_like(q, jnp.float32))  # fmt: skip
    who = KeyVisibility(*(by_block(x, -1) for x in keys))
    (_, total, out), _ = lax.scan(one, start, (by_block(k_BxSxKxD, 0), by_block(v_BxSxKxD, 0), who))
    out = out / jnp.where(total == 0, 1, total)[..., None]
    return out.astype(q_BxNxHxD.dtype).reshape(q_BxNxHxD.shape)

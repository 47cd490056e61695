"""What a model learns from H&E alone: what hidden patches look like, told from those around them.

The patches of a window are written in groups, as bins are. Those of the first group are seen; a query stands in the
middle of every other one, knows nothing but its place, and predicts the statistics of stain and texture under it. The
convolutions see hidden pixels at the mean of training tissue. Encoder and decoder are those of the model of counts, by
the same names, so a run starts from them (train/fine_tune.py); only what is read out is left behind.

Axes: B rows, T tiles of a row, P patches of a tile, Q = T·P, d width, F statistics of a patch.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from tario_jax.config import ModelConfig
from tario_jax.model.declare import constant, rms_norm, weight
from tario_jax.model.decoder import Decoder, compute_dtype
from tario_jax.model.he_encoder import HEEncoder
from tario_jax.model.model import Loss
from tario_jax.model.stain import texture_count
from tario_jax.model.streams import Visibility
from tario_jax.model.width import Growth
from tario_jax.ops.attention.tiles import Tiles
from tario_jax.ops.project import project
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility
from tario_jax.tokens.batch import Batch


class HiddenHE(nnx.Module):
    """Some H&E patches in, the looks of the others out. A batch's bins are its patches (`tokens.hidden`)."""

    def __init__(self, config: ModelConfig, patch_px: int, *, rngs: nnx.Rngs, frozen: int = 0):
        """frozen: length of stored features of H&E patches."""
        d, features = config.width, texture_count(patch_px)
        self.config = config
        self.he_encoder = HEEncoder(config, patch_px, rngs, frozen)
        self.decoder = Decoder(config, rngs)
        self.hidden_token = weight(rngs, (d,), ("vector",), 1.0)
        self.looks_norm = constant((d,), ("vector",), 1.0)
        self.looks_out = weight(rngs, (d, features), ("hidden", "features"), d, gain=0.1,
                                grown=Growth.of(config).width, output=True)  # fmt: skip
        self.looks_bias = constant((features,), ("vector",), 0.0)

    def __call__(self, batch: Batch) -> jax.Array:
        """Statistics of stain and texture of every patch in deviations from training tissue, float32 [B, T·P, F]:
        a prediction where the patch is hidden, and nothing of worth elsewhere."""
        B, T, P = batch.patch_xy_um_BxTxPx2.shape[:3]
        dtype = compute_dtype(self.config)
        with jax.named_scope("encoders"):
            he_BxTxPxd = self.he_encoder(batch, dtype, hidden_patches(batch))
        d = he_BxTxPxd.shape[-1]
        queries = jnp.broadcast_to(self.hidden_token[...], (B, T * P, d)).astype(dtype)  # its gradient: float32
        places = batch.patch_xy_um_BxTxPx2.reshape(B, T * P, 2)
        visibility = {kind: _visibility(batch, local=kind == "local") for kind in dict.fromkeys(self.config.pattern)}
        with jax.named_scope("decoder"):
            _, queries = self.decoder(he_BxTxPxd.reshape(B, T * P, d), queries, places, places, visibility,
                                      Tiles.of(P, P, content=False))  # fmt: skip
        h = rms_norm(queries, self.looks_norm[...])
        looks = project("bqd,df->bqf", h, self.looks_out[...]).astype(jnp.float32)
        return looks + self.looks_bias[...]

    def loss(self, batch: Batch, z_loss: float = 0.0, *, as_trained: bool = False) -> Loss:
        """Negative log-likelihood of what is hidden, as normals of deviation 1 and without their constant.

        Half the squared distance, summed over statistics of hidden patches, as `total_nats`; their number stands in
        place of detections. What is of genes is 0, and z_loss and as_trained change nothing.
        """
        del z_loss, as_trained
        _, looks_BxTxPxF = self.he_encoder.looks(batch)
        looks_BxQxF = looks_BxTxPxF.reshape(looks_BxTxPxF.shape[0], -1, looks_BxTxPxF.shape[-1])
        hidden_BxQ = hidden_patches(batch).reshape(looks_BxQxF.shape[:2])
        squares_BxQ = jnp.square(self(batch) - jax.lax.stop_gradient(looks_BxQxF)).sum(-1)
        nats = 0.5 * jnp.where(hidden_BxQ, squares_BxQ, 0.0).sum()
        number = hidden_BxQ.sum().astype(jnp.float32) * looks_BxQxF.shape[-1]
        nothing = jnp.zeros((), jnp.float32)
        return Loss(nats, nothing, nothing, number, nothing, nothing, nothing, nothing)


def hidden_patches(batch: Batch) -> jax.Array:
    """Patches that are to be predicted, bool [B, T, P]: within the image, and not of the first group."""
    return (batch.bin_step_BxTxN > 1) & _on_image(batch)


def _on_image(batch: Batch) -> jax.Array:
    return (batch.bin_measured_BxTxN > 0) & (batch.segment_BxT >= 0)[:, :, None]


def _visibility(batch: Batch, *, local: bool) -> Visibility:
    """Patches of the first group see each other, and queries of hidden ones see them; all else is padding."""
    B, T, _ = batch.bin_step_BxTxN.shape
    segment_BxTx1 = (jnp.broadcast_to(jnp.arange(T), (B, T)) if local else batch.segment_BxT)[:, :, None]
    hidden_BxTxP = hidden_patches(batch)
    shown_BxTxP = (batch.bin_step_BxTxN == 1) & _on_image(batch)
    shown, hidden = (jnp.where(which, segment_BxTx1, -1).reshape(B, -1) for which in (shown_BxTxP, hidden_BxTxP))
    step = jnp.zeros_like(shown)
    return Visibility(QueryVisibility(shown, step), QueryVisibility(hidden, step), KeyVisibility(shown, step))

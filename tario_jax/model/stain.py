"""H&E pixels as stain densities, and statistics of stain and texture within a patch.

The statistics are fixed functions of the pixels; they are what a pathologist's eye and a ridge regression use first
(how dark, how blue, how grainy), and they let the decoder start from there instead of learning it from few patients.
"""

import jax
import jax.numpy as jnp
import numpy as np
from skimage.color import hed_from_rgb

# Optical density -> haematoxylin, eosin, rest (Ruifrok and Johnston 2001, as in scikit-image).
STAINS_3x3 = np.asarray(hed_from_rgb, np.float32)
THRESHOLDS = (-0.75, 0.0, 0.75, 1.5, 2.5)  # deviations from the mean of training tissue
LAGS_PX = (1, 2, 4)


def stain_densities(he_BxTxPxYxXx3: jax.Array, mix_BxTx3x3: jax.Array) -> jax.Array:
    """Densities of haematoxylin, eosin and rest from uint8 RGB: float32, same shape.

    mix_BxTx3x3 takes the densities of a tile to those of another staining (augmentation); the identity leaves them.
    """
    optical = -jnp.log((he_BxTxPxYxXx3.astype(jnp.float32) + 1.0) / 256.0)
    # a sum of three, not a product: one with a contracted axis of 3 is slow everywhere, and rounds its inputs on a TPU
    of_tile_BxTx1x1x1x3x3 = jnp.matmul(STAINS_3x3, mix_BxTx3x3, precision="highest")[:, :, None, None, None]
    return sum(optical[..., colour, None] * of_tile_BxTx1x1x1x3x3[..., colour, :] for colour in range(3))


def texture_count(patch_px: int) -> int:
    """Length of `texture_statistics`'s last axis for patches of this side."""
    return 3 + 3 + 1 + 2 * len(THRESHOLDS) + 4 * len(_lags(patch_px)) + 1


def texture_names(patch_px: int) -> tuple[str, ...]:
    """What each value of `texture_statistics`'s last axis is."""
    stains, both = ("haematoxylin", "eosin", "neither stain"), ("haematoxylin", "eosin")
    names = [f"{what} of {stain}" for what in ("mean", "deviation") for stain in stains]
    names.append("correlation of the stains")
    names += [f"{stain} above {threshold:g}" for threshold in THRESHOLDS for stain in both]
    names += [f"{what} of {stain} over {lag} px" for lag in _lags(patch_px) for what in ("grain", "curvature")
              for stain in both]  # fmt: skip
    return (*names, "direction")


def _lags(patch_px: int) -> tuple[int, ...]:
    """Lags that leave a middle in a patch of this side."""
    return tuple(lag for lag in LAGS_PX if 2 * lag < patch_px)


def texture_statistics(density: jax.Array) -> jax.Array:
    """Statistics of patches of standardised densities [..., px, px, 3] (H, E, rest): float32 [..., features].

    Means and deviations, correlation of the stains, share of pixels above each threshold (soft), energies of
    differences at several lags (grain size), curvature, and coherence of direction (fibres against blobs).
    """
    mean = density.mean((-3, -2))
    centred = density - mean[..., None, None, :]
    deviation = jnp.sqrt((centred**2).mean((-3, -2)) + 1e-6)
    together = (centred[..., 0] * centred[..., 1]).mean((-2, -1)) / (deviation[..., 0] * deviation[..., 1] + 1e-3)
    parts = [mean, deviation, together[..., None]]
    stains = density[..., :2]
    for threshold in THRESHOLDS:
        parts.append(jnp.clip(1.5 * (stains - threshold) + 0.5, 0.0, 1.0).mean((-3, -2)))
    for lag in _lags(density.shape[-2]):
        along_x = stains[..., :, lag:, :] - stains[..., :, :-lag, :]
        along_y = stains[..., lag:, :, :] - stains[..., :-lag, :, :]
        parts.append(jnp.sqrt(((along_x**2).mean((-3, -2)) + (along_y**2).mean((-3, -2))) + 1e-6))
        middle = stains[..., lag:-lag, lag:-lag, :]
        curvature = stains[..., 2 * lag :, lag:-lag, :] + stains[..., : -2 * lag, lag:-lag, :]
        curvature = curvature + stains[..., lag:-lag, 2 * lag :, :] + stains[..., lag:-lag, : -2 * lag, :] - 4 * middle
        parts.append(jnp.sqrt((curvature**2).mean((-3, -2)) + 1e-6))
    h = density[..., 0]
    dx, dy = h[..., 1:-1, 2:] - h[..., 1:-1, :-2], h[..., 2:, 1:-1] - h[..., :-2, 1:-1]
    xx, yy, xy = (dx * dx).mean((-2, -1)), (dy * dy).mean((-2, -1)), (dx * dy).mean((-2, -1))
    parts.append((jnp.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-3))[..., None])
    return jnp.concatenate(parts, -1)

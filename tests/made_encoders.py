"""Encoders that are quick, and whose features a test can work out."""

import numpy as np

from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.encoders import Encoder


def made_card(**fields) -> EncoderCard:
    told = {
        "name": "made", "about": "means and a gradient", "source": "a test", "licence": "none", "um_per_px": 1.0,
        "input_px": 24, "pitch_um": 16.0, "mean": (0.0, 0.0, 0.0), "sd": (1.0, 1.0, 1.0), "full_scale": 255.0,
        "features": 5, "library": "onnx", "weights_sha256": "0",
    }  # fmt: skip
    return EncoderCard(**told | fields)


def made_encoder(seen: list | None = None, **fields) -> Encoder:
    """Mean of each channel, and of the red one's left and upper half. seen: gathers the sizes of its batches."""
    card = made_card(**fields)

    def features(pixels_NxYxXx3: np.ndarray) -> np.ndarray:
        assert pixels_NxYxXx3.dtype == np.uint8 and pixels_NxYxXx3.shape[1:] == (card.input_px, card.input_px, 3)
        if seen is not None:
            seen.append(len(pixels_NxYxXx3))
        x, half = pixels_NxYxXx3.astype(float), card.input_px // 2
        halves = x[:, :, :half, 0].mean((1, 2)), x[:, :half, :, 0].mean((1, 2))
        return np.concatenate([x.mean((1, 2)), np.stack(halves, 1)], 1)

    return Encoder(card, features)

"""The golden input of a bundle: windows that were drawn, so that no patient's tissue leaves with a model."""

import numpy as np
import scipy.ndimage

from tario_jax.export.forward import WindowShape
from tario_jax.train.provenance import Provenance

_WINDOWS, _SQUARES = 2, 16


def golden_input(shape: WindowShape, provenance: Provenance, windows: int = _WINDOWS, squares: int = _SQUARES
                 ) -> dict[str, np.ndarray]:  # fmt: skip
    """`he`, `xy_um` and `side_um` of windows of dark nuclei on a ground of eosin, the same for every model."""
    rng = np.random.Generator(np.random.Philox(key=0))
    side_px, px_um = shape.side_px, provenance.config.data.he_um_per_px
    he = np.empty((windows, side_px, side_px, 3), np.uint8)
    for window in he:
        grain = scipy.ndimage.gaussian_filter(rng.standard_normal((side_px, side_px)), 2.5 / px_um)
        ground = scipy.ndimage.gaussian_filter(rng.standard_normal((side_px, side_px)), 20 / px_um)
        haematoxylin = 1.2 * (grain > 1.3 * grain.std()) + 0.1
        eosin = 0.4 + 0.2 * ground / max(ground.std(), 1e-9)
        density = haematoxylin[..., None] * (0.65, 0.70, 0.29) + np.maximum(eosin, 0)[..., None] * (0.07, 0.99, 0.11)
        window[...] = np.clip(255 * np.exp(-density), 0, 255)
    side_um = np.full((windows, squares), provenance.bin_um, np.float32)
    room = side_px * px_um - provenance.bin_um
    xy_um = (provenance.bin_um / 2 + rng.random((windows, squares, 2)) * room).astype(np.float32)
    return {"he": he, "xy_um": xy_um, "side_um": side_um}

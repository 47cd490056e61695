"""How far a slide's H&E lies from what the model was trained on: stain and texture, in deviations of training tissue.

The model keeps mean and deviation of each statistic over the patches of its training windows. A slide whose own mean is
far from that mean looks as no training slide did as a whole, whatever single patches do.

Axes: B rows, T tiles, P patches of a tile, F statistics.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.corpus.section import COARSER
from tario_jax.model.model import Tario
from tario_jax.model.stain import texture_names
from tario_jax.predict.slide_plan import TissueCover
from tario_jax.predict.tissue_mask import TissueMask
from tario_jax.tokens.batch import Batch

SAMPLED = 32  # windows, evenly
LIMIT = 0.95  # in which 95 % of the sections that a model of configs/quickstart.py was trained on lie
_NAMED = 6  # statistics of a warning that is kept


@dataclasses.dataclass(frozen=True)
class Look:
    """Means over a slide's tissue, in deviations from training tissue."""

    shift_F: np.ndarray
    name_F: tuple[str, ...]

    @property
    def distance(self) -> float:
        """Root mean square over statistics."""
        return float(np.sqrt(np.mean(self.shift_F**2)))

    def outside(self) -> list[dict[str, object]]:
        """Where the distance is beyond the limit, what differs most; else nothing."""
        if self.distance <= LIMIT:
            return []
        order = np.argsort(-np.abs(self.shift_F))[:_NAMED]
        return [{"statistic": self.name_F[f], "deviations": round(float(self.shift_F[f]), 2)} for f in order]


def look_at(cover: TissueCover, mask: TissueMask | None, call: Callable, rows: int) -> Look:
    """call(function, *arguments): of the model on its devices."""
    data, windows = cover.data, np.arange(len(cover.corners))
    if mask is not None:  # of a cover of everything, many windows may be glass
        middle_Wx2 = np.asarray(cover.corners) + data.window_um / 2
        windows = windows[mask.share(*middle_Wx2.T, data.window_um) > 0]
    chosen = windows[np.unique(np.linspace(0, len(windows) - 1, min(SAMPLED, len(windows))).round().astype(int))]
    sums, weight = 0.0, 0.0
    for numbers, batch in cover.batches(rows, read=cover.window, numbers=chosen.tolist()):
        share_BxTxP = np.zeros(batch.patch_xy_um_BxTxPx2.shape[:3], np.float32)
        for row, window in enumerate(numbers):
            x_um, y_um = np.moveaxis(batch.patch_xy_um_BxTxPx2[row], -1, 0)
            corner_x, corner_y = cover.corners[window]
            share_BxTxP[row] = 1.0 if mask is None else mask.share(
                x_um.ravel() + corner_x, y_um.ravel() + corner_y, data.patch_um).reshape(x_um.shape)  # fmt: skip
        seen_F, seen = call(_sums, batch, (share_BxTxP >= 0.5).astype(np.float32))
        sums, weight = sums + np.asarray(seen_F, np.float64), weight + float(seen)
    if not weight and mask is not None:  # no patch is half tissue
        return look_at(cover, None, call, rows)
    names = ("haematoxylin", "eosin", "neither stain", *texture_names(data.patch_px))
    return Look(sums / max(weight, 1.0), names)


def _sums(model: Tario, batch: Batch, weight_BxTxP: jax.Array) -> tuple[jax.Array, jax.Array]:
    density, texture_BxTxPxF = model.he_encoder.looks(batch)
    statistics = jnp.concatenate([density.mean((-3, -2)), texture_BxTxPxF], -1)
    weight_BxTxP = weight_BxTxP * (batch.segment_BxT >= 0)[..., None]
    return (statistics * weight_BxTxP[..., None]).sum((0, 1, 2)), weight_BxTxP.sum()


def warnings(look: Look, he_um_per_px: float, model_um_per_px: float) -> list[str]:
    """A line each, for people."""
    found = []
    if outside := look.outside():
        told = ", ".join(f"{one['statistic']} {one['deviations']:+.1f}" for one in outside[:4])
        away = f"{look.distance:.2f} deviations of training tissue away (limit {LIMIT})"
        found.append(f"this slide's H&E lies outside of what the model was trained on, {away}, "
                     f"most in {told}; its maps may mean little")  # fmt: skip
    if he_um_per_px > model_um_per_px * COARSER:
        found.append(f"the slide has {he_um_per_px:.3g} µm per px and the model reads {model_um_per_px:g}: what it "
                     "learnt to see is not in the image")  # fmt: skip
    return found

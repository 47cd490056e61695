"""Takes the stains of a slide to those of a reference: mean and deviation of each density over tissue (Reinhard et al.
2001, in the space of stain densities of Ruifrok and Johnston 2001 in place of Lab)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from skimage.color import rgb_from_hed

from tario_jax.config import InputError
from tario_jax.model.stain import STAINS_3x3
from tario_jax.predict.slide import SlideSection, opened_section
from tario_jax.predict.tissue_mask import TissueMask, find_tissue

_OPTICAL_256 = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)
_FROM_STAINS_3x3 = np.asarray(rgb_from_hed, np.float32)
_LEAST_DEVIATION = 0.01
_SQUARE_UM, _SQUARES, _PX_UM = 256.0, 64, 1.0  # that a slide's stain is measured on
_LEAST_MM2 = 0.02  # of tissue, of a reference
_STRETCHED = (0.5, 2.0)  # of a deviation: a nearly empty sample should not blow up noise


@dataclasses.dataclass(frozen=True)
class StainStatistics:
    """Of tissue: densities of haematoxylin, eosin and rest, float [3] each, in natural logarithms."""

    mean_3: np.ndarray
    deviation_3: np.ndarray

    @classmethod
    def of_pixels(cls, rgb_Nx3: np.ndarray) -> "StainStatistics":
        density_Nx3 = densities(rgb_Nx3)
        return cls(density_Nx3.mean(0, dtype=np.float64), density_Nx3.std(0, dtype=np.float64))

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": np.round(self.mean_3, 6).tolist(), "deviation": np.round(self.deviation_3, 6).tolist()}


@dataclasses.dataclass(frozen=True)
class StainMatch:
    """A change of pixels that gives tissue like `found` the statistics `wanted`; glass stays white."""

    found: StainStatistics
    wanted: StainStatistics

    def __call__(self, rgb_YxXx3: np.ndarray) -> np.ndarray:
        scale_3 = np.clip(self.wanted.deviation_3 / np.maximum(self.found.deviation_3, _LEAST_DEVIATION), *_STRETCHED)
        density = densities(rgb_YxXx3)
        changed = (density - self.found.mean_3) * scale_3 + self.wanted.mean_3
        # as much of the change as there is tissue: none where there is no stain
        amount = np.clip(density[..., :2].sum(-1) / self.found.mean_3[:2].sum(), 0.0, 1.0)[..., None]
        density = (density + amount * (changed - density)).astype(np.float32)
        return np.clip(np.rint(256.0 * np.exp(-(density @ _FROM_STAINS_3x3)) - 1.0), 0, 255).astype(np.uint8)


def stain_of(section: SlideSection, mask: TissueMask) -> StainStatistics:
    """Of the tissue of a slide, as it was scanned.

    By px of about 1 µm, as a model sees them: an overview's are means, which deviate less.
    """
    height_um, width_um = section.height_um, section.width_um
    # beyond the last whole square a mask leaves out what is beyond the slide
    columns, rows = (-int(-extent // _SQUARE_UM) for extent in (width_um, height_um))
    x_um, y_um = (of.ravel() * _SQUARE_UM for of in np.meshgrid(np.arange(columns), np.arange(rows)))
    share = mask.share(x_um + _SQUARE_UM / 2, y_um + _SQUARE_UM / 2, _SQUARE_UM)
    fullest = np.argsort(-share, kind="stable")[: max(1, int((share > 0.5 * share.max()).sum()))]
    chosen = fullest[:: max(1, -(-len(fullest) // _SQUARES))]
    px = round(_SQUARE_UM / _PX_UM)
    squares = [section.read(x_um[at], y_um[at], px, _PX_UM) for at in chosen]  # kept blocks would stay as they were
    pixels_Nx3 = np.concatenate([square.reshape(-1, 3) for square in squares])
    within = (np.arange(px) + 0.5) * _PX_UM
    inside = [mask.share(*(of.ravel() for of in np.meshgrid(x_um[at] + within, y_um[at] + within)), mask.um_per_px)
              for at in chosen]  # fmt: skip
    pixels_Nx3 = pixels_Nx3[np.concatenate(inside) >= 0.5]
    if not len(pixels_Nx3) or not (found := StainStatistics.of_pixels(pixels_Nx3)).mean_3[:2].sum() > 0:
        raise InputError(f"{section.id}: has no stained tissue to measure its stains on; leave --stain out")
    return found


def stain_of_file(path: Path, um_per_px: float | None, say: Callable[[str], None]) -> StainStatistics:
    """Of the tissue of another slide, or an image. Raises `InputError` where it cannot be read, or has no tissue."""
    if not path.exists():
        raise InputError(f"--stain={path}: no such slide; expected 'training', or the file of a slide or an image")
    with opened_section(path, um_per_px, genes=1, say=say, flag="--reference-um-per-px") as section:
        mask = find_tissue(section, "give another file by --stain")
        if mask.area_mm2 < _LEAST_MM2:
            raise InputError(f"--stain={path}: has {mask.area_mm2:.2g} mm² of tissue; expected at least {_LEAST_MM2:g} "
                             "to measure its stains on")  # fmt: skip
        return stain_of(section, mask)


def densities(rgb: np.ndarray) -> np.ndarray:
    """Uint8 [..., 3] as densities of haematoxylin, eosin and rest, float32."""
    return _OPTICAL_256[rgb] @ STAINS_3x3

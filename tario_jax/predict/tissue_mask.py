"""Where a slide has tissue: Otsu's threshold on the saturation of its colours, without pen and without the black around
what was scanned."""

import dataclasses

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hsv
from skimage.filters import gaussian, threshold_otsu
from skimage.morphology import disk

from tario_jax.config import InputError
from tario_jax.corpus.resample import box_means
from tario_jax.predict.slide import SlideSection
from tario_jax.sources.slide import averaged

MASK_UM = 8.0  # between its px, about
SMALLEST_MM2 = 0.005  # pieces and holes below this are none
SATURATION = (0.05, 0.1)  # the threshold lies within: glass is below, pale tissue above, where a slide has only one
CLOSED_UM = 24.0  # gaps of tissue up to twice this are tissue
LARGEST_HOLE_MM2 = 0.1
_GLASS_SATURATION, _GLASS_VALUE, _GLASS_SHARE = 0.15, 0.75, 0.05  # at most, at least, of all px at least
_GLASS_DEVIATION = 0.01  # of a value among its neighbours, at most: tissue has texture
_DARK, _GREY_BELOW = 0.2, 0.35  # a colour's value: black, and black pen, which has hardly a colour
_PEN_HUE, _PEN_SATURATION = (0.12, 0.6), 0.25  # yellow to blue: no stain of H&E has it
_BLUE_HUE, _BLUE_SATURATION = (0.6, 0.68), 0.6  # haematoxylin is never as strong
_RED_HUE, _RED_SATURATION = (0.97, 0.03), 0.75


@dataclasses.dataclass(frozen=True)
class TissueMask:
    """A px for about 8 µm of the slide."""

    um_per_px: float
    tissue_YxX: np.ndarray  # bool
    overview_YxXx3: np.ndarray  # uint8, what it was found on

    def share(self, x_um: np.ndarray, y_um: np.ndarray, side_um: float) -> np.ndarray:
        """Of squares around these places that is tissue, float32 [N]."""
        return box_means(self.tissue_YxX, self.um_per_px, x_um, y_um, side_um)

    @property
    def area_mm2(self) -> float:
        return float(self.tissue_YxX.sum()) * (self.um_per_px / 1e3) ** 2


def find_tissue(section: SlideSection, otherwise: str = "--everywhere predicts all of it") -> TissueMask:
    """Raises `InputError` where there is none. otherwise: what the user may do then."""
    found = tissue_if_any(section)
    if found is None:
        raise InputError(f"{section.file.path}: no tissue is found on it (saturated colours without pen, of more than "
                         f"{SMALLEST_MM2:g} mm²); expected H&E; {otherwise}")  # fmt: skip
    return found


def tissue_if_any(section: SlideSection) -> TissueMask | None:
    """None where no tissue is found."""
    overview_YxXx3, um_per_px = overview(section, MASK_UM)
    tissue_YxX = tissue_of(overview_YxXx3, um_per_px)
    return TissueMask(um_per_px, tissue_YxX, overview_YxXx3) if tissue_YxX.any() else None


def overview(section: SlideSection, um_per_px: float) -> tuple[np.ndarray, float]:
    """The whole slide at about this scale, or its own where that is coarser: uint8 [H, W, 3] and its µm per px."""
    level = section.level_for(um_per_px)
    image, level_um = section.file.levels[level], section.he_um_per_px * section.file.downsample(level)
    factor = max(1, min(round(um_per_px / level_um), *image.shape[:2]))
    return averaged(image, factor)[:, :], level_um * factor


def tissue_of(rgb_YxXx3: np.ndarray, um_per_px: float) -> np.ndarray:
    """Bool [Y, X] of an overview."""
    hue, saturation, value = np.moveaxis(rgb2hsv(_on_white_glass(rgb_YxXx3)), -1, 0)
    no_tissue = (value < _DARK) | (value < _GREY_BELOW) & (saturation < 0.3)
    for (low, high), least in ((_PEN_HUE, _PEN_SATURATION), (_BLUE_HUE, _BLUE_SATURATION),
                               (_RED_HUE, _RED_SATURATION)):  # fmt: skip
        of_hue = (hue > low) & (hue < high) if low < high else (hue > low) | (hue < high)
        no_tissue |= of_hue & (saturation > least)
    no_tissue = ndimage.binary_dilation(no_tissue & ~_small(no_tissue, um_per_px), iterations=2)
    smooth = gaussian(np.where(no_tissue, 0.0, saturation), 1.0)
    seen = smooth[~no_tissue]
    threshold = threshold_otsu(seen) if seen.size and np.ptp(seen) > 0 else SATURATION[1]
    tissue = (smooth > np.clip(threshold, *SATURATION)) & ~no_tissue
    tissue &= ~_small(tissue, um_per_px)
    margin = round(CLOSED_UM / um_per_px)
    tissue = ndimage.binary_closing(np.pad(tissue, margin, "edge"), disk(margin))
    tissue = tissue[margin : len(tissue) - margin, margin : tissue.shape[1] - margin]
    holes = ndimage.binary_fill_holes(tissue) & ~tissue  # glass that reaches the border is none
    return (tissue | _small(holes, um_per_px, LARGEST_HOLE_MM2)) & ~no_tissue


def _on_white_glass(rgb_YxXx3: np.ndarray) -> np.ndarray:
    """Float [Y, X, 3] of 0 to 1, in which glass is white: some scans are tinted all over."""
    _, saturation, value = np.moveaxis(rgb2hsv(rgb_YxXx3), -1, 0)
    mean, squares = (ndimage.uniform_filter(of, 3) for of in (value, value**2))
    glass = (saturation < _GLASS_SATURATION) & (value > _GLASS_VALUE)
    glass &= squares - mean**2 < _GLASS_DEVIATION**2
    white_3 = np.full(3, 255.0)
    if glass.mean() > _GLASS_SHARE:
        white_3 = np.array([np.bincount(channel).argmax() for channel in rgb_YxXx3[glass].T], float)
    return np.minimum(rgb_YxXx3 / white_3, 1.0)


def _small(mask_YxX: np.ndarray, um_per_px: float, least_mm2: float = SMALLEST_MM2) -> np.ndarray:
    """The pieces of a mask below this size."""
    label_YxX, _ = ndimage.label(mask_YxX)
    px = np.bincount(label_YxX.ravel())
    small = px * (um_per_px / 1e3) ** 2 < least_mm2
    small[0] = False
    return small[label_YxX]

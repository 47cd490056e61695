"""What a microscope shows of H&E, in numbers: how dark both stains are, how large nuclei are and how many.

Everything is measured tile by tile, at one scale for every image: a nucleus in a finer scan would have another outline.
The methods are plain library ones (Li's threshold, watershed of the distance transform): they miscount crowded and
pale nuclei, and do so alike on virtual and on real tissue.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from skimage.color import hed_from_rgb
from skimage.filters import threshold_li
from skimage.segmentation import watershed

from tario_jax.config import InputError
from tario_jax.corpus.resample import crop_and_resample

TILE_PX, UM_PER_PX = 290, 0.69
COARSEST_UM_PER_PX = 0.75
TILE_UM = TILE_PX * UM_PER_PX
TISSUE_SHARE = 0.6  # of a tile's area, at least
COARSE_UM = 4.0  # between the pixels that say where tissue is
MOST_TILES, SEED = 60, 3

# Glass is bright and nearly without colour. Where hardly any is in sight, white is what scanners make of it.
GLASS_LEAST, GLASS_COLOUR, GLASS_SHARE, USUAL_WHITE = 195, 30, 0.005, 244.0
TISSUE_DENSITY = 0.055  # mean of three channels, smoothed over TISSUE_SIGMA_PX
TISSUE_SIGMA_PX = 2.0

NUCLEUS_SIGMA_PX = 1.0
NUCLEUS_DENSITY = 0.12  # haematoxylin below this is no nucleus, however pale the rest
SMALLEST_UM2, LARGEST_UM2 = 8.0, 300.0
SURROUNDINGS_UM = 7.0  # sigma
APART_UM = 3.0  # between the middles of two nuclei, at least

FIGURES = {
    "haematoxylin, tissue": "OD",
    "eosin, tissue": "OD",
    "haematoxylin, nuclei": "OD",
    "haematoxylin, between nuclei": "OD",
    "eosin, between nuclei": "OD",
    "nuclear area": "µm²",
    "nuclei": "per mm²",
    "area covered by nuclei": "share",
}
"""Every figure of a tile and its unit. Optical densities (OD) are decadic: 1 lets a tenth of the light through."""


@dataclasses.dataclass(frozen=True)
class TileFigures:
    """Figures of T tiles of one image; values_TxF in the order of FIGURES, NaN where a tile holds no nucleus."""

    name: str
    values_TxF: np.ndarray

    def __len__(self) -> int:
        return len(self.values_TxF)


def measure_image(rgb: np.ndarray, um_per_px: float, name: str = "image") -> TileFigures:
    """Measures an image's tiles of 200 µm that are at least 60 % tissue; of more than 60, a fixed choice.

    rgb: uint8 [H, W, 3]. Raises `InputError` for an image that is coarser than 0.75 µm per px, or smaller than a tile.
    """
    if um_per_px > COARSEST_UM_PER_PX:
        raise InputError(
            f"{name}: {um_per_px:g} µm per px; nuclei are measured at {UM_PER_PX} µm per px, give a finer one"
        )
    white_3 = white_of(rgb)
    place_um_Tx2 = choose_tiles(rgb, um_per_px, white_3, name)
    tiles = [crop_and_resample(rgb, rgb.shape, um_per_px, x, y, TILE_PX, UM_PER_PX) for x, y in place_um_Tx2]
    stains = [stain_densities(tile, white_3) for tile in tiles]
    values_TxF = np.full((len(tiles), len(FIGURES)), np.nan)
    for row, tile in enumerate(stains):
        values_TxF[row] = tile_figures(*tile)
    return TileFigures(name, values_TxF)


def white_of(rgb: np.ndarray) -> np.ndarray:
    """Light that the glass lets through in each channel, float64 [3]: the 90 % quantile of what looks like glass."""
    step = max(int(np.sqrt(rgb.shape[0] * rgb.shape[1] / 250_000)), 1)
    pixel_Nx3 = rgb[::step, ::step].reshape(-1, 3)
    glass_N = (pixel_Nx3.min(1) >= GLASS_LEAST) & (np.ptp(pixel_Nx3, axis=1) <= GLASS_COLOUR)
    if glass_N.mean() < GLASS_SHARE:
        return np.full(3, USUAL_WHITE)
    return np.quantile(pixel_Nx3[glass_N], 0.9, axis=0)


def choose_tiles(
    rgb: np.ndarray, um_per_px: float, white_3: np.ndarray, name: str, most: int = MOST_TILES
) -> np.ndarray:
    """Top left corners (x, y) in µm of tiles with tissue, float64 [T, 2]: the same for the same image."""
    height_um, width_um = rgb.shape[0] * um_per_px, rgb.shape[1] * um_per_px
    columns, rows = int(width_um / TILE_UM + 1e-6), int(height_um / TILE_UM + 1e-6)
    if not columns or not rows:
        raise InputError(f"{name}: {width_um:.0f} × {height_um:.0f} µm hold no tile of {TILE_UM:.0f} µm")
    step = max(round(COARSE_UM / um_per_px), 1)
    coarse = rgb[step // 2 :: step, step // 2 :: step]
    tissue = optical_density(coarse, white_3).mean(-1) > TISSUE_DENSITY
    left_um, top_um = (width_um - columns * TILE_UM) / 2, (height_um - rows * TILE_UM) / 2
    row_T, column_T = np.divmod(np.arange(rows * columns), columns)
    place_um_Tx2 = np.stack([left_um + column_T * TILE_UM, top_um + row_T * TILE_UM], 1)
    coarse_um = step * um_per_px
    corner_Tx2 = np.round(place_um_Tx2 / coarse_um).astype(int)
    side = int(TILE_UM / coarse_um)
    share_T = np.array([tissue[y : y + side, x : x + side].mean() for x, y in corner_Tx2])
    kept = np.flatnonzero(share_T >= TISSUE_SHARE)
    if len(kept) > most:
        rng = np.random.Generator(np.random.Philox(SEED))
        kept = np.sort(rng.choice(kept, most, replace=False))
    return place_um_Tx2[kept]


def optical_density(rgb: np.ndarray, white_3: np.ndarray) -> np.ndarray:
    """−log10 of the share of light that comes through, float32 [..., 3]; never below 0."""
    share = np.maximum(rgb.astype(np.float32), 1.0) / white_3.astype(np.float32)
    return np.maximum(-np.log10(share), 0.0)


def stain_densities(rgb: np.ndarray, white_3: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(haematoxylin, eosin, where tissue is): float32, float32 and bool [H, W] of a tile.

    Stains are told apart by the vectors of Ruifrok and Johnston (2001) as scikit-image has them.
    """
    density = optical_density(rgb, white_3)
    stains = np.maximum(density @ hed_from_rgb.astype(np.float32), 0.0)
    tissue = ndimage.gaussian_filter(density.mean(-1), TISSUE_SIGMA_PX) > TISSUE_DENSITY
    return stains[..., 0], stains[..., 1], tissue


def segment_nuclei(haematoxylin: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Numbers 1, 2, … of the nuclei of a tile at UM_PER_PX, int32 [H, W]; 0 is no nucleus.

    A nucleus is darker in haematoxylin than Li's threshold of the tile, and than its surroundings, so that crowded
    nuclei come apart; those that still touch are cut where the distance to the outline is least. Its outline is then
    drawn half-way between its own darkness and that of the tissue between nuclei: Li's threshold lies lower, and would
    give dark nuclei a wider rim than pale ones.
    """
    smooth = ndimage.gaussian_filter(haematoxylin, NUCLEUS_SIGMA_PX)
    inside = smooth[tissue]
    if not len(inside) or np.ptp(inside) < 1e-3:
        return np.zeros(haematoxylin.shape, np.int32)
    around = ndimage.gaussian_filter(haematoxylin, SURROUNDINGS_UM / UM_PER_PX)
    dark = tissue & (smooth > np.maximum(around, max(threshold_li(inside), NUCLEUS_DENSITY)))
    dark = ndimage.binary_opening(dark)
    depth_px = ndimage.gaussian_filter(ndimage.distance_transform_edt(dark).astype(np.float32), 1.0)
    peak = (depth_px == ndimage.maximum_filter(depth_px, footprint=_disc(APART_UM / UM_PER_PX))) & dark
    nuclei = watershed(-depth_px, ndimage.label(peak, np.ones((3, 3)))[0], mask=dark)
    between = np.median(smooth[tissue & ~dark]) if (tissue & ~dark).any() else 0.0
    own_K = np.bincount(nuclei.ravel(), smooth.ravel()) / np.maximum(np.bincount(nuclei.ravel()), 1)
    return np.where(smooth > (own_K[nuclei] + between) / 2, nuclei, 0)


def _disc(radius_px: float) -> np.ndarray:
    step = np.arange(-int(radius_px), int(radius_px) + 1)
    return step[:, None] ** 2 + step**2 <= radius_px**2


def tile_figures(haematoxylin: np.ndarray, eosin: np.ndarray, tissue: np.ndarray) -> list[float]:
    """The figures of one tile, in the order of FIGURES. Areas and numbers are per tissue, not per tile.

    haematoxylin, eosin: densities of the stains, [H, W]; tissue: bool [H, W]; all at `UM_PER_PX`.
    """
    nuclei = segment_nuclei(haematoxylin, tissue)
    area_um2_K = np.bincount(nuclei.ravel())[1:] * UM_PER_PX**2
    covered = np.concatenate([[False], area_um2_K >= SMALLEST_UM2])[nuclei]
    real_K = (area_um2_K >= SMALLEST_UM2) & (area_um2_K <= LARGEST_UM2)

    def off(edge):
        return ~np.isin(np.arange(1, len(real_K) + 1), edge)

    # a nucleus on an edge is counted in one of two tiles, and its area is not known
    counted_K = real_K & off(nuclei[0]) & off(nuclei[:, 0])
    whole_K = counted_K & off(nuclei[-1]) & off(nuclei[:, -1])
    between = tissue & ~covered
    tissue_mm2 = tissue.sum() * (UM_PER_PX / 1000) ** 2

    def mean(values, where):
        return float(values[where].mean()) if where.any() else np.nan

    return [
        mean(haematoxylin, tissue),
        mean(eosin, tissue),
        mean(haematoxylin, covered),
        mean(haematoxylin, between),
        mean(eosin, between),
        float(np.median(area_um2_K[whole_K])) if whole_K.any() else np.nan,
        float(counted_K.sum() / tissue_mm2) if tissue_mm2 else 0.0,
        mean(covered.astype(np.float32), tissue),
    ]

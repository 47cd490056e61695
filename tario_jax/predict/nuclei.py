"""Nuclei from haematoxylin: colour deconvolution, a local threshold, a distance transform, a watershed.

A large image is read in tiles with a margin. A nucleus belongs to the tile that its marker lies in, and every step that
leads to a marker looks less far than the margin: so nuclei are found once, are never cut at a tile's border, and do not
depend on the tiles.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.filters import threshold_otsu
from skimage.measure import find_contours
from skimage.morphology import disk
from skimage.segmentation import watershed

from tario_jax.config import InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.predict.outlines import Outlines
from tario_jax.predict.tissue import ImageSection

WORK_UM_PER_PX = 0.5  # a nucleus is 6 to 20 px wide; finer images are averaged to it
COARSEST_UM_PER_PX = 1.0  # the smallest nuclei are then 4 px wide
TILE_UM = 512.0
MARGIN_UM = 48.0
SAMPLED_TILES = 49  # for the section's own level of haematoxylin


@dataclasses.dataclass(frozen=True)
class NucleusSettings:
    """Lengths in µm. The threshold is the mean of the surroundings, held near the section's own level (Otsu's)."""

    smooth_um: float = 0.6  # standard deviation, of haematoxylin
    around_um: float = 12.0  # of the surroundings
    above: float = 0.25  # over their mean, in units of the section's level
    lowest: float = 0.8  # the threshold in units of the section's level
    highest: float = 1.3
    open_um: float = 0.75  # what is thinner than twice this is no nucleus
    rounded_um: float = 0.9  # smoothing of the distance to the border, whose peaks are the markers
    apart_um: float = 2.2  # between markers, at least
    least_um2: float = 8.0
    most_um2: float = 350.0


def find_nuclei(section: Section | ImageSection, *, tile_um: float = TILE_UM,
                progress: Callable[[int, int], None] | None = None) -> Outlines:  # fmt: skip
    """Outlines of the nuclei that the section's H&E shows, row by row of tiles.

    progress(done, all) is called as tiles are read. Raises `InputError` without an H&E, or for one coarser than 1 µm
    per px.
    """
    if not section.holds("he"):
        raise InputError(f"{section.id}: has no H&E to find nuclei in")
    if section.he_um_per_px > COARSEST_UM_PER_PX:
        raise InputError(
            f"{section.id}: its H&E has {section.he_um_per_px:g} µm per px; nuclei need {COARSEST_UM_PER_PX:g} or "
            "finer; give outlines (--cells=FILE.geojson)"
        )
    settings = NucleusSettings()
    px_um = max(section.he_um_per_px, WORK_UM_PER_PX)
    tile_px, margin_px = round(tile_um / px_um), round(MARGIN_UM / px_um)
    columns, rows = (max(1, int(np.ceil(extent / px_um / tile_px - 1e-6)))
                     for extent in (section.width_um, section.height_um))  # fmt: skip
    corners = [(column * tile_px, row * tile_px) for row in range(rows) for column in range(columns)]
    level = _level(section, px_um, round(TILE_UM / px_um), settings)
    polygons = []
    for number, (x_px, y_px) in enumerate(corners, 1):
        left, top = x_px - margin_px, y_px - margin_px
        he = section.begin_he_window(left * px_um, top * px_um, tile_px + 2 * margin_px, px_um)()
        core = slice(margin_px, margin_px + tile_px)
        for ring_px in _nuclei_of(he, px_um, level, settings, core):
            polygons.append((ring_px + [left + 0.5, top + 0.5]) * px_um)
        if progress is not None:
            progress(number, len(corners))
    return Outlines.of(polygons)


def haematoxylin(he: np.ndarray) -> np.ndarray:
    """Amount of haematoxylin of each pixel (Ruifrok & Johnston 2001), float32 [H, W]; 0 on glass."""
    stained = rgb2hed(he)[..., 0].astype(np.float32)
    return np.maximum(stained, 0.0)


def _smoothed(he: np.ndarray, px_um: float, settings: NucleusSettings) -> np.ndarray:
    return ndimage.gaussian_filter(haematoxylin(he), settings.smooth_um / px_um, truncate=3.0)


def _level(section, px_um: float, side_px: int, settings: NucleusSettings) -> float:
    """Otsu's threshold between haematoxylin of nuclei and of the rest, over tiles spread evenly over the section."""
    columns, rows = (max(1, int(extent / px_um / side_px)) for extent in (section.width_um, section.height_um))
    corners = [(column, row) for row in range(rows) for column in range(columns)]
    corners = corners[:: max(1, -(-len(corners) // SAMPLED_TILES))]
    values = []
    for column, row in corners:
        he = section.begin_he_window(column * side_px * px_um, row * side_px * px_um, side_px, px_um)()
        tissue = (he.min(2) < 235).ravel()  # glass would be the other class
        values.append(_smoothed(he, px_um, settings).ravel()[tissue][::4])
    values = np.concatenate(values)
    if len(values) < 2 or np.ptp(values) == 0:
        return np.inf  # glass alone
    return float(threshold_otsu(np.minimum(values, np.percentile(values, 99.8))))


def _nuclei_of(he: np.ndarray, px_um: float, level: float, settings: NucleusSettings,
               core: slice) -> list[np.ndarray]:  # fmt: skip
    """Rings (x, y) in px, pixel centres whole, of nuclei whose marker lies in the core of a tile."""
    if not np.isfinite(level):
        return []
    stain = _smoothed(he, px_um, settings)
    around = ndimage.gaussian_filter(stain, settings.around_um / px_um, truncate=2.0)
    threshold = np.clip(around + settings.above * level, settings.lowest * level, settings.highest * level)
    nuclear = ndimage.binary_opening(stain > threshold, disk(max(1, round(settings.open_um / px_um))))
    nuclear = _filled(nuclear, round(settings.least_um2 / px_um**2))
    depth = ndimage.gaussian_filter(_depth(nuclear, px_um), settings.rounded_um / px_um, truncate=3.0)
    reach = disk(max(1, round(settings.apart_um / px_um)))
    peaks = (depth == ndimage.maximum_filter(depth, footprint=reach)) & nuclear
    marker, number = ndimage.label(peaks, np.ones((3, 3)))
    label = watershed(-depth, marker, mask=nuclear)
    rings = []
    first_px = {int(marker.flat[at]): at for at in np.flatnonzero(marker)[::-1]}  # of each marker, row by row
    sizes = np.bincount(label.ravel(), minlength=number + 1) * px_um**2
    for i, box in enumerate(ndimage.find_objects(label, number), 1):
        row, column = divmod(first_px[i], marker.shape[1])
        owned = core.start <= row < core.stop and core.start <= column < core.stop
        if box is None or not owned or not settings.least_um2 <= sizes[i] <= settings.most_um2:
            continue
        mask = np.pad(label[box] == i, 1)
        ring = max(find_contours(mask.astype(np.float32), 0.5), key=len)[:-1, ::-1]
        rings.append(ring + [box[1].start - 1, box[0].start - 1])
    return rings


def _depth(nuclear: np.ndarray, px_um: float) -> np.ndarray:
    """Distance to the border in µm, float32; beyond 12 µm it is 12: no more is looked at than the margin holds."""
    return np.minimum(ndimage.distance_transform_edt(nuclear, sampling=px_um), 12.0).astype(np.float32)


def _filled(nuclear: np.ndarray, most_px: int) -> np.ndarray:
    """Pale centres of nuclei filled: holes of up to so many px."""
    hole, number = ndimage.label(~nuclear)
    sizes = np.bincount(hole.ravel(), minlength=number + 1)
    small = sizes <= most_px
    small[0] = False
    return nuclear | small[hole]

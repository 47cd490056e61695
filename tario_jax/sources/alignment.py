"""From H&E px to the assay's µm, and the H&E resampled into the section's frame."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
from skimage.transform import AffineTransform, warp

from tario_jax.config import InputError
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX
from tario_jax.sources.delimited import header, numbers, read_columns

_KEY_POINTS = ("fixedX", "fixedY", "alignmentX", "alignmentY")
_BLOCK_PX = 1024  # side of the piece that is resampled at once, in double precision
_MAX_MISS_UM = 20.0  # of a key point, at the median


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The affine from H&E px to px of the assay's frame (3×3), and µm per px of that frame."""

    path: Path
    affine: np.ndarray
    pixel_um: float
    note: str = ""
    frame: str = "morphology px"

    @functools.cached_property
    def um_per_px(self) -> float:
        """µm per px of H&E: the square root of the affine's area factor."""
        return float(np.sqrt(abs(np.linalg.det(self.affine[:2, :2])))) * self.pixel_um

    def to_um(self, he_px_Nx2: np.ndarray) -> np.ndarray:
        return (he_px_Nx2 @ self.affine[:2, :2].T + self.affine[:2, 2]) * self.pixel_um

    def to_he_px(self, place_um_Nx2: np.ndarray) -> np.ndarray:
        """inv(M) @ (µm / pixel size)."""
        inverse = np.linalg.inv(self.affine)
        return (place_um_Nx2 / self.pixel_um) @ inverse[:2, :2].T + inverse[:2, 2]

    def checked(self) -> "Alignment":
        """Itself. Raises `InputError` where no H&E has such a scale or shear."""
        scale = np.linalg.svd(self.affine[:2, :2], compute_uv=False)
        low_um, high_um = PLAUSIBLE_UM_PER_PX
        if not low_um <= self.um_per_px <= high_um or scale[1] < 0.9 * scale[0]:
            raise InputError(
                f"{self.path}: gives {self.um_per_px:.3g} µm per px of H&E and scales of {scale[0]:.3g} and "
                f"{scale[1]:.3g}; expected {low_um} to {high_um} µm per px and equal scales: "
                f"the affine from H&E px to {self.frame}"
            )
        return self


def read_alignment(path: Path, pixel_um: float) -> Alignment:
    """Reads either form of the vendor's file: a 3×3 affine without header, or key points with one.

    Key points (fixedX, fixedY in morphology px; alignmentX, alignmentY in H&E px) give the affine by least squares.
    Raises `InputError` where it is neither, or where no H&E has such a scale or shear.
    """
    names = header(path)
    if set(_KEY_POINTS) <= set(names):
        alignment = _from_key_points(path, pixel_um)
    else:
        alignment = Alignment(path, read_affine(path), pixel_um)
    return alignment.checked()


def read_affine(path: Path) -> np.ndarray:
    """A 3×3 affine without header, its numbers apart by commas."""
    try:
        affine = np.array([[float(value) for value in line.split(",")] for line in path.read_text().split()])
    except (ValueError, UnicodeDecodeError):
        affine = np.zeros(0)
    if affine.shape != (3, 3) or not np.isfinite(affine).all() or not np.allclose(affine[2], (0, 0, 1)):
        raise InputError(
            f"{path}: neither a 3×3 affine (last row 0,0,1) nor key points with columns {', '.join(_KEY_POINTS)}; "
            "expected the vendor's alignment file unchanged"
        )
    return affine


def _from_key_points(path: Path, pixel_um: float) -> Alignment:
    columns = read_columns(path, dict.fromkeys(_KEY_POINTS, pa.float64()))
    fixed_x, fixed_y, he_x, he_y = (numbers(columns[name]) for name in _KEY_POINTS)
    design = np.stack([he_x, he_y, np.ones_like(he_x)], 1)
    if np.isnan(design).any() or len(design) < 3 or np.linalg.matrix_rank(design - design.mean(0)) < 2:
        raise InputError(f"{path}: {len(design)} key points; expected at least 3, not in one line, none empty")
    target = np.stack([fixed_x, fixed_y], 1)
    solution = np.linalg.lstsq(design, target, rcond=None)[0]
    miss_um = float(np.median(np.linalg.norm(target - design @ solution, axis=1))) * pixel_um
    if miss_um > _MAX_MISS_UM:
        raise InputError(
            f"{path}: key points miss their affine by {miss_um:.3g} µm at the median; expected below {_MAX_MISS_UM:g}; "
            "are the columns of two points swapped?"
        )
    affine = np.vstack([solution.T, [0, 0, 1]])
    note = f"{path.name}: affine fitted to {len(design)} key points, missing them by {miss_um:.2g} µm at the median"
    return Alignment(path, affine, pixel_um, note)


def resample(he: np.ndarray, alignment: Alignment, origin_um: np.ndarray, end_um: np.ndarray) -> np.ndarray:
    """H&E in the frame with its origin at `origin_um`, at the H&E's own µm per px; uint8, white where there is none.

    Bilinear, block by block, so that a whole slide is never held in double precision. A pixel's place is its centre,
    (column + 0.5, row + 0.5), in both images.
    """
    um_per_px = alignment.um_per_px
    width_px, height_px = np.ceil((end_um - origin_um) / um_per_px - 1e-6).astype(int)
    # section px -> µm -> H&E px, then from places of centres to indices of pixels on both sides
    to_um = np.array([[um_per_px, 0, origin_um[0]], [0, um_per_px, origin_um[1]], [0, 0, 1]])
    scale = np.diag([1 / alignment.pixel_um, 1 / alignment.pixel_um, 1])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ np.linalg.inv(alignment.affine) @ scale @ to_um @ half
    out = np.full((height_px, width_px, 3), 255, np.uint8)
    for top in range(0, height_px, _BLOCK_PX):
        for left in range(0, width_px, _BLOCK_PX):
            bottom, right = min(top + _BLOCK_PX, height_px), min(left + _BLOCK_PX, width_px)
            corners = np.array([[left, top, 1], [right, top, 1], [right, bottom, 1], [left, bottom, 1]]) @ matrix.T
            low = np.maximum(np.floor(corners[:, :2].min(0)).astype(int) - 2, 0)
            high = np.minimum(np.ceil(corners[:, :2].max(0)).astype(int) + 3, (he.shape[1], he.shape[0]))
            if (high <= low).any():
                continue
            source = he[low[1] : high[1], low[0] : high[0]]
            to_source = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ matrix
            to_source = to_source @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1]])
            block = warp(
                source, AffineTransform(to_source), output_shape=(bottom - top, right - left),
                order=1, mode="constant", cval=255, preserve_range=True,
            )  # fmt: skip
            out[top:bottom, left:right] = np.rint(block)
    return out

"""From H&E px to the assay's µm, and the H&E resampled into the section's frame."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from skimage.transform import AffineTransform, warp

from tario_jax.config import InputError
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX, BlockImage
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
    affine = _affine(path)
    if affine is not None:
        return Alignment(path, affine, pixel_um).checked()
    if not set(_KEY_POINTS) <= set(header(path)):
        raise InputError(
            f"{path}: neither a 3×3 affine (last row 0,0,1) nor key points with columns {', '.join(_KEY_POINTS)}; "
            "expected the vendor's alignment file unchanged"
        )
    return _from_key_points(path, pixel_um).checked()


def read_affine(path: Path) -> np.ndarray:
    """A 3×3 affine without header, its numbers apart by commas. Raises `InputError` where the file is none."""
    affine = _affine(path)
    if affine is None:
        raise InputError(f"{path}: no 3×3 affine; expected three lines of three numbers apart by commas, the last "
                         "0,0,1; write it so")  # fmt: skip
    return affine


def _affine(path: Path) -> np.ndarray | None:
    """As a spreadsheet or an editor may save it too: with a byte order mark, spaces and blank lines."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        affine = np.array([[float(value) for value in line.split(",")] for line in lines if line.strip()])
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected a table of text") from None
    except ValueError:  # text, lines of different length, or no UTF-8
        return None
    whole = affine.shape == (3, 3) and np.isfinite(affine).all() and np.allclose(affine[2], (0, 0, 1))
    return affine if whole else None


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


def resampled(he: BlockImage, alignment: Alignment, origin_um: np.ndarray, end_um: np.ndarray) -> BlockImage:
    """H&E in the frame with its origin at `origin_um`, at the H&E's own µm per px; white where there is none.

    Bilinear, computed as it is read: neither image is ever whole in memory. A pixel's place is its centre,
    (column + 0.5, row + 0.5), in both images. It is always computed in the same blocks, so that its rounding does not
    depend on what is read of it.
    """
    um_per_px = alignment.um_per_px
    width_px, height_px = np.ceil((end_um - origin_um) / um_per_px - 1e-6).astype(int).tolist()
    # section px -> µm -> H&E px, then from places of centres to indices of pixels on both sides
    to_um = np.array([[um_per_px, 0, origin_um[0]], [0, um_per_px, origin_um[1]], [0, 0, 1]])
    scale = np.diag([1 / alignment.pixel_um, 1 / alignment.pixel_um, 1])
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(half) @ np.linalg.inv(alignment.affine) @ scale @ to_um @ half
    held: dict[tuple[int, int], np.ndarray] = {}  # of the last row of blocks, which the next rows may ask for again

    def size_of(block: tuple[int, int]) -> tuple[int, int]:
        return min(_BLOCK_PX, height_px - block[0]), min(_BLOCK_PX, width_px - block[1])

    def box_of(block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """First and last (x, y) of the H&E px that a block needs."""
        (top, left), (rows, columns) = block, size_of(block)
        corners = np.array([[left, top, 1], [left + columns, top, 1], [left + columns, top + rows, 1],
                            [left, top + rows, 1]]) @ matrix.T  # fmt: skip
        low = np.maximum(np.floor(corners[:, :2].min(0)).astype(int) - 2, 0)
        return low, np.minimum(np.ceil(corners[:, :2].max(0)).astype(int) + 3, (he.width_px, he.height_px))

    def compute(block: tuple[int, int], source: np.ndarray, low: np.ndarray) -> np.ndarray:
        to_source = np.array([[1, 0, -low[0]], [0, 1, -low[1]], [0, 0, 1]]) @ matrix
        to_source = to_source @ np.array([[1, 0, block[1]], [0, 1, block[0]], [0, 0, 1]])
        warped = warp(
            source, AffineTransform(to_source), output_shape=size_of(block), order=1, mode="constant", cval=255,
            preserve_range=True,
        )  # fmt: skip
        return np.rint(warped).astype(np.uint8)

    def blocks_of(wanted: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
        """Those blocks, in order. What several of them need is read once where it is not much more than they are."""
        boxes = {block: box_of(block) for block in wanted if block not in held}
        there = {block: (low, high) for block, (low, high) in boxes.items() if (high > low).all()}
        first = np.min([low for low, _ in there.values()], 0) if there else np.zeros(2, int)
        last = np.max([high for _, high in there.values()], 0) if there else first
        together = np.prod(last - first) <= 1.5 * sum(np.prod(high - low) for low, high in there.values())
        read = he[first[1] : last[1], first[0] : last[0]] if there and together else None
        for block in wanted:
            if block in held:
                yield block, held[block]
            elif block not in there:
                yield block, np.full((*size_of(block), 3), 255, np.uint8)
            else:
                low, high = there[block]
                if read is None:
                    source = he[low[1] : high[1], low[0] : high[0]]
                else:
                    source = read[low[1] - first[1] : high[1] - first[1], low[0] - first[0] : high[0] - first[0]]
                yield block, compute(block, source, low)

    def part(rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        first_row, last_row = rows.start // _BLOCK_PX, (rows.stop - 1) // _BLOCK_PX
        wanted = [(row * _BLOCK_PX, column * _BLOCK_PX) for row in range(first_row, last_row + 1)
                  for column in range(columns.start // _BLOCK_PX, (columns.stop - 1) // _BLOCK_PX + 1)]  # fmt: skip
        kept = {}
        for block, pixels in blocks_of(wanted):
            (top, left), (height, width) = block, pixels.shape[:2]
            y0, y1 = max(rows.start, top), min(rows.stop, top + height)
            x0, x1 = max(columns.start, left), min(columns.stop, left + width)
            out[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start] = pixels[
                y0 - top : y1 - top, x0 - left : x1 - left
            ]
            if y1 < top + height:
                kept[block] = pixels
        held.clear()
        held.update(kept)
        return out

    return BlockImage(height_px, width_px, part)

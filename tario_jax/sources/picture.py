"""The H&E image of spots or squares whose places are px of it, cut to where they lie."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import BlockImage
from tario_jax.sources.slide_files import opened_slide

MARGIN_UM = 300.0  # of H&E kept around the places' centres; the rest of the slide is not stored


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file; `per_fullres` of its px are one px of the full-resolution image that the vendor's places mean."""

    path: Path
    um_per_px: float  # of this file's px
    per_fullres: float = 1.0

    @contextlib.contextmanager
    def cut(self, fullres_xy_Nx2: np.ndarray) -> Iterator[tuple[BlockImage, np.ndarray, np.ndarray]]:
        """The H&E around these places with a margin of 300 µm; its top left corner (x, y) in px; who lies inside [N].

        The H&E is read block by block, until this is left. Raises `InputError` where more than half of the places lie
        outside, or the file is no H&E.
        """
        with opened_slide(self.path) as file:
            yield self._cut(file.levels[0], fullres_xy_Nx2)

    def _cut(self, whole: BlockImage, fullres_xy_Nx2: np.ndarray) -> tuple[BlockImage, np.ndarray, np.ndarray]:
        size_px = (whole.width_px, whole.height_px)
        pixel_xy_Nx2 = fullres_xy_Nx2 * self.per_fullres
        inside_N = ((pixel_xy_Nx2 >= 0) & (pixel_xy_Nx2 < size_px)).all(1)
        if not len(inside_N):
            raise InputError(f"{self.path}: no place lies in tissue; expected at least one")
        if 2 * inside_N.sum() < len(inside_N):
            raise InputError(
                f"{self.path}: {np.sum(~inside_N)} of {len(inside_N)} places in tissue lie outside of its {size_px[0]} "
                f"x {size_px[1]} px; expected the image, in full resolution, that the places are px of"
            )
        left, top, right, bottom = box_around(pixel_xy_Nx2[inside_N], MARGIN_UM / self.um_per_px, *size_px)

        def read(rows: slice, columns: slice) -> np.ndarray:
            return whole[rows.start + top : rows.stop + top, columns.start + left : columns.stop + left]

        return BlockImage(bottom - top, right - left, read), np.array([left, top]), inside_N

    def to_um(self, fullres_xy_Nx2: np.ndarray, corner_px_2: np.ndarray) -> np.ndarray:
        """Places in the frame of the cut, µm."""
        return (fullres_xy_Nx2 * self.per_fullres - corner_px_2) * self.um_per_px

    def origin(self, corner_px_2: np.ndarray) -> dict[str, float]:
        """Where the cut begins in px of the full-resolution image, and that one's scale where it is another."""
        found = {
            f"he_origin_{axis}_px": float(at) for axis, at in zip("xy", corner_px_2 / self.per_fullres, strict=True)
        }
        return found if self.per_fullres == 1 else found | {"he_full_um_per_px": self.um_per_px * self.per_fullres}


def box_around(pixel_xy_Nx2: np.ndarray, margin_px: float, width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the box around these places with a margin, cut to the image."""
    left, top = np.maximum(np.floor(pixel_xy_Nx2.min(0) - margin_px), 0).astype(int).tolist()
    right, bottom = np.minimum(np.ceil(pixel_xy_Nx2.max(0) + margin_px), (width_px, height_px)).astype(int).tolist()
    return left, top, right, bottom

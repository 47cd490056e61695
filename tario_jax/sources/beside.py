"""An H&E that lies beside an assay's files: where it covers the assay, and its pixels in the section's frame."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.section import BlockImage
from tario_jax.sources.alignment import Alignment, resampled
from tario_jax.sources.slide_files import opened_slide

MEASURED_UM_PER_PX = 4.0  # of the mask of the measured area


@dataclasses.dataclass(frozen=True)
class HeBeside:
    """An H&E on the disk and where it lies in the assay's µm. Its pixels are read when its section is written."""

    path: Path
    alignment: Alignment
    width_px: int
    height_px: int

    @classmethod
    def at(cls, path: Path, alignment: Alignment) -> "HeBeside":
        """Raises `InputError` for a file that is no H&E, and where it states another scale than its alignment."""
        with opened_slide(path) as file:
            width_px, height_px = file.levels[0].width_px, file.levels[0].height_px
            stated_um_per_px = file.other_scale(alignment.um_per_px)
        if stated_um_per_px is not None:
            raise InputError(
                f"{alignment.path}: gives {alignment.um_per_px:.4g} µm per px of H&E, but {path.name} says "
                f"{stated_um_per_px:.4g}; expected the affine from H&E px to {alignment.frame}; is it the inverse?"
            )
        return cls(path, alignment, width_px, height_px)

    @property
    def extent_um(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest (x, y) of its corners."""
        width, height = self.width_px, self.height_px
        corners_um_4x2 = self.alignment.to_um(np.array([[0, 0], [width, 0], [width, height], [0, height]], float))
        return corners_um_4x2.min(0), corners_um_4x2.max(0)

    def covers(self, place_um_Nx2: np.ndarray) -> np.ndarray:
        """bool [N]; False for NaN."""
        he_px_Nx2 = self.alignment.to_he_px(place_um_Nx2)
        return ((he_px_Nx2 >= 0) & (he_px_Nx2 <= (self.width_px, self.height_px))).all(1)

    def common_extent(self, low_um: np.ndarray, high_um: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest (x, y) of what both the assay, given by its own, and the H&E reach."""
        low_he_um, high_he_um = self.extent_um
        return np.maximum(low_um, low_he_um), np.minimum(high_um, high_he_um)

    def covered(self, origin_um: np.ndarray, end_um: np.ndarray) -> np.ndarray:
        """bool [rows, columns] of the extent at `MEASURED_UM_PER_PX`: px whose centre it covers."""
        columns, rows = np.ceil((end_um - origin_um) / MEASURED_UM_PER_PX).astype(int)
        mask = np.zeros((rows, columns), bool)
        x_um = (np.arange(columns) + 0.5) * MEASURED_UM_PER_PX
        for row in range(rows):  # all places at once would take a GB of a slide
            y_um = np.full(columns, (row + 0.5) * MEASURED_UM_PER_PX)
            # the last row and column reach beyond the extent: their centres are held inside it
            mask[row] = self.covers(np.minimum(origin_um + np.column_stack([x_um, y_um]), end_um))
        return mask

    @contextlib.contextmanager
    def opened(self, origin_um: np.ndarray, end_um: np.ndarray) -> Iterator[BlockImage]:
        """The extent at the H&E's own µm per px, white where there is none; it can be read until this is left."""
        with opened_slide(self.path) as file:
            yield resampled(file.levels[0], self.alignment, origin_um, end_um)


@contextlib.contextmanager
def extent_of(he: HeBeside | None, origin_um: np.ndarray, end_um: np.ndarray) -> Iterator[dict[str, Any]]:
    """The fields of `SectionData` that say how large a section from `origin_um` to `end_um` is, and its H&E.

    The H&E is read block by block, until this is left.
    """
    width_um, height_um = (float(extent) for extent in end_um - origin_um)
    sides = {"width_um": width_um, "height_um": height_um, "measured_um_per_px": MEASURED_UM_PER_PX}
    if he is None:
        yield sides
        return
    with he.opened(origin_um, end_um) as image:
        yield sides | {"he_um_per_px": he.alignment.um_per_px, "he": image}

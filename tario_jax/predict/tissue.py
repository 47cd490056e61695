"""An image without a corpus, seen as a section."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.feature_grid import FeatureGrid
from tario_jax.corpus.resample import crop_and_resample
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX
from tario_jax.he_features.encode import grid_of
from tario_jax.he_features.encoders import Encoder
from tario_jax.sources.slide import full_um_per_px
from tario_jax.sources.slide_files import MOST_WHOLE_PX, opened_slide

SMALLEST_UM_PER_PX, LARGEST_UM_PER_PX = PLAUSIBLE_UM_PER_PX


class ImageSection:
    """H&E only: what `Predictor` needs of a section, from an array."""

    spots, has_spots = None, False
    he_origin_px = (0.0, 0.0)

    def __init__(self, image: np.ndarray, um_per_px: float, *, genes: int, name: str = "image", force: bool = False):
        """image: uint8 RGB [H, W, 3] (or RGBA, whose alpha is dropped). Raises `InputError` for anything else."""
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8:
            raise InputError(f"{name}: image is {image.dtype} {image.shape}; expected uint8 RGB [height, width, 3]")
        if not np.isfinite(um_per_px) or um_per_px <= 0:
            raise InputError(f"{name}: um_per_px is {um_per_px}; expected a positive number")
        if not force and not SMALLEST_UM_PER_PX <= um_per_px <= LARGEST_UM_PER_PX:
            raise InputError(
                f"{name}: {um_per_px:g} µm per px; expected {SMALLEST_UM_PER_PX} to {LARGEST_UM_PER_PX} "
                "(pass force=True if this is what the scanner did)"
            )
        self._pixels, self.he_um_per_px, self.id = image[..., :3], float(um_per_px), name
        self.he_full_um_per_px = self.he_um_per_px
        self.height_um, self.width_um = (size * self.he_um_per_px for size in image.shape[:2])
        self.measured_gene_G = np.ones(genes, bool)
        self._grids: dict[str, FeatureGrid] = {}  # by encoder

    def holds(self, name: str) -> bool:
        return name == "he"

    def has_features(self, encoder: str) -> bool:
        return encoder in self._grids

    def encode(self, encoder: Encoder) -> None:
        """Works out the features of the image, which `feature_grid` gives then."""
        self._grids[encoder.card.name] = grid_of(self, encoder)

    def feature_grid(self, encoder: str) -> FeatureGrid:
        """Raises KeyError before `encode`."""
        return self._grids[encoder]

    def begin_he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> Callable[[], np.ndarray]:
        pixels, scale = self._pixels, self.he_um_per_px
        return lambda: crop_and_resample(pixels, pixels.shape, scale, x_um, y_um, side_px, um_per_px)


def read_image(path: Path, um_per_px: float, say: Callable[[str], None] = print) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], its finest level as a slide's would be read; what is noteworthy is said.

    um_per_px: by which it is taken, whatever the file says. Raises `InputError` where it is missing, broken, not in
    colour, or too large to be held whole.
    """
    if not path.is_file():
        raise InputError(f"--image={path}: no such file; expected a PNG, JPEG or TIFF")
    with opened_slide(path) as file:
        _, notes = full_um_per_px(file, um_per_px, force=True)
        for note in (*file.notes, *notes):
            say(f"{path}: {note}")
        image = file.levels[0]
        if image.width_px * image.height_px > MOST_WHOLE_PX:
            raise InputError(f"--image={path}: has {image.width_px:,} × {image.height_px:,} px, and is held whole; "
                             f"expected at most {MOST_WHOLE_PX // 10**6} million; predict it as --slide")  # fmt: skip
        return image[:, :]

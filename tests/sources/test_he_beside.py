"""An H&E beside an assay: its pixels are computed as they are read, the same whatever is read of them."""

import numpy as np
import pytest
from made_slides import speckled
from skimage.transform import warp

from tario_jax.corpus.section import BlockImage
from tario_jax.sources import alignment
from tario_jax.sources.alignment import Alignment, resampled

HE = speckled(300, 400)


def turned(degrees: float, stretch: float = 1.7) -> np.ndarray:
    """H&E px to px of the assay's frame."""
    cos, sin = np.cos(np.deg2rad(degrees)) * stretch, np.sin(np.deg2rad(degrees)) * stretch
    return np.array([[cos, sin, 900.0], [sin, -cos, 1400.0], [0, 0, 1]])


def in_frame(affine, monkeypatch, block_px=64):
    """The H&E in the frame of the assay, with what is read of it."""
    monkeypatch.setattr(alignment, "_BLOCK_PX", block_px)
    asked = []

    def read(rows, columns):
        asked.append((rows.stop - rows.start) * (columns.stop - columns.start))
        return HE[rows, columns]

    aligned = Alignment("a.csv", affine, 0.2)
    corners_um = aligned.to_um(np.array([[0, 0], [400, 0], [400, 300], [0, 300]], float))
    low_um, high_um = corners_um.min(0) - 3, corners_um.max(0) + 3
    return resampled(BlockImage(300, 400, read), aligned, low_um, high_um), aligned, low_um, asked


@pytest.mark.parametrize("degrees", [0, 2, 45, 90])
def test_a_part_is_what_the_whole_is_there(degrees, monkeypatch):
    image, *_ = in_frame(turned(degrees), monkeypatch)
    whole = image[:, :]
    assert (whole < 255).any() and (whole[:2] == 255).all()
    rng = np.random.default_rng(0)
    for _ in range(30):
        top, left = rng.integers(0, np.array(whole.shape[:2]) - 1)
        bottom, right = (
            int(rng.integers(at + 1, size + 1)) for at, size in zip((top, left), whole.shape, strict=False)
        )
        np.testing.assert_array_equal(image[top:bottom, left:right], whole[top:bottom, left:right])
    for top in range(0, image.height_px, 40):  # bands, as they are hashed
        np.testing.assert_array_equal(image[top : top + 40, :], whole[top : top + 40])


def test_it_is_the_bilinear_image_at_the_centres_of_pixels(monkeypatch):
    image, aligned, low_um, _ = in_frame(turned(2), monkeypatch)
    um = aligned.um_per_px

    def to_he_px(index_Nx2):
        return aligned.to_he_px((index_Nx2 + 0.5) * um + low_um) - 0.5

    plain = warp(HE, to_he_px, output_shape=image.shape[:2], order=1, mode="constant", cval=255, preserve_range=True)
    assert np.abs(image[:, :].astype(int) - np.rint(plain)).max() <= 1


def test_no_more_is_read_than_what_is_asked_for_needs(monkeypatch):
    image, *_, asked = in_frame(turned(2), monkeypatch, block_px=32)
    for top in range(0, image.height_px, 64):  # shard by shard, as it is written
        for left in range(0, image.width_px, 64):
            image[top : top + 64, left : left + 64]
    assert max(asked) < 90 * 90 and sum(asked) < 2.5 * 300 * 400
    before = len(asked)
    for top in range(0, image.height_px, 20):  # a block of which a band needs a part is not computed again
        image[top : top + 20, :]
    assert sum(asked[before:]) < 2.5 * 300 * 400

"""Tissue is found by its colour, whatever the glass is tinted; pen, black and glass are none."""

import numpy as np
import pytest

from tario_jax.predict.slide import opened_section
from tario_jax.predict.stain_match import StainMatch, StainStatistics, densities
from tario_jax.predict.tissue_mask import find_tissue, tissue_of

SIDE = 240  # px of 8 µm
EOSIN, HAEMATOXYLIN, PALE = (214, 130, 176), (110, 70, 150), (234, 200, 224)


def overview(glass=(244, 244, 244), seed=0) -> tuple[np.ndarray, np.ndarray]:
    """A disc of tissue, dark and pale, on glass: uint8 [SIDE, SIDE, 3] and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = np.hypot(x - 120, y - 120) < 70
    colour = np.array([EOSIN, HAEMATOXYLIN, PALE])[(x + y) // 35 % 3]
    picture = np.where(disc[..., None], colour, 244) * np.array(glass) / 244
    picture = picture + np.where(disc, 12.0, 1.5)[..., None] * rng.standard_normal((SIDE, SIDE, 1))
    return picture.clip(0, 255).astype(np.uint8), disc


def agreement(found: np.ndarray, meant: np.ndarray) -> float:
    """Of areas: intersection over union."""
    return (found & meant).sum() / (found | meant).sum()


@pytest.mark.parametrize("glass", [(244, 244, 244), (232, 222, 236), (238, 240, 226)])
def test_tissue_is_found_on_any_glass(glass):
    picture, disc = overview(glass)
    assert agreement(tissue_of(picture, 8.0), disc) > 0.93


PENS = {
    "blue": (20, 60, 170),
    "green": (30, 140, 60),
    "black": (25, 25, 28),
    "red": (225, 20, 30),
    "unscanned": (0, 0, 0),
}


@pytest.mark.parametrize("pen", PENS)
def test_pen_and_black_are_no_tissue(pen):
    picture, disc = overview()
    picture[10:40, 20:220] = PENS[pen]
    picture[100:112, 60:180] = PENS[pen]  # across the tissue
    found = tissue_of(picture, 8.0)
    assert not found[8:42, 18:222].any() and not found[102:110, 70:170].any()
    disc[98:114] = False
    found[98:114] = False
    assert agreement(found, disc) > 0.9


@pytest.mark.parametrize(
    "glass", [(slice(0, 80), slice(0, 11)), (slice(0, 34), slice(0, 34)), (slice(0, 40), slice(80))]
)
def test_glass_that_reaches_the_border_is_no_hole(glass):
    """A strip of 88 µm, a corner of 0.07 mm², the half of a small picture; but a vessel in the middle is one."""
    rng = np.random.default_rng(1)
    picture = (np.array(EOSIN) + 14 * rng.standard_normal((80, 80, 1))).clip(0, 255).astype(np.uint8)
    meant = np.ones((80, 80), bool)
    meant[glass], picture[glass], picture[60:66, 60:66] = False, 244, 244
    assert agreement(tissue_of(picture, 8.0), meant) > 0.93
    assert not tissue_of(np.full((38, 38, 3), 244, np.uint8), 8.0).any()


def test_a_slide_that_is_all_tissue_is_all_of_it():
    rng = np.random.default_rng(1)
    picture = (np.array(EOSIN) + 14 * rng.standard_normal((80, 80, 1))).clip(0, 255).astype(np.uint8)
    assert tissue_of(picture, 8.0).mean() > 0.98


def test_real_slides(real_data):
    """By hand: tissue is 37 to 42 % of this slide, and a sixth of this one, whose glass is tinted."""
    for name, um_per_px, low, high in (("slides/CMU-1-Small-Region.svs", None, 0.36, 0.43),
                                       ("her2st/C5.jpg", 0.8, 0.145, 0.185)):  # fmt: skip
        with opened_section(real_data / name, um_per_px, genes=1, say=str) as section:
            mask = find_tissue(section)
            assert low < mask.tissue_YxX.mean() < high and mask.um_per_px == pytest.approx(8, abs=0.05)


def test_stains_become_those_of_the_reference():
    picture, disc = overview()
    found = StainStatistics.of_pixels(picture[disc])
    wanted = StainStatistics(found.mean_3 * (1.3, 0.8, 1.0), found.deviation_3 * (1.2, 0.9, 1.0))
    changed = StainMatch(found, wanted)(picture)
    now = StainStatistics.of_pixels(changed[disc])
    # three rounds less: pale tissue is changed by less, as glass is not at all
    assert np.all(np.abs(now.mean_3 - wanted.mean_3)[:2] < 0.4 * np.abs(found.mean_3 - wanted.mean_3)[:2])
    assert np.abs(changed[~disc].astype(int) - picture[~disc]).mean() < 1.5
    same = StainMatch(found, found)(picture)
    assert np.abs(same.astype(int) - picture).max() <= 1
    assert densities(np.full((1, 3), 255, np.uint8)) == pytest.approx(0, abs=1e-6)

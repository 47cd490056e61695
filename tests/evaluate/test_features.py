"""Features see what they should, where they should, and fast."""

import time

import numpy as np
import pytest

from tario_jax.evaluate.features import section_features, surroundings_um


def tissue(size_px, um_per_px, nuclei_um, seed=0):
    """Pink tissue with blue discs of 7 µm at the given places."""
    rng = np.random.default_rng(seed)
    image = np.tile(np.array([235.0, 190.0, 215.0]), (size_px, size_px, 1)) + rng.normal(0, 3, (size_px, size_px, 1))
    y, x = (np.mgrid[:size_px, :size_px] + 0.5) * um_per_px
    for cx, cy in nuclei_um:
        disc = (x - cx) ** 2 + (y - cy) ** 2 < 3.5**2
        image[disc] = np.array([90.0, 70.0, 150.0])
    return np.clip(image, 0, 255).astype(np.uint8)


def centres(side, pitch_um=36.0):
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    return (x.ravel() + 0.5) * pitch_um, (y.ravel() + 0.5) * pitch_um


def test_nuclear_density_follows_the_nuclei_at_every_resolution():
    rng = np.random.default_rng(1)
    x, y = centres(5)
    number = rng.integers(0, 9, 25)
    slots = [(dx, dy) for dx in (-11, 0, 11) for dy in (-11, 0, 11)]
    nuclei = [(a + dx, b + dy) for a, b, k in zip(x, y, number, strict=True) for dx, dy in slots[:k]]
    for um_per_px in (0.5, 0.9, 1.0):
        he = tissue(int(180 / um_per_px), um_per_px, nuclei)
        features, density = section_features(he, um_per_px, x, y, 36.0)
        assert features.shape[0] == 25 and np.isfinite(features).all() and features.dtype == np.float32
        assert np.corrcoef(density, number)[0, 1] > 0.95
        assert density.min() >= 0 and density.max() < 0.6


def test_features_are_local_and_turn_with_the_image():
    he = tissue(288, 1.0, np.random.default_rng(2).uniform(0, 288, (150, 2)))
    x, y = centres(8)
    features, density = section_features(he, 1.0, x, y, 36.0)
    changed = he.copy()
    changed[:40, :40] = 255
    again, _ = section_features(changed, 1.0, x, y, 36.0)
    far = (x > 150) | (y > 150)
    np.testing.assert_array_equal(features[far], again[far])
    assert np.abs(features[0] - again[0]).max() > 0.1
    flipped, flipped_density = section_features(he[:, ::-1].copy(), 1.0, 288 - x, y, 36.0)
    np.testing.assert_allclose(density, flipped_density, atol=1e-5)


def test_a_large_image_read_in_crops_equals_the_whole(monkeypatch):
    he = tissue(600, 0.69, np.random.default_rng(3).uniform(0, 414, (300, 2)))
    x, y = np.array([150.0, 210.0, 260.0]), np.array([200.0, 180.0, 230.0])
    whole, whole_density = section_features(he, 0.69, x, y, 100.0)
    monkeypatch.setattr("tario_jax.evaluate.features.WHOLE_PX", 1000)
    crops, crop_density = section_features(he, 0.69, x, y, 100.0)
    np.testing.assert_allclose(whole_density, crop_density, atol=0.02)
    spread = np.maximum(np.abs(whole).mean(0), 0.05)
    assert np.median(np.abs(whole - crops) / spread) < 0.05  # the crops' pixel grid starts elsewhere


def test_blank_image_and_places_at_the_edge_are_finite_and_outside_is_refused():
    he = np.full((100, 100, 3), 255, np.uint8)
    features, density = section_features(he, 1.0, np.array([0.0, 100.0]), np.array([0.0, 50.0]), 36.0)
    assert np.isfinite(features).all() and (density == 0).all()
    with pytest.raises(ValueError, match="1 of 2 places lie outside"):
        section_features(he, 1.0, np.array([50.0, 120.0]), np.array([50.0, 50.0]), 36.0)


def test_surroundings_of_bins_and_spots():
    assert surroundings_um(36.0) == (36.0, 108.0)
    np.testing.assert_allclose(surroundings_um(100.0), (112.0, 224.0))


def test_a_section_of_196_bins_takes_a_fraction_of_a_second():
    he = tissue(1024, 0.5, np.random.default_rng(4).uniform(0, 512, (200, 2)))
    x, y = centres(14)
    section_features(he, 0.5, x, y, 36.0)
    spent = []
    for _ in range(3):
        start = time.process_time()
        section_features(he, 0.5, x, y, 36.0)
        spent.append(time.process_time() - start)
    assert min(spent) < 1.0  # about 0.2 s alone; the bar leaves room for a busy machine


def test_of_no_places_there_are_no_features_however_large_the_image():
    for side in (200, 2300):
        features, density = section_features(np.full((side, side, 3), 240, np.uint8), 1.0, [], [], 36.0)
        assert features.shape == (0, 136) and density.shape == (0,)

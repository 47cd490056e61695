"""The pyramid of convolutions: how patches are parted, that they are laid as they lie, and how far a patch sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from tario_jax.model.build import build
from tario_jax.model.he_encoder import Pyramid, as_picture, joined
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.batch import empty_batch, make_layout, square_bins_per_tile

SIZES = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_width": 64, "gene_dim": 16,
         "stem_width": 8}  # fmt: skip


@pytest.mark.parametrize(("patch_px", "expected"), [
    (18, (3, 2, 3)), (32, (4, 2, 4)), (16, (4, 2, 2)), (28, (4, 1, 7)), (36, (3, 2, 6)), (7, (1, 1, 7)), (4, (4, 1, 1)),
])  # fmt: skip
def test_a_patch_is_parted_into_whole_cells(patch_px, expected):
    assert Pyramid.of(patch_px) == expected and np.prod(expected) == patch_px


def test_patches_of_a_tile_become_its_picture_and_back():
    """Every px says where it is: laid side by side, rows and columns rise by one; joined, each square is whole."""
    side, px = 3, 4
    y, x = np.meshgrid(np.arange(side * px), np.arange(side * px), indexing="ij")
    picture = np.stack([y, x], -1)
    patches = picture.reshape(side, px, side, px, 2).transpose(0, 2, 1, 3, 4).reshape(1, 1, side * side, px, px, 2)
    laid = np.asarray(as_picture(jnp.asarray(patches)))
    np.testing.assert_array_equal(laid[0, 0, 0], picture)
    cells = np.asarray(joined(jnp.asarray(laid), 2))[0, 0, 0]
    assert cells.shape == (6, 6, 8)
    np.testing.assert_array_equal(cells[2, 1].reshape(2, 2, 2), picture[4:6, 2:4])


@pytest.fixture(scope="module")
def encoder():
    data = DataConfig(window_um=144.0, tile_um=72.0, rows=1)
    config = Config(data=data, model=ModelConfig(**SIZES))
    layout = make_layout(data, 40, bins_per_tile=square_bins_per_tile(data), largest_bin_um=36.0, count_capacity=8)
    batch = empty_batch(1, layout)
    rng = np.random.default_rng(0)
    batch = batch._replace(he_BxTxPxYxXx3=rng.integers(0, 256, batch.he_BxTxPxYxXx3.shape).astype(np.uint8))
    built = build(config.model, 40, data.patch_px, content=False)
    parameters, calibration = built.initialise(0, make_mesh(MeshConfig()))

    @jax.jit
    def tokens(he):
        return built.merge(parameters, calibration).he_encoder(batch._replace(he_BxTxPxYxXx3=he), jnp.float32)

    return tokens, batch.he_BxTxPxYxXx3


@pytest.mark.parametrize(("patch", "changed"), [(0, {0, 1, 4, 5}), (5, {0, 1, 2, 4, 5, 6, 8, 9, 10})])
def test_a_patch_knows_its_neighbours_and_no_other_tile(encoder, patch, changed):
    """4 × 4 patches of 18 px a tile: what lies in the middle of one reaches those around it and no further."""
    tokens, he = encoder
    other = he.copy()
    other[0, 1, patch] = 255 - other[0, 1, patch]
    moved = np.abs(np.asarray(tokens(other)) - np.asarray(tokens(he))).max(-1)[0]
    assert {int(p) for p in np.flatnonzero(moved[1])} == changed
    assert moved[[0, 2, 3]].max() == 0


def test_a_tile_is_encoded_alike_wherever_it_lies(encoder):
    tokens, he = encoder
    other = he[:, [2, 1, 3, 0]]
    np.testing.assert_allclose(np.asarray(tokens(other)), np.asarray(tokens(he))[:, [2, 1, 3, 0]], atol=1e-5)

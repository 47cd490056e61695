"""Two-dimensional rotary encoding against its definition in complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.ops.rotary import rotate, turns_at

WAVELENGTHS = {"shortest_um": 20.0, "longest_um": 2000.0}


def arrays(width=16):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, width)).astype(np.float32)
    return x, rng.uniform(0, 500, (2, 5, 2)).astype(np.float32)


def turned_at(x, xy_um):
    return rotate(x, turns_at(xy_um, x.shape[-1], **WAVELENGTHS))


def test_first_half_turns_with_x_second_with_y():
    x, xy_um = arrays()
    wavelengths_um = np.geomspace(20, 2000, 4)
    for axis, half in enumerate((x[..., :8], x[..., 8:])):
        turn = np.exp(2j * np.pi * xy_um[:, :, None, axis, None].astype(np.float64) / wavelengths_um)
        turned = (half[..., :4] + 1j * half[..., 4:]) * turn
        found = turned_at(x, xy_um)[..., 8 * axis : 8 * axis + 8]
        np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=5e-5)


def test_scores_depend_on_differences_of_places_only():
    q, xy_um = arrays()
    k = q[::-1, ::-1]

    def scores(shift):
        turned = (turned_at(x, xy_um + np.float32(shift)) for x in (q, k))
        return np.einsum("bqhd,bshd->bhqs", *turned)

    np.testing.assert_allclose(scores([0, 0]), scores([300, -128]), atol=2e-3)
    assert np.abs(scores([0, 0]) - np.einsum("bqhd,bshd->bhqs", q, k)).max() > 1  # and they do depend on places


def test_dtype_stays_and_mistakes_get_one_line():
    x, xy_um = arrays()
    low = turned_at(jnp.asarray(x, jnp.bfloat16), xy_um)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), turned_at(x, xy_um), atol=3e-2)
    with pytest.raises(InputError, match="10 wide; expected a multiple of 4"):
        turned_at(arrays(10)[0], xy_um)
    with pytest.raises(InputError, match="0 < shortest <= longest"):
        turns_at(xy_um, 16, shortest_um=20.0, longest_um=10.0)

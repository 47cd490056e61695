"""Heads begin as means over their surroundings: the scores of the constants alone, turned as in a layer."""

import numpy as np
import pytest

from tario_jax.config import InputError, ModelConfig
from tario_jax.model.reach import reach_constants
from tario_jax.ops.rotary import rotate, turns_at

SHORTEST_UM, LONGEST_UM = 16.0, 8192.0
REACH_UM = (20.0, 200.0)


def scores(heads: int, kv_heads: int, width: int, places_Nx2: np.ndarray) -> np.ndarray:
    """Of queries at the origin and keys at these places [H, N], less the score of the key at the origin."""
    waves = {"shortest_um": SHORTEST_UM, "longest_um": LONGEST_UM}
    q_HxD, k_KxD = reach_constants(heads, kv_heads, width, REACH_UM, **waves)
    at_Nx2 = np.concatenate([np.zeros((1, 2)), places_Nx2]).astype(np.float32)
    turns = turns_at(at_Nx2[None], width, **waves)
    q, k = (np.asarray(rotate(np.broadcast_to(x, (1, len(at_Nx2), *x.shape)), turns), np.float64)[0]
            for x in (q_HxD, k_KxD))  # fmt: skip
    of_keys_HxN = np.einsum("hd,nhd->hn", q[0], k.repeat(heads // kv_heads, 1)) / width**0.5
    return of_keys_HxN[:, 1:] - of_keys_HxN[:, :1]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 2, 64), (8, 8, 128), (1, 1, 64)])
def test_a_score_falls_with_the_distance_over_the_length_of_its_head(heads, kv_heads, width):
    lengths_um = np.geomspace(*REACH_UM, heads) if heads > 1 else [(REACH_UM[0] * REACH_UM[1]) ** 0.5]
    for head, length_um in enumerate(lengths_um):
        along_N = np.linspace(0.5, 1.5, 9) * length_um
        for places in (np.stack([along_N, 0 * along_N], 1), np.stack([0 * along_N, -along_N], 1)):
            found = scores(heads, kv_heads, width, places)[head]
            np.testing.assert_allclose(found, -along_N / length_um, rtol=0.25, err_msg=f"{length_um} µm")
        both = np.stack([along_N, along_N], 1)
        np.testing.assert_allclose(scores(heads, kv_heads, width, both)[head], 2 * found, rtol=1e-3)


@pytest.mark.parametrize("width", [32, 64, 128])
def test_what_lies_far_away_never_comes_back(width):
    """Over the whole of the longest windows nothing past 320 µm scores as what lies at 80 µm: turns are periodic."""
    places = np.concatenate([[80.0], np.linspace(320.0, 5000.0, 500)])
    found = scores(4, 4, width, np.stack([places, 0 * places], 1))
    assert (found[:, 1:] < found[:, :1]).all() and (found > -10).all()


def test_without_lengths_a_head_begins_with_none():
    for constants, expected in zip(
        reach_constants(4, 2, 64, (), shortest_um=SHORTEST_UM, longest_um=LONGEST_UM), ((4, 64), (2, 64)), strict=True
    ):
        np.testing.assert_array_equal(constants, np.zeros(expected))


@pytest.mark.parametrize("reach_um", [(20.0,), (200.0, 20.0), (0.0, 20.0)])
def test_lengths_that_cannot_be_are_refused(reach_um):
    with pytest.raises(InputError, match=r"model.reach_um is .*; expected two lengths in µm, the shorter first"):
        ModelConfig(reach_um=reach_um)

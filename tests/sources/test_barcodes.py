"""Barcodes are found whether they are held as numbers or as strings."""

import numpy as np
import pyarrow as pa
import pytest

from tario_jax.sources.barcodes import Barcodes

SQUARES = [f"s_002um_{row:05d}_{column:05d}-1" for row in range(7) for column in range(9)]
SPOTS = ["AAACAACGAATAGTTC-1", "AAACAAGTATCTCCCA-1", "AAACAATCTACTAGCA-1", "AAACACCAATAACTGC-1"]
WIDTHS = ["s_1-1", "s_12-1", "s_103-1", "s_7-1"]


def held(names, at_once=5):
    return Barcodes(pa.array(names[first : first + at_once]) for first in range(0, len(names), at_once))


@pytest.mark.parametrize("names", [SQUARES, SPOTS, WIDTHS, SQUARES[:20] + SPOTS, SPOTS + SQUARES[:20]])
def test_names_come_back_and_are_found_in_any_order(names):
    barcodes = held(names)
    assert len(barcodes) == len(names) and barcodes.repeated() == 0
    assert barcodes.names().to_pylist() == names and barcodes.names(np.array([2, 0])).to_pylist() == [
        names[2],
        names[0],
    ]
    order = np.random.default_rng(0).permutation(len(names))
    others = held([names[at] for at in order[1:]], at_once=3)
    place = barcodes.places_in(others)
    assert place[order[0]] == -1
    np.testing.assert_array_equal(place[order[1:]], np.arange(len(names) - 1))


@pytest.mark.parametrize("names", [SQUARES, SPOTS])
def test_a_name_that_stands_twice_is_counted(names):
    assert held([*names, names[3], names[1]]).repeated() == 2


def test_names_of_another_form_are_not_found_by_their_digits():
    of_8_um = [name.replace("002um", "008um") for name in SQUARES]
    for others in (of_8_um, [name.replace("s_", "t_") for name in SQUARES], SPOTS):
        assert (held(SQUARES).places_in(held(others)) == -1).all()
    assert len(held([])) == 0


def test_millions_take_eight_bytes_each():
    barcodes = held(SQUARES, at_once=1000)
    assert barcodes._key_N.nbytes == 8 * len(SQUARES) and len(barcodes._names) == 0

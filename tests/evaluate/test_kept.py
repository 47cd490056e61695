"""What is kept counts only whole, and only with its key; processes share the work and none waits for another."""

import os
import threading
import time

import numpy as np
import pytest

from tario_jax.config import InputError
from tario_jax.evaluate.kept import Kept, by_turns, key_of
from tario_jax.evaluate.section_bins import SectionSource
from tario_jax.evaluate.section_work import _at_once, _side_by_side


def test_kept_arrays_are_made_once_a_key(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(3.0), "name": np.array("x")}

    kept = Kept(tmp_path)
    for key in ("one", "one", "two"):
        found = kept.get("folder/thing", key, make)
        np.testing.assert_array_equal(found["a"], [0, 1, 2])
        assert str(found["name"]) == "x" and set(found) == {"a", "name"}
    assert len(made) == 2
    assert kept.read("folder/thing", "three") is None and kept.read("folder/thing", "one") is not None
    nothing = Kept(None)
    for _ in range(2):
        nothing.get("folder/thing", "two", make)
    assert len(made) == 4


def test_a_broken_file_counts_as_absent(tmp_path):
    kept = Kept(tmp_path)
    kept.get("thing", "key", lambda: {"a": np.arange(1000)})
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[500] ^= 1
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1  # a flag of the first member in the central directory
    for broken in (b"", whole[: len(whole) // 2], bytes(flipped), bytes(encrypted)):
        path.write_bytes(broken)
        assert kept.read("thing", "key") is None
        np.testing.assert_array_equal(kept.get("thing", "key", lambda: {"a": np.arange(1000)})["a"], np.arange(1000))
        assert path.read_bytes() == whole


def test_keys_tell_apart_what_they_are_made_of():
    assert key_of(a=1, b=[2]) == key_of(b=[2], a=1) != key_of(a=1, b=[3])


def test_each_part_begins_with_its_own_and_ends_with_all():
    for n in (1, 2, 3, 5):
        orders = [by_turns(list(range(11)), (k + 1, n)) for k in range(n)]
        firsts = [order[: len(range(k, 11, n))] for k, order in enumerate(orders)]
        assert sorted(item for first in firsts for item in first) == list(range(11))
        assert all(sorted(order) == list(range(11)) for order in orders)


@pytest.mark.parametrize("at_once", [1, 3])
def test_sections_side_by_side_come_in_their_order_and_none_begins_after_one_that_failed(at_once):
    begun, broken = [], threading.Event()

    def one(number):
        begun.append(number)
        if number == 1:  # comes to its end after the one behind it has failed
            broken.wait(0.5)
        if number == 5:
            broken.set()
            raise InputError("section 5: is broken")
        time.sleep(0.01)
        return number

    assert list(_side_by_side(one, [4, 3, 2], at_once)) == [4, 3, 2]
    begun.clear()
    found = _side_by_side(one, [1, 5, *range(6, 500)], at_once)
    assert next(found) == 1
    with pytest.raises(InputError, match="section 5"):
        next(found)
    assert len(begun) <= 1 + at_once


def test_a_large_section_is_read_alone():
    small, large = (SectionSource("a", "a", "", lambda: None, large=large) for large in (False, True))
    assert _at_once([small, small], 4) == min(4, os.cpu_count())
    assert _at_once([small, large], 4) == 1

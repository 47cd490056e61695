"""Orders of writing: every bin once, neighbours in turn, coarse before fine, in nearly equal groups."""

import numpy as np
import pytest

from tario_jax.tokens.order import hilbert_index, write_steps, writing_ranks

ORDERS = ("raster", "hilbert", "random", "coarse_to_fine")


def grid(columns: int, rows: int, pitch_um: float = 18.0):
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return 5.0 + pitch_um * x.ravel(), 7.0 + pitch_um * y.ravel()


def ranks_of(order: str, x, y, seed: int = 0, pitch_um: float = 18.0):
    return writing_ranks(order, x, y, pitch_um, np.random.default_rng(seed))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", [0, 1, 5, 64])
def test_every_bin_is_written_once(order, number):
    x, y = (places[:number] for places in grid(9, 8))
    np.testing.assert_array_equal(np.sort(ranks_of(order, x, y)), np.arange(number))


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_is_of_places_not_of_storage(order):
    """Shuffling the list of bins leaves who comes when; orders with chance in them are drawn anew."""
    x, y = grid(8, 8)
    shuffled = np.random.default_rng(1).permutation(64)
    if order in ("raster", "hilbert"):
        np.testing.assert_array_equal(ranks_of(order, x[shuffled], y[shuffled]), ranks_of(order, x, y)[shuffled])
    else:
        assert (ranks_of(order, x, y, 0) != ranks_of(order, x, y, 1)).any()
        np.testing.assert_array_equal(ranks_of(order, x, y, 3), ranks_of(order, x, y, 3))


def test_raster_goes_row_by_row():
    x, y = grid(5, 3)
    np.testing.assert_array_equal(ranks_of("raster", x, y), np.arange(15))


@pytest.mark.parametrize("side", [2, 4, 8, 16])
def test_hilbert_steps_to_a_neighbour(side):
    x, y = grid(side, side)
    path = np.argsort(ranks_of("hilbert", x, y))
    steps_um = np.abs(np.diff(x[path])) + np.abs(np.diff(y[path]))
    np.testing.assert_allclose(steps_um, 18.0)


def test_hilbert_is_one_to_one_on_grids_of_any_shape():
    y, x = np.meshgrid(np.arange(11), np.arange(5), indexing="ij")
    assert len(np.unique(hilbert_index(x.ravel(), y.ravel()))) == 55


def test_coarse_comes_before_fine():
    """The first bins lie on a sub-grid of twice the pitch of the next ones, at every level."""
    x, y = grid(8, 8)
    column, row = np.rint((x - 5) / 18).astype(int), np.rint((y - 7) / 18).astype(int)
    ranks = ranks_of("coarse_to_fine", x, y)
    for stride in (2, 4, 8):
        coarse = (column % stride == 0) & (row % stride == 0)
        assert ranks[coarse].max() < ranks[~coarse].min()


@pytest.mark.parametrize("bins", [1, 7, 64])
@pytest.mark.parametrize("groups", [1, 2, 5, 64, 100])
def test_groups_are_nearly_equal_and_follow_the_order(bins, groups):
    ranks = np.random.default_rng(0).permutation(bins)
    steps = write_steps(ranks, groups)
    sizes = np.bincount(steps)[1:]
    assert len(sizes) == min(groups, bins) and sizes.max() - sizes.min() <= 1
    assert (np.diff(steps[np.argsort(ranks)]) >= 0).all()


def test_no_number_of_groups_means_a_bin_at_a_time():
    ranks = np.random.default_rng(0).permutation(31)
    np.testing.assert_array_equal(write_steps(ranks, 0), ranks + 1)
    assert len(write_steps(np.zeros(0, int), 0)) == 0

"""Batches as arrays: windows laid out tile by tile, with the three integers of the visibility rule.

Axes: B rows, T tiles of a row (windows side by side, tile by tile), P H&E patches of a tile, N bin slots of a tile,
M patches under a bin, V bins around a bin, C entries (bin slot, gene, count) of a row, W windows of a row, G the padded
gene axis, F stored features of a patch.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.spatial

from tario_jax.config import DataConfig, InputError
from tario_jax.panel import padded_genes
from tario_jax.tokens.coarse import together
from tario_jax.tokens.order import write_steps, writing_ranks
from tario_jax.tokens.window import Bins, Window, grid_centres

_WHITE = 255
_REACH = 1.5  # pitches: the deviation of the Gaussian by which they are weighed


class Batch(NamedTuple):
    """What a step of training or prediction takes. A row is packed: each of its windows is a sequence, a segment.

    With `data.sequence = "patient"` they are one sequence together. Nothing but the segments says which it is.
    """

    he_BxTxPxYxXx3: np.ndarray  # uint8, pixels of each patch
    stain_mix_BxTx3x3: np.ndarray  # float32, densities as scanned -> densities seen; the identity without augmentation
    patch_xy_um_BxTxPx2: np.ndarray  # float32, centres in the window's frame
    bin_xy_um_BxTxNx2: np.ndarray
    bin_size_um_BxTxN: np.ndarray  # float32
    bin_measured_BxTxN: np.ndarray  # float32, measured share of the bin; 0 = padding
    bin_step_BxTxN: np.ndarray  # int32, the group that writes the bin, 1 … K
    pool_patch_BxTxNxM: np.ndarray  # int32, patches under the bin, numbered through the row
    pool_weight_BxTxNxM: np.ndarray  # float32, their shares of its area; the sum is 1
    near_bin_BxTxNxV: np.ndarray  # int32, slots of the bins around a bin, numbered through the row, nearest first
    near_weight_BxTxNxV: np.ndarray  # float32, falling with the distance; 0 = padding
    segment_BxT: np.ndarray  # int32, sequence of the row; −1 = padding
    tile_BxT: np.ndarray  # int32, unique in the row; windows follow each other, T / W tiles each
    count_bin_BxC: np.ndarray  # int32, bin slot numbered through the row, ascending; −1 = padding
    count_gene_BxC: np.ndarray  # int32
    count_BxC: np.ndarray  # int32
    measured_gene_BxWxG: np.ndarray  # bool, False beyond the panel
    log_depth_BxW: np.ndarray  # float32, log of a section's mean detections per µm² of tissue; −inf: not told
    features_BxTxPxF: np.ndarray  # float16, stored features of a frozen encoder at each patch's centre; F = 0: none

    @property
    def window_BxT(self):
        """Window of the row that each tile belongs to, of whatever library the batch's arrays are."""
        return self.tile_BxT // (self.tile_BxT.shape[1] // self.measured_gene_BxWxG.shape[1])


def has_tiles(name: str) -> bool:
    """Whether a field of `Batch` has the axis T, after the rows."""
    return name.split("_")[-1].startswith("BxT")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static sizes of a batch."""

    tiles_per_window: int
    patches_per_tile: int
    bins_per_tile: int
    patches_per_bin: int
    count_capacity: int  # entries a row
    windows_per_row: int
    genes_padded: int
    patch_px: int
    near_bins: int = 0  # of whose contents each query knows
    frozen_features: int = 0  # of each patch

    @property
    def tiles(self) -> int:
        return self.tiles_per_window * self.windows_per_row

    def tokens(self, *, contents: bool) -> int:
        """Of a row: patches, queries of bins, and their contents where those are written."""
        return self.tiles * (self.patches_per_tile + self.bins_per_tile * (1 + contents))


def make_layout(
    data: DataConfig, genes: int, *, bins_per_tile: int, largest_bin_um: float, count_capacity: int,
    frozen_features: int = 0,
) -> Layout:  # fmt: skip
    """Sizes for windows of `data`; `bins_per_tile` and `largest_bin_um` are those of the densest tile."""
    tiles_per_side = round(data.window_um / data.tile_um)
    patches_across = math.ceil(largest_bin_um / data.patch_um - 1e-6) + 1
    return Layout(
        tiles_per_window=tiles_per_side**2,
        patches_per_tile=round(data.tile_um / data.patch_um) ** 2,
        bins_per_tile=bins_per_tile,
        patches_per_bin=patches_across**2,
        count_capacity=count_capacity,
        windows_per_row=data.windows_per_row,
        genes_padded=padded_genes(genes),
        near_bins=data.near_bins,
        patch_px=data.patch_px,
        frozen_features=frozen_features,
    )


def square_bins_per_tile(data: DataConfig) -> int:
    """Most bins whose centre lies in one tile, of whatever size that training draws, with the coarse ones."""

    def most(bin_um: float) -> int:
        centres = (np.arange(int(data.window_um / bin_um + 1e-6)) + 0.5) * bin_um
        if not len(centres):
            raise InputError(f"bins of {bin_um:g} µm do not fit windows of data.window_um = {data.window_um:g} µm; "
                             "take smaller bins")  # fmt: skip
        return int(np.bincount((centres // data.tile_um).astype(int)).max()) ** 2

    return max(map(most, data.trained_bins_um)) + sum(map(most, data.coarse_um))


def tokenise(windows: Iterable[Iterable[Window]], data: DataConfig, layout: Layout, groups: Sequence[Sequence[int]],
             rngs: list[list[np.random.Generator]], into: Batch | None = None) -> Batch:  # fmt: skip
    """Rows of windows as a batch.

    windows: B rows of at most W windows each (missing ones are padding); groups: K by row and window;
    rngs: the generator of each window, for its order of writing; into: a batch of these sizes to write over. Raises
    `InputError` where a capacity overflows.
    """
    fields = _fields(len(groups), layout)
    if into is None:
        into = Batch(*(np.empty(shape, kind) for shape, kind, _ in fields))
    for name, array, (*_, padding) in zip(Batch._fields, into, fields, strict=True):
        if name not in _WRITTEN_WHOLE:
            array[...] = padding
    for row, row_windows in enumerate(windows):
        used = slots = 0
        for window in row_windows:
            used = _fill(into, row, slots, window, data, layout, int(groups[row][slots]), rngs[row][slots], used)
            slots += 1
            del window  # it would live until the next one is read
        into.he_BxTxPxYxXx3[row, slots * layout.tiles_per_window :] = _WHITE
        into.count_bin_BxC[row, used:] = -1
        into.count_gene_BxC[row, used:] = into.count_BxC[row, used:] = 0
    return into


_WRITTEN_WHOLE = {"he_BxTxPxYxXx3", "count_bin_BxC", "count_gene_BxC", "count_BxC"}  # nearly all bytes of a batch


def _fields(rows: int, layout: Layout) -> list[tuple[tuple[int, ...], Any, Any]]:
    """(shape, type, padding) of each array of a batch."""
    B, T, P, N = rows, layout.tiles, layout.patches_per_tile, layout.bins_per_tile
    M, C, W, px = layout.patches_per_bin, layout.count_capacity, layout.windows_per_row, layout.patch_px
    fields = Batch(
        he_BxTxPxYxXx3=((B, T, P, px, px, 3), np.uint8, _WHITE),
        stain_mix_BxTx3x3=((B, T, 3, 3), np.float32, np.eye(3)),
        patch_xy_um_BxTxPx2=((B, T, P, 2), np.float32, 0),
        bin_xy_um_BxTxNx2=((B, T, N, 2), np.float32, 0),
        bin_size_um_BxTxN=((B, T, N), np.float32, 1),
        bin_measured_BxTxN=((B, T, N), np.float32, 0),
        bin_step_BxTxN=((B, T, N), np.int32, 1),
        pool_patch_BxTxNxM=((B, T, N, M), np.int32, 0),
        pool_weight_BxTxNxM=((B, T, N, M), np.float32, 0),
        near_bin_BxTxNxV=((B, T, N, layout.near_bins), np.int32, 0),
        near_weight_BxTxNxV=((B, T, N, layout.near_bins), np.float32, 0),
        segment_BxT=((B, T), np.int32, -1),
        tile_BxT=((B, T), np.int32, np.arange(T)),
        count_bin_BxC=((B, C), np.int32, -1),
        count_gene_BxC=((B, C), np.int32, 0),
        count_BxC=((B, C), np.int32, 0),
        measured_gene_BxWxG=((B, W, layout.genes_padded), bool, False),
        log_depth_BxW=((B, W), np.float32, -np.inf),
        features_BxTxPxF=((B, T, P, layout.frozen_features), np.float16, 0),
    )
    return list(fields)


def empty_batch(rows: int, layout: Layout) -> Batch:
    """A batch of padding."""
    return Batch(*(np.full(shape, padding, kind) for shape, kind, padding in _fields(rows, layout)))


def batch_arrays(rows: int, layout: Layout) -> Batch:
    """Shapes and types of a batch, `jax.ShapeDtypeStruct` each: for a program that is compiled without one."""
    import jax

    return Batch(*(jax.ShapeDtypeStruct(shape, np.dtype(kind)) for shape, kind, _ in _fields(rows, layout)))


def batch_bytes(rows: int, layout: Layout) -> int:
    """Bytes of a batch, each array rounded up to whole lines of 64."""
    return sum(_lines(shape, kind) for shape, kind, _ in _fields(rows, layout))


def batch_in(memory: Any, rows: int, layout: Layout) -> Batch:
    """A batch whose arrays lie in `memory`, a buffer of at least `batch_bytes`, one after the other."""
    arrays, begin = [], 0
    for shape, kind, _ in _fields(rows, layout):
        arrays.append(np.frombuffer(memory, kind, math.prod(shape), begin).reshape(shape))
        begin += _lines(shape, kind)
    return Batch(*arrays)


def _lines(shape: tuple[int, ...], kind: Any) -> int:
    return -(-math.prod(shape) * np.dtype(kind).itemsize // 64) * 64


class _Slots(NamedTuple):
    """Where the bins of a window go, and the H&E patches under each: tiles and patches numbered within the window."""

    tile_N: np.ndarray
    place_N: np.ndarray  # in its tile
    patch_NxM: np.ndarray
    weight_NxM: np.ndarray


def _slots(x_um_N: np.ndarray, y_um_N: np.ndarray, size_um: float | np.ndarray, data: DataConfig,
           layout: Layout) -> _Slots:  # fmt: skip
    tiles_per_side = round(data.window_um / data.tile_um)
    tile_N = np.minimum(y_um_N // data.tile_um, tiles_per_side - 1).astype(int) * tiles_per_side
    tile_N += np.minimum(x_um_N // data.tile_um, tiles_per_side - 1).astype(int)
    order = np.argsort(tile_N, kind="stable")
    place_N = np.empty(len(tile_N), int)
    place_N[order] = np.arange(len(tile_N)) - np.searchsorted(tile_N[order], tile_N[order])
    return _Slots(tile_N, place_N, *_patches_under(x_um_N, y_um_N, size_um, data, layout))


@functools.lru_cache(16)
def _grid_slots(data: DataConfig, layout: Layout, bin_um: float) -> _Slots:
    """Those of the square bins of any window: the same for each."""
    return _slots(*grid_centres(data.window_um, bin_um), bin_um, data, layout)


def _fill(batch: Batch, row: int, slot: int, window: Window, data: DataConfig, layout: Layout, groups: int,
          rng: np.random.Generator, used: int) -> int:  # fmt: skip
    """Writes one window into its slot; returns the number of count entries used in the row so far."""
    tiles_per_side = round(data.window_um / data.tile_um)
    patches_per_side = round(data.tile_um / data.patch_um)
    first_tile = slot * layout.tiles_per_window
    tiles = slice(first_tile, first_tile + layout.tiles_per_window)
    _write_pixels(batch.he_BxTxPxYxXx3[row, tiles], window.he, (tiles_per_side, patches_per_side, data.patch_px))
    centre = (np.arange(tiles_per_side * patches_per_side) + 0.5) * data.patch_um
    centre = centre.reshape(tiles_per_side, patches_per_side)
    if window.features_YxXxF is not None:
        of_tiles = (tiles_per_side, patches_per_side) * 2
        by_tile = window.features_YxXxF.reshape(*of_tiles, layout.frozen_features).transpose(0, 2, 1, 3, 4)
        batch.features_BxTxPxF[row, tiles] = by_tile.reshape(layout.tiles_per_window, layout.patches_per_tile, -1)
    places = np.empty((tiles_per_side, tiles_per_side, patches_per_side, patches_per_side, 2), np.float32)
    # windows of one sequence lie side by side, the breadth of a window between them
    in_one = data.sequence == "patient"
    beside_um = 2 * data.window_um * slot if in_one else 0.0
    places[..., 0] = centre[None, :, None, :] + beside_um
    places[..., 1] = centre[:, None, :, None]
    batch.patch_xy_um_BxTxPx2[row, tiles] = places.reshape(layout.tiles_per_window, -1, 2)
    batch.segment_BxT[row, tiles] = 0 if in_one else slot
    batch.stain_mix_BxTx3x3[row, tiles] = window.stain_mix_3x3
    batch.log_depth_BxW[row, slot] = window.log_depth
    batch.measured_gene_BxWxG[row, slot, : len(window.measured_gene_G)] = window.measured_gene_G

    bins = together([window.bins, *window.coarse]) if window.coarse else window.bins
    counted = bins.measured_N > 0
    x, y, size_um = bins.x_um_N[counted], bins.y_um_N[counted], bins.size_um
    if bins.square:
        slots = _Slots(*(part[counted] for part in _grid_slots(data, layout, size_um)))
    else:
        size_um = np.broadcast_to(size_um, counted.shape)[counted]
        slots = _slots(x, y, size_um, data, layout)
    if slots.place_N.max(initial=0) >= layout.bins_per_tile:
        raise InputError(
            f"a tile holds {slots.place_N.max() + 1} bins, more than its capacity {layout.bins_per_tile}; "
            f"raise --config.data.max_spots to at least {slots.place_N.max() + 1}"
        )
    at = (row, first_tile + slots.tile_N, slots.place_N)
    batch.bin_xy_um_BxTxNx2[at] = np.stack([x + beside_um, y], 1)
    batch.bin_size_um_BxTxN[at] = size_um
    batch.bin_measured_BxTxN[at] = bins.measured_N[counted]
    batch.bin_step_BxTxN[at] = _write_steps(window, x, y, data.order, groups, rng)
    batch.pool_patch_BxTxNxM[at] = slots.patch_NxM + first_tile * layout.patches_per_tile
    batch.pool_weight_BxTxNxM[at] = slots.weight_NxM

    slot_K = (first_tile + slots.tile_N) * layout.bins_per_tile + slots.place_N
    whole_grid = bins.square and counted.all()
    around = bins.pitch_um, layout.near_bins
    near_KxV, weight_KxV = _grid_near(data.window_um, *around) if whole_grid else _near(x, y, *around)
    batch.near_bin_BxTxNxV[at], batch.near_weight_BxTxNxV[at] = slot_K[near_KxV], weight_KxV
    return _write_counts(batch, row, used, bins, np.flatnonzero(counted).astype(np.int32), slot_K, layout)


def _write_steps(window: Window, x_um_n: np.ndarray, y_um_n: np.ndarray, order: str, groups: int,
                 rng: np.random.Generator) -> np.ndarray:  # fmt: skip
    """The group of each bin that counts, from 1: scales of coarse bins, the largest first, then the others' groups."""
    number = np.count_nonzero(window.bins.measured_N)
    ranks = writing_ranks(order, x_um_n[:number], y_um_n[:number], window.bins.pitch_um, rng)
    of_scales = [np.full(np.count_nonzero(bins.measured_N), step) for step, bins in enumerate(window.coarse, 1)]
    return np.concatenate([write_steps(ranks, groups) + len(of_scales), *of_scales])


@functools.lru_cache(16)
def _grid_near(window_um: float, bin_um: float, near_bins: int) -> tuple[np.ndarray, np.ndarray]:
    return _near(*grid_centres(window_um, bin_um), bin_um, near_bins)


def _near(x_um_N: np.ndarray, y_um_N: np.ndarray, pitch_um: float, near_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The V = near_bins bins around each bin, nearest first, and their weights, [N, V]; 0 where there are fewer."""
    near_NxV, weight_NxV = (np.zeros((len(x_um_N), near_bins), dtype) for dtype in (np.int64, np.float32))
    number = min(near_bins, len(x_um_N) - 1)
    if number > 0:
        places_Nx2 = np.stack([x_um_N, y_um_N], 1)
        away, found = scipy.spatial.cKDTree(places_Nx2).query(places_Nx2, [*range(1, number + 2)])
        # a bin is no neighbour of its own, though not always the first: a larger bin may have its centre
        own = found == np.arange(len(found))[:, None]
        own[~own.any(1), -1] = True
        away_Nxn, near_NxV[:, :number] = (of[~own].reshape(-1, number) for of in (away, found))
        weight_NxV[:, :number] = np.exp(-0.5 * (away_Nxn / (_REACH * pitch_um)) ** 2)
    return near_NxV, weight_NxV


def _write_pixels(he_TxPxYxXx3: np.ndarray, he: np.ndarray, sides: tuple[int, int, int]) -> None:
    """Writes the H&E of a window patch by patch. sides: tiles across, patches across a tile, px across a patch."""
    across = (*sides, *sides)
    # each row as it was scanned: a patch's pixels of a row are copied as one
    if he.strides[1:] == (3, 1) and he_TxPxYxXx3.flags.c_contiguous:
        of_row = np.dtype((np.void, 3 * sides[2]))
        rows = he.reshape(len(he), -1).view(of_row).reshape(across[:-1]).transpose(0, 3, 1, 4, 2)
        he_TxPxYxXx3.reshape(-1).view(of_row).reshape(rows.shape)[...] = rows
        return
    pixels = he.reshape(*across, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    patches = he_TxPxYxXx3.reshape(pixels.shape)
    for colour in range(3):  # where the window is turned, a plane at a time is several times faster than all at once
        patches[..., colour] = pixels[..., colour]


def _write_counts(batch: Batch, row: int, used: int, bins: Bins, bin_K: np.ndarray, slot_K: np.ndarray,
                  layout: Layout) -> int:  # fmt: skip
    """Writes the entries of bins that lie in these slots, slot by slot; returns the number used in the row so far.

    Entries lie bin by bin: neighbours that are neighbours in slots too are copied together, a row of a tile at once.
    """
    first_K, end_K = (np.searchsorted(bins.bin_E, bin_K, side) for side in ("left", "right"))
    ascending = np.argsort(slot_K)
    slot_K, first_K, end_K = (part[ascending] for part in (slot_K, first_K, end_K))
    end = used + int((end_K - first_K).sum())
    if end > layout.count_capacity:
        raise InputError(
            f"a row holds {end} or more (bin, gene, count) entries, more than its capacity "
            f"{layout.count_capacity}; raise --config.data.count_capacity"
        )
    batch.count_bin_BxC[row, used:end] = np.repeat(slot_K, end_K - first_K)
    begins = np.flatnonzero(first_K != np.append(-1, end_K[:-1]))
    ends = np.flatnonzero(end_K != np.append(first_K[1:], -1))
    for first, last in zip(first_K[begins].tolist(), end_K[ends].tolist(), strict=True):
        copied = slice(used, used + last - first)
        batch.count_gene_BxC[row, copied] = bins.gene_E[first:last]
        batch.count_BxC[row, copied] = bins.count_E[first:last]
        used = copied.stop
    return used


def _patches_under(x: np.ndarray, y: np.ndarray, size_um: float | np.ndarray, data: DataConfig, layout: Layout):
    """Patches of the window (tile by tile) that a bin covers, and their shares of its area: two arrays [N, M]."""
    across = math.isqrt(layout.patches_per_bin)
    side = round(data.window_um / data.patch_um)
    tiles_per_side = round(data.window_um / data.tile_um)
    per_tile = side // tiles_per_side

    def overlaps(centre):
        low, high = centre - size_um / 2, centre + size_um / 2
        first = np.floor(low / data.patch_um + 1e-9).astype(int)
        patch = first[:, None] + np.arange(across)
        covered = np.minimum(high[:, None], (patch + 1) * data.patch_um) - np.maximum(
            low[:, None], patch * data.patch_um
        )
        covered = np.where((patch >= 0) & (patch < side), np.maximum(covered, 0.0), 0.0)
        return np.clip(patch, 0, side - 1), covered

    column, share_x = overlaps(x)
    row, share_y = overlaps(y)
    row, column = row[:, :, None], column[:, None, :]
    tile = row // per_tile * tiles_per_side + column // per_tile
    patch = tile * per_tile**2 + row % per_tile * per_tile + column % per_tile
    weight = share_y[:, :, None] * share_x[:, None, :]
    weight = weight.reshape(len(x), across**2)
    return patch.reshape(len(x), across**2), weight / np.maximum(weight.sum(1, keepdims=True), 1e-9)

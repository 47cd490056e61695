"""Batches as arrays: windows laid out tile by tile, with the three integers of the visibility rule.

Axes: B rows, T tiles of a row (windows side by side, tile by tile), P H&E patches of a tile, N bin slots of a tile,
M patches under a bin, C entries (bin slot, gene, count) of a row, W windows of a row, G the padded gene axis.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.panel import padded_genes
from tario_jax.tokens.order import write_steps, writing_ranks
from tario_jax.tokens.window import Window


class Batch(NamedTuple):
    """What a step of training or prediction takes. A row is a sequence; its windows are its segments."""

    he_BxTxPxYxXx3: np.ndarray  # uint8, pixels of each patch
    stain_mix_BxTx3x3: np.ndarray  # float32, densities as scanned -> densities seen; the identity without augmentation
    patch_xy_um_BxTxPx2: np.ndarray  # float32, centres in the window's frame
    bin_xy_um_BxTxNx2: np.ndarray
    bin_size_um_BxTxN: np.ndarray  # float32
    bin_measured_BxTxN: np.ndarray  # float32, measured share of the bin; 0 = padding
    bin_step_BxTxN: np.ndarray  # int32, the group that writes the bin, 1 … K
    pool_patch_BxTxNxM: np.ndarray  # int32, patches under the bin, numbered through the row
    pool_weight_BxTxNxM: np.ndarray  # float32, their shares of its area; the sum is 1
    segment_BxT: np.ndarray  # int32, window of the row; −1 = padding
    tile_BxT: np.ndarray  # int32, unique in the row
    count_bin_BxC: np.ndarray  # int32, bin slot numbered through the row, ascending; −1 = padding
    count_gene_BxC: np.ndarray  # int32
    count_BxC: np.ndarray  # int32
    measured_gene_BxWxG: np.ndarray  # bool, False beyond the panel


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

    @property
    def tiles(self) -> int:
        return self.tiles_per_window * self.windows_per_row


def make_layout(
    data: DataConfig, genes: int, *, bins_per_tile: int, largest_bin_um: float, count_capacity: int
) -> Layout:
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
        patch_px=data.patch_px,
    )


def square_bins_per_tile(data: DataConfig) -> int:
    """Most bins whose centre lies in one tile."""
    centres = (np.arange(int(data.window_um / data.bin_um + 1e-6)) + 0.5) * data.bin_um
    if not len(centres):
        raise InputError(f"bins of {data.bin_um:g} µm do not fit windows of data.window_um = {data.window_um:g} µm; "
                         "take smaller bins")  # fmt: skip
    return int(np.bincount((centres // data.tile_um).astype(int)).max()) ** 2


def tokenise(windows: list[list[Window]], data: DataConfig, layout: Layout, groups: np.ndarray,
             rngs: list[list[np.random.Generator]]) -> Batch:  # fmt: skip
    """Rows of windows as a batch.

    windows: B rows of at most W windows each (missing ones are padding); groups: K by row and window, int [B, W];
    rngs: the generator of each window, for its order of writing. Raises `InputError` where a capacity overflows.
    """
    batch = empty_batch(len(windows), layout)
    for row, row_windows in enumerate(windows):
        used = 0
        for slot, window in enumerate(row_windows):
            used = _fill(batch, row, slot, window, data, layout, int(groups[row, slot]), rngs[row][slot], used)
    return batch


def empty_batch(rows: int, layout: Layout) -> Batch:
    """A batch of padding."""
    B, T, P, N = rows, layout.tiles, layout.patches_per_tile, layout.bins_per_tile
    M, C, W, px = layout.patches_per_bin, layout.count_capacity, layout.windows_per_row, layout.patch_px
    return Batch(
        he_BxTxPxYxXx3=np.full((B, T, P, px, px, 3), 255, np.uint8),
        stain_mix_BxTx3x3=np.tile(np.eye(3, dtype=np.float32), (B, T, 1, 1)),
        patch_xy_um_BxTxPx2=np.zeros((B, T, P, 2), np.float32),
        bin_xy_um_BxTxNx2=np.zeros((B, T, N, 2), np.float32),
        bin_size_um_BxTxN=np.ones((B, T, N), np.float32),
        bin_measured_BxTxN=np.zeros((B, T, N), np.float32),
        bin_step_BxTxN=np.ones((B, T, N), np.int32),
        pool_patch_BxTxNxM=np.zeros((B, T, N, M), np.int32),
        pool_weight_BxTxNxM=np.zeros((B, T, N, M), np.float32),
        segment_BxT=np.full((B, T), -1, np.int32),
        tile_BxT=np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        count_bin_BxC=np.full((B, C), -1, np.int32),
        count_gene_BxC=np.zeros((B, C), np.int32),
        count_BxC=np.zeros((B, C), np.int32),
        measured_gene_BxWxG=np.zeros((B, W, layout.genes_padded), bool),
    )


def _fill(batch: Batch, row: int, slot: int, window: Window, data: DataConfig, layout: Layout, groups: int,
          rng: np.random.Generator, used: int) -> int:  # fmt: skip
    """Writes one window into its slot; returns the number of count entries used in the row so far."""
    tiles_per_side = round(data.window_um / data.tile_um)
    patches_per_side = round(data.tile_um / data.patch_um)
    first_tile = slot * layout.tiles_per_window
    tiles = slice(first_tile, first_tile + layout.tiles_per_window)
    px = data.patch_px

    shape = (layout.tiles_per_window, layout.patches_per_tile)
    grid = (tiles_per_side, patches_per_side, px, tiles_per_side, patches_per_side, px)
    pixels = window.he.reshape(*grid, 3).transpose(0, 3, 1, 4, 2, 5, 6)
    patches = batch.he_BxTxPxYxXx3[row, tiles].reshape(pixels.shape)
    for colour in range(3):  # where the window is turned, a plane at a time is several times faster than all at once
        patches[..., colour] = pixels[..., colour]
    centre = (np.arange(tiles_per_side * patches_per_side) + 0.5) * data.patch_um
    centre = centre.reshape(tiles_per_side, patches_per_side)
    places = np.empty((tiles_per_side, tiles_per_side, patches_per_side, patches_per_side, 2), np.float32)
    places[..., 0] = centre[None, :, None, :]
    places[..., 1] = centre[:, None, :, None]
    batch.patch_xy_um_BxTxPx2[row, tiles] = places.reshape(*shape, 2)
    batch.segment_BxT[row, tiles] = slot
    batch.stain_mix_BxTx3x3[row, tiles] = window.stain_mix_3x3
    batch.measured_gene_BxWxG[row, slot, : len(window.measured_gene_G)] = window.measured_gene_G

    bins = window.bins
    counted = np.flatnonzero(bins.measured_N > 0)
    x, y = bins.x_um_N[counted], bins.y_um_N[counted]
    tile = np.minimum(y // data.tile_um, tiles_per_side - 1).astype(int) * tiles_per_side
    tile += np.minimum(x // data.tile_um, tiles_per_side - 1).astype(int)
    order = np.argsort(tile, kind="stable")
    place_in_tile = np.empty(len(counted), int)
    place_in_tile[order] = np.arange(len(counted)) - np.searchsorted(tile[order], tile[order])
    if len(counted) and place_in_tile.max() >= layout.bins_per_tile:
        raise InputError(
            f"a tile holds {place_in_tile.max() + 1} bins, more than its capacity {layout.bins_per_tile}; "
            f"raise --config.data.max_spots to at least {place_in_tile.max() + 1}"
        )
    at = (row, first_tile + tile, place_in_tile)
    ranks = writing_ranks(data.order, x, y, bins.pitch_um, rng)
    batch.bin_xy_um_BxTxNx2[at] = np.stack([x, y], 1)
    batch.bin_size_um_BxTxN[at] = bins.size_um
    batch.bin_measured_BxTxN[at] = bins.measured_N[counted]
    batch.bin_step_BxTxN[at] = write_steps(ranks, groups)
    patches, weights = _patches_under(x, y, bins.size_um, data, layout)
    batch.pool_patch_BxTxNxM[at] = patches + first_tile * layout.patches_per_tile
    batch.pool_weight_BxTxNxM[at] = weights

    if len(bins.bin_E):
        slot_of_bin = np.full(len(bins.x_um_N), -1, np.int64)
        slot_of_bin[counted] = (first_tile + tile) * layout.bins_per_tile + place_in_tile
        entry_slot = slot_of_bin[bins.bin_E]
        if layout.tiles * layout.bins_per_tile <= 1 << 16:
            entry_slot = entry_slot.astype(np.uint16)  # sorted by digits, in a third of the time
        ascending = np.argsort(entry_slot, kind="stable")
        end = used + len(ascending)
        if end > layout.count_capacity:
            raise InputError(
                f"a row holds {end} or more (bin, gene, count) entries, more than its capacity "
                f"{layout.count_capacity}; raise --config.data.count_capacity"
            )
        batch.count_bin_BxC[row, used:end] = entry_slot[ascending]
        batch.count_gene_BxC[row, used:end] = bins.gene_E[ascending]
        batch.count_BxC[row, used:end] = bins.count_E[ascending]
        used = end
    return used


def _patches_under(x: np.ndarray, y: np.ndarray, size_um: float, data: DataConfig, layout: Layout):
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

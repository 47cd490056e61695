"""Dealing the tiles of each row to the devices along the mesh axis `context`."""

import numpy as np

from tario_jax.config import InputError
from tario_jax.tokens.batch import Batch, has_tiles


def check_tiles(tiles: int, ranks: int) -> None:
    """Raises `InputError` where `ranks` devices along context cannot share the tiles of a row equally."""
    if tiles % ranks:
        raise InputError(
            f"--config.mesh.context={ranks}: a row holds {tiles} tiles; expected a multiple: change data.tile_um, "
            "data.window_um or data.windows_per_row"
        )


def deal(batch: Batch, ranks: int) -> Batch:
    """The same rows with their tiles in another order: of `ranks` equal parts, part r holds tiles r, r + ranks, ….

    So each rank holds its share of every modality, of every place and of every step of writing. What refers to patches
    and bin slots through the row is renumbered; entries of counts are in ascending order again.

    Raises `InputError` where the ranks cannot share the tiles equally.
    """
    if ranks == 1:
        return batch
    tiles = batch.segment_BxT.shape[1]
    check_tiles(tiles, ranks)
    order_T = np.arange(tiles).reshape(-1, ranks).T.ravel()
    place_T = np.argsort(order_T)
    dealt = {name: array[:, order_T] if has_tiles(name) else array for name, array in batch._asdict().items()}

    def renumbered(number, in_tile: int):
        return place_T[number // in_tile] * in_tile + number % in_tile

    patches, bins = batch.patch_xy_um_BxTxPx2.shape[2], batch.bin_step_BxTxN.shape[2]
    pool_patch = renumbered(dealt["pool_patch_BxTxNxM"], patches)
    dealt["pool_patch_BxTxNxM"] = pool_patch.astype(batch.pool_patch_BxTxNxM.dtype)
    dealt["near_bin_BxTxNxV"] = renumbered(dealt["near_bin_BxTxNxV"], bins).astype(batch.near_bin_BxTxNxV.dtype)
    past = tiles * bins
    slot_BxC = np.where(batch.count_bin_BxC < 0, past, renumbered(np.maximum(batch.count_bin_BxC, 0), bins))
    ascending_BxC = np.argsort(slot_BxC, axis=1, kind="stable")
    dealt["count_bin_BxC"] = np.where(slot_BxC == past, -1, slot_BxC).astype(batch.count_bin_BxC.dtype)
    for name in ("count_bin_BxC", "count_gene_BxC", "count_BxC"):
        dealt[name] = np.take_along_axis(dealt[name], ascending_BxC, axis=1)
    return Batch(**dealt)

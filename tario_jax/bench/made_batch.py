"""A batch without a corpus: rows that are full, as dense tissue fills them."""

import math

import numpy as np

from tario_jax.config import Config
from tario_jax.tokens.batch import Batch, Layout, tokenise
from tario_jax.tokens.coarse import with_coarse
from tario_jax.tokens.window import Bins, Window, grid_centres
from tario_jax.train.aot import ENTRIES_PER_UM2


def made_batch(config: Config, layout: Layout, genes: int, seed: int) -> Batch:
    """Every tile full of H&E, every bin measured; K of each window drawn from `data.groups`. The same for a seed.

    As many detections as fit the capacity for counts, at most those of dense tissue; few genes have most of them.
    """
    data = config.data
    rng = np.random.default_rng(seed)
    share_G = rng.permutation(1.0 / np.arange(1, genes + 1) ** 0.8)
    share_G /= share_G.sum()
    detections = min(layout.count_capacity // data.windows_per_row, math.floor(ENTRIES_PER_UM2 * data.window_um**2))
    kinds, weights = zip(*data.groups, strict=True)

    def groups_of_row() -> list[int]:
        drawn = rng.choice(kinds, data.windows_per_row, p=np.divide(weights, sum(weights)))
        # one sequence is written in one order
        return [int(drawn[0])] * len(drawn) if data.sequence == "patient" else [int(one) for one in drawn]

    groups = [groups_of_row() for _ in range(data.rows)]
    windows = ([_window(config, detections, share_G, rng) for _ in range(data.windows_per_row)] for _ in groups)
    return tokenise(windows, data, layout, groups, [rng.spawn(data.windows_per_row) for _ in groups])


def _window(config: Config, detections: int, share_G: np.ndarray, rng: np.random.Generator) -> Window:
    data, genes = config.data, len(share_G)
    x_um, y_um = grid_centres(data.window_um, data.bin_um)
    bins = len(x_um)
    key_E, count_E = np.unique(np.sort(rng.integers(bins, size=detections)) * genes
                               + rng.choice(genes, detections, p=share_G), return_counts=True)  # fmt: skip
    side_px = round(data.window_um / data.he_um_per_px)
    he = rng.normal((200.0, 130.0, 180.0), 30.0, (side_px, side_px, 3)).clip(0, 255).astype(np.uint8)
    entries = (key_E // genes, key_E % genes, count_E)
    found = Bins(x_um, y_um, data.bin_um, np.ones(bins), *(part.astype(np.int32) for part in entries), data.bin_um,
                 square=True)  # fmt: skip
    window = Window(data.window_um, he, found, np.ones(genes, bool))
    return with_coarse(window, found, data) if data.coarse_um else window

"""What windows tell that lie side by side: as `measure_virtual_context.py`, where a cell sees its own tile alone.

    python tests/claims/measure_virtual_tiles.py OUT.json NARROW_UM WIDE_UM looks

A window of a model is not centred on each cell: one at its border sees half of what lies around it. What is seen are
the same squares and Gaussians, each cut at the tile's border, with how much of each lay within. Learnt from tiles
anywhere; read in tiles that lie side by side, and in such that overlap by half, whose estimates are weighed towards
the middle as a model's are (predict/cover.py).
"""

import concurrent.futures
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from measure_virtual_context import (
    BIN_UM,
    CELLS,
    GAUSSIAN_UM,
    HALF_UM,
    SPREADING,
    STEP_UM,
    TEST,
    TRAIN,
    WINDOWS_UM,
    boosters,
    drawn,
    interval,
    read_against,
)
from scipy import ndimage

from tario_jax.predict.cover import towards_middle
from tario_jax.virtual.kinds import LOOKS, UNSEEN_STATES
from tario_jax.virtual.regions import LARGE_EVERY

OVERLAPS = (0.0, 0.5)
TILES = 128  # of the narrow side, that are learnt from in a region


def seen_in(cells, corner_um: tuple[float, float], window_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Which cells lie in the tile, and what it holds around each, float32 [n, F]."""
    at_um = [axis_um_N - corner for axis_um_N, corner in zip((cells.x_um_N, cells.y_um_N), corner_um, strict=True)]
    inside = np.flatnonzero((np.minimum(*at_um) >= 0) & (np.maximum(*at_um) < window_um))
    steps = int(window_um / STEP_UM)
    column_n, row_n = (np.minimum((of[inside] / STEP_UM).astype(int), steps - 1) for of in at_um)
    sizes = [2 * int(half_um / STEP_UM) + 1 for half_um in HALF_UM]
    smooths = [lambda grid, size=size: ndimage.uniform_filter(grid, size, mode="constant") for size in sizes]
    smooths += [lambda grid, sigma=um / STEP_UM: ndimage.gaussian_filter(grid, sigma, mode="constant", truncate=3.0)
                for um in GAUSSIAN_UM]  # fmt: skip
    within = [np.maximum(smooth(np.ones((steps, steps))), 1e-6) for smooth in smooths]
    columns = [of[row_n, column_n] for of in within]
    look_n = cells.look_N[inside]
    for look in range(len(LOOKS)):
        grid = np.bincount(row_n * steps + column_n, look_n == look, steps**2).reshape(steps, steps).astype(float)
        columns += [(smooth(grid) / of)[row_n, column_n] for smooth, of in zip(smooths, within, strict=True)]
    return inside, np.stack(columns, 1).astype(np.float32)


def learn_from(number: int) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Some cells of tiles anywhere in a region, by side: what is seen of them, and their states."""
    _, region, cells, (_, hidden, _) = drawn(number)
    found = {}
    for window_um in WINDOWS_UM:
        rng, told, states = np.random.default_rng(number), [], []
        tiles = round(TILES * (WINDOWS_UM[0] / window_um) ** 2)
        for _ in range(tiles):
            inside, told_nxF = seen_in(cells, tuple(rng.uniform(0, region.side_um - window_um, 2)), window_um)
            some = rng.permutation(len(inside))[: CELLS // tiles]
            told.append(told_nxF[some])
            states.append(hidden.state_NxU[inside[some]])
        found[window_um] = np.concatenate(told), np.concatenate(states)
    return found


def corners(side_um: float, window_um: float, overlap: float) -> list[tuple[float, float]]:
    """Of tiles that cover a region, as many beyond one edge as beyond the other."""
    step_um = window_um * (1 - overlap)
    number = int(np.ceil((side_um - window_um) / step_um)) + 1
    along_um = (side_um - window_um - (number - 1) * step_um) / 2 + step_um * np.arange(number)
    return [(x, y) for y in along_um for x in along_um]


def read(number: int, models) -> dict[str, float]:
    """Mean r over the diffusing genes of one region, by what is known of the states."""
    region, cells, hidden, r = read_against(number)
    result = {}
    for window_um in WINDOWS_UM:
        for overlap in OVERLAPS:
            summed_NxU, weight_N = np.zeros((len(cells.x_um_N), len(SPREADING))), np.zeros(len(cells.x_um_N))
            for corner_um in corners(region.side_um, window_um, overlap):
                inside, told_nxF = seen_in(cells, corner_um, window_um)
                weight_n = towards_middle(
                    cells.x_um_N[inside] - corner_um[0], cells.y_um_N[inside] - corner_um[1], window_um
                )
                said_nxU = np.stack([models[window_um, u].predict(told_nxF) for u in SPREADING], 1)
                summed_NxU[inside] += weight_n[:, None] * said_nxU
                weight_N[inside] += weight_n
            told_NxU = hidden.state_NxU.copy()
            told_NxU[:, SPREADING] = summed_NxU / weight_N[:, None]
            result[f"r_{window_um}_{'by_half' if overlap else 'apart'}"] = r(told_NxU)
    return result


def main() -> None:
    numbers = [LARGE_EVERY["train"] * k for k in range(TRAIN + TEST)]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        learnt = list(pool.map(learn_from, numbers[:TRAIN]))
        print(f"tiles: {TRAIN} regions of 2,048 µm to learn from", flush=True)
        models = boosters(learnt)
        rows = list(pool.map(read, numbers[TRAIN:], [models] * TEST))
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    narrow, wide = WINDOWS_UM
    for how in ("apart", "by_half"):
        by_region = np.array([row[f"r_{wide}_{how}"] - row[f"r_{narrow}_{how}"] for row in rows])
        low, high = interval(by_region)
        result |= {f"gain_{how}": float(by_region.mean()), f"gain_{how}_low": low,
                   f"gain_{how}_high": high}  # fmt: skip
    result["table"] = "\n".join([
        f"genes that diffuse, counts, bins of {BIN_UM:g} µm, {TEST} regions of 2,048 µm; mean r with the states "
        f"{', '.join(UNSEEN_STATES[u] for u in SPREADING)} known from the looks of cells in tiles of",
        *(f"{name:<22}{value:.3f}" for name, value in result.items()),
    ])  # fmt: skip
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""Does a wider window tell more? Genes that diffusing signals drive, from the true cells.

    python tests/claims/measure_virtual_context.py OUT.json [NARROW_UM WIDE_UM [looks]]

Large regions, bins of 36 µm, the curated panel. Everything of a cell is known (place, type, the other states) but what
interferon and TGF-beta do to it: that is learnt, on some patients, from the true cells in a square window of 128 or of
512 µm around it (how many of each type in squares of rising size and under Gaussians cut at the window's border, and
how far the nearest aggregate is, if it lies in the window); with `looks`, from how many of each look, which is all that
H&E shows of a type. The expected rates that follow are read against the counts
X of other patients, beside those of the true states and those of no state at all.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingRegressor

from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.virtual.cells import Cells
from tario_jax.virtual.detections import draw_detections
from tario_jax.virtual.fields import Stream, generator
from tario_jax.virtual.genes import DIFFUSING
from tario_jax.virtual.hidden import Hidden
from tario_jax.virtual.kinds import LOOKS, TYPES, UNSEEN_STATES
from tario_jax.virtual.patients import draw_patient
from tario_jax.virtual.rates import Loadings
from tario_jax.virtual.regions import LARGE_EVERY, region_of
from tario_jax.virtual.section import Settings, draw_expression, draw_tissue
from tario_jax.virtual.truth import make_bins, true_rates

BIN_UM = 36.0
NARROW_UM, WIDE_UM = (int(um) for um in sys.argv[2:4] or (128, 512))
LOOKS_ONLY = sys.argv[4:] == ["looks"]
WINDOWS_UM = (NARROW_UM, WIDE_UM)
STEP_UM = 8.0  # of the grid on which senders are counted
HALF_UM = (12, 28, 44, 60, 92, 140, 196, 252, 380, 508)  # half sides of the squares
GAUSSIAN_UM = (40.0, 80.0, 160.0)
TRAIN, TEST = 14, 10
CELLS = 10_000  # of each training region
SETTINGS = Settings(panel="curated")
SPREADING = [UNSEEN_STATES.index(name) for name in DIFFUSING]


def drawn(number: int):
    """A patient, its large region, the cells and what is hidden of them."""
    patient = draw_patient(number, SETTINGS.seed)
    region = region_of(patient, "large", SETTINGS.section_um)
    _, cells = draw_tissue(patient, region, SETTINGS)
    return patient, region, cells, draw_expression(patient, region, cells, SETTINGS)


def seen(cells: Cells, hidden: Hidden, side_um: float, window_um: float) -> np.ndarray:
    """What the window around each cell holds, float32 [N, F]."""
    steps = int(np.ceil(side_um / STEP_UM))
    row_N, column_N = (np.minimum((at_um / STEP_UM).astype(int), steps - 1) for at_um in (cells.y_um_N, cells.x_um_N))
    columns = [np.clip(cells.aggregate_um_N, None, window_um / 2)]
    ones = np.ones((steps, steps))

    def around(grid: np.ndarray, smooth) -> np.ndarray:
        """A mean over the part of the window that lies in the section, at each cell."""
        return (smooth(grid) / smooth(ones))[row_N, column_N]

    kind_N, kinds = (cells.look_N, LOOKS) if LOOKS_ONLY else (hidden.type_N, TYPES)
    for kind in range(len(kinds)):
        grid = np.bincount(row_N * steps + column_N, kind_N == kind, steps**2).reshape(steps, steps).astype(float)
        for half_um in (half for half in HALF_UM if 2 * half <= window_um):
            size = 2 * int(half_um / STEP_UM) + 1
            columns.append(around(grid, lambda some, size=size: ndimage.uniform_filter(some, size, mode="constant")))
        for sigma_um in GAUSSIAN_UM:
            radius = int(min(window_um / 2, 3 * sigma_um) / STEP_UM)
            columns.append(around(grid, lambda some, sigma=sigma_um / STEP_UM, radius=radius: ndimage.gaussian_filter(
                some, sigma, mode="constant", radius=radius)))  # fmt: skip
    return np.stack(columns, 1).astype(np.float32)


def learn_from(number: int) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Some cells of a region, by window: what is seen of them, and their states."""
    _, region, cells, (_, hidden, _) = drawn(number)
    some = np.random.default_rng(number).permutation(len(cells))[:CELLS]
    return {window_um: (seen(cells, hidden, region.side_um, window_um)[some], hidden.state_NxU[some])
            for window_um in WINDOWS_UM}  # fmt: skip


def boosters(learnt: list[dict[float, tuple[np.ndarray, np.ndarray]]]) -> dict[tuple[float, int], Any]:
    """What says each spreading state from what is seen, by window and state."""
    models = {}
    for window_um in WINDOWS_UM:
        seen_NxF, state_NxU = (np.concatenate(of) for of in zip(*(one[window_um] for one in learnt), strict=True))
        for u in SPREADING:
            booster = HistGradientBoostingRegressor(max_iter=150, random_state=0)
            models[window_um, u] = booster.fit(seen_NxF, state_NxU[:, u])
    return models


def read_against(number: int) -> tuple[Any, Cells, Hidden, Callable[[np.ndarray], float]]:
    """A region, its cells, what is hidden of them, and r(state_NxU): mean r over the diffusing genes of the expected
    rates with these states [N, U] and the counts X."""
    patient, region, cells, (expression, hidden, assay) = drawn(number)
    genes = SETTINGS.genes
    diffusing = genes.genes_of("diffusing")
    found, _ = draw_detections(cells, expression, genes, assay,
                               generator(SETTINGS.seed, number, Stream.DETECTIONS, region.index))  # fmt: skip
    side = int(region.side_um / BIN_UM + 1e-6)
    counts_NxG = grid_counts(found, len(genes.panel), side, side, BIN_UM)[:, diffusing].astype(np.float64)
    bins, loadings = make_bins(cells, region.side_um, BIN_UM), Loadings.of(genes)

    def r(state_NxU: np.ndarray) -> float:
        known = dataclasses.replace(hidden, state_NxU=state_NxU)
        told, _, _ = draw_expression(patient, region, cells, SETTINGS, known)
        rates = true_rates(told, cells, bins, genes, loadings, assay, diffusing)
        return float(np.nanmean(pearson_by_gene(counts_NxG, rates.reshape(len(counts_NxG), -1).astype(np.float64))))

    return region, cells, hidden, r


def read(number: int, models) -> dict[str, float]:
    """Mean r over the diffusing genes of one region, by what is known of the states."""
    region, cells, hidden, r = read_against(number)
    state_NxU, result = hidden.state_NxU, {}
    result["true_states"] = r(state_NxU)
    none_NxU = state_NxU.copy()
    none_NxU[:, SPREADING] = state_NxU[:, SPREADING].mean(0)
    result["no_states"] = r(none_NxU)
    for window_um in WINDOWS_UM:
        told_NxU, told_NxF = state_NxU.copy(), seen(cells, hidden, region.side_um, window_um)
        for u in SPREADING:
            told_NxU[:, u] = models[window_um, u].predict(told_NxF)
            name = f"{UNSEEN_STATES[u]}_r_{window_um}"
            result[name] = float(np.corrcoef(told_NxU[:, u], state_NxU[:, u])[0, 1])
        result[f"r_{window_um}"] = r(told_NxU)
    return result


def interval(by_region: np.ndarray) -> tuple[float, float]:
    """95 %, regions drawn with replacement."""
    drawn = np.random.default_rng(0).integers(TEST, size=(2000, TEST))
    low, high = np.quantile(by_region[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    numbers = [LARGE_EVERY["train"] * k for k in range(TRAIN + TEST)]
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        learnt = list(pool.map(learn_from, numbers[:TRAIN]))
        print(f"context: {TRAIN} regions of 2,048 µm to learn from", flush=True)
        models = boosters(learnt)
        rows = list(pool.map(read, numbers[TRAIN:], [models] * TEST))
    result = {name: float(mean_defined(np.array([[row[name]] for row in rows]))[0]) for name in rows[0]}
    by_region = np.array([row[f"r_{WIDE_UM}"] - row[f"r_{NARROW_UM}"] for row in rows])
    result["gain"] = float(mean_defined(by_region[:, None])[0])
    low, high = interval(by_region)
    result |= {"gain_low": low, "gain_high": high}
    result["patients_that_gain"] = float(np.mean(by_region > 0))
    result["table"] = "\n".join([
        f"genes that diffuse, counts, bins of {BIN_UM:g} µm, {TEST} regions of 2,048 µm; mean r with states known from",
        *(f"{name:<22}{value:.3f}" for name, value in result.items()),
    ])  # fmt: skip
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

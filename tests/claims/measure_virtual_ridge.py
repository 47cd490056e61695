"""Is the simulator too easy? Ridge, nuclear density and the null class beside V: `measure_virtual_ridge.py OUT.json`.

Core regions with all genes, bins of 36 µm. Ridge on stain and texture features is fitted to 93 and to 1,488 patients
and read on held-out ones, over the 1,000 genes of highest Moran's I of the 93, in counts.
"""

import concurrent.futures
import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

from tario_jax.evaluate.bins import grid_counts, grid_places
from tario_jax.evaluate.features import section_features
from tario_jax.evaluate.metrics import composition, mean_defined, pearson_by_gene
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.ridge import fit_ridge, fit_scaler
from tario_jax.virtual.patients import FIRST_NUMBER
from tario_jax.virtual.section import Settings, simulate_section, truth_rates

BIN_UM, SIDE = 36.0, 14
SMALL, LARGE, HELD_OUT = 93, 1488, 64
TOP_GENES = 1000
SHUFFLES = 10
LIKE = 4  # bins next to each other in total
NULL_MIN_TOTAL = 200  # counts of a bin in the composition of the null class


def simulated(number: int):
    """Features, density, counts of all genes by bin (uint16), and the stored truth."""
    section = simulate_section(number, "core", Settings())
    genes = Settings().genes
    places = grid_places(SIDE, SIDE, BIN_UM)
    features_NxF, density_N = section_features(section.he, section.he_um_per_px, *places, BIN_UM)
    counts_NxG = grid_counts(section.detections, len(genes.panel), SIDE, SIDE, BIN_UM)
    return features_NxF, density_N, counts_NxG.astype(np.uint16), section.truth


def of_genes(number: int, chosen: np.ndarray):
    """The same with the counts of some genes only, and the total over all."""
    features_NxF, density_N, counts_NxG, _ = simulated(number)
    return features_NxF, density_N, counts_NxG[:, chosen], counts_NxG.sum(1, dtype=np.int64)


def r_of(measured: list[np.ndarray], predicted: list[np.ndarray]) -> np.ndarray:
    return mean_defined(np.stack([pearson_by_gene(x, p) for x, p in zip(measured, predicted, strict=True)]))


def main() -> None:
    held_out = [FIRST_NUMBER["held_out"] + k for k in range(HELD_OUT)]
    genes = Settings().genes
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        began = time.monotonic()
        weights = neighbour_weights(*grid_places(SIDE, SIDE, BIN_UM), BIN_UM, "square")
        first = list(pool.map(simulated, range(SMALL)))
        moran_G = mean_defined(np.stack([morans_i(counts, weights) for _, _, counts, _ in first]))
        top = np.sort(np.argsort(-np.nan_to_num(moran_G, nan=-1))[:TOP_GENES])
        null = genes.genes_of("null")
        chosen = np.union1d(top, null)
        rows = [(f, d, counts[:, chosen], counts.sum(1, dtype=np.int64)) for f, d, counts, _ in first]
        test = []
        for features_NxF, density_N, counts_NxG, truth in pool.map(simulated, held_out):
            true, reachable = (rates.reshape(SIDE**2, -1) for rates in truth_rates(truth, BIN_UM, top))
            total_N = counts_NxG.sum(1, dtype=np.int64)
            test.append((features_NxF, density_N, counts_NxG[:, chosen], total_N, true, reachable))
        in_top, in_null = np.isin(chosen, top), np.isin(chosen, null)
        measured = [counts[:, in_top].astype(float) for _, _, counts, *_ in test]

        def ridge_r(some) -> float:
            scaler = fit_scaler([features for features, *_ in some])
            targets = [counts[:, in_top] for _, _, counts, _ in some]
            names = [str(k) for k in range(len(some))]
            ridge = fit_ridge([features for features, *_ in some], targets, names, np.arange(len(top)), scaler)
            return float(np.nanmean(r_of(measured, [ridge(features) for features, *_ in test])))

        flat = [np.repeat(density_N[:, None], len(top), 1) for _, density_N, *_ in test]
        result = {
            "true_r": float(np.nanmean(r_of(measured, [true for *_, true, _ in test]))),
            "reachable_r": float(np.nanmean(r_of(measured, [reachable for *_, reachable in test]))),
            "density_r": float(np.nanmean(r_of(measured, flat))),
            f"ridge_r_{SMALL}": ridge_r(rows),
        }
        result |= null_class(rows, test, in_null)
        print(f"ridge: {SMALL} and {HELD_OUT} patients after {time.monotonic() - began:.0f} s: {result}", flush=True)
        jobs = [pool.submit(of_genes, number, chosen) for number in range(SMALL, LARGE)]
        for done, job in enumerate(jobs, SMALL + 1):
            rows.append(job.result())
            if done % 100 == 0:
                print(f"ridge: {done}/{LARGE} patients after {time.monotonic() - began:.0f} s", flush=True)
    result[f"ridge_r_{LARGE}"] = ridge_r(rows)
    result |= {
        "reachable_share": result["reachable_r"] / result["true_r"],
        "ridge_share": result[f"ridge_r_{SMALL}"] / result["reachable_r"],
        "ridge_share_large": result[f"ridge_r_{LARGE}"] / result["reachable_r"],
        "density_share": result["density_r"] / result["reachable_r"],
        "ridge_gain": result[f"ridge_r_{LARGE}"] - result[f"ridge_r_{SMALL}"],
    }
    for name, value in result.items():
        print(f"{name:<24} {value:.4f}")
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


def null_class(some, test, in_null: np.ndarray) -> dict[str, float]:
    """Composition r of the null genes by ridge, beside the same where nothing but depth can tell of them.

    log1p of scaled counts follows a bin's total a little even where the gene's share is constant, and the H&E tells of
    totals: so targets are shuffled among bins of like total, in training and held-out sections.
    """
    rng = np.random.default_rng(0)
    features, test_features = ([row[0][row[3] >= NULL_MIN_TOTAL] for row in rows] for rows in (some, test))
    names, tuned = [str(k) for k in range(len(features))], np.arange(int(in_null.sum()))
    scaler = fit_scaler(features)

    def r(shuffled: bool) -> float:
        targets, test_targets = (
            [_null_composition(row[2][:, in_null], row[3], rng if shuffled else None) for row in rows]
            for rows in (some, test)
        )
        ridge = fit_ridge(features, targets, names, tuned, scaler)
        return float(np.nanmean(r_of(test_targets, [ridge(some_features) for some_features in test_features])))

    found, shuffled = r(False), [r(True) for _ in range(SHUFFLES)]
    limit = float(np.mean(shuffled) + 2 * np.std(shuffled, ddof=1))
    return {"null_r": found, "null_shuffled_mean": float(np.mean(shuffled)), "null_shuffled_limit": limit,
            "null_excess": found - limit}  # fmt: skip


def _null_composition(counts_NxK: np.ndarray, total_N: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """Composition of the bins that count; with `rng` their counts are exchanged among LIKE neighbours in total."""
    kept = total_N >= NULL_MIN_TOTAL
    counts_NxK, total_N = counts_NxK[kept], total_N[kept]
    if rng is not None:
        order = np.argsort(total_N, kind="stable")
        for first in range(0, len(order), LIKE):
            block = order[first : first + LIKE]
            counts_NxK[block] = counts_NxK[rng.permutation(block)]
    return composition(counts_NxK, total_N)


if __name__ == "__main__":
    main()

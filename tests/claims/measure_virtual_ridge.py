"""Is the simulator too easy? Ridge, nuclear density and the null class beside V: `measure_virtual_ridge.py OUT.json`.

All genes, bins of 36 µm. Ridge on stain and texture features is fitted to 93 and to 1,488 patients, of each its core or
its border region, and read on both regions of held-out ones, over the 1,000 genes of highest Moran's I of the 93, in
counts. Shares are ratios of mean r; their intervals draw held-out patients with replacement.
"""

import concurrent.futures
import dataclasses
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
from tario_jax.evaluate.null_class import MIN_TOTAL, null_report
from tario_jax.evaluate.ridge import Spread, fit_ridge, fit_scaler
from tario_jax.virtual.patients import FIRST_NUMBER
from tario_jax.virtual.section import Settings, simulate_section, truth_rates

BIN_UM, SIDE = 36.0, 14
SMALL, LARGE, HELD_OUT = 93, 1488, 64
TOP_GENES = 1000
REGIONS = ("core", "border")


@dataclasses.dataclass(frozen=True)
class Bins:
    """N bins of one section, the counts of some genes, K null genes among them."""

    features_NxF: np.ndarray
    density_N: np.ndarray
    counts_NxG: np.ndarray  # uint16
    total_N: np.ndarray  # over all genes
    true_NxG: np.ndarray | None = None  # T and V of the same genes
    reachable_NxG: np.ndarray | None = None


def bins_of(number: int, region: str, chosen: np.ndarray, known: bool) -> Bins:
    """A section's bins with the counts of the chosen genes, and their T and V where `known`."""
    section, genes = simulate_section(number, region, Settings()), len(Settings().genes.panel)
    features_NxF, density_N = section_features(
        section.he, section.he_um_per_px, *grid_places(SIDE, SIDE, BIN_UM), BIN_UM
    )
    counts_NxG = grid_counts(section.detections, genes, SIDE, SIDE, BIN_UM)
    truth = [t.reshape(SIDE**2, -1) for t in truth_rates(section.truth, BIN_UM, chosen)] if known else []
    return Bins(features_NxF, density_N, counts_NxG[:, chosen].astype(np.uint16), counts_NxG.sum(1), *truth)


def region_for(number: int) -> str:
    """The one region of a patient that ridge is fitted to."""
    return REGIONS[int(np.random.default_rng(number).integers(2))]


def moran(number: int) -> np.ndarray:
    bins = bins_of(number, region_for(number), np.arange(len(Settings().genes.panel)), known=False)
    return morans_i(bins.counts_NxG, neighbour_weights(*grid_places(SIDE, SIDE, BIN_UM), BIN_UM, "square"))


def null_class(train: list[Bins], test: list[Bins], in_null: np.ndarray) -> dict[str, float]:
    """Ridge on the composition of the null genes, by the rules of `tario_jax.evaluate.null_class`."""
    fitted = [bins for bins in train if (bins.total_N >= MIN_TOTAL).any()]
    kept = [bins.total_N >= MIN_TOTAL for bins in fitted]
    features = [bins.features_NxF[some] for bins, some in zip(fitted, kept, strict=True)]
    targets = [composition(bins.counts_NxG[some][:, in_null], bins.total_N[some])
               for bins, some in zip(fitted, kept, strict=True)]  # fmt: skip
    ridge = fit_ridge(features, targets, [str(k) for k in range(len(fitted))], np.arange(int(in_null.sum())),
                      fit_scaler([Spread.of(one) for one in features]))  # fmt: skip
    return null_report([bins.counts_NxG[:, in_null].astype(float) for bins in test], [bins.total_N for bins in test],
                       [ridge(bins.features_NxF) for bins in test])  # fmt: skip


def main() -> None:
    genes, began = Settings().genes, time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        moran_G = mean_defined(np.stack(list(pool.map(moran, range(SMALL)))))
        top = np.sort(np.argsort(-np.nan_to_num(moran_G, nan=-1))[:TOP_GENES])
        chosen = np.union1d(top, genes.genes_of("null"))
        in_top, in_null = np.isin(chosen, top), np.isin(chosen, genes.genes_of("null"))
        held_out = [FIRST_NUMBER["held_out"] + k for k in range(HELD_OUT)]
        jobs = [pool.submit(bins_of, k, region, chosen, True) for region in REGIONS for k in held_out]
        jobs += [pool.submit(bins_of, k, region_for(k), chosen, False) for k in range(LARGE)]
        done = []
        for number, job in enumerate(jobs, 1):
            done.append(job.result())
            if number % 100 == 0 or number == len(jobs):
                print(f"ridge: {number}/{len(jobs)} sections after {time.monotonic() - began:.0f} s", flush=True)
    test, train = done[: 2 * HELD_OUT], done[2 * HELD_OUT :]
    measured = [bins.counts_NxG[:, in_top].astype(float) for bins in test]

    def r(predicted: list[np.ndarray]) -> np.ndarray:
        """[regions, patients, genes]"""
        by_section = [pearson_by_gene(x, p) for x, p in zip(measured, predicted, strict=True)]
        return np.stack(by_section).reshape(len(REGIONS), HELD_OUT, -1)

    def ridge_r(some: list[Bins]) -> np.ndarray:
        targets = [bins.counts_NxG[:, in_top] for bins in some]
        features = [bins.features_NxF for bins in some]
        ridge = fit_ridge(features, targets, [str(k) for k in range(len(some))], np.arange(TOP_GENES),
                          fit_scaler([Spread.of(one) for one in features]))  # fmt: skip
        return r([ridge(bins.features_NxF) for bins in test])

    found = {
        "true": r([bins.true_NxG[:, in_top] for bins in test]),
        "reachable": r([bins.reachable_NxG[:, in_top] for bins in test]),
        "density": r([np.repeat(bins.density_N[:, None], TOP_GENES, 1) for bins in test]),
        f"ridge_{SMALL}": ridge_r(train[:SMALL]),
        f"ridge_{LARGE}": ridge_r(train),
    }
    print(f"ridge: fitted after {time.monotonic() - began:.0f} s", flush=True)
    result = shares(found) | {"null": null_class(train[:SMALL], test, in_null)}
    result["ridge_gain"] = min(
        result[region][f"ridge_{LARGE}"] - result[region][f"ridge_{SMALL}"] for region in REGIONS
    )
    result["table"] = table(result)
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


def shares(found: dict[str, np.ndarray]) -> dict[str, dict]:
    """Mean r of each method by region, and shares with their 95 % intervals."""
    rng, result = np.random.default_rng(0), {}
    for k, region in enumerate(REGIONS):
        by_patient = {name: np.nanmean(r[k], 1) for name, r in found.items()}
        mean = {name: float(np.nanmean(mean_defined(r[k]))) for name, r in found.items()}
        drawn = rng.integers(HELD_OUT, size=(2000, HELD_OUT))
        result[region] = dict(mean)
        for name, of in (("reachable", "true"), ("density", "reachable"), (f"ridge_{SMALL}", "reachable"),
                         (f"ridge_{LARGE}", "reachable")):  # fmt: skip
            resampled = by_patient[name][drawn].mean(1) / by_patient[of][drawn].mean(1)
            low, high = np.quantile(resampled, (0.025, 0.975))
            result[region][f"{name}_share"] = mean[name] / mean[of]
            result[region][f"{name}_share_interval"] = [float(low), float(high)]
        gains = (by_patient[f"ridge_{LARGE}"] - by_patient[f"ridge_{SMALL}"])[drawn].mean(1)
        result[region]["gain_interval"] = [float(value) for value in np.quantile(gains, (0.025, 0.975))]
    return result


def table(result: dict[str, dict]) -> str:
    """The same for people."""
    lines = [f"{TOP_GENES:,} genes of highest Moran's I, counts, bins of {BIN_UM:g} µm, {HELD_OUT} held-out patients",
             f"{'region':<8}{'':<12}{'mean r':>8}{'share':>8}  of"]  # fmt: skip
    for region in REGIONS:
        row = result[region]
        lines.append(f"{region:<8}{'T':<12}{row['true']:>8.3f}")
        for name, of in (("reachable", "T"), (f"ridge_{LARGE}", "V"), (f"ridge_{SMALL}", "V"), ("density", "V")):
            low, high = row[f"{name}_share_interval"]
            title = "V" if name == "reachable" else name
            share = f"{row[f'{name}_share']:>8.3f}  {of} ({low:.3f} to {high:.3f})"
            lines.append(f"{region:<8}{title:<12}{row[name]:>8.3f}{share}")
        low, high = row["gain_interval"]
        gain = row[f"ridge_{LARGE}"] - row[f"ridge_{SMALL}"]
        lines.append(
            f"{region:<8}ridge gains {gain:+.4f} from {SMALL} to {LARGE:,} patients ({low:+.4f} to {high:+.4f})"
        )
    null = result["null"]
    lines += [
        f"{null['genes']} null genes, composition, {null['bins']:,} bins ({null['bins_left_out']:,} of fewer than "
        f"{MIN_TOTAL} counts left out): ridge r {null['r']:.4f} (bins shuffled {null['plain_shuffle']:.4f}), beyond a "
        f"bin's total {null['beyond_total']:+.4f} (standard error {null['se']:.4f}; bins shuffled "
        f"{null['shuffled_mean']:+.4f} ± {null['shuffled_sd']:.4f})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

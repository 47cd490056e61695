"""Every metric of one large section, and Moran's I beside squidpy's: `measure_metrics.py OUT.json --peer=PYTHON`.

The section: a square grid of 100,489 bins of 18,963 genes, 4 % of the entries not 0, and rates of rank 2 that are
made strip by strip, so that neither counts nor rates ever exist as a dense array. What `tario evaluate` does with a
section is timed: ranking, ceilings, the model in three forms, displacement, turned targets, nats; and, by itself, the
controls that are fitted (ridge, densities), to that section and scored on it. squidpy runs in an environment of its own
(--peer), on the same matrix of 4,096 bins, warmed up before it is timed; ours is timed in the same run.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse

from tario_jax.config import EvaluateConfig
from tario_jax.evaluate.bins import grid_places
from tario_jax.evaluate.controls import Fitting, fit_controls
from tario_jax.evaluate.features import feature_names
from tario_jax.evaluate.moran import morans_i, neighbour_weights
from tario_jax.evaluate.ranking import standing
from tario_jax.evaluate.ridge import Spread
from tario_jax.evaluate.section_bins import SectionBins
from tario_jax.evaluate.section_scores import Plan, score_controls, score_measurement, score_model

GENES, SIDE, SMALL_SIDE, DENSITY = 18_963, 317, 64, 0.04
PITCH_UM = 36.0

PEER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import anndata, numpy as np, scipy.sparse, squidpy
counts = scipy.sparse.load_npz(sys.argv[1] + "/counts.npz")
weights = scipy.sparse.load_npz(sys.argv[1] + "/weights.npz")
data = anndata.AnnData(scipy.sparse.csr_matrix(counts).astype(np.float32))
data.obsp["spatial_connectivities"] = scipy.sparse.csr_matrix(weights)
few = data[:, :64].copy()
seconds = []
for one in (few, data, data):
    began = time.perf_counter()
    squidpy.gr.spatial_autocorr(one, mode="moran", n_perms=None, n_jobs=2, show_progress_bar=False,
                                transformation=False)
    seconds.append(time.perf_counter() - began)
found = data.uns["moranI"]["I"].reindex(data.var_names).to_numpy()
found = [None if np.isnan(value) else value for value in found]
print(json.dumps({"seconds": min(seconds[1:]), "version": squidpy.__version__, "i": found}))
"""


def made_counts(bins: int, rng: np.random.Generator) -> scipy.sparse.csr_array:
    """4 % of the entries, some genes far more often than others."""
    share = rng.gamma(0.5, 1.0, GENES)
    share /= share.sum()
    entries = int(DENSITY * bins * GENES)
    at = rng.integers(0, bins, entries), rng.choice(GENES, entries, p=share)
    counts = scipy.sparse.coo_array((np.ones(entries, np.float32), at), shape=(bins, GENES)).tocsr()
    return counts


def whole() -> dict[str, float]:
    """Seconds and peak memory of everything that is measured of the large section."""
    rng = np.random.default_rng(0)
    places = grid_places(SIDE, SIDE, PITCH_UM)
    counts = made_counts(SIDE * SIDE, rng)
    level = rng.gamma(2.0, 0.5, (2, SIDE * SIDE, 1)).astype(np.float32)
    profile = rng.gamma(0.5, 0.02, (2, 1, GENES)).astype(np.float32)
    section = SectionBins("made", "made", "made", *places, PITCH_UM, "square", counts, np.zeros((SIDE * SIDE, 1)),
                          np.ones(SIDE * SIDE), np.ones(GENES, bool))  # fmt: skip
    began = time.perf_counter()
    every = np.arange(GENES)
    plan = Plan(EvaluateConfig(), every, np.zeros(0, int), by_block=False, controls=None)
    stands = standing(plan.measure(section), *section.where)
    ranked_s = time.perf_counter() - began
    in_sets = np.sort(
        np.argsort(-np.nan_to_num(stands["moran"], nan=-1.0))[:500]
    )  # as many as the three sets of a report
    plan = Plan(EvaluateConfig(), every, in_sets, by_block=False, controls=None)
    noise = score_measurement(section, None, plan)
    noise_s = time.perf_counter() - began - ranked_s
    scores = score_model(
        section, lambda rows: level[0, rows] * profile[0] + level[1, rows] * profile[1], None, None, plan
    )
    seconds = time.perf_counter() - began
    assert all(np.isfinite(scores[f"r/model/{form}"]).any() for form in ("counts", "composition", "residual"))
    assert np.isfinite(noise["rho"]).any()
    return {"bins": SIDE * SIDE, "entries": int(counts.nnz), "seconds": seconds, "ranking_s": ranked_s,
            "noise_s": noise_s, "model_s": seconds - ranked_s - noise_s,
            "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # fmt: skip


def fitted() -> dict[str, float]:
    """Seconds and peak memory of the controls that are fitted: to the large section as two patients, and scored."""
    rng = np.random.default_rng(0)
    counts, features = made_counts(SIDE * SIDE, rng), len(feature_names()) * 2  # of a bin, and of its surroundings
    features_NxF = rng.normal(size=(SIDE * SIDE, features)).astype(np.float32)
    section = SectionBins("made", "made", "made", *grid_places(SIDE, SIDE, PITCH_UM), PITCH_UM, "square", counts,
                          features_NxF, rng.gamma(2.0, 1.0, SIDE * SIDE), np.ones(GENES, bool))  # fmt: skip
    plan = Plan(EvaluateConfig(), np.arange(GENES), np.arange(500), by_block=False, controls=None)
    began = time.perf_counter()
    measured = plan.measure(section)
    one = Fitting(lambda: (measured, features_NxF), Spread.of(features_NxF), measured.total_N,
                  section.nuclear_density_N, "a")  # fmt: skip
    plan = dataclasses.replace(plan, controls=fit_controls([one, dataclasses.replace(one, group="b")], plan.in_sets))
    fit_s = time.perf_counter() - began
    began = time.perf_counter()
    found = score_controls(section, plan)
    assert all(len(found[f"r/{name}/counts"]) == GENES for name in ("ridge", "ridge_direct", "nuclear_density"))
    return {"features": features, "fit_s": fit_s, "score_s": time.perf_counter() - began,
            "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}  # fmt: skip


def beside_squidpy(peer: str) -> dict[str, float]:
    rng = np.random.default_rng(1)
    counts = made_counts(SMALL_SIDE**2, rng)
    weights = neighbour_weights(*grid_places(SMALL_SIDE, SMALL_SIDE, PITCH_UM), PITCH_UM, "square")
    with tempfile.TemporaryDirectory() as folder:
        scipy.sparse.save_npz(Path(folder) / "counts.npz", scipy.sparse.csr_matrix(counts))
        scipy.sparse.save_npz(Path(folder) / "weights.npz", scipy.sparse.csr_matrix(weights))
        done = subprocess.run([peer, "-c", PEER, folder], check=True, capture_output=True, text=True)
    theirs = json.loads(done.stdout.splitlines()[-1])
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        ours = morans_i(counts, weights)
        seconds.append(time.perf_counter() - began)
    expected = np.array(theirs["i"], float)
    return {"squidpy": theirs["version"], "squidpy_s": theirs["seconds"], "moran_s": statistics.median(seconds),
            "times": theirs["seconds"] / statistics.median(seconds),
            "undefined_differ": int((np.isnan(ours) != np.isnan(expected)).sum()),
            "largest_difference": float(np.nanmax(np.abs(ours - expected)))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--peer", required=True, help="python with squidpy")
    options = parser.parse_args()
    # each in a process of its own: the peak of memory is then its own
    large, controls = (
        json.loads(subprocess.run([sys.executable, __file__, what], check=True, capture_output=True, text=True).stdout)
        for what in ("--whole", "--fitted")
    )
    small = beside_squidpy(options.peer)
    lines = [
        f"{large['bins']:,} bins, {GENES:,} genes, {large['entries']:,} entries that are not 0",
        f"  ranking by Moran's I and Moran-c   {large['ranking_s']:6.1f} s",
        f"  reliabilities, halves, nulls       {large['noise_s']:6.1f} s",
        f"  the model, displaced and turned    {large['model_s']:6.1f} s",
        f"  in all                             {large['seconds']:6.1f} s, {large['gigabytes']:.2f} GB at most",
        f"  controls on {controls['features']} features: fitted, twice {controls['fit_s']:6.1f} s",
        f"  the same: scored                   {controls['score_s']:6.1f} s, {controls['gigabytes']:.2f} GB at most",
        f"Moran's I of {SMALL_SIDE**2:,} bins and {GENES:,} genes",
        f"  squidpy {small['squidpy']:<26} {small['squidpy_s']:6.2f} s",
        f"  tario                              {small['moran_s']:6.2f} s, {small['times']:.0f} times as fast, "
        f"largest difference {small['largest_difference']:.1e}",
    ]
    found = {"large": large, "controls": controls, "small": small, "table": "\n".join(lines)}
    options.json.write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:] in (["--whole"], ["--fitted"]):
        print(json.dumps(whole() if sys.argv[1] == "--whole" else fitted()))
    else:
        main()

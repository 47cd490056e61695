"""Does a wider window tell more? Genes that diffusing signals drive, from the true cells: `… OUT.json`.

Bins of 36 µm in the large regions; a regression knows the true type of every cell within a window of 128 or of 512 µm
around the bin, as counts by type in rings, and the nearest aggregate if it is in the window. Fitted on some patients,
measured on others, against the counts X.
"""

import json
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.virtual.kinds import TYPES
from tario_jax.virtual.section import Settings, simulate_section

BIN_UM = 36.0
RINGS_UM = (18, 36, 64, 100, 140, 190, 256)  # half sides of the squares in which cells are counted
WINDOWS_UM = (128, 512)
TRAIN, TEST = 10, 6


def section_of(number: int):
    """Features by window, counts of the diffusing genes, of one large region's bins."""
    settings = Settings(panel="curated")
    section = simulate_section(number, "large", settings)
    genes, stored = settings.genes, section.truth
    diffusing = genes.genes_of("diffusing")
    side = int(section.width_um / BIN_UM + 1e-6)
    counts_NxG = grid_counts(section.detections, len(genes.panel), side, side, BIN_UM)

    step_um = BIN_UM / 9  # grid on which squares around bin centres are summed
    cells = int(section.width_um / step_um)
    x = np.minimum((stored["cells_x_um_N"] / step_um).astype(int), cells - 1)
    y = np.minimum((stored["cells_y_um_N"] / step_um).astype(int), cells - 1)
    kept = ~stored["cells_necrotic_N"]
    grids = np.zeros((len(TYPES), cells, cells), np.float32)
    np.add.at(grids, (stored["hidden_type_N"][kept], y[kept], x[kept]), 1)
    aggregate_um = np.full((cells, cells), np.inf, np.float32)
    np.minimum.at(aggregate_um, (y, x), stored["cells_aggregate_um_N"].astype(np.float32))
    centres = (np.arange(side) * 9 + 4).astype(int)
    features = {}
    for window_um in WINDOWS_UM:
        columns = []
        for half_um in (h for h in RINGS_UM if 2 * h <= window_um):
            size = 2 * int(half_um / step_um) + 1
            for grid in grids:
                mean = ndimage.uniform_filter(grid, size, mode="constant")[np.ix_(centres, centres)]
                columns.append(mean.ravel() * size**2)
        near = ndimage.minimum_filter(aggregate_um, 9)[np.ix_(centres, centres)].ravel()
        near = np.where(np.isfinite(near), near, window_um / 2)
        seen = np.clip(near, 0, window_um / 2)  # beyond the window nothing is known
        columns += [np.exp(-seen / fall) for fall in (40, 150)]
        features[window_um] = np.stack(columns, 1)
        features[window_um] = np.concatenate([features[window_um], np.sqrt(features[window_um])], 1)
    return features, counts_NxG[:, diffusing].astype(np.float64), diffusing


def main() -> None:
    sections = []
    numbers = [14 * k for k in range(TRAIN + TEST)]
    for done, number in enumerate(numbers, 1):
        sections.append(section_of(number))
        print(f"context: {done}/{len(numbers)} regions of 2,048 µm", flush=True)
    result = {}
    for window_um in WINDOWS_UM:
        scaler = StandardScaler().fit(np.concatenate([features[window_um] for features, *_ in sections[:TRAIN]]))
        fit = RidgeCV(alphas=np.geomspace(10, 1e5, 9)).fit(
            scaler.transform(np.concatenate([features[window_um] for features, *_ in sections[:TRAIN]])),
            np.concatenate([counts for _, counts, _ in sections[:TRAIN]]),
        )  # fmt: skip
        r = [pearson_by_gene(counts, fit.predict(scaler.transform(features[window_um])))
             for features, counts, _ in sections[TRAIN:]]  # fmt: skip
        result[f"r_{window_um}"] = float(mean_defined(mean_defined(np.stack(r))[:, None])[0])
    result["gain"] = result["r_512"] - result["r_128"]
    for name, value in result.items():
        print(f"{name:<8} {value:.3f}")
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

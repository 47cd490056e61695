"""Gene maps with real symbols that nothing predicted: two halves of a slide, one rich in each of two cell types."""

from pathlib import Path

import numpy as np

from tario_jax.panel import Panel
from tario_jax.predict.gene_validation import GeneValidation
from tario_jax.predict.map_store import MapStore, MapWriter, Slots

SYMBOLS = ("EPCAM", "KRT8", "KRT18", "COL1A1", "DCN", "LUM", "ACTB", "GAPDH")
COLUMNS, ROWS, BIN_UM = 20, 12, 36.0
COHORTS = ("all", "BRCA", "LUAD")


def write_made_maps(folder: Path, *, slide_px: tuple[int, int] | None = None, place: Path | None = None,
                    more: tuple[str, ...] = (), section: str = "made") -> MapStore:  # fmt: skip
    """Epithelium to the left, fibroblasts to the right; validated: EPCAM and COL1A1 in all, DCN in LUAD alone."""
    panel, rng = Panel(SYMBOLS), np.random.default_rng(0)
    row_N, column_N = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    left_N = column_N < COLUMNS // 2
    rates = rng.gamma(4.0, 0.25, (len(row_N), len(SYMBOLS))).astype(np.float32)
    rates[np.ix_(left_N, [0, 1, 2])] += 6
    rates[np.ix_(~left_N, [3, 4, 5])] += 6
    slots = Slots.of_rows(row_N)
    folder.mkdir(parents=True)
    writer = MapWriter(folder, panel, slots, more)
    for run in range(len(slots)):
        writer.write(run, {name: rates[slots.run(run)[0]] for name in ("rates", *more)})
    size_px = list(slide_px or (int(number * BIN_UM / 0.5) for number in (COLUMNS, ROWS)))
    about = {"section": section, "place": {"slide": str(place or "/none")}, "slide_px": size_px, "he_um_per_px": 0.5,
             "panel_hash": panel.hash, "trained_on": "virtual", "tissue": "virtual", "banner": "", "warnings": [],
             "unit": "expected detections per bin", "decoding": "one-shot", "bin_um": BIN_UM, "checkpoint": "none",
             "model": "made"}  # fmt: skip
    writer.finish(about, (column_N + 0.5) * BIN_UM, (row_N + 0.5) * BIN_UM, total_N=rates.sum(1), mean_G=rates.mean(0),
                  largest_G=rates.max(0), validation=made_validation(panel))  # fmt: skip
    return MapStore(folder)


def made_validation(panel: Panel) -> GeneValidation:
    r_CxG = np.linspace(0.3, 0.8, 3 * len(SYMBOLS)).reshape(3, -1)
    low_CxG = np.full(r_CxG.shape, -0.1)
    low_CxG[0, [0, 3]] = low_CxG[1, 0] = low_CxG[2, [0, 3, 4]] = 0.05
    low_CxG[1, 7] = np.nan
    density_r_CxG = r_CxG - 0.1 * (1 + np.arange(len(SYMBOLS)) / 80)
    return GeneValidation(SYMBOLS, COHORTS, np.array([9, 5, 4]), r_CxG, density_r_CxG,
                          low_CxG, np.ones_like(r_CxG), {"panel_hash": panel.hash, "checkpoint": "none"})  # fmt: skip


def content(folder) -> dict[str, bytes]:
    """Every file of a store; what names the file of the slide is left out."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in ("maps.json", "zarr.json")}  # fmt: skip

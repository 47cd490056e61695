"""How fast a gene shows on the page, of 18,963 genes × 100,000 bins: measure_page.py WORKDIR OUT.json."""

import contextlib
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import uvicorn
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "view")]

from find_chromium import chromium  # noqa: E402

from tario_jax.predict.map_store import MapWriter, Slots  # noqa: E402
from tario_jax.serve.server import bind  # noqa: E402
from tario_jax.view.app import make_app  # noqa: E402
from tario_jax.view.shown import Shown  # noqa: E402
from tario_jax.virtual.genes import virtual_panel  # noqa: E402

COLUMNS, ROWS, BIN_UM, GENES_SHOWN = 400, 250, 36.0, 12


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    folder = workdir / "large.maps"
    began = time.monotonic()
    panel = write_maps(folder)
    written_s = time.monotonic() - began
    gigabytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    chosen = [panel.symbols[at] for at in np.random.default_rng(1).choice(len(panel), GENES_SHOWN, replace=False)]
    shown_ms, opened_s = shown(folder, chosen)
    result = {
        "largest_ms": max(shown_ms), "median_ms": statistics.median(shown_ms), "opened_s": opened_s,
        "gigabytes": gigabytes, "written_s": written_s,
        "table": f"{len(panel):,} genes × {COLUMNS * ROWS:,} bins, {gigabytes:.1f} GB, written in {written_s:.0f} s\n"
                 f"the page is there after {opened_s:.1f} s; a gene, from Enter to its map: median "
                 f"{statistics.median(shown_ms):.0f} ms, at most {max(shown_ms):.0f} ms of {len(shown_ms)}",
    }  # fmt: skip
    print(result["table"])
    out.write_text(json.dumps(result))


def write_maps(folder: Path):
    """A few smooth patterns, mixed anew for each gene, with noise: as large as real maps are."""
    panel, rng = virtual_panel(), np.random.default_rng(0)
    row_N, column_N = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    patterns_Nx6 = np.stack([np.sin(row_N / scale + phase) * np.cos(column_N / (1.3 * scale) - phase)
                             for scale, phase in zip((9, 14, 22, 35, 50, 80), range(6), strict=True)], 1)  # fmt: skip
    mix_6xG = rng.normal(0, 0.7, (6, len(panel))).astype(np.float32)
    level_G = rng.normal(-3, 1.5, len(panel)).astype(np.float32)
    slots = Slots.of_rows(row_N)
    folder.mkdir(parents=True)
    writer = MapWriter(folder, panel, slots)
    sum_G, largest_G, total_N = np.zeros(len(panel)), np.zeros(len(panel)), np.zeros(len(row_N))
    for run in range(len(slots)):
        bins, _ = slots.run(run)
        log = patterns_Nx6[bins].astype(np.float32) @ mix_6xG + level_G
        log += 0.05 * rng.standard_normal(log.shape, np.float32)
        rates = np.exp(log)
        writer.write(run, {"rates": rates})
        sum_G += rates.sum(0)
        largest_G = np.maximum(largest_G, rates.max(0))
        total_N[bins] = rates.sum(1)
    size_px = [int(number * BIN_UM / 0.5) for number in (COLUMNS, ROWS)]
    about = {"section": "made", "place": {"slide": "/none"}, "slide_px": size_px, "he_um_per_px": 0.5,
             "panel_hash": panel.hash, "trained_on": "virtual", "tissue": "virtual", "banner": "", "warnings": [],
             "unit": "expected detections per bin", "decoding": "one-shot", "bin_um": BIN_UM, "checkpoint": "none",
             "model": "made"}  # fmt: skip
    writer.finish(about, (column_N + 0.5) * BIN_UM, (row_N + 0.5) * BIN_UM, total_N=total_N,
                  mean_G=sum_G / len(row_N), largest_G=largest_G, validation=None)  # fmt: skip
    return panel


def shown(folder: Path, genes: list[str]) -> tuple[list[float], float]:
    """Milliseconds from Enter to the map of each gene, and seconds until the page is there."""
    stack = contextlib.ExitStack()
    bound = bind("127.0.0.1", 0)
    app = make_app([Shown(folder, {}, lambda store: [], stack, str)], stack, ("127.0.0.1",))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    found = []
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            began = time.monotonic()
            page.goto(f"http://127.0.0.1:{bound.getsockname()[1]}/")
            page.wait_for_selector("body[data-ready='1']", timeout=60_000)
            opened_s = time.monotonic() - began
            for symbol in genes:
                page.fill("#search", symbol)
                page.press("#search", "Enter")
                page.wait_for_selector(f"#panes[data-shown='gene:{symbol}']", timeout=20_000)
                found.append(float(page.get_attribute("#panes", "data-shown-ms")))
            browser.close()
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
    return found, opened_s


if __name__ == "__main__":
    main()

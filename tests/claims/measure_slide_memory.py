"""Memory and time of `tario ingest` for a slide of 60,000 × 50,000 px: `measure_slide_memory.py OUT.json`.

The slide is a pyramid of JPEG tiles, a quarter of them tissue, the rest background: 9 GB of pixels in a small file.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from tario_jax.corpus.read import Corpus

TARIO = Path(sys.executable).parent / "tario"
WIDTH_PX, HEIGHT_PX, TILE_PX, LEVELS, UM_PER_PX = 60_000, 50_000, 512, 3, 0.5
KIND = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "compression": "jpeg", "metadata": None}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        slide, panel, corpus = (Path(folder) / name for name in ("slide.tif", "panel.tsv", "corpus"))
        looks = write_slide(slide)
        panel.write_text("symbol\nEPCAM\n")
        began = time.monotonic()
        ingest = subprocess.Popen([TARIO, "ingest", "--source=slide", f"--path={slide}", "--patient=P1",
                                   "--cohort=BRCA", f"--panel={panel}", f"--out={corpus}"])  # fmt: skip
        _, status, used = os.wait4(ingest.pid, 0)
        ingest.returncode = os.waitstatus_to_exitcode(status)
        if ingest.returncode:
            sys.exit(f"tario ingest ended with {ingest.returncode}")
        seconds = time.monotonic() - began
        (section,) = Corpus.open(corpus).sections
        result = {
            "peak_gb": used.ru_maxrss * 1024 / 1e9,
            "pixels_gb": WIDTH_PX * HEIGHT_PX * 3 / 1e9,
            "seconds": seconds,
            "slide_gb": slide.stat().st_size / 1e9,
            "stored_gb": sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) / 1e9,
            "whole_slide_is_stored": section.width_um == WIDTH_PX * UM_PER_PX and right_at_its_places(section, looks),
        }
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result))


def write_slide(path: Path) -> list[np.ndarray]:
    """Each tile is encoded once: the file repeats the bytes. Returns what background and tissue look like."""
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((190, 120, 170), 25, (TILE_PX, TILE_PX, 3)), 0, 255).astype(np.uint8)
    background = np.full_like(tissue, 240)
    encoded, looks = zip(*(through_jpeg(path, tile) for tile in (background, tissue)), strict=True)

    def tiles(height_px: int, width_px: int) -> Iterator[bytes]:
        rows, columns = -(-height_px // TILE_PX), -(-width_px // TILE_PX)
        for row in range(rows):
            for column in range(columns):
                yield encoded[is_tissue((row + 0.5) / rows, (column + 0.5) / columns)]

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(LEVELS):
            height_px, width_px = HEIGHT_PX >> level, WIDTH_PX >> level
            px_per_cm = 1e4 / UM_PER_PX / 2**level
            file.write(tiles(height_px, width_px), shape=(height_px, width_px, 3), dtype=np.uint8,
                       resolution=(px_per_cm, px_per_cm), resolutionunit="CENTIMETER", subfiletype=int(level > 0),
                       **KIND)  # fmt: skip
    return list(looks)


def is_tissue(down: float, across: float) -> bool:
    return abs(down - 0.5) < 0.25 and abs(across - 0.5) < 0.25


def through_jpeg(path: Path, tile: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The bytes of a tile, and what it looks like once it is decoded."""
    tifffile.imwrite(path, tile, **KIND)
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    return path.read_bytes()[offset : offset + size], tifffile.imread(path)


def right_at_its_places(section, looks: list[np.ndarray]) -> bool:
    """The tiles of two corners, of the tissue's edges and of its middle, in the corpus."""
    rows, columns = -(-HEIGHT_PX // TILE_PX), -(-WIDTH_PX // TILE_PX)
    for row, column in ((0, 0), (24, 29), (25, 30), (49, 58), (72, 88), (rows - 2, columns - 2)):
        expected = looks[is_tissue((row + 0.5) / rows, (column + 0.5) / columns)]
        corner_um = column * TILE_PX * UM_PER_PX, row * TILE_PX * UM_PER_PX
        if not np.array_equal(section.he_window(*corner_um, TILE_PX, UM_PER_PX), expected):
            return False
    return True


if __name__ == "__main__":
    main()

"""A real slide, a pyramid made from it, seams, and what is no slide: measure_slides.py RUN DATA OUT.json.

RUN: a workdir with a model of virtual tissue; DATA: the folder with slides/CMU-1-Small-Region.svs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tario_jax.predict.predictor import Predictor, load
from tario_jax.predict.slide_job import Asked, predict_slide
from tario_jax.sources.slide_files import opened_slide

TARIO = Path(sys.executable).parent / "tario"
TEXTURE_UM = 36.0  # period, that of the bins
OVERLAPS = (0.5, 0.25)


def main() -> None:
    run, data, out = (Path(word) for word in sys.argv[1:4])
    svs = data / "slides" / "CMU-1-Small-Region.svs"
    predictor = load(run, allow_virtual_model=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        result, lines = {}, []
        for found in (same_maps(predictor, svs, folder), seams(predictor, folder), bad_input(svs, folder)):
            lines += found.pop("lines")
            result |= found
    result["table"] = "\n".join(lines)
    print(result["table"])
    out.write_text(json.dumps(result))


def pyramid(svs: Path, path: Path) -> None:
    """The slide's pixels as an OME-TIFF of three levels, each the mean of 2 × 2 px of the one before."""
    with opened_slide(svs) as file:
        image = file.levels[0]
        pixels, um = image[: image.height_px, : image.width_px], file.um_per_px
    metadata = {"axes": "YXS"} | {f"PhysicalSize{axis}": size for axis, size in zip("XY", um, strict=True)} | {
        f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}  # fmt: skip
    options = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(pixels, subifds=2, metadata=metadata, **options)
        for _ in range(2):
            rows, columns = (size // 2 for size in pixels.shape[:2])
            pixels = (
                pixels[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3).mean((1, 3)).round().astype(np.uint8)
            )
            writer.write(pixels, subfiletype=1, metadata=None, **options)


def same_maps(predictor: Predictor, svs: Path, folder: Path) -> dict:
    pyramid(svs, folder / "same.ome.tif")
    stores = [predict_slide(predictor, path, folder / f"{path.stem}.maps", Asked(), say=str)
              for path in (svs, folder / "same.ome.tif")]  # fmt: skip
    rates = [store.genes(np.arange(len(store.panel))) for store in stores]
    differ = int((rates[0] != rates[1]).sum()) if rates[0].shape == rates[1].shape else rates[0].size
    Image.fromarray(np.asarray(tifffile.imread(folder / "same.ome.tif"))).save(folder / "unstated.png")
    told = asked(folder, folder / "unstated.png")
    stated = asked(folder, folder / "unstated.png", "--um-per-px=0.499")
    return {"values_that_differ": differ, "bins": len(stores[0]), "outside": len(stores[0].about["outside"]),
            "refused": int(told[0] == 2 and "does not say its µm per px" in told[1]) + int(stated[0] == 0), "lines": [
                f"CMU-1-Small-Region.svs and a pyramidal OME-TIFF of it: {differ} of {rates[0].size:,} rates differ "
                f"({len(stores[0])} bins × {len(stores[0].panel):,} genes)",
                f"without µm per px: {told[1].strip().replace(f'{folder}/', '')}",
                f"warned of: {stores[0].about['warnings'][0]}"]}  # fmt: skip


def asked(folder: Path, slide: Path, *more: str, limit_bytes: int | None = None) -> tuple[int, str]:
    """`tario predict` of a slide: its status and what it says on stderr. limit_bytes: of a file, as on a full disk."""
    out = folder / "asked.maps"
    shutil.rmtree(out, ignore_errors=True)
    command = [TARIO, "predict", f"--workdir={sys.argv[1]}", f"--slide={slide}", f"--out={out}",
               "--allow-virtual-model", *more]  # fmt: skip
    if limit_bytes is not None:
        command = ["bash", "-c", f'ulimit -f {limit_bytes // 1024}; exec "$@"', "bash", *command]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"})  # fmt: skip
    return done.returncode, done.stderr


def seams(predictor: Predictor, folder: Path) -> dict:
    """A texture that is the same under every bin, and turned: what differs between bins is of the windows alone."""
    side_px = round(TEXTURE_UM / 0.5)
    rng = np.random.default_rng(0)
    tile = rng.normal((190, 130, 175), 30, (side_px, side_px, 3))
    tile = sum(np.rot90(tile, turns) for turns in range(4)) / 4
    tile = (tile - tile.mean((0, 1))) * 2 + tile.mean((0, 1))
    Image.fromarray(np.tile(tile.clip(0, 255).astype(np.uint8), (60, 60, 1))).save(folder / "texture.png")
    found, lines = {}, []
    for overlap in OVERLAPS:
        asking = Asked(um_per_px=0.5, everywhere=True, overlap=overlap, bin_um=TEXTURE_UM)
        store = predict_slide(predictor, folder / "texture.png", folder / f"texture{overlap}.maps", asking, say=str)
        window_um = store.about["window_um"]
        inside = ((store.x_um_N > window_um) & (store.x_um_N < 60 * TEXTURE_UM - window_um)
                  & (store.y_um_N > window_um) & (store.y_um_N < 60 * TEXTURE_UM - window_um))  # fmt: skip
        total_N = store.total_N
        grid = {(round(x), round(y)): total for x, y, total in
                zip(store.x_um_N[inside], store.y_um_N[inside], total_N[inside], strict=True)}  # fmt: skip
        steps = [abs(grid[x + 36, y] / total - 1) for (x, y), total in grid.items() if (x + 36, y) in grid]
        spread = float(np.ptp(total_N[inside]) / total_N[inside].mean())
        found[f"seam_{round(100 * overlap)}"] = max(steps)
        lines.append(f"the same texture under every bin, overlap {overlap:g}: total rates of neighbouring bins differ "
                     f"by at most {max(steps):.2%}, the furthest two by {spread:.2%} ({len(grid)} bins)")  # fmt: skip
    return found | {"lines": lines}


def bad_input(svs: Path, folder: Path) -> dict:
    (folder / "cut.svs").write_bytes(svs.read_bytes()[: svs.stat().st_size // 2])
    (folder / "text.svs").write_text("no slide\n")
    Image.new("RGB", (1500, 1500), (244, 244, 244)).save(folder / "blank.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)).save(folder / "coarse.png")
    old = folder / "old.maps"
    shutil.copytree(folder / "CMU-1-Small-Region.maps", old)
    seal = json.loads((old / "maps.json").read_text())
    (old / "maps.json").write_text(json.dumps(seal | {"format_version": 99}))
    cases = {
        "a truncated SVS": (lambda: asked(folder, folder / "cut.svs"), str(folder / "cut.svs")),
        "a text file": (lambda: asked(folder, folder / "text.svs"), "text.svs"),
        "no tissue": (lambda: asked(folder, folder / "blank.png", "--um-per-px=0.5"), "no tissue is found"),
        "4 µm per px": (lambda: asked(folder, folder / "coarse.png", "--um-per-px=4"), "expected 0.1 to 1.2"),
        "a full disk": (lambda: asked(folder, svs, limit_bytes=200_000), "asked.maps"),
        "maps of another version": (lambda: command("maps", old), "version 99"),
        "the page of such maps": (lambda: command("view", old, "--no-browser"), "version 99"),
        "the page of no maps": (lambda: command("view", folder / "none.maps", "--no-browser"), "no gene maps"),
    }  # fmt: skip
    wrong, lines = 0, []
    for name, (ask, words) in cases.items():
        status, told = ask()
        fine = status == 2 and told.count("\n") == 1 and told.startswith("tario: ") and words in told
        wrong += not fine
        lines.append(
            f"{name}: {status}, {told.strip().replace(str(folder) + '/', '')[:200]}{'' if fine else '  WRONG'}"
        )
    return {"bad_input": wrong, "lines": lines}


def command(*words: object) -> tuple[int, str]:
    done = subprocess.run([TARIO, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


if __name__ == "__main__":
    main()

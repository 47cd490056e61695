"""A slide of 60,000 × 40,000 px through the 10M config with 18,963 genes: measure_slide_prediction.py WORKDIR OUT.json.

The slide is a pyramid of JPEG tiles, tissue in its middle, the rest background. The model has been trained for one
step: what it predicts costs the same. Bins a second of the job beside those of the bare model, memory, and a kill.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import measure_slide_memory
import numpy as np

TARIO = Path(sys.executable).parent / "tario"
WIDTH_PX, HEIGHT_PX = 60_000, 40_000
SIDE_MM = 2.9  # of the tissue
CONFIG = (
    "--config=configs/tario2_10m.py", "--config.mesh.fsdp=1", "--config.train.steps=1", "--config.data.rows=2",
    "--config.train.calibration_rows=2", "--config.train.validation_rows=2", "--config.data.windows_per_row=1",
)  # fmt: skip


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    slide, run = workdir / "slide.tif", workdir / "run"
    write_slide(slide)
    train(workdir, run)
    killed, whole = workdir / "killed.maps", workdir / "whole.maps"
    kept = kill_and_continue(run, slide, killed)
    bare = bare_bins_per_s(run, slide)
    told, peak_bytes, seconds = predict(run, slide, whole)
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"([\d,]+) bins/s", told)]
    again = bare_bins_per_s(run, slide)
    same = content(killed) == content(whole)
    share = rates[-1] / np.median([bare, again])
    result = {
        "share": float(share), "bins_per_s": rates[-1], "bare_bins_per_s": [bare, again], "peak_gb": peak_bytes / 1e9,
        "seconds": seconds, "differ": int(not same), "kept_windows": kept,
        "table": "\n".join((
            told.splitlines()[0],
            f"bins a second through the model {rates[-1]:,.1f}; bare, before and after {bare:,.1f}, {again:,.1f}",
            f"peak memory {peak_bytes / 1e9:.2f} GB, {seconds:.0f} s; {WIDTH_PX * HEIGHT_PX * 3 / 1e9:.1f} GB of px",
            f"killed with {kept} windows kept, and continued: {'the same' if same else 'OTHER'} bits",
        )),
    }  # fmt: skip
    print(result["table"])
    out.write_text(json.dumps(result))


def write_slide(path: Path) -> None:
    across, down = (SIDE_MM * 1e3 / 0.5 / px for px in (WIDTH_PX, HEIGHT_PX))
    measure_slide_memory.WIDTH_PX, measure_slide_memory.HEIGHT_PX = WIDTH_PX, HEIGHT_PX
    measure_slide_memory.is_tissue = lambda y, x: abs(y - 0.5) < down / 2 and abs(x - 0.5) < across / 2
    measure_slide_memory.write_slide(path)


def train(workdir: Path, run: Path) -> None:
    corpus = workdir / "corpus"
    tario(
        "simulate",
        "--patients=3",
        "--validation=1",
        "--held-out=1",
        "--section-um=1200",
        "--regions=core",
        f"--out={corpus}",
    )
    tario("train", *CONFIG, f"--corpus={corpus}", f"--workdir={run}")


def command(run: Path, slide: Path, out: Path) -> list[str]:
    return [str(TARIO), "predict", f"--workdir={run}", f"--slide={slide}", f"--out={out}", "--overlap=0.5",
            "--allow-virtual-model"]  # fmt: skip


def kill_and_continue(run: Path, slide: Path, out: Path) -> int:
    """Killed in the middle; returns how many windows it had kept."""
    process = subprocess.Popen(command(run, slide, out), stdout=subprocess.DEVNULL, env=environment())
    windows = out / "work" / "windows"
    while len(list(windows.glob("*.npz")) if windows.exists() else []) < 7:
        if process.poll() is not None:
            sys.exit(f"tario predict ended with {process.returncode}")
        time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(windows.glob("*.npz")))
    subprocess.run(command(run, slide, out), check=True, stdout=subprocess.DEVNULL, env=environment())
    return kept


def predict(run: Path, slide: Path, out: Path) -> tuple[str, int, float]:
    began = time.monotonic()
    process = subprocess.Popen(command(run, slide, out), stdout=subprocess.PIPE, text=True, env=environment())
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"tario predict ended with {process.returncode}")
    return told, used.ru_maxrss * 1024, time.monotonic() - began


BARE = """
import sys, time
from pathlib import Path
import jax
from tario_jax.model.model import Tario
from tario_jax.predict.predictor import load
from tario_jax.predict.slide import opened_section
from tario_jax.predict.slide_job import rows_of
from tario_jax.predict.tissue_mask import find_tissue
predictor = load(sys.argv[1], allow_virtual_model=True)
with opened_section(Path(sys.argv[2]), None, genes=len(predictor.panel), say=str) as section:
    cover = predictor.tissue_cover(section, find_tissue(section), tissue="real", bin_um=None, overlap=0.5)
    _, batch = next(cover.batches(rows_of(predictor, cover)))
batch = predictor.placed_on_devices(batch)
jax.block_until_ready(predictor.call(Tario.rates, batch))
seconds = []
for _ in range(3):
    began = time.monotonic()
    jax.block_until_ready(predictor.call(Tario.rates, batch))
    seconds.append(time.monotonic() - began)
print(len(batch.tile_BxT) * cover.places.per_window / sorted(seconds)[1])
"""


def bare_bins_per_s(run: Path, slide: Path) -> float:
    """Of a batch that lies on the device, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", BARE, run, slide], capture_output=True, text=True, check=False,
                          env=environment())  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


def content(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("maps.json", "zarr.json"):
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def tario(*words: str) -> None:
    subprocess.run([TARIO, *words], check=True, stdout=subprocess.DEVNULL, env=environment())


def environment() -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu"}


if __name__ == "__main__":
    main()

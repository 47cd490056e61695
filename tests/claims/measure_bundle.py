"""A bundle beside its checkpoint, where there is no tario: `measure_bundle.py WORKDIR OUT.json`.

A small model is trained on virtual patients and exported. A fresh environment gets jax, flatbuffers, numpy and
safetensors, and nothing else; there the bundle's own loader predicts its golden input and 50 random windows, in batches
of three sizes with three numbers of squares, and meets bundles that were changed. Differences are relative to the
checkpoint's rates, also those of the golden input, whose output in the bundle is the bundle's own.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
from measure_two_seeds import tario

from tario_jax.config import DataConfig
from tario_jax.model.model import Tario
from tario_jax.predict.predictor import Predictor, load
from tario_jax.tokens.batch import make_layout, tokenise
from tario_jax.tokens.window import Bins, Window

BATCHES, SQUARES, WINDOWS = (1, 3, 8), (1, 17, 64), 50
GIVEN = ("he", "xy_um", "side_um")
REASONS = {
    "flipped": "differs from what was exported",
    "panel": "the weights are of panel",
    "jaxlib": "with jaxlib 99.0.0",
}
FRESH = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from loader import Bundle, BundleError
for name in ("tario_jax", "flax", "tensorstore", "orbax"):
    try:
        __import__(name)
        raise SystemExit(f"{name} is here")
    except ImportError:
        pass
bundle, windows = Bundle(sys.argv[1]), 0
worst = [bundle.check_golden()]
with np.load(sys.argv[2]) as given:
    number = len([name for name in given if name.startswith("he_")])
    for at in range(number):
        found = bundle.predict(given[f"he_{at}"], given[f"xy_{at}"], given[f"side_{at}"])
        expected, windows = given[f"rates_{at}"], windows + len(given[f"he_{at}"])
        worst.append(np.abs(found / expected - 1).max())
refused = {}
for folder in sys.argv[3:]:
    try:
        Bundle(folder)
        refused[folder] = ""
    except BundleError as error:
        refused[folder] = str(error)
print(json.dumps({"worst": float(np.max(worst)), "windows": windows, "refused": refused, "genes": len(bundle.genes)}))
"""


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    run, bundle = workdir / "run", workdir / "bundle"
    tario("train", "--config=configs/quickstart.py", f"--workdir={run}", "--config.source.train_patients=12",
          "--config.source.validation_patients=1", "--config.source.held_out_patients=2", "--config.train.steps=60",
          "--config.train.validate_every=60", "--config.train.checkpoint_every=60")  # fmt: skip
    shutil.rmtree(bundle, ignore_errors=True)
    tario("export", str(run), f"--out={bundle}")
    with np.load(bundle / "golden.npz") as golden:
        np.savez(workdir / "given.npz", **rates_of(load(run), [tuple(golden[name] for name in GIVEN)]))
    changed = [changed_bundle(bundle, workdir / name, name) for name in REASONS]
    fresh = workdir / "fresh"
    venv.create(fresh, with_pip=True, clear=True)
    subprocess.run([fresh / "bin/python", "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "jax",
                    "flatbuffers", "numpy", "safetensors"], check=True)  # fmt: skip
    done = subprocess.run([fresh / "bin/python", "-I", "-c", FRESH, bundle, workdir / "given.npz", *changed],
                          check=True, capture_output=True, text=True)  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    refused = zip(REASONS.values(), found["refused"].values(), strict=True)
    result = {"worst": found["worst"], "windows": found["windows"],
              "refused": sum(word in reason for word, reason in refused)}  # fmt: skip
    lines = [f"{found['windows']} windows, those of the golden input among them, {found['genes']} genes: largest "
             f"relative difference {found['worst']:.1e}", *found["refused"].values()]  # fmt: skip
    result["table"] = "\n".join(line.replace(str(workdir), "…") for line in lines)
    print(result["table"])
    out.write_text(json.dumps(result))


def rates_of(predictor: Predictor, given: list[tuple[np.ndarray, ...]]) -> dict[str, np.ndarray]:
    """The model's own rates of what is given, and of random windows, batch by batch."""
    rng, found, done, at = np.random.default_rng(0), {}, 0, 0
    data: DataConfig = predictor.provenance.config.data.of_one_scale(groups=((1, 1.0),), rows=max(BATCHES))
    side_px, genes = round(data.window_um / data.he_um_per_px), len(predictor.panel)
    while done < WINDOWS:
        rows, squares = BATCHES[at % 3], SQUARES[at // 3 % 3]
        he = rng.integers(0, 256, (rows, side_px, side_px, 3)).astype(np.uint8)
        side_um = rng.uniform(12.0, 72.0, (rows, squares)).astype(np.float32)
        xy_um = rng.uniform(0, data.window_um, (rows, squares, 2)).astype(np.float32)
        given = [*given, (he, xy_um, side_um)]
        done, at = done + rows, at + 1
    for at, (he, xy_um, side_um) in enumerate(given):
        rows, squares = side_um.shape
        layout = make_layout(data, genes, bins_per_tile=squares, largest_bin_um=72.0, count_capacity=1)
        none = (np.zeros(0, np.int32),) * 3
        windows = [[Window(data.window_um, he[row], Bins(*xy_um[row].T.astype(np.float64), side_um[row],
                                                         np.ones(squares, np.float32), *none, 1.0, False),
                           np.ones(genes, bool))] for row in range(rows)]  # fmt: skip
        rngs = [[np.random.default_rng(0)] for _ in range(rows)]
        batch = tokenise(windows, data, layout, np.ones((rows, 1), int), rngs)
        rates = np.asarray(predictor.call(Tario.rates, predictor.placed_on_devices(batch)))[..., :genes]
        # slots lie tile by tile, here all in one; places tell which is which
        placed = batch.bin_xy_um_BxTxNx2.reshape(len(rates), -1, 2)
        order = [[int(np.abs(placed[row] - place).sum(1).argmin()) for place in xy_um[row]] for row in range(rows)]
        found |= {f"he_{at}": he, f"xy_{at}": xy_um, f"side_{at}": side_um,
                  f"rates_{at}": np.stack([rates[row, slots] for row, slots in enumerate(order)])}  # fmt: skip
    return found


def changed_bundle(bundle: Path, out: Path, how: str) -> Path:
    """A copy with one flipped byte, another panel, or the word of a later jaxlib; the last two sealed anew."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(bundle, out)
    if how == "flipped":
        content = bytearray((out / "params.safetensors").read_bytes())
        content[len(content) // 2] ^= 1
        (out / "params.safetensors").write_bytes(content)
        return out
    if how == "panel":
        lines = (out / "panel.tsv").read_text().splitlines()
        (out / "panel.tsv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    else:
        signature = json.loads((out / "signature.json").read_text())
        signature["jax"]["jaxlib"] = "99.0.0"
        (out / "signature.json").write_text(json.dumps(signature))
    files = {path.name: [path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()]
             for path in out.iterdir() if path.name != "bundle.json"}  # fmt: skip
    about = json.loads((out / "bundle.json").read_text())
    (out / "bundle.json").write_text(json.dumps(about | {"files": files}))
    return out


if __name__ == "__main__":
    main()

"""The registration of the Xenium excerpt, and of copies that were shifted and mirrored on purpose, by `tario check`."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TARIO = Path(sys.executable).parent / "tario"
SHIFT_UM = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    source = Path(os.environ["TARIO_REAL_DATA"]) / "xenium_excerpt"
    affine = np.loadtxt(source / "he_imagealignment.csv", delimiter=",")
    pixel_um = json.loads((source / "experiment.xenium").read_text())["pixel_size"]
    with Image.open(source / "he_image.ome.tif") as image:
        width_px = image.width
    shifted, mirror = affine.copy(), np.array([[-1, 0, width_px], [0, 1, 0], [0, 0, 1]])
    shifted[0, 2] += SHIFT_UM / pixel_um
    result = {}
    for name, changed in (("as_delivered", None), ("shifted", shifted), ("mirrored", affine @ mirror)):
        folder = options.workdir / name
        shutil.copytree(source, folder)
        if changed is not None:
            np.savetxt(folder / "he_imagealignment.csv", changed, delimiter=",")
        result[name] = registration(folder, options.workdir / f"{name}_corpus")
    options.json.write_text(json.dumps(result, indent=1))


def registration(folder: Path, corpus: Path) -> dict[str, float | bool]:
    subprocess.run([TARIO, "ingest", "--source=xenium", f"--path={folder}", "--patient=P1", "--cohort=BRCA",
                    f"--out={corpus}"], check=True)  # fmt: skip
    said = corpus.with_suffix(".json")
    status = subprocess.run([TARIO, "check", corpus, f"--json={said}"], check=False).returncode
    (found,) = json.loads(said.read_text())["registration"].values()
    return {
        "exit_status": status,
        "shift_um": math.hypot(*found["shift_um"]) if found["verdict"] == "registered" else math.inf,
        "is_reported_as_shifted": found["verdict"] == "shifted",
        "is_reported_as_mirrored": found["verdict"] == "mirrored",
    }


if __name__ == "__main__":
    main()

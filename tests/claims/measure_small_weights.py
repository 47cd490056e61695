"""What smaller weights of a bundle cost in r: `measure_small_weights.py WORKDIR OUT.json`; WORKDIR holds run/.

The quickstart, exported with float32, bfloat16 and int8 weights. Each bundle predicts the held-out sections; r in
counts over the 100 genes of highest Moran's I in training sections, mean over sections and genes, less that of float32.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.bins import grid_counts
from tario_jax.evaluate.decoding.measure import genes_by_moran
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.export.loader import Bundle
from tario_jax.predict.predictor import load
from tario_jax.serve.cover import blended, cover_image

KINDS, GENES = ("float32", "bfloat16", "int8"), 100


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    run = workdir / "run"
    predictor, corpus = load(run), Corpus.open(run / "corpus")
    genes = genes_by_moran(predictor, corpus, [corpus.section(name) for name in predictor.provenance.train], GENES)
    sections = [corpus.section(name) for name in predictor.provenance.held_out]
    bin_um, result, lines = predictor.provenance.bin_um, {}, []
    for kind in KINDS:
        folder = workdir / kind
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "tario_jax.cli", "export", run, f"--out={folder}", f"--weights={kind}"],
                       check=True)  # fmt: skip
        bundle, r_SxG = Bundle(folder), []
        for section in sections:
            windows, placed = cover_image(section.he(), section.he_um_per_px, bin_um, bundle.signature["window"], 0.5)
            rates = np.concatenate([bundle.predict(*(part[at : at + 1] for part in windows))
                                    for at in range(len(windows.he_WxYxXx3))])  # fmt: skip
            side = int(section.width_um / bin_um + 1e-6)
            counts = grid_counts(section.all_detections(), len(corpus.panel), side, side, bin_um)
            r_SxG.append(pearson_by_gene(counts[:, genes], blended(placed, rates)[:, genes]))
        size = sum(path.stat().st_size for path in folder.glob("params*.safetensors"))
        result[kind] = {"r": float(np.nanmean(mean_defined(np.stack(r_SxG)))), "bytes": size}
        lost = result["float32"]["r"] - result[kind]["r"]
        result[kind]["lost"] = lost
        lines.append(f"{kind:<10}{size / 1e6:>8.2f} MB   r {result[kind]['r']:.4f}   lost {lost:+.5f}")
    result["table"] = "\n".join(lines)
    print(result["table"])
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

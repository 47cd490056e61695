"""HER2ST with two seeds, from pixels and with stored features: `measure_her2st.py WORKDIR OUT.json`.

One patient, C2 to C4 to C5. The seeds run side by side, each on half of the cores. What is claimed must hold of both;
`null` is what they differ by. Needs TARIO_REAL_DATA; runs of a former start in WORKDIR go on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tario_jax.config_files import load_config
from tario_jax.evaluate.main_job import make_corpus

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/her2st.py"
SEEDS = (0, 1)
FROM = {"pixels": (), "stored": ("--config.data.frozen_encoder=efficientnet-lite0",)}


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    corpus = make_corpus(load_config(str(CONFIG)).source, workdir / "corpus").root
    run("encode", f"--corpus={corpus}", "--encoder=efficientnet-lite0")
    found = {}
    for name, flags in FROM.items():
        folders = [workdir / f"{name}_seed{seed}" for seed in SEEDS]
        side_by_side([("train", f"--config={CONFIG}", f"--corpus={corpus}", f"--workdir={folder}", *flags,
                       f"--config.data.seed={seed}", f"--config.train.seed={seed}")
                      for seed, folder in zip(SEEDS, folders, strict=True)])  # fmt: skip
        side_by_side([("evaluate", f"--workdir={folder}", f"--corpus={corpus}") for folder in folders])
        reports = [json.loads((folder / "report.json").read_text()) for folder in folders]
        found[name] = summary([figures(report) for report in reports])
    result = found | {"table": table(found)}
    print(result["table"])
    out.write_text(json.dumps(result))


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "tario_jax.cli", *words], check=True)


def side_by_side(commands: list[tuple[str, ...]]) -> None:
    """Each on its share of the cores. Ends with status 1 where one fails, once all have ended."""
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for number, words in enumerate(commands):
        own = set(cores[number :: len(commands)]) or set(cores)
        started.append(subprocess.Popen([sys.executable, "-m", "tario_jax.cli", *words],
                                        preexec_fn=lambda own=own: os.sched_setaffinity(0, own)))  # fmt: skip
    failed = [words for words, process in zip(commands, started, strict=True) if process.wait()]
    if failed:
        sys.exit(f"failed: {failed}")


def figures(report: dict[str, Any]) -> dict[str, float]:
    moran, mean = report["sets"]["top_moran_c"], report["sets"]["top_mean"]
    composition = {name: of["composition"]["mean_r"] for name, of in moran["methods"].items() if "composition" in of}
    ridge = max(composition["ridge"], composition["ridge_direct"])  # whichever is stronger
    return {
        "composition_r": composition["model"], "ridge_composition_r": ridge,
        "composition_less_ridge": composition["model"] - ridge,
        "composition_above_density_low": moran["differences"]["model_minus_nuclear_density"]["composition"]["low"],
        "counts_excess": moran["differences"]["model_minus_own_density"]["counts"]["mean_r"],
        "counts_excess_low": moran["differences"]["model_minus_own_density"]["counts"]["low"],
        "counts_excess_300": mean["differences"]["model_minus_own_density"]["counts"]["mean_r"],
    }  # fmt: skip


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    return {"seeds": found, "least": {name: min(one[name] for one in found) for name in found[0]},
            "null": {name: abs(found[1][name] - found[0][name]) for name in found[0]}}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """In r, over the 50 genes of highest Moran-c; counts_excess_300: over the 300 genes of highest mean."""
    heads = [f"{name} {seed}" for name in found for seed in SEEDS]
    lines = [f"{'C2 to C4 -> C5; seed':<32}" + "".join(f"{head:>11}" for head in heads)]
    for name in found["pixels"]["null"]:
        values = [of_seed[name] for of in found.values() for of_seed in of["seeds"]]
        lines.append(f"{name.replace('_', ' '):<32}" + "".join(f"{value:>11.3f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

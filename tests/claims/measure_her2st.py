"""HER2ST, C2 to C4 → C5, with two seeds, from scratch and with stored features: `measure_her2st.py WORKDIR OUT.json`.

What is claimed must hold of both seeds: `least`; `null` is what they differ by. All runs read one corpus. Runs of a
former start in WORKDIR go on.
"""

import json
import sys
from pathlib import Path
from typing import Any

from measure_two_seeds import SEEDS, summary, tario

CONFIG, ENCODER = "configs/her2st.py", "efficientnet-lite0"
WAYS = {"scratch": (), "frozen": (f"--config.data.frozen_encoder={ENCODER}",)}


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    corpus = workdir / "corpus"
    tario("ingest", f"--config={CONFIG}", f"--workdir={workdir}")
    tario("encode", f"--corpus={corpus}", f"--encoder={ENCODER}")
    found = {way: [of_seed(workdir / f"{way}_seed{seed}", corpus, seed, more) for seed in SEEDS]
             for way, more in WAYS.items()}  # fmt: skip
    result: dict[str, Any] = {way: summary(of) for way, of in found.items()} | {"table": table(found)}
    print(result["table"])
    out.write_text(json.dumps(result))


def of_seed(run: Path, corpus: Path, seed: int, more: tuple[str, ...]) -> dict[str, float]:
    tario("train", f"--config={CONFIG}", f"--workdir={run}", f"--corpus={corpus}",
          f"--config.data.seed={seed}", f"--config.train.seed={seed}", *more)  # fmt: skip
    tario("evaluate", f"--workdir={run}", f"--corpus={corpus}")
    return figures(json.loads((run / "report.json").read_text()))


def figures(report: dict[str, Any]) -> dict[str, float]:
    """r is the mean over genes; `low` is the low end of a paired 95 % block interval."""
    moran, mean = report["sets"]["top_moran_c"], report["sets"]["top_mean"]
    r = {name: of["composition"]["mean_r"] for name, of in moran["methods"].items() if "composition" in of}
    above, own = moran["differences"]["model_minus_nuclear_density"], "model_minus_own_density"
    return {
        "composition_r": r["model"],
        "ridge_composition_r": r["ridge_direct"],
        "composition_above_ridge": r["model"] - r["ridge_direct"],
        "composition_above_density": above["composition"]["mean_r"],
        "composition_above_density_low": above["composition"]["low"],
        "counts_r": moran["methods"]["model"]["counts"]["mean_r"],
        "counts_above_own_density": moran["differences"][own]["counts"]["mean_r"],
        "counts_above_own_density_low": moran["differences"][own]["counts"]["low"],
        "counts_above_own_density_300": mean["differences"][own]["counts"]["mean_r"],
    }


def table(found: dict[str, list[dict[str, float]]]) -> str:
    lines = ["HER2ST, one patient, C2 to C4 → C5, 50 genes of highest Moran-c (300: of highest mean)", ""]
    for way, of in found.items():
        title = "from scratch" if way == "scratch" else f"with stored features ({ENCODER})"
        lines.append(f"{title:<46}" + "".join(f"{f'seed {seed}':>10}" for seed in SEEDS) + f"{'differ by':>12}")
        for name in of[0]:
            values = [one[name] for one in of]
            lines.append(f"  {name.replace('_', ' '):<44}" + "".join(f"{value:>10.3f}" for value in values)
                         + f"{abs(values[1] - values[0]):>12.3f}")  # fmt: skip
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()

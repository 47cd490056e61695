"""Each part of the model removed in turn, at equal compute: `measure_ablation.py FOLDER OUT.json`.

FOLDER: workdir of `python -m launch configs/sweeps/ablation.py`, all of whose runs are evaluated. What a part gives is
the mean of two seeds with it less that without it, beside what the two seeds of a run differ by at most. The null genes
stand beside what evaluation calls chance: three standard errors over genes, or a trace.
"""

import json
import sys
from pathlib import Path

import numpy as np
from measure_two_seeds import figures

from launch.sweep_file import read_sweep
from tario_jax.evaluate.null_class import FOUND_R, FOUND_SE

SWEEP = Path(__file__).resolve().parents[2] / "configs/sweeps/ablation.py"
SHOWN = {"counts_r": "r counts", "counts_share": "share of V", "composition_r": "r composition",
         "composition_share": "share of V", "bulk_r": "r bulk"}  # fmt: skip


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    by_part: dict[str, list[dict[str, float]]] = {}
    nothing: dict[str, float] = {}  # of each run, r of the null genes beyond a bin's total, over what is chance
    for name in read_sweep(str(SWEEP)).configs:
        part, _, _ = name.rpartition("_seed")
        report = json.loads((folder / name / "report.json").read_text())
        by_part.setdefault(part, []).append(figures(report))
        of_null = report["null_class"]
        nothing[name] = of_null["beyond_total"] / max(FOUND_SE * of_null["se"], FOUND_R)
    means = {part: {name: float(np.mean([of[name] for of in found])) for name in SHOWN}
             for part, found in by_part.items()}  # fmt: skip
    null = {name: max(abs(found[0][name] - found[1][name]) for found in by_part.values()) for name in SHOWN}
    gives = {part.removeprefix("without_"): {name: means["whole"][name] - of[name] for name in SHOWN}
             for part, of in means.items() if part != "whole"}  # fmt: skip
    lines = [f"{'':<20}" + "".join(f"{label:>15}" for label in SHOWN.values())]
    lines.append(f"{'whole':<20}" + "".join(f"{means['whole'][name]:>15.4f}" for name in SHOWN))
    lines += [f"{'  ' + part + ' gives':<20}" + "".join(f"{of[name]:>+15.4f}" for name in SHOWN)
              for part, of in gives.items()]  # fmt: skip
    lines.append(f"{'seeds differ by':<20}" + "".join(f"{null[name]:>15.4f}" for name in SHOWN))
    over_chance = max(nothing.values())
    lines.append(f"null genes: r beyond a bin's total is at most {over_chance:.2f} of chance, over {len(nothing)} runs")
    parts_that_count = sum(any(of[name] > null[name] for name in SHOWN) for of in gives.values())
    table = "\n".join(lines)
    print(table)
    result = {"means": means, "gives": gives, "null": null, "table": table, "parts_that_count": parts_that_count}
    out.write_text(json.dumps(result | {"null_over_chance": over_chance}))


if __name__ == "__main__":
    main()

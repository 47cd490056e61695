"""Each part of the model removed in turn, at equal compute: `measure_ablation.py FOLDER OUT.json`.

FOLDER: workdir of `python -m launch configs/sweeps/ablation.py`, all of whose runs are evaluated. What a part gives is
the mean of two seeds with it less that without it. Its null: two standard deviations of seeds, which is what two such
means differ by once in twenty; the deviation is pooled over all configurations. The null genes stand beside shuffled
bins, in standard deviations of those, whatever the sign.
"""

import json
import sys
from pathlib import Path

import numpy as np
from measure_two_seeds import figures

from launch.sweep_file import read_sweep

SWEEP = Path(__file__).resolve().parents[2] / "configs/sweeps/ablation.py"
SHOWN = {"counts_r": "r counts", "counts_share": "share of V", "composition_r": "r composition",
         "composition_share": "share of V", "bulk_r": "r bulk"}  # fmt: skip


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    by_part: dict[str, list[dict[str, float]]] = {}
    shuffled_off = []  # of each run, null genes' r beyond a bin's total less that of shuffled bins, in deviations
    for name in read_sweep(str(SWEEP)).configs:
        part, _, _ = name.rpartition("_seed")
        report = json.loads((folder / name / "report.json").read_text())
        by_part.setdefault(part, []).append(figures(report))
        nothing = report["null_class"]
        shuffled_off.append((nothing["beyond_total"] - nothing["shuffled_mean"]) / nothing["shuffled_sd"])
    means = {part: {name: float(np.mean([of[name] for of in found])) for name in SHOWN}
             for part, found in by_part.items()}  # fmt: skip
    variances = {name: [np.var([of[name] for of in found], ddof=1) for found in by_part.values()] for name in SHOWN}
    null = {name: 2 * float(np.sqrt(np.mean(of_parts))) for name, of_parts in variances.items()}
    gives = {part.removeprefix("without_"): {name: means["whole"][name] - of[name] for name in SHOWN}
             for part, of in means.items() if part != "whole"}  # fmt: skip
    lines = [f"{'':<20}" + "".join(f"{label:>15}" for label in SHOWN.values())]
    lines.append(f"{'whole':<20}" + "".join(f"{means['whole'][name]:>15.4f}" for name in SHOWN))
    lines += [f"{'  ' + part + ' gives':<20}" + "".join(f"{of[name]:>+15.4f}" for name in SHOWN)
              for part, of in gives.items()]  # fmt: skip
    lines.append(f"{'null, two seeds':<20}" + "".join(f"{null[name]:>15.4f}" for name in SHOWN))
    most_off = max(map(abs, shuffled_off))
    lines.append(f"null genes: r beyond a bin's total is at most {most_off:.2f} deviations of shuffled bins away from "
                 f"theirs, over {len(shuffled_off)} runs ({sum(off > 0 for off in shuffled_off)} above)")  # fmt: skip
    table = "\n".join(lines)
    print(table)
    result = {"means": means, "gives": gives, "null": null, "table": table, "null_off": most_off,
              "parts_that_count": sum(of["counts_r"] > null["counts_r"] for of in gives.values())}  # fmt: skip
    out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

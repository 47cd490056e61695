"""What learning from H&E alone first is worth: `measure_he_alone.py WORKDIR OUT.json`.

H&E encoder and decoder learn from the images of all training patients of the quickstart (`train.learns=he`); then
counts of a few of them, and of all, are learnt from there and from a seed, at equal steps, with two seeds each.
Held-out patients are seen by neither. Runs of a former start in WORKDIR go on.
"""

import json
import sys
from pathlib import Path

from measure_two_seeds import figures, tario

CONFIG = "configs/quickstart.py"
STEPS = {16: 160, 93: 320}  # of counts, by patients: so few are soon known by heart
SEEDS = (0, 1)
SHOWN = {"counts_r": "r counts", "counts_share": "share of V", "composition_r": "r composition", "bulk_r": "r bulk"}


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    he = workdir / "he"
    tario("train", f"--config={CONFIG}", f"--workdir={he}", "--config.train.learns=he")
    found: dict[tuple[int, str], list[dict[str, float]]] = {}
    for patients, steps in STEPS.items():
        for begins, checkpoint in (("seed", ""), ("he", he)):
            for seed in SEEDS:
                run = workdir / f"{begins}{patients}_{seed}"
                tario("train", f"--config={CONFIG}", f"--workdir={run}", f"--corpus={he / 'corpus'}",
                      f"--config.split.train_patients={patients}", f"--config.train.steps={steps}",
                      f"--config.data.seed={seed}", f"--config.train.seed={seed}",
                      f"--config.start.checkpoint={checkpoint}")  # fmt: skip
                tario("evaluate", f"--workdir={run}", f"--corpus={he / 'corpus'}", f"--shared={workdir / 'kept'}")
                report = json.loads((run / "report.json").read_text())
                found.setdefault((patients, begins), []).append(figures(report))
    lines = [f"{'patients, begins with':<24}" + "".join(f"{label:>16}" for label in SHOWN.values())]
    for (patients, begins), both in found.items():
        name = f"{patients}, " + ("a seed" if begins == "seed" else "H&E alone")
        lines.append(f"{name:<24}" + "".join(f"{both[0][of]:>9.4f}{both[1][of]:>7.4f}" for of in SHOWN))
    gain = {str(patients): {of: min(ours[of] - theirs[of] for ours, theirs in
                                    zip(found[patients, "he"], found[patients, "seed"], strict=True)) for of in SHOWN}
            for patients in STEPS}  # fmt: skip
    lines += [f"{f'{patients}: least gain of two':<24}" + "".join(f"{of[name]:>+16.4f}" for name in SHOWN)
              for patients, of in gain.items()]  # fmt: skip
    table = "\n".join(lines)
    print(table)
    out.write_text(json.dumps({"gain": gain, "table": table}))


if __name__ == "__main__":
    main()

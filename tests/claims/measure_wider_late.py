"""What wide windows give when they come late: `measure_wider_late.py STUDY WORKDIR OUT.json`.

Each of two seeds of the study (configs/sweeps/study.py, 256 patients, 320 steps of 8 windows of 288 µm) goes on for 80
steps, once with windows of 288 µm, once with 2 of 576 µm: as many tokens a step. Both are read in windows that do not
overlap, so a place is in one window and its surroundings end where that ends; those of 288 µm also in the default, each
a mean over up to four windows, for which 2.25 times as many tokens are read. Sections are 576 µm wide. Runs of a former
start in WORKDIR go on.
"""

import json
import sys
from pathlib import Path

from measure_two_seeds import tario

SEEDS = (0, 1)
STEPS = 80
READ = {"apart": (288, 8, 0.0), "by_half": (288, 8, 0.5), "wide": (576, 2, 0.0)}  # µm, rows a step, overlap
NAMES = {"apart": "288 µm, apart", "by_half": "288 µm, overlapping by half", "wide": "576 µm"}
SHOWN = {"top": "top 1,000", "diffusing": "diffusing"}


def main() -> None:
    study, workdir, out = map(Path, sys.argv[1:4])
    corpus, kept = study / "corpus", workdir / "kept"
    r: dict[str, list[dict[str, float]]] = {name: [] for name in READ}
    for seed in SEEDS:
        start = study / f"p256_m_w288_seed{seed}"
        for name, (window_um, rows, overlap) in READ.items():
            run = workdir / f"w{window_um}_seed{seed}"
            tario("train", f"--config=configs/sweeps/study.py:{start.name}", f"--corpus={corpus}", f"--workdir={run}",
                  f"--config.start.checkpoint={start}", f"--config.data.window_um={window_um}.0",
                  f"--config.data.rows={rows}", f"--config.data.seed={seed + 10}", f"--config.train.steps={STEPS}",
                  f"--config.train.validate_every={STEPS}", f"--config.train.checkpoint_every={STEPS}",
                  "--config.optim.learning_rate=1e-3", "--config.optim.warmup_steps=10")  # fmt: skip
            read = run / f"overlap_{overlap}"
            tario("evaluate", f"--workdir={run}", f"--corpus={corpus}", f"--config.evaluate.overlap={overlap}",
                  f"--out={read}", f"--shared={kept}")  # fmt: skip
            r[name].append(figures(json.loads((read / "report.json").read_text())))
    gain = {of: {name: [wide[of] - narrow[of] for wide, narrow in zip(r["wide"], r[name], strict=True)]
                 for name in READ if name != "wide"} for of in SHOWN}  # fmt: skip
    null = {of: max(abs(first[of] - second[of]) for first, second in r.values()) for of in SHOWN}
    lines = [f"{'mean r in counts, two seeds, windows of':<40}" + "".join(f"{title:>18}" for title in SHOWN.values())]
    lines += [f"{NAMES[name]:<40}" + "".join(f"{first[of]:>11.4f}{second[of]:>7.4f}" for of in SHOWN)
              for name, (first, second) in r.items()]  # fmt: skip
    lines += [f"{f'576 µm less {NAMES[name]}':<40}"
              + "".join("{:>+11.4f}{:>+7.4f}".format(*gain[of][name]) for of in SHOWN)
              for name in gain["top"]]  # fmt: skip
    lines += [f"{'seeds of one kind differ by at most':<40}" + "".join(f"{null[of]:>18.4f}" for of in SHOWN)]
    table = "\n".join(lines)
    print(table)
    told = {of: {name: {"least": min(both), "mean": sum(both) / 2} for name, both in by_name.items()}
            for of, by_name in gain.items()}  # fmt: skip
    out.write_text(json.dumps({"gain": told, "null": null, "table": table}))


def figures(report: dict) -> dict[str, float]:
    return dict(zip(SHOWN, (report["sets"]["top_moran"]["methods"]["model"]["counts"]["mean_r"],
                            report["classes"]["diffusing"]["counts"]["model"]["mean_r"]), strict=True))  # fmt: skip


if __name__ == "__main__":
    main()

"""Bins of 18 µm written after those of 36 µm: `measure_scales.py WORKDIR OUT.json`.

The quickstart at 18 µm, once as it is and once with bins of 36 µm in front of a share of its windows, as many steps,
two seeds each. Held-out sections are predicted from the H&E at once, and drawn in 4 and 16 steps: in random order by
both, and scale by scale by the second, which is also told the true sums of each 36 µm. Runs of a former start in
WORKDIR go on.
"""

import json
import sys
from pathlib import Path

from measure_two_seeds import tario

SEEDS = (0, 1)
KINDS = {"plain": [], "scales": ["--config.data.coarse_um=(36.0,)", "--config.data.coarse_share=0.4"]}
STEPS = (4, 16)
SAMPLES, SECTIONS = 4, 8
ONE_SHOT = "one-shot"
SHOWN = {
    "counts_r": "r counts, at once",
    "composition_r": "r composition, at once",
    "given_over_one_shot": "r counts, told 36 µm: less at once",
    "given_over_shares": "r counts, told 36 µm: less even shares",
    **{f"{name}_{order}_{steps}": f"{title}, {steps} steps, {order}" for steps in (1, *STEPS)
       for order in ("random", "resolutions") if (steps, order) != (1, "random")
       for name, title in (("moran", "Moran's I drawn, of measured"), ("crps", "CRPS, of one-shot's"),
                           ("r_of_mean", "r of the mean of samples, less at once"))},
}  # fmt: skip


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    corpus = workdir / "plain_0" / "corpus"
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for seed in SEEDS:
        for kind, words in KINDS.items():
            run = workdir / f"{kind}_{seed}"
            begun = [] if run == corpus.parent else [f"--corpus={corpus}"]  # the first simulates it
            tario("train", "--config=configs/quickstart.py", f"--workdir={run}", *begun, "--config.data.bin_um=18.0",
                  f"--config.data.seed={seed}", f"--config.train.seed={seed}", *words)  # fmt: skip
            ways = ["--order=random"] if kind == "plain" else ["--order=random,resolutions", "--given=coarse"]
            tario("decode", f"--workdir={run}", f"--corpus={corpus}", f"--out={run / 'decoding'}", "--genes=100",
                  f"--steps=1,{','.join(map(str, STEPS))}", f"--samples={SAMPLES}", f"--sections={SECTIONS}", *ways,
                  f"--json={run / 'decoding.json'}")  # fmt: skip
            found[kind].append(figures(json.loads((run / "decoding.json").read_text())))
    lines = [f"{'100 genes, bins of 18 µm; two seeds each':<60}{'as it is':>18}{'36 µm first':>18}"]
    lines += [f"{title:<60}" + "".join(_both(found[kind], name) for kind in KINDS) for name, title in SHOWN.items()]
    table = "\n".join(lines)
    print(table)
    told = {kind: {name: {"least": min(of[name] for of in both), "most": max(of[name] for of in both)}
                   for name in both[0]} for kind, both in found.items()}  # fmt: skip
    paid = {form: min(ours[form] - theirs[form] for ours, theirs in zip(found["scales"], found["plain"], strict=True))
            for form in ("counts_r", "composition_r")}  # fmt: skip
    out.write_text(json.dumps(told | {"gain": paid, "table": table}))


def figures(report: dict) -> dict[str, float]:
    one_shot = report["ways"][ONE_SHOT]
    found = {form: one_shot[form] for form in ("counts_r", "composition_r")}
    for way, of in report["ways"].items():
        if way == ONE_SHOT:
            continue
        steps, order = way.replace(" steps", "").split(", ")
        found[f"moran_{order}_{steps}"] = of["moran_drawn"] / report["moran_measured"]
        found[f"crps_{order}_{steps}"] = of["crps"] / one_shot["crps"]
        found[f"r_of_mean_{order}_{steps}"] = of["counts_r_of_mean"] - one_shot["counts_r"]
    for given in report["given"].values():
        found["given_over_one_shot"] = given["model"]["gain over one-shot"]["counts_r"]["mean"]
        found["given_over_shares"] = given["model"]["gain over neighbours"]["counts_r"]["mean"]
    return found


def _both(both: list[dict[str, float]], name: str) -> str:
    return "".join(f"{of[name]:>9.4f}" if name in of else f"{'':>9}" for of in both)


if __name__ == "__main__":
    main()

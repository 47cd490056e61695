"""A config's run with two seeds, on one corpus, beside ridge: `measure_two_seeds.py CONFIG WORKDIR OUT.json [decode]`.

What is claimed must hold of both; `null` is what they differ by. With `decode`, each is asked for every other bin given
the others, and for samples in 16 steps (`tario decode`). Runs of a former start in WORKDIR go on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SEEDS = (0, 1)
STEPS, SAMPLES = 16, 16


def main() -> None:
    config, workdir, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    folders = [workdir / f"seed{seed}" for seed in SEEDS]
    tario("run", f"--config={config}", f"--workdir={folders[0]}")
    for seed, folder in zip(SEEDS[1:], folders[1:], strict=True):
        tario("train", f"--config={config}", f"--workdir={folder}", f"--corpus={folders[0] / 'corpus'}",
              f"--config.data.seed={seed}", f"--config.train.seed={seed}")  # fmt: skip
        tario("evaluate", f"--workdir={folder}", f"--corpus={folders[0] / 'corpus'}",
              f"--shared={folders[0] / 'kept'}")  # fmt: skip
    found = [figures(json.loads((folder / "report.json").read_text())) for folder in folders]
    if sys.argv[4:] == ["decode"]:
        for folder, of_seed in zip(folders, found, strict=True):
            tario("decode", f"--workdir={folder}", f"--corpus={folders[0] / 'corpus'}", f"--out={folder / 'decoding'}",
                  f"--steps=1,{STEPS}", f"--samples={SAMPLES}", "--given=checkerboard,half",
                  f"--json={folder / 'decoding.json'}")  # fmt: skip
            of_seed |= decoded(json.loads((folder / "decoding.json").read_text()))
    result = summary(found) | {"table": table(found)}
    print(result["table"])
    out.write_text(json.dumps(result))


def tario(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "tario_jax.cli", *words], check=True)


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Of two seeds: each figure's lesser, greater, and what they differ by."""
    return {
        "seeds": found,
        "least": {name: min(one[name] for one in found) for name in found[0]},
        "most": {name: max(one[name] for one in found) for name in found[0]},
        "null": {name: abs(found[1][name] - found[0][name]) for name in found[0]},
    }


def figures(report: dict[str, Any]) -> dict[str, float]:
    methods = report["sets"]["top_moran"]["methods"]
    r = {form: {name: of[form]["mean_r"] for name, of in methods.items() if form in of} for form in
         ("counts", "composition")}  # fmt: skip
    ridge = {form: max(r[form]["ridge"], r[form]["ridge_direct"]) for form in r}  # whichever is stronger
    found = {f"{form}_r": r[form]["model"] for form in r} | {f"ridge_{form}_r": ridge[form] for form in r}
    found |= {f"{form}_above_ridge": r[form]["model"] - ridge[form] for form in r}
    found |= {f"{form}_share": r[form]["model"] / r[form]["reachable"] for form in r}
    found |= {"counts_above_own_density": r["counts"]["model"] - r["counts"]["own_density"],
              "composition_of_rates_r": r["composition"]["model_rates"]}  # fmt: skip
    bulk, ridge_bulk = report["headline"]["bulk_r"], report["headline"]["ridge_bulk_r"]
    return found | {"bulk_r": bulk, "ridge_bulk_r": ridge_bulk, "bulk_above_ridge": bulk - ridge_bulk}


def decoded(report: dict[str, Any]) -> dict[str, float]:
    """Of `tario decode`: contents that are true, and samples."""
    given, hidden = report["given"]["checkerboard"], report["given"]["checkerboard"]["classes"]["hidden_state"]
    one_shot, (steps,) = report["ways"]["one-shot"], (of for way, of in report["ways"].items() if way != "one-shot")
    levels = (0.5, 0.8, 0.95)
    return {
        "given_gain": given["model"]["gain over one-shot"]["counts_r"]["mean"],
        "given_gain_over_neighbours_low": given["model"]["gain over neighbours"]["counts_r"]["low"],
        "hidden_gain_low": hidden["gain"]["counts_r"]["low"],
        "hidden_gain_over_neighbours_low": hidden["gain over neighbours"]["counts_r"]["low"],
        "steps_r_less_one_shot": steps["counts_r"] - one_shot["counts_r"],
        "steps_r_of_mean_less_one_shot": steps["counts_r_of_mean"] - one_shot["counts_r"],
        "steps_crps_over_one_shot": steps["crps"] / one_shot["crps"],
        "steps_crps_over_poisson_one_shot": steps["crps"] / one_shot["crps_poisson"],
        "steps_crps_of_draws_over_one_shot_draws": steps["crps_drawn"] / one_shot["crps_drawn"],
        "steps_coverage_off": max(abs(steps[f"covered_{round(100 * level)}"] - level) for level in levels),
        "one_shot_coverage_off": max(abs(one_shot[f"covered_{round(100 * level)}"] - level) for level in levels),
        "moran_of_draws_over_measured": steps["moran_drawn"] / report["moran_measured"],
        "moran_of_one_shot_rates_over_measured": one_shot["moran"] / report["moran_measured"],
        "moran_of_one_shot_draws_over_measured": one_shot["moran_drawn"] / report["moran_measured"],
    }  # fmt: skip


def table(found: list[dict[str, float]]) -> str:
    lines = [f"{'':<40}" + "".join(f"{f'seed {seed}':>10}" for seed in SEEDS) + f"{'differ by':>12}"]
    for name in found[0]:
        values = [one[name] for one in found]
        lines.append(f"{name.replace('_', ' '):<40}" + "".join(f"{value:>10.4f}" for value in values)
                     + f"{abs(values[1] - values[0]):>12.4f}")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()

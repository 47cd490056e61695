"""What a study of configs/sweeps/study.py found, statement by statement.

    measure_study.py FOLDER OUT.json [DOCS] [--parts=patients,sizes,resolution]

Each statement is one that was published of TARIO-2, asked of the runs in FOLDER, with its null and its interval. A
statement that does not hold is told like one that does. DOCS: a folder for the figures of docs/scaling_study.md. Parts
can be measured one by one, by what `--only` of the launch made: see PARTS.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import scipy.stats

from tario_jax.evaluate.bulk import MIN_PATIENTS, log_cpm
from tario_jax.evaluate.metrics import mean_defined, pearson_by_gene
from tario_jax.evaluate.score_file import ScoreTable, read_scores

MAIN = ("p256_m_w288_seed0", "p256_m_w288_seed1")  # the most patients, at the sizes that the other axes start from
WIDER = tuple(name.replace("w288", "w576") for name in MAIN)  # the same in windows of twice the side
PARTS = {"patients": "p*_m_w288_*", "sizes": "p256_*_w*", "resolution": "p256_m_mixed_*"}  # runs that each takes
SAMPLES = 500
CLASS_ORDER = ("mutation", "diffusing", "hidden_state", "visible_state", "type_marker", "housekeeping", "patient_level",
               "sex", "low", "null")  # fmt: skip


def gained(study: dict, axis: str) -> list[dict]:
    """Comparisons of an axis' first and last point."""
    return [one for one in study["comparisons"] if one["axis"].startswith(axis)]


def only(comparisons: list[dict]) -> dict:
    if len(comparisons) != 1:
        raise SystemExit(f"the study holds {len(comparisons)} comparisons where one was expected; is every run there?")
    return comparisons[0]


def widest(comparisons: list[dict]) -> dict:
    """Of several sweeps along one axis that of most ground."""
    if not comparisons:
        raise SystemExit("the study holds no comparison along an axis; is every run there?")
    return max(comparisons, key=lambda one: one["after"]["size"] / one["before"]["size"])


def better(comparison: dict, form: str = "counts") -> dict:
    found, difference = comparison["forms"][form]["better"], comparison["forms"][form]["difference"]
    null = [one for side in (found["null"] or {}).values() for one in side or ()]  # none: the same checkpoints twice
    return {"n": found["n"], "genes": found["genes"], "fraction": found["fraction"], "low": found["low"],
            "high": found["high"], "null": float(np.max(null)) if null else 0.5, "seeds": bool(null),
            "before": comparison["before"]["size"], "after": comparison["after"]["size"], "mean": difference["mean"],
            "mean_low": difference["low"], "mean_high": difference["high"]}  # fmt: skip


def told(what: str, one: dict) -> str:
    null = f"two seeds at most {100 * one['null']:.0f} %" if one["seeds"] else "the same checkpoints: chance is 50 %"
    return (f"{what}: better on {one['n']:,} of {one['genes']:,} genes, {100 * one['fraction']:.0f} % (patients "
            f"{100 * one['low']:.0f} to {100 * one['high']:.0f} %; {null}); mean r {one['mean']:+.4f} "
            f"({one['mean_low']:+.4f} to {one['mean_high']:+.4f})")  # fmt: skip


def beside_spatial(scores: ScoreTable) -> dict:
    """Bulk r (log-CPM, across the patients of a cohort of ten or more) and spatial r of the same 1,000 genes, and their
    difference with its interval over patients, all of a patient's sections along."""
    top, cohort_P = scores.order[:1000], np.array(scores.bulk_cohorts)
    x_PxG, p_PxG = (log_cpm(values[:, top], total) for values, total in (
        (scores.bulk_measured_PxG, scores.bulk_measured_total_P),
        (scores.bulk_predicted_PxG, scores.bulk_predicted_total_P)))  # fmt: skip
    cohorts = [rows for name in dict.fromkeys(scores.bulk_cohorts)
               if len(rows := np.flatnonzero(cohort_P == name)) >= MIN_PATIENTS]  # fmt: skip
    r_SxG, patient_S = scores.r["model", "counts"][:, top], np.array(scores.patients)

    def both(drawn: list[np.ndarray]) -> tuple[float, float]:
        bulk = [float(mean_defined(pearson_by_gene(x_PxG[rows], p_PxG[rows]))) for rows in drawn]
        sections = np.concatenate(
            [np.flatnonzero(patient_S == scores.bulk_patients[p]) for rows in drawn for p in rows]
        )
        return float(np.mean(bulk)), float(mean_defined(mean_defined(r_SxG[sections])))

    rng = np.random.default_rng(0)
    bulk, spatial = both(cohorts)
    samples = [both([rng.choice(rows, len(rows)) for rows in cohorts]) for _ in range(SAMPLES)]
    low, high = np.percentile([a - b for a, b in samples], (2.5, 97.5))
    return {"bulk_r": bulk, "spatial_r": spatial, "difference": bulk - spatial, "low": low, "high": high}


def by_rank(scores: ScoreTable) -> dict:
    """Mean r over genes by their place in the ranking, and Spearman's correlation of r with the rank."""
    order, r_G = scores.order, mean_defined(scores.r["model", "counts"])
    parts = {f"{first + 1:,} to {last:,}": float(mean_defined(r_G[order[first:last]]))
             for first, last in ((0, 100), (100, 1000), (1000, 4000), (4000, len(order)))}  # fmt: skip
    defined = np.isfinite(r_G[order])
    rank = scipy.stats.spearmanr(np.arange(len(order))[defined], r_G[order][defined]).statistic
    return {"mean_r": parts, "spearman": float(rank)}


def report_of(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "report.json").read_text())


def of_diffusing(folder: Path) -> dict:
    """Mean r in counts of genes that diffuse, in windows of 288 and of 576 µm, as many tokens seen; two seeds each."""
    narrow, wide = ([report_of(folder, name)["classes"]["diffusing"]["counts"]["model"]["mean_r"] for name in names]
                    for names in (MAIN, WIDER))  # fmt: skip
    return {"narrow": narrow, "wide": wide, "gain": float(np.mean(wide) - np.mean(narrow)),
            "null": max(abs(a - b) for a, b in (narrow, wide))}  # fmt: skip


def cost(study: dict, parts: list[str]) -> dict:
    """Minutes by the clocks of the runs of these parts, added up: those of training, and of each evaluation."""
    workdirs = {workdir for workdir in (Path(run["workdir"]) for run in study["runs"])
                if any(workdir.match(PARTS[part]) for part in parts)}  # fmt: skip
    trained = [json.loads((workdir / "done.json").read_text())["seconds"] for workdir in workdirs]
    evaluated = [json.loads(path.read_text())["headline"]["seconds"] for workdir in workdirs
                 for path in (workdir / "report.json", *workdir.glob("read_*/report.json"))]  # fmt: skip
    return {"runs": len(trained), "training_minutes": sum(trained) / 60, "readings": len(evaluated),
            "evaluation_minutes": sum(evaluated) / 60}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("docs", type=Path, nargs="?")
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if unknown := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; expected some of {', '.join(PARTS)}")
    parts, study = options.parts.split(","), json.loads((options.folder / "scaling.json").read_text())
    found, lines = {"cost": cost(study, parts)}, []
    lines.append("{runs} runs trained in {training_minutes:.0f} min, {readings} evaluations in "
                 "{evaluation_minutes:.0f} min, by their own clocks".format(**found["cost"]))  # fmt: skip
    for part in parts:
        of_part, told_of = {"patients": patients, "sizes": sizes, "resolution": resolution}[part](options.folder, study)
        found |= of_part
        lines += ["", *told_of]
    options.out.write_text(json.dumps(found | {"table": "\n".join(lines)}, indent=1))
    print("\n".join(lines))
    if options.docs is not None:
        for name, figure in figures(study, parts).items():
            shutil.copy(options.folder / "figures" / f"{figure}.png", options.docs / f"scaling_study_{name}.png")


def patients(folder: Path, study: dict) -> tuple[dict, list[str]]:
    """What more patients bring, and how well the model of most patients does beside its controls."""
    more = only(gained(study, "patients at equal steps"))
    reports = [report_of(folder, name) for name in MAIN]
    report, scores = reports[0], read_scores(folder / MAIN[0] / "scores.npz")
    tops = [one["sets"]["top_moran"] for one in reports]
    found = {
        "patients": better(more), "patients_composition": better(more, "composition"),
        "bulk": beside_spatial(scores), "bulk_of_all": report["bulk"]["log_cpm"], "ranks": by_rank(scores),
        "nearer": {name: tops[0]["nearer_than_measurement"][name] for name in ("model", "own_density", "neighbours")},
        "nearer_seen": tops[0]["nearer_truth"], "null_class": report["null_class"],
        "null_off": max(abs(one["null_class"]["beyond_total"] - one["null_class"]["shuffled_mean"])
                        / one["null_class"]["shuffled_sd"] for one in reports),
        "shares": (of_seeds := [shares(top) for top in tops]),
        "above": {control: {form: min(one["model"][form] - one[control][form] for one in of_seeds) for form in of_form}
                  for control, of_form in of_seeds[0].items() if control != "model"},
        "classes": report["classes"], "genes": report["genes"]["evaluated"],
        "laws_of_patients": laws(study, "patients"),
    }  # fmt: skip
    null, ranks, seen, bulk = found["null_class"], found["ranks"], found["nearer_seen"], found["bulk"]
    lines = [
        f"{found['genes']:,} genes, {report['sections']['held_out_patients']} held-out patients, bins of 36 µm, r in "
        "counts; top: the 1,000 genes of highest Moran's I in training; of the first seed where two are not named",
        told("more patients, {before:g} to {after:g}".format(**found["patients"]), found["patients"]),
        told("  in composition", found["patients_composition"]),
        f"bulk above spatial, the same genes: bulk {bulk['bulk_r']:.3f} (log-CPM, within cohorts), spatial "
        f"{bulk['spatial_r']:.3f}, difference {bulk['difference']:+.3f} ({bulk['low']:+.3f} to {bulk['high']:+.3f}); "
        f"bulk of all genes {found['bulk_of_all']['model']:.3f}, ridge {found['bulk_of_all']['ridge']:.3f}, total only "
        f"{found['bulk_of_all']['total_only']:.3f}",
        "spatial r falls with Moran rank: " + ", ".join(f"{name} {r:.3f}" for name, r in ranks["mean_r"].items())
        + f"; Spearman {ranks['spearman']:+.2f}",
        "nearer the truth than the measurement, share of the top (r > rho, interval above 0): " + ", ".join(
            f"{name.replace('_', ' ')} {100 * one['share_certain']:.0f} %" for name, one in found["nearer"].items()),
        f"  seen against the true rate, where the counts reach r {seen['measured']['r']:.3f}: " + ", ".join(
            f"{name.replace('_', ' ')} {100 * seen[name]['share_nearer']:.0f} % nearer, r {seen[name]['r']:.3f}"
            for name in ("model", "own_density", "neighbours")),
        f"null class: composition r beyond a bin's total {null['beyond_total']:+.4f} (standard error {null['se']:.4f}; "
        f"bins shuffled {null['shuffled_mean']:+.4f} ± {null['shuffled_sd']:.4f}), of two seeds "
        f"at most {found['null_off']:.2f} of the latter off",
        "",
        "share of the reachable r, top, by seed: " + "; ".join(
            _shares(form, [of_seed["model"][form] for of_seed in found["shares"]])
            for form in found["shares"][0]["model"]),
        "  controls: " + "; ".join(
            f"{name.replace('_', ' ')} " + ", ".join(f"{form} {share:.3f}" for form, share in by_form.items())
            for name, by_form in found["shares"][0].items() if name != "model"),
        "",
        *of_classes(found["classes"]),
        "",
        *of_laws(found["laws_of_patients"]),
    ]  # fmt: skip
    return found, lines


def sizes(folder: Path, study: dict) -> tuple[dict, list[str]]:
    """What larger models and longer context bring, and whether together they bring more."""
    grid = study["grids"][0]["quantities"]["r/counts/top"]
    found = {
        "parameters": better(widest(gained(study, "parameters"))),
        "context": better(widest(gained(study, "context"))), "diffusing": of_diffusing(folder),
        "grid": {name: grid[name] for name in ("interaction", "low", "high", "seed_sd")},
        "laws_of_sizes": laws(study, "parameters") | laws(study, "context"),
    }  # fmt: skip
    lines = [
        told("larger models, xs to l", found["parameters"]),
        told("more context, windows of {before:g} to {after:g} µm".format(**found["context"]), found["context"]),
        "  genes that diffuse, windows of 576 less 288 µm: mean r {gain:+.4f} (two seeds differ by at most {null:.4f})"
        .format(**found["diffusing"]),
        "larger models gain more from longer context: {interaction:+.4f} in mean r of the top (patients {low:+.4f} to "
        "{high:+.4f}; seeds ± {seed_sd:.4f})".format(**found["grid"]),
        "",
        *of_laws(found["laws_of_sizes"]),
    ]  # fmt: skip
    return found, lines


def resolution(folder: Path, study: dict) -> tuple[dict, list[str]]:
    """What reading the same checkpoints at finer bins brings."""
    del folder
    found = {"resolution": better(only(gained(study, "resolution")))}  # sizes are bins per mm
    coarse_um, fine_um = (1000 / found["resolution"][name] for name in ("before", "after"))
    what = f"finer bins, {coarse_um:g} to {fine_um:g} µm, same checkpoint"
    return found, [told(what, found["resolution"])]


def shares(top: dict) -> dict[str, dict[str, float]]:
    """Of the reachable r, by method and form."""
    methods = top["methods"]
    found = {name: {form: methods[name][form]["mean_r"] / methods["reachable"][form]["mean_r"]
                    for form in ("counts", "composition") if form in methods[name]}
             for name in ("own_density", "nuclear_density", "ridge", "ridge_direct")}  # fmt: skip
    return {"model": {form: one["share"] for form, one in top["share_of_reachable"].items()}} | found


def laws(study: dict, axis: str) -> dict[str, dict]:
    return {f"{sweep['name']}, {name}": {"verdict": law["verdict"], "why": law["why"], "text": law["text"]}
            for sweep in study["sweeps"] if sweep["axis"].startswith(axis)
            for name, law in sweep["laws"].items()}  # fmt: skip


def of_laws(found: dict[str, dict]) -> list[str]:
    return ["laws:", *(f"  {name}: {law['verdict']}{': ' + law['text'] if law['text'] else ''}"
                       f"{'; ' + law['why'] if law['why'] else ''}" for name, law in found.items())]  # fmt: skip


def of_classes(classes: dict) -> list[str]:
    lines = [f"{'class':<15}{'genes':>7}  {'counts: model':>14}{'density':>9}{'ridge':>7}{'V':>7}{'share':>7}"
             f"  {'composition: model':>19}{'density':>9}{'ridge':>7}{'V':>7}{'share':>7}"]  # fmt: skip
    for name in sorted(classes, key=lambda name: CLASS_ORDER.index(name) if name in CLASS_ORDER else 99):
        entry, cells = classes[name], ""
        for form, ridge, wide in (("counts", "ridge", 16), ("composition", "ridge_direct", 21)):
            of = entry.get(form, {})
            r = [of.get(method, {}).get("mean_r") for method in ("model", "own_density", ridge, "reachable")]
            share = of.get("share", {}).get("value")
            cells += "".join(f"{'–' if value is None else f'{value:.3f}':>{width}}"
                             for value, width in zip(r, (wide, 9, 7, 7), strict=True))  # fmt: skip
            cells += f"{'–' if share is None else f'{share:.2f}':>7}"
        lines.append(f"{name:<15}{entry['genes']:>7,}{cells}")
    return lines


def figures(study: dict, parts: list[str]) -> dict[str, str]:
    """Those that docs/scaling_study.md shows, by what they show."""
    longest: dict[str, int] = {}
    for number, one in enumerate(study["sweeps"]):
        axis = one["axis"].split(" ")[0]
        if axis not in longest or len(one["points"]) > len(study["sweeps"][longest[axis]]["points"]):
            longest[axis] = number
    found = {}
    if "patients" in parts:
        of_patients = [one["axis"].startswith("patients") for one in study["comparisons"]].index(True)
        found |= {"patients": f"sweep_{longest['patients'] + 1}", "genes": f"genes_{of_patients + 1}"}
    if "sizes" in parts:
        found |= {"parameters": f"sweep_{longest['parameters'] + 1}", "grid": "grid_1"}
    return found


def _shares(form: str, by_seed: list[float]) -> str:
    return f"{form} {', '.join(f'{share:.3f}' for share in by_seed)}"


if __name__ == "__main__":
    main()

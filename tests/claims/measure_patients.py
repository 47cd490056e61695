"""Patients of the virtual cohort: measure_patients.py FOLDER OUT.json [PICTURES].

Into FOLDER, as far as it is not there: the run of configs/patients.py, 1,000 further held-out NSCLC patients, 150 of
renal carcinoma, embeddings of all, the map and the probes. Takes three hours on two cores, and goes on where it
was stopped. PICTURES: a folder that gets the figures.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tario_jax.corpus.read import Corpus
from tario_jax.evaluate.patients.index import PatientIndex, index_of
from tario_jax.evaluate.patients.neighbours import neighbours, query_of_patient
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.unlike import unlike_of
from tario_jax.evaluate.patients.vectors import MEASURED, PREDICTED
from tario_jax.virtual.patients import HELD_OUT_SCANNER, TRAITS, draw_patient, patient_number

VISIBLE, INVISIBLE = ("EGFR", "KRAS", "STK11", "PTEN"), "RBM10"
UNSEEN = "renal carcinoma, chromophobe"
NEAREST, QUERIES = 5, 200
TISSUE_UM = 1024  # side of the sections of NSCLC patients: of 512 µm, traits of few cells are told too vaguely
FURTHER = ["--panel=curated", "--held-out-after=213"]


def tario(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "tario_jax.cli", *words], check=True)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    run, corpora = folder / "run", {name: folder / name for name in ("nsclc", "rcc")}
    held, nsclc = folder / "held.embeddings", folder / "nsclc.embeddings"
    tario("train", "--config=configs/patients.py", f"--workdir={run}")
    tario("simulate", f"--out={corpora['nsclc']}", "--cohorts=LUAD,LUSC", "--held-out=1000",
          f"--section-um={TISSUE_UM}", *FURTHER)  # fmt: skip
    tario("simulate", f"--out={corpora['rcc']}", "--cohorts=RCC", "--held-out=150", *FURTHER)
    tario("embed", f"--workdir={run}", f"--out={held}", "--measured")
    tario("embed", f"--workdir={run}", f"--corpus={corpora['rcc']}", f"--out={held}")
    tario("embed", f"--workdir={run}", f"--corpus={corpora['nsclc']}", f"--out={nsclc}", "--overlap=0")
    tables = (f"--corpus={run / 'corpus'}", f"--corpus={corpora['rcc']}")
    tario("atlas", str(held), *tables, f"--out={folder / 'atlas'}")
    tario("probe", str(held), tables[0], "--columns=cohort,diagnosis", "--known=", "--shuffles=40",
          f"--out={folder / 'kinds.probe'}", f"--json={folder / 'kinds.json'}")  # fmt: skip
    tario("probe", str(nsclc), f"--corpus={corpora['nsclc']}", "--columns=EGFR,KRAS,STK11,PTEN,RBM10,response",
          "--reachable", "--pairs=KRAS+STK11", "--shuffles=40", f"--out={folder / 'nsclc.probe'}",
          f"--json={folder / 'nsclc.json'}")  # fmt: skip
    kinds, genotypes = (json.loads((folder / f"{name}.json").read_text()) for name in ("kinds", "nsclc"))
    index = index_of(EmbeddingStore(held))
    table = {row["patient"]: row for place in (run / "corpus", corpora["rcc"]) for row in Corpus.open(place).patients}
    result = probes(kinds, genotypes) | unlike(index, table) | near(index) | refused(held, run)
    result["table"] = words(result, kinds, genotypes)
    print(result["table"])
    out.write_text(json.dumps(result, indent=1))
    if len(sys.argv) > 3:
        pictures = Path(sys.argv[3])
        pictures.mkdir(exist_ok=True)
        for of, names in (("atlas", ("tsne", "pca")), ("nsclc.probe", ("aurocs", "calibration", "structure"))):
            for name in names:
                image = Image.open(folder / of / f"{name}.png").convert("RGB").quantize(96)
                image.save(pictures / f"{name}.png", optimize=True)


def probes(kinds: dict, genotypes: dict) -> dict:
    of = {one["column"]: one for one in (*kinds["outcomes"], *genotypes["outcomes"])}
    ways = {name: of[name]["way"][of[name]["lead"]["how"]] for name in (*VISIBLE, "response")}
    invisible = of[INVISIBLE]["lead"]
    confounded = [one for one in of.values() if one["auroc"]["site alone"]["low"] > 0.5]
    (pair,) = genotypes["structure"]["two_against_one"]
    return {
        **{f"{name}_above_stain": of[name]["above"]["stain and texture"]["low"] for name in ("cohort", "diagnosis")},
        "ways": {name: one["value"] for name, one in ways.items()},
        "lowest_way": min(ways[name]["value"] for name in VISIBLE), "response_way": ways["response"]["value"],
        "invisible_off": max(0.0, invisible["low"] - 0.5, 0.5 - invisible["high"]),
        "confounded": len(confounded),
        "not_led_within": sum("site" not in one["lead"]["how"] for one in confounded),
        "null_off": max(abs(one["null"]["mean"] - 0.5) for one in of.values()),
        "pair_p": pair["found"]["p"],
    }  # fmt: skip


def unlike(index: PatientIndex, table: dict) -> dict:
    """Of patients that the model did not see: how many are flagged, of those of the new kinds and of all others."""
    store = EmbeddingStore(index.folder.parent)
    found = unlike_of(index, store)
    some = np.flatnonzero((index.kind_P == PREDICTED) & ~index.seen_P)
    diagnosis = np.array([table[name]["diagnosis"] for name in index.name_P[some]])
    scanner = np.array([table[name]["scanner"] for name in index.name_P[some]])
    tissue, image = found.tissue.unlike(index.place_PxC[some]), found.scanner.unlike(index.acquisition_PxA[some])
    new_kind, new_scanner = diagnosis == UNSEEN, scanner == HELD_OUT_SCANNER
    others = ~new_kind & ~new_scanner
    names = set(index.name_P[some][others].tolist())
    rows = store.rows(PREDICTED, patients=names, vectors=("expression", "acquisition"))
    place = index.space.placed(PREDICTED, np.stack([row.expression_G for row in rows]))
    single = found.section_tissue.unlike(place)
    single |= found.section_scanner.unlike(np.stack([row.acquisition_A for row in rows]))
    return {"single": len(rows), "single_flagged": float(single.mean()),
            "unseen_diagnosis": int(new_kind.sum()), "unseen_diagnosis_flagged": float(tissue[new_kind].mean()),
            "unseen_scanner": int(new_scanner.sum()), "unseen_scanner_flagged": float(image[new_scanner].mean()),
            "others": int(others.sum()), "others_flagged": float((tissue | image)[others].mean())}  # fmt: skip


def near(index: PatientIndex) -> dict:
    """Of held-out patients of the run's own corpus: what the nearest five have in common with them, beside five drawn
    by chance; and whether what was measured of them is among the five measured patients that are nearest.

    A visible state is which third of the patients a drawn trait of the tissue lies in.
    """
    store = EmbeddingStore(index.folder.parent)
    measured = {str(name) for name in index.name_P[index.of_kind(MEASURED)]}
    queries = [str(name) for name in sorted(measured) if name.startswith("vh")][:QUERIES]
    predicted = index.of_kind(PREDICTED)
    trait_PxR = np.stack([draw_patient(patient_number(str(name)), 0).trait_R for name in index.name_P])
    third_PxR = np.stack([np.searchsorted(np.quantile(of, [1 / 3, 2 / 3]), of) for of in trait_PxR.T], 1)
    cohort, states, cohort_chance, states_chance, itself = [], [], [], [], []
    for name in queries:
        query = query_of_patient(store, index, name, PREDICTED)
        found = neighbours(index, query, NEAREST).entry_n
        others = predicted[index.name_P[predicted] != name]
        cohort.append((index.cohort_P[found] == query.cohort).mean())
        cohort_chance.append((index.cohort_P[others] == query.cohort).mean())
        states.append((third_PxR[found] == third_PxR[query.entry]).mean(0))
        states_chance.append((third_PxR[others] == third_PxR[query.entry]).mean(0))
        of_measured = neighbours(index, query, NEAREST, among=(MEASURED,), itself=True).entry_n
        itself.append(name in index.name_P[of_measured])
    states_R, chance_R = np.mean(states, 0), np.mean(states_chance, 0)
    return {"queries": len(queries), "cohort_share": float(np.mean(cohort)),
            "cohort_chance": float(np.mean(cohort_chance)),
            "cohort_factor": float(np.mean(cohort) / np.mean(cohort_chance)),
            "states": dict(zip(TRAITS, (states_R / chance_R).tolist(), strict=True)),
            "state_factor": float(states_R.mean() / chance_R.mean()), "measured_itself": float(np.mean(itself)),
            "measured": len(measured)}  # fmt: skip


def refused(held: Path, run: Path) -> dict:
    """A probe of training patients alone, with and without force: exit statuses."""
    alone = held.parent / "trained.embeddings"
    store = EmbeddingStore(held)
    if not alone.exists():
        trained = EmbeddingStore.begun(alone, store.panel, store.about)
        trained.add([row for row in store.rows(PREDICTED) if row.seen])
    words = [sys.executable, "-m", "tario_jax.cli", "probe", str(alone), f"--corpus={run / 'corpus'}",
             "--columns=cohort", "--shuffles=0"]  # fmt: skip
    plain = subprocess.run(words, capture_output=True, text=True)
    forced = subprocess.run([*words, "--allow-seen"], capture_output=True, text=True)
    print(plain.stderr)
    return {"refused": plain.returncode, "lines": plain.stderr.count("\n"), "forced": forced.returncode}


def words(result: dict, kinds: dict, genotypes: dict) -> str:
    from tario_jax.evaluate.patients.outcomes import interval_text
    from tario_jax.evaluate.patients.probe_job import table_of

    pair = genotypes["structure"]["two_against_one"][0]["found"]
    lines = ["held-out patients of all cancer types, from their H&E alone: AUROC [95 % of patients]", table_of(kinds),
             "",
             "1,000 further held-out NSCLC patients; lead: what the report leads with; reachable: of V, all patients",
             table_of(genotypes), ""]  # fmt: skip
    for one in genotypes["outcomes"]:
        ways = (f"{how} {interval_text(way, 2)}" for how, way in one["way"].items())
        lines.append(f"{one['column']:<9} of the way to V: {', '.join(ways)}")
    lines += [
        "", f"KRAS with STK11 ({pair['both']}) against KRAS alone ({pair['first_alone']}), within cancer type and "
        f"site: {pair['distance']:.2f} deviations apart, {pair['distance_of_permutations']:.2f} by permutation, "
        f"p {pair['p']:.4f}",
        "", f"unlike training: {result['unseen_diagnosis_flagged']:.0%} of {result['unseen_diagnosis']} patients with "
        f"the unseen diagnosis (tissue), {result['unseen_scanner_flagged']:.0%} of {result['unseen_scanner']} with the "
        f"unseen scanner (image), {result['others_flagged']:.1%} of {result['others']} others (either); of "
        f"{result['single']} single sections of these others, as slides are held against training, "
        f"{result['single_flagged']:.1%}",
        f"nearest five of {result['queries']} held-out patients: {result['cohort_share']:.2f} of their cancer type, "
        f"{result['cohort_chance']:.2f} by chance; " + ", ".join(
            f"third of {name} {factor:.2f} times chance" for name, factor in result["states"].items()),
        f"measured embedding among the five nearest of {result['measured']} measured ones: "
        f"{result['measured_itself']:.2f} of the patients",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()

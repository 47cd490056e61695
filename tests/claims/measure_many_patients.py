"""100,000 patients of generated embeddings: measure_many_patients.py FOLDER OUT.json [PATIENTS GENES].

Vectors of 18,963 genes that vary along 40 directions; the index and the map are made by the code that makes them of
real ones, and asked in a process of their own, whose memory is measured.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tario_jax.evaluate.patients.atlas import atlas_of
from tario_jax.evaluate.patients.atlas_job import atlas_job
from tario_jax.evaluate.patients.index import COMPONENTS, index_of
from tario_jax.evaluate.patients.looks import ACQUISITION, texture_names
from tario_jax.evaluate.patients.neighbours import neighbours, query_of_patient
from tario_jax.evaluate.patients.store import EmbeddingStore
from tario_jax.evaluate.patients.vectors import PREDICTED, Embedded
from tario_jax.panel import Panel

PATIENTS, GENES, DIRECTIONS, WIDTH = 100_000, 18_963, 40, 96
COHORTS = 20
AT_ONCE = 1000
ASKED = 50


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    patients, genes = (int(word) for word in sys.argv[3:5]) if len(sys.argv) > 4 else (PATIENTS, GENES)
    store = generated(folder / "many.embeddings", patients, genes)
    built = json.loads(_apart("build", store))
    asked, drawn = json.loads(_apart("ask", store)), json.loads(_apart("draw", store))
    result = {"patients": patients, "genes": genes} | built | asked | drawn
    result["memory_gb"] = max(built["build_gb"], asked["ask_gb"], drawn["draw_gb"])
    result["table"] = "\n".join([
        f"{patients:,} patients, {genes:,} genes: space, places and map made in {built['build_s']:.0f} s and "
        f"{built['build_gb']:.2f} GB",
        f"opened in {asked['open_s']:.2f} s; five neighbours of a patient {asked['neighbours_ms']:.1f} ms (median of "
        f"{ASKED}; slowest {asked['slowest_ms']:.1f}); a patient placed in the space and on the map "
        f"{asked['placed_s']:.2f} s; {asked['ask_gb']:.2f} GB",
        f"all of them placed on the map, its page with figures and table (tario atlas): {drawn['draw_s']:.0f} s, "
        f"{drawn['draw_gb']:.2f} GB",
    ])  # fmt: skip
    print(result["table"])
    out.write_text(json.dumps(result, indent=1))


def generated(folder: Path, patients: int, genes: int) -> EmbeddingStore:
    about = {"checkpoint": "made", "model": "generated", "trained_on": "virtual", "bin_um": 36.0, "overlap": 0.5,
             "region_um": None, "tissue": "virtual"}  # fmt: skip
    store = EmbeddingStore.begun(folder, Panel(tuple(f"G{at}" for at in range(genes))), about)
    rng = np.random.default_rng(0)
    along = rng.normal(0, 1, (DIRECTIONS, genes)).astype(np.float32) * np.linspace(1, 0.2, DIRECTIONS)[:, None]
    middle = rng.normal(0, 1.5, (COHORTS, DIRECTIONS))
    nothing = np.zeros(genes, np.float32)
    held = {section for section, _ in store.held()}
    look = [np.zeros(len(names), np.float32) for names in (texture_names(), ACQUISITION)]
    for first in range(0, patients, AT_ONCE):
        some = range(first, min(first + AT_ONCE, patients))
        if f"P{first:06d}_core" in held:
            continue
        own = np.random.default_rng((1, first))
        place = middle[np.array(some) % COHORTS] + own.normal(0, 1, (len(some), DIRECTIONS))
        expression = (4 + 0.2 * place @ along + own.normal(0, 0.05, (len(some), genes))).astype(np.float32)
        acquisition = own.normal(0, 1, (len(some), len(ACQUISITION))).astype(np.float32)
        state = own.normal(0, 1, (len(some), WIDTH)).astype(np.float32)
        store.add([Embedded(f"P{at:06d}", f"C{at % COHORTS:02d}", f"P{at:06d}_core", "", "", PREDICTED, at % 2 == 0,
                            400, 1e5, 0.5, expression[row], nothing, state[row], state[row], look[0], acquisition[row])
                   for row, at in enumerate(some)])  # fmt: skip
    return store


def _apart(what: str, store: EmbeddingStore) -> str:
    done = subprocess.run([sys.executable, __file__, what, str(store.folder)], check=True, stdout=subprocess.PIPE)
    return done.stdout.decode().splitlines()[-1]


def build(folder: Path) -> dict:
    began = time.perf_counter()
    atlas_of(index_of(EmbeddingStore(folder), say=print), say=print)
    return {"build_s": time.perf_counter() - began, "build_gb": _gb()}


def ask(folder: Path) -> dict:
    began = time.perf_counter()
    store = EmbeddingStore(folder)
    index = index_of(store)
    atlas = atlas_of(index)
    opened = time.perf_counter() - began
    took, names = [], index.name_P[np.linspace(0, len(index.name_P) - 1, ASKED).astype(int)]
    for name in names.tolist():
        began = time.perf_counter()
        found = neighbours(index, query_of_patient(store, index, name, PREDICTED), 5)
        took.append(1e3 * (time.perf_counter() - began))
        assert len(found.entry_n) == 5
    placed = []
    for at in range(5):
        expression = index.space.mean_KxG[0] + index.level_G(at * 7)
        began = time.perf_counter()
        place = index.space.placed(PREDICTED, expression[None])
        assert np.isfinite(atlas.placed(place)).all()
        placed.append(time.perf_counter() - began)
    return {"open_s": opened, "neighbours_ms": float(np.median(took)), "slowest_ms": max(took),
            "placed_s": float(np.median(placed)), "ask_gb": _gb()}  # fmt: skip


def draw(folder: Path) -> dict:
    began = time.perf_counter()
    atlas_job(EmbeddingStore(folder), (), (), folder.parent / "many.atlas", components=COMPONENTS)
    return {"draw_s": time.perf_counter() - began, "draw_gb": _gb()}


def _gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if sys.argv[1] in ("build", "ask", "draw"):
        print(json.dumps({"build": build, "ask": ask, "draw": draw}[sys.argv[1]](Path(sys.argv[2]))))
    else:
        main()

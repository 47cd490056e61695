"""Start, batches and memory at 93 and at 2,758 patients: `measure_corpus_growth.py CORPUS OUT.json`.

CORPUS holds the larger cohort; the smaller run trains on 93 of its patients (split.train_patients) and differs in
nothing else. Each is a process of its own. The cache of chunks is off in both: a small cohort would fit into it.
"""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, sys, time
began = time.perf_counter()
import numpy as np
import tensorstore as ts
from tario_jax.config import DataConfig, SplitConfig
from tario_jax.corpus import layout
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource

layout.CACHE_BYTES = 0
place, patients, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
corpus = Corpus.open(place)
split = split_corpus(corpus, SplitConfig(train_patients=patients))
data = DataConfig(bin_um=18.0, window_um=144.0, tile_um=144.0, he_um_per_px=0.5, patch_px=36, rows=16)
source = BatchSource(split.train, data, corpus_layout(split.train, data, len(corpus.panel)), steps=batches)
source[0]
start = time.perf_counter() - began
seconds = []
for t in range(1, batches):
    began = time.perf_counter()
    source[t]
    seconds.append(time.perf_counter() - began)
resident = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps({"patients": len({s.patient for s in split.train}), "start_seconds": start,
                  "batch_ms": 1e3 * float(np.median(seconds[batches // 3:])), "resident_mb": resident / 1024}))
"""
ROUNDS, BATCHES = 3, 500


def main() -> None:
    corpus, answer = sys.argv[1:]
    runs: dict[int, list[dict]] = {93: [], 0: []}  # 0: all
    for _ in range(ROUNDS):
        for patients, found in runs.items():
            words = [sys.executable, "-c", PROGRAM, corpus, str(patients), str(BATCHES)]
            found.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(found[-1], flush=True)
    # the least of three: whatever else the machine does only adds
    few, many = ({name: min(run[name] for run in found) for name in found[0]} for found in runs.values())
    result = {"few": few, "many": many, "start_seconds": many["start_seconds"],
              "batch_ratio": many["batch_ms"] / few["batch_ms"],
              "memory_ratio": many["resident_mb"] / few["resident_mb"]}  # fmt: skip
    print(json.dumps(result, indent=1))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

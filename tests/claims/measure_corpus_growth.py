"""Start, batches and memory at 93 and at 2,758 patients: `measure_corpus_growth.py CORPUS OUT.json`.

CORPUS holds the larger cohort; the smaller run trains on 93 of its patients (split.train_patients) and differs in
nothing else: both have the capacity for counts that the densest window of all asks for. Each is a process of its own.
The cache of chunks is off in both: a small cohort would fit into it. Opening sections again and again, as a cohort
beyond what is held open does, is a part of its batches.
"""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import dataclasses, json, sys, time
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
data = DataConfig(bin_um=18.0, window_um=256.0, tile_um=128.0, he_um_per_px=0.5, patch_px=32, rows=16)
asked = corpus_layout(split.train, data, len(corpus.panel))
BatchSource(split.train, data, asked, steps=batches)[0]
start = time.perf_counter() - began
data = dataclasses.replace(data, count_capacity=int(sys.argv[4]))
source = BatchSource(split.train, data, corpus_layout(split.train, data, len(corpus.panel)), steps=batches)
seconds = []
for t in range(1, batches):
    began = time.perf_counter()
    source[t]
    seconds.append(time.perf_counter() - began)
resident = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps({"patients": len({s.patient for s in split.train}), "start_seconds": start,
                  "capacity": asked.count_capacity,
                  "batch_ms": 1e3 * float(np.median(seconds[batches // 3:])), "resident_mb": resident / 1024}))
"""
ROUNDS, BATCHES = 7, 240


def main() -> None:
    corpus, answer = sys.argv[1:]
    runs: dict[int, list[dict]] = {93: [], 0: []}  # 0: all
    capacity = 0
    for _ in range(ROUNDS):
        for patients, found in runs.items():
            words = [sys.executable, "-c", PROGRAM, corpus, str(patients), str(BATCHES), str(capacity)]
            found.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout))
            print(found[-1], flush=True)
        capacity = max(run["capacity"] for found in runs.values() for run in found)
    # the first round found the capacity; of the others the least: whatever else the machine does only adds
    few, many = ({name: min(run[name] for run in found[1:]) for name in found[0]} for found in runs.values())
    result = {"few": few, "many": many, "start_seconds": many["start_seconds"],
              "batch_ratio": many["batch_ms"] / few["batch_ms"],
              "memory_ratio": many["resident_mb"] / few["resident_mb"]}  # fmt: skip
    print(json.dumps(result, indent=1))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""Start, batches and memory at 93 and at 2,758 patients: `measure_corpus_growth.py CORPUS OUT.json`.

CORPUS holds the larger cohort; the smaller run trains on 93 of its patients and differs in nothing else: both have the
capacity for counts that the densest window of all asks for. Each is a process of its own. They take turns; every round
has another 93 patients, since those of one round may hold more tissue than the mean, and the median round is told.
The cache of chunks is off in both: a small cohort would fit into it. Opening sections again and again, as a cohort
beyond what is held open does, is a part of its batches.
"""

import json
import statistics
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
from tario_jax.corpus.split import split_corpus, stratified_order
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource

layout.CACHE_BYTES = 0
place, number, batches = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
corpus = Corpus.open(place)
train = split_corpus(corpus, SplitConfig()).train
if number >= 0:
    order = stratified_order({section.patient: section.cohort for section in train})
    few = set(order[93 * number : 93 * (number + 1)])
    train = [section for section in train if section.patient in few]
data = DataConfig(bin_um=18.0, window_um=256.0, tile_um=128.0, he_um_per_px=0.5, patch_px=32, rows=16)
asked = corpus_layout(train, data, len(corpus.panel))
BatchSource(train, data, asked, steps=batches)[0]
start = time.perf_counter() - began
data = dataclasses.replace(data, count_capacity=int(sys.argv[4]))
source = BatchSource(train, data, corpus_layout(train, data, len(corpus.panel)), steps=batches)
seconds = []
for t in range(1, batches):
    began = time.perf_counter()
    source[t]
    seconds.append(time.perf_counter() - began)
resident = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(json.dumps({"patients": len({s.patient for s in train}), "start_seconds": start,
                  "capacity": asked.count_capacity,
                  "batch_ms": 1e3 * float(np.median(seconds[batches // 3:])), "resident_mb": resident / 1024}))
"""
ROUNDS, BATCHES = 9, 240
ALL = -1


def main() -> None:
    corpus, answer = sys.argv[1:]
    runs: dict[str, list[dict]] = {"few": [], "many": []}
    capacity = 0
    for number in range(ROUNDS):
        for name, chosen in (("few", number), ("many", ALL)):
            words = [sys.executable, "-c", PROGRAM, corpus, str(chosen), str(BATCHES), str(capacity)]
            run = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(run, flush=True)
            runs[name].append(run)
        if number == 0:  # of the sizes; the densest window is one of all patients'
            capacity = runs["many"][0]["capacity"]
    few, many = ({name: statistics.median(run[name] for run in found[1:]) for name in found[0]}
                 for found in runs.values())  # fmt: skip

    def ratio(name: str) -> float:
        return statistics.median(b[name] / a[name] for a, b in zip(runs["few"][1:], runs["many"][1:], strict=True))

    result = {"few": few, "many": many, "start_seconds": many["start_seconds"], "batch_ratio": ratio("batch_ms"),
              "memory_ratio": ratio("resident_mb")}  # fmt: skip
    print(json.dumps(result, indent=1))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

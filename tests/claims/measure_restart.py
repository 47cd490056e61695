"""An evaluation that is killed again and again, and one that two processes share: `measure_restart.py FOLDER OUT.json`.

Trains a small model on virtual patients in FOLDER, evaluates it without a break, then with SIGKILL at times drawn over
the length of that, then by two processes at once; counts the fields of report.json, the lines of genes.tsv and the
values of scores.npz and validation.parquet that differ.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet

KILLS = 6
TARIO = (sys.executable, "-m", "tario_jax.cli")
COHORT = ("--patients=24", "--validation=4", "--held-out=24", "--cohorts=LUAD,BRCA", "--panel=curated",
          "--regions=core", "--section-um=360")  # fmt: skip


def tario(*words: str) -> None:
    subprocess.run([*TARIO, *words], check=True, stdout=subprocess.DEVNULL)


def flat(value, name: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        return {key: leaf for field, inner in value.items() for key, leaf in flat(inner, f"{name}.{field}").items()}
    if isinstance(value, list):
        return {key: leaf for k, inner in enumerate(value) for key, leaf in flat(inner, f"{name}[{k}]").items()}
    return {name: value}


def differing(a: Path, b: Path) -> int:
    """Fields, lines and values of two evaluations that are not the same to the bit; the time that they took is none."""
    reports = [flat(json.loads((folder / "report.json").read_text())) for folder in (a, b)]
    for report in reports:
        report.pop(".headline.seconds")
    number = sum(reports[0].get(key) != reports[1].get(key) for key in reports[0].keys() | reports[1].keys())
    lines = [(folder / "genes.tsv").read_text().splitlines() for folder in (a, b)]
    number += sum(x != y for x, y in zip(*lines, strict=True))
    scores = [np.load(folder / "scores.npz") for folder in (a, b)]
    for name in scores[0].files:
        x, y = (table[name] for table in scores)
        number += int((x != y).sum() if x.dtype.kind == "U" else (~((x == y) | ((x != x) & (y != y)))).sum())
    tables = [pyarrow.parquet.read_table(folder / "validation.parquet").to_pandas() for folder in (a, b)]
    same = (tables[0] == tables[1]) | (tables[0].isna() & tables[1].isna())
    return number + int((~same).to_numpy().sum())


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    corpus, run = folder / "corpus", folder / "run"
    tario("simulate", f"--out={corpus}", *COHORT)
    tario("train", "--config=configs/quickstart.py", f"--corpus={corpus}", f"--workdir={run}",
          "--config.train.steps=20", "--config.optim.warmup_steps=5")  # fmt: skip
    command = ("evaluate", f"--workdir={run}", f"--corpus={corpus}")
    began = time.monotonic()
    tario(*command, f"--out={folder / 'whole'}")
    seconds = time.monotonic() - began
    rng, killed = random.Random(0), 0
    for _ in range(KILLS):
        process = subprocess.Popen([*TARIO, *command, f"--out={folder / 'killed'}"], stdout=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(0.2, 0.45) * seconds)
            break  # what it had kept was enough to end
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    tario(*command, f"--out={folder / 'killed'}")
    both = [subprocess.Popen([*TARIO, *command, f"--out={folder / 'two'}", f"--part={k}/2"], stdout=subprocess.DEVNULL)
            for k in (1, 2)]  # fmt: skip
    if any([process.wait() for process in both]):
        raise SystemExit("one of two processes failed")
    if killed < 2:
        raise SystemExit(f"it was killed {killed} times only, too fast for this to say anything")
    result = {"kills": killed, "seconds": seconds, "killed": differing(folder / "whole", folder / "killed"),
              "two": differing(folder / "whole", folder / "two")}  # fmt: skip
    out.write_text(json.dumps(result))
    print(result)


if __name__ == "__main__":
    main()

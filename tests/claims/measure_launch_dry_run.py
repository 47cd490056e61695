"""The dry run of the article's study: measure_launch_dry_run.py WORKDIR OUT.json [verdicts [PATTERN]].

Prints the table without verdicts, and how long that took. verdicts: compiles every program of the runs called so, then
asks again, and counts what was compiled the second time (an hour or two on two cores for all 90 runs; needs libtpu).
Then one of them with its whole batch at once, which its chips do not hold: is it named, and not begun?
Killed, the same command goes on in the same WORKDIR: TARIO_VERDICTS names one for the claims.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SWEEP = "configs/sweeps/article_pods.py"
OVERFULL = ("--only=p93_10m_36um", "--config.train.accumulate=1")
COMPARED = ("p93_1b_36um", "p2545_1b_36um")


def main() -> None:
    workdir, out = Path(sys.argv[1]), Path(sys.argv[2])
    only = sys.argv[4] if len(sys.argv) > 4 else "*"
    result = verdicts(workdir, only) if len(sys.argv) > 3 else without(workdir)
    print(result["table"])
    out.write_text(json.dumps(result))


def dry_run(workdir: Path, *words: str) -> tuple[float, str, list[dict]]:
    """Seconds, what it printed, and its rows."""
    told = workdir / "rows.json"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launch", SWEEP, "--dry_run", f"--workdir={workdir / 'sweep'}", f"--json={told}",
         *words],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)
    return time.monotonic() - began, done.stdout, json.loads(told.read_text())


def without(workdir: Path) -> dict:
    seconds, text, rows = dry_run(workdir, "--no-verdicts")
    by_run = {row["run"]: row for row in rows}
    # patients do not change what a run takes: the table in the docs has those of the largest cohort
    lines = [line for line in text.splitlines() if not line.startswith("p") or line.startswith("p2545_")]
    return {"seconds": seconds, "runs": len(rows), "flops": sum(row["flops"] for row in rows),
            "chip_hours": sum(row["chips"] * row["hours"] for row in rows),
            "dollars": sum(row["dollars"] for row in rows),
            "compared_dollars": sum(by_run[run]["dollars"] for run in COMPARED),
            "compared_hours": max(by_run[run]["hours"] for run in COMPARED),
            "cannot_run": sum(bool(row["refusal"]) for row in rows), "table": "\n".join(lines)}  # fmt: skip


def verdicts(workdir: Path, only: str) -> dict:
    def compiled(text: str) -> int:
        return sum(line.startswith("verdicts: ") and "/" in line.split()[1] for line in text.splitlines())

    seconds, text, rows = dry_run(workdir, f"--only={only}")
    again_seconds, again, same = dry_run(workdir, f"--only={only}")
    overfull_seconds, overfull, of_overfull = dry_run(workdir, *OVERFULL)
    unfit, unnamed = [], 0
    for told, several in ((again, rows), (overfull, of_overfull)):
        listed = [line.split(":")[0].strip() for line in told.partition("would not fit")[2].splitlines()[1:]]
        refused = {row["run"] for row in several if row["refused"]}
        unfit, unnamed = [*unfit, *refused], unnamed + len(refused - set(listed))
    lines = [line for line in again.splitlines() if not line.startswith("p") or line.startswith("p2545_")]
    summary = (f"{compiled(text)} programs of {len(rows)} runs compiled in {seconds:.0f} s; again: {compiled(again)}, "
            f"{again_seconds:.0f} s")  # fmt: skip
    return {"programs": compiled(text), "runs": len(rows), "compiled_again": compiled(again), "unfit": len(unfit),
            "without_verdict": sum(row["verdict"] is None for row in rows),
            "unnamed": unnamed + (not of_overfull[0]["refused"]), "differs": int(rows != same),
            "seconds": seconds, "again_seconds": again_seconds, "overfull_seconds": overfull_seconds,
            "table": "\n".join([*lines, "", summary, "", f"$ {' '.join(OVERFULL)}", overfull.strip()])}  # fmt: skip


if __name__ == "__main__":
    main()

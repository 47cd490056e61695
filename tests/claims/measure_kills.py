"""Runs that are killed with SIGKILL again and again, beside one that is not: `measure_kills.py OUT.json [--elastic]`.

The same command each time, on a small virtual corpus. Kills fall into starts, compilations (the store of compiled
programs is emptied before), steps and saves, by a fixed seed; what each one cost is what the next start says. With
--elastic the run has 2, 1 and 4 processes by turns; one process of it is killed, and the others must end by themselves.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runs_beside import states_beside

SEED, STEPS = 7, 300
MOMENTS = ("start", "compile", "step", "save", "step") * 4
PROCESSES = (2, 1, 4, 2, 1, 4)
_SIMULATE = ("simulate", "--patients=8", "--validation=2", "--held-out=1", "--section-um=288", "--panel=curated",
             "--regions=core", "--workers=2")  # fmt: skip
_CONFIG = (
    "--config=configs/quickstart.py", f"--config.train.steps={STEPS}", "--config.train.checkpoint_every=20",
    "--config.train.validate_every=100", "--config.train.log_every=10", "--config.train.calibration_rows=8",
    "--config.data.window_um=144", "--config.data.tile_um=144", "--config.data.rows=8", "--config.model.width=64",
    "--config.model.mlp_width=128", "--config.train.ema_decay=0.99", "--config.optim.warmup_steps=10",
)  # fmt: skip
_LONGEST_S = 300  # until a moment comes


class Run:
    """The processes of one start."""

    def __init__(self, corpus: Path, workdir: Path, processes: int, port: int):
        self.workdir, self._lines = workdir, workdir.parent / f"{workdir.name}.log"
        command = [
            sys.executable,
            "-m",
            "tario_jax.cli",
            "train",
            f"--corpus={corpus}",
            f"--workdir={workdir}",
            *_CONFIG,
        ]
        flags = [f"--coordinator=localhost:{port}", f"--processes={processes}"] if processes > 1 else []
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0" if processes > 1 else "",
        }  # fmt: skip
        self._began = self._lines.stat().st_size if self._lines.exists() else 0
        with self._lines.open("a") as log:
            self.processes = [
                subprocess.Popen(
                    [*command, *flags, *([f"--process={number}"] if flags else [])],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )  # fmt: skip
                for number in range(processes)
            ]

    def said(self) -> str:
        with self._lines.open() as log:
            log.seek(self._began)
            return log.read()

    def wait_for(self, there) -> None:
        began = time.monotonic()
        while not there():
            if self.processes[0].poll() is not None or time.monotonic() - began > _LONGEST_S:
                raise SystemExit(f"the run ended, or hangs, before its moment:\n{self.said()[-2000:]}")
            time.sleep(0.002)

    def ended(self, within_s: float = 600) -> list[int]:
        return [process.wait(timeout=within_s) for process in self.processes]

    def cost(self) -> str:
        """What this start said that the stop before it cost; that of a start that ended before is in the next one's."""
        return next((line.removeprefix("the stop cost: ") for line in self.said().splitlines()
                     if line.startswith("the stop cost")), "the next start says it")  # fmt: skip

    def doing(self) -> dict:
        try:
            beat = json.loads((self.workdir / "hosts" / "0.json").read_text())
            return beat if beat["pid"] == self.processes[0].pid else {"doing": "start", "step": 0}
        except (OSError, ValueError):
            return {"doing": "start", "step": 0}


def main() -> None:
    elastic = "--elastic" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        subprocess.run([sys.executable, "-m", "tario_jax.cli", *_SIMULATE, f"--out={corpus}"], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        assert Run(corpus, whole, 1, 0).ended() == [0]
        rows = _killed_with_others(corpus, broken) if elastic else _killed(corpus, broken)
        result = states_beside(whole, broken, corpus, STEPS) | {"kills": rows}
        account = json.loads((broken / "goodput.json").read_text())
        result |= {"goodput": account["goodput"], "lost_seconds": account["lost"], "seed": SEED}
    lost = account["lost"]
    result["lost_seconds_a_kill"] = sum(
        lost.get(name, 0.0) for name in ("repeated", "between starts", "start", "compile")
    ) / len(rows)  # fmt: skip
    result["table"] = _table(rows, result, elastic)
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


def _killed(corpus: Path, workdir: Path) -> list[dict]:
    rng, rows = random.Random(SEED), []
    for number, moment in enumerate(MOMENTS, 1):
        if moment == "compile":
            shutil.rmtree(workdir / "compiled", ignore_errors=True)
        run = Run(corpus, workdir, 1, 0)
        began = _resumed_at(workdir)
        if moment == "start":
            time.sleep(rng.uniform(0.5, 5))
        elif moment == "compile":
            run.wait_for(lambda run=run: "compiling the step" in run.said())
            time.sleep(rng.uniform(0, 3))
        else:
            run.wait_for(lambda run=run: "step read from" in run.said() or "step compiled" in run.said())
            steps = rng.randint(1, 60)  # of this start
            run.wait_for(lambda run=run, steps=began + steps: run.doing()["step"] >= steps)
            if moment == "step":
                time.sleep(rng.uniform(0, 0.2))
            else:
                writing = workdir / "checkpoints"
                run.wait_for(lambda writing=writing: any(writing.glob("*.orbax-checkpoint-tmp*")))
                time.sleep(rng.uniform(0, 0.05))
        doing = run.doing()
        half = [path.name for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")]
        run.processes[0].kill()
        run.ended()
        rows.append({"kill": number, "processes": 1, "moment": moment, "doing": doing["doing"], "step": doing["step"],
                     "half_written": half[:1], "said": run.cost()})  # fmt: skip
        print(f"kill {number} of {len(MOMENTS)}: {rows[-1]}", flush=True)
    return _to_the_end(corpus, workdir, rows)


def _killed_with_others(corpus: Path, workdir: Path) -> list[dict]:
    rng, rows = random.Random(SEED), []
    for number, processes in enumerate(PROCESSES, 1):
        run = Run(corpus, workdir, processes, 21000 + os.getpid() % 8000 + number)
        began = _resumed_at(workdir)
        # at least one save of this start is awaited, or nothing would ever be done
        run.wait_for(lambda run=run, began=began: _newest(run.workdir) > began + 20)
        time.sleep(rng.uniform(0, 2))
        one = number % processes  # each in its turn
        doing = run.doing()
        run.processes[one].kill()
        told = time.monotonic()
        statuses = run.ended(within_s=200)
        assert 0 not in statuses, statuses
        rows.append({"kill": number, "processes": processes, "moment": f"process {one}",
                     "doing": doing["doing"], "step": doing["step"],
                     "half_written": [], "said": run.cost(),
                     "others_ended_after_s": time.monotonic() - told})  # fmt: skip
        print(f"kill {number} of {len(PROCESSES)}: {rows[-1]}", flush=True)
    return _to_the_end(corpus, workdir, rows)


def _newest(workdir: Path) -> int:
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()), default=0)


def _resumed_at(workdir: Path) -> int:
    return _newest(workdir) if (workdir / "checkpoints").is_dir() else 0


def _to_the_end(corpus: Path, workdir: Path, rows: list[dict]) -> list[dict]:
    """Lets the run end; each kill gets what the start after it said that it cost."""
    last = Run(corpus, workdir, 1, 0)
    assert last.ended() == [0], last.said()[-2000:]
    costs = [*(row.pop("said") for row in rows[1:]), last.cost()]
    rows[0].pop("said")
    return [row | {"cost": cost} for row, cost in zip(rows, costs, strict=True)]


def _table(rows: list[dict], result: dict, elastic: bool) -> str:
    head = f"{'kill':>4}  {'processes':>9}  {'moment':<10} {'doing':<9} {'after step':>10}  cost"
    lines = [
        f"{row['kill']:>4}  {row['processes']:>9}  {row['moment']:<10} {row['doing']:<9} {row['step']:>10}  "
        + row["cost"]
        + (f"; half-written: {row['half_written'][0]}" if row["half_written"] else "")
        + (f"; the others ended after {row['others_ended_after_s']:.0f} s" if "others_ended_after_s" in row else "")
        for row in rows
    ]
    lost = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result["lost_seconds"].items())
    return "\n".join([
        f"{len(rows)} kills of a run of {STEPS} steps, a checkpoint each 20 steps (seed {SEED}); doing: what the last "
        "heartbeat before the kill said", head, *lines,
        f"final state beside the unbroken run's: {result['different_arrays']} of {result['arrays']} arrays differ, "
        f"parameters by {result['parameters_off']:.1e} relative L2",
        f"lost a kill: {result['lost_seconds_a_kill']:.1f} s (steps done again, the way to the next start, its start "
        f"and compilation); goodput {result['goodput']:.2f}; seconds lost in all: {lost}",
    ])  # fmt: skip


if __name__ == "__main__":
    main()

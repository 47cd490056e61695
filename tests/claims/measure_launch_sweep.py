"""Sweeps of tiny runs, by `python -m launch` on this machine and on a Slurm of its own.

    measure_launch_sweep.py local WORKDIR OUT.json
    measure_launch_sweep.py slurm WORKDIR OUT.json

local: 8 runs, 2 at a time × 2 processes; one fails by its config, one is killed in the middle of training; then the
same command again. slurm: 4 runs × 2 processes here, and as an array of Slurm, one of them told to end by USR1 in the
middle of training, which queues it again.

The second needs root on Debian or Ubuntu: tests/launch/start_slurm.sh installs Slurm where it is missing.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from launch.sweep_file import read_sweep
from tario_jax.corpus.read import Corpus
from tario_jax.train.checkpoint import Checkpoints
from tario_jax.train.run import Run

ROOT = Path(__file__).resolve().parents[2]
_SWEEP = """
from tario_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig, SourceConfig, TrainConfig
from tario_jax.config_files import chosen
from tario_jax.sweeps import runs, vary

BASE = Config(
    name="small",
    source={source},
    data=DataConfig(window_um=72.0, tile_um=72.0, rows=2, prefetch=1),
    model=ModelConfig(width=16, layers=1, heads=1, kv_heads=1, head_dim=16, mlp_width=16, gene_dim=8, stem_width=8),
    train=TrainConfig(steps={steps}, validation_rows=2, calibration_rows=2, checkpoint_every=20,
                      validate_every={steps}),
    evaluate=EvaluateConfig(top_genes=20, bootstraps=20, examples=0),
)


def get_sweep():
    return runs(BASE, vary("seed", "train.seed", {seeds}) + vary("bad", "data.count_capacity", {bad}))


def get_config(name):
    return chosen(name, get_sweep())
"""
_MADE = """SourceConfig(train_patients=2, validation_patients=1, held_out_patients=2, regions=("core",),
                 section_um=216.0, panel="curated", workers=1)"""  # fmt: skip


def write_sweep(file: Path, *, seeds: tuple[int, ...], bad: tuple[int, ...] = (), steps: int,
                corpus: Path | None = None) -> Path:  # fmt: skip
    """A sweep of tiny runs seed1 … and bad1, which fails: its batches hold one count. corpus: None makes one."""
    source = _MADE if corpus is None else f'SourceConfig(kind="corpus", path="{corpus}")'
    file.write_text(_SWEEP.format(source=source, steps=steps, seeds=seeds, bad=bad))
    return file


def launch(sweep: Path, workdir: Path, *words: str, timeout_s: float = 1500) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch", str(sweep), f"--workdir={workdir}", *words], cwd=ROOT, capture_output=True,
        text=True, timeout=timeout_s, check=False, env=_environment(workdir),
    )  # fmt: skip


def _environment(workdir: Path) -> dict[str, str]:
    """All runs are one program: it is compiled once, wherever they run."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}  # fmt: skip
    return kept | os.environ | {"JAX_PLATFORMS": "cpu"}


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.05)


def step_of(run: Path) -> int:
    try:
        return json.loads((run / "hosts" / "0.json").read_text())["step"]
    except (OSError, ValueError, KeyError):
        return 0


def same_bits(sweep: Path, runs: list[str], ours: Path, theirs: Path) -> int:
    """How many of the runs have another final state in the one workdir than in the other."""
    configs, different = read_sweep(str(sweep)).configs, 0
    for name in runs:
        states = []
        for workdir in (ours, theirs):
            place = configs[name].source.path if configs[name].source.kind == "corpus" else workdir / "corpus"
            abstract = Run.of(configs[name], Corpus.open(place)).abstract
            with Checkpoints(workdir / name) as checkpoints:
                states.append(checkpoints.restore(configs[name].train.steps, abstract))
        pairs = zip(*map(jax.tree.leaves, states), strict=True)
        different += not all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)
    return different


# --- local


def local(workdir: Path) -> dict:
    sweep = write_sweep(workdir / "small.py", seeds=(1, 2, 3, 4, 5, 6, 7), bad=(1,), steps=100)
    words = ("--at-once=2", "--processes=2", "--devices=1", "--back-off-s=2")
    command = [sys.executable, "-m", "launch", str(sweep), f"--workdir={workdir / 'sweep'}", *words]
    with (workdir / "launch.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=_environment(workdir / "sweep"))
    victim = workdir / "sweep" / "seed3"
    wait_until(lambda: 0 < step_of(victim) or process.poll() is not None, "seed3 trains")
    beat = json.loads((victim / "hosts" / "0.json").read_text())
    os.kill(beat["pid"], signal.SIGKILL)
    status = process.wait(1500)
    first = standing(sweep, workdir / "sweep")
    began = {run: len(list(attempts(workdir / "sweep" / run))) for run in first}
    again = launch(sweep, workdir / "sweep", *words)
    second = standing(sweep, workdir / "sweep")
    retried = [run for run in second if len(list(attempts(workdir / "sweep" / run))) > began[run]]
    states = [one["state"] for one in first.values()]
    reason = first["bad1"]["error"]
    table = [(workdir / "launch.txt").read_text().rstrip(),
             f"exit status {status}; killed seed3 at step {beat['step']}", "",
             "again:", again.stdout.rstrip(), f"exit status {again.returncode}"]  # fmt: skip
    return {"done": states.count("done"), "failed": states.count("failed"),
            "reason_told": int("count_capacity" in reason),
            "killed_was_retried": int(began["seed3"] > began["seed2"]), "retried": len(retried),
            "retried_is_bad": int(retried == ["bad1"]), "report": int((workdir / "sweep/scaling.html").exists()),
            "statuses": [status, again.returncode], "table": "\n".join(table).replace(f"{workdir}/", "")}  # fmt: skip


def standing(sweep: Path, workdir: Path) -> dict[str, dict]:
    """What --status says of each run."""
    told = workdir.parent / "status.json"
    done = launch(sweep, workdir, "--status", f"--json={told}")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {one["run"]: one for one in json.loads(told.read_text()) if one["run"] not in ("corpus", "scaling")}


def attempts(run: Path) -> Iterator[str]:
    """Those at training."""
    seen = set()
    for journal in run.glob("logs/train_*.jsonl"):
        for line in journal.read_text().splitlines():
            if (name := json.loads(line)["attempt"]) not in seen:
                seen.add(name)
                yield name


# --- Slurm


@contextlib.contextmanager
def slurm_of_one_node(folder: Path) -> Iterator[None]:
    """Raises RuntimeError where it cannot be installed or started."""
    script = ROOT / "tests" / "launch" / "start_slurm.sh"
    done = subprocess.run([script, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr.strip() or (folder / 'install.txt').read_text()[-300:]}")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = done.stdout.strip()
    try:
        yield
    finally:
        if queue():  # where it did not get on: nothing of it is to go on
            subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], capture_output=True, check=False)
            subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
            time.sleep(2)
        for name in ("slurmctld", "slurmd"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGKILL)
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


def queue(states: str = "") -> list[list[str]]:
    """Job, name, index in its array, state, reason: of each task that is not done."""
    words = ["squeue", "--noheader", "--array", "--format=%A|%j|%K|%T|%r", *([f"--states={states}"] if states else [])]
    told = subprocess.run(words, capture_output=True, text=True, check=True)
    return [line.split("|") for line in told.stdout.splitlines()]


def tell_by_usr1(job: str) -> None:
    """scancel sends it at once; while tasks of its array are pending it is answered as if it had not, and goes on."""
    process = subprocess.Popen(["scancel", "--signal=USR1", "--batch", job], stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2)
    process.kill()
    process.wait()


def slurm(workdir: Path, corpus: Path | None = None, steps: int = 100) -> dict:
    """Raises RuntimeError where there is no Slurm, or it does not get on."""
    sweep = write_sweep(workdir / "small.py", seeds=(1, 2, 3, 4), steps=steps, corpus=corpus)
    words = ("--at-once=2", "--processes=2", "--devices=1", "--jobs=simulate,train")
    here, there, runs = workdir / "local", workdir / "slurm", [f"seed{n}" for n in (1, 2, 3, 4)]
    done = launch(sweep, here, *words)
    if done.returncode:
        raise RuntimeError(f"local: {done.stdout}{done.stderr}")
    with slurm_of_one_node(workdir / "a_slurm"):
        done = launch(sweep, there, *words, "--backend=slurm")
        if done.returncode:
            raise RuntimeError(f"slurm: {done.stdout}{done.stderr}")
        wait_until(lambda: 0 < step_of(there / "seed1"), "seed1 trains in Slurm")
        job = next(job for job, name, index, *_ in queue() if "-train-" in name and index == "0")
        tell_by_usr1(job)
        wait_until(lambda: [job, "PENDING"] in [[one[0], one[3]] for one in queue()], "seed1 is queued again", 120)
        stopped_at = step_of(there / "seed1")
        told = launch(sweep, there, *words, "--backend=slurm", "--status").stdout
        again = launch(sweep, there, *words, "--backend=slurm").stdout
        wait_until(lambda: not queue(), "Slurm is done", 900)
        requeued = sum(job == one[0] for one in queue("all"))
    events = [json.loads(line)["event"] for line in (there / "seed1/events.jsonl").read_text().splitlines()]
    final = launch(sweep, there, "--status", "--jobs=train").stdout
    return {"different": same_bits(sweep, runs, here, there), "runs": len(runs), "stopped_at": stopped_at,
            "steps": steps,
            "in_the_middle": int(0 < stopped_at < steps), "resumed": int("resumed" in events), "requeued": requeued,
            "started_twice": int("nothing to submit" not in again),
            "table": f"told to end at step {stopped_at} of {steps}; --status then:\n{told}\nafter all:\n{final}"
            .replace(f"{workdir}/", ""),
            }  # fmt: skip


if __name__ == "__main__":
    which, place, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    place.mkdir(parents=True, exist_ok=True)
    result = {"local": local, "slurm": slurm}[which](place)
    print(result["table"])
    print({name: value for name, value in result.items() if name != "table"})
    out.write_text(json.dumps(result))

"""The runs of a sweep on this machine, one after the other; started again, what is missing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.sweep_file import Sweep, is_evaluated, is_trained
from tario_jax.config_files import expand

JOBS = ("simulate", "ingest", "train", "evaluate", "scaling")
_TARIO = (sys.executable, "-m", "tario_jax.cli")


def commands(sweep: Sweep, folder: Path) -> dict[str, list[list[str]]]:
    """By run, and last for the whole sweep: the commands that make it, in their order."""
    source, names = sweep.source, list(sweep.configs)
    corpus = expand(source.path) if source.kind == "corpus" else str(folder / "corpus")
    found = {}
    if source.kind != "corpus":
        found["corpus"] = [["simulate" if source.kind == "virtual" else "ingest",
                            f"--config={sweep.file}:{names[0]}", f"--out={corpus}"]]  # fmt: skip
    for name in names:
        workdir = folder / name
        found[name] = [
            ["train", f"--config={sweep.file}:{name}", f"--corpus={corpus}", f"--workdir={workdir}"],
            [
                "evaluate",
                f"--workdir={workdir}",
                f"--corpus={corpus}",
                f"--shared={folder / 'kept'}",
            ],
        ]
    found["scaling"] = [["scaling", str(folder), f"--out={folder}"]]
    return found


def run_here(sweep: Sweep, folder: Path, jobs: tuple[str, ...] = JOBS, say: Callable[[str], None] = print) -> int:
    """Makes the corpus, then each run, then the scaling report; of the commands only those of `jobs`.

    Returns the number of runs that failed; one that does leaves the others alone. What a command prints goes to
    logs/<run>.txt.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), []
    steps = commands(sweep, folder)
    for number, (name, several) in enumerate(steps.items(), 1):
        config = sweep.configs.get(name)
        for command in several:
            if command[0] not in jobs:
                continue
            if config is not None:
                done = is_trained if command[0] == "train" else is_evaluated
                if done(folder / name, config):
                    continue
            if name == "scaling" and failed:
                say(f"scaling: {len(failed)} runs are missing; it is drawn from the others")
            started = time.monotonic()
            status = _logged(command, folder / "logs" / f"{name}.txt")
            seconds, minutes = time.monotonic() - started, (time.monotonic() - began) / 60
            say(f"{number:>3}/{len(steps)}  {name:<28} {command[0]:<9} {_told(status)}  {seconds:6.0f} s, "
                f"{minutes:.0f} min in all")  # fmt: skip
            if status:
                failed.append(name)
                say(f"         {_last_line(folder / 'logs' / f'{name}.txt')}")
                break
        if name == "corpus" and failed:
            return 1
    return len(failed)


def _logged(command: list[str], log: Path) -> int:
    """Runs `tario` with its output appended to a file; Ctrl-C reaches it, and it ends as it does alone."""
    with log.open("a") as file:
        file.write(f"\n$ tario {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen([*_TARIO, *command], stdout=file, stderr=subprocess.STDOUT, env=dict(os.environ))
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _told(status: int) -> str:
    return "done" if status == 0 else f"failed ({status})"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""

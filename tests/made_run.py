"""Workdirs as a run leaves them, in every state, without training.

`python tests/made_run.py FOLDER [STATE]` makes one to look at with `tario status FOLDER`.
"""

import json
import math
import os
import random
import sys
import time
from pathlib import Path

from tario_jax.config import Config, OptimConfig, TrainConfig
from tario_jax.config_files import to_dict

NOW = 1_700_000_000.0  # the moment at which made runs are looked at
STATES = ("starting", "compiling", "training", "saving", "stopped", "finished", "hung", "failed")
_DOING = {"starting": "start", "compiling": "compile", "saving": "save"}


def made_run(
    folder: Path,
    state: str = "training",
    *,
    now: float = NOW,
    name: str = "made",
    steps: int = 400,
    done: int = 260,
    processes: int = 1,
    starts: int = 2,
    log_every: int = 5,
    validate_every: int = 50,
    step_seconds: float = 0.8,
    floor_nats: float = 5.2,
    learning_rate: float = 2e-3,
    skipped: int = 0,
    rollbacks: int = 0,
    mfu: float | None = 0.412,
    beat_ago_s: float = 0.7,
    seed: int = 0,
) -> Path:
    """Writes the workdir of a run that is in `state` at `now`; returns it.

    It has done `done` steps (all of them where it is finished; none where it is starting or compiling), in `starts`
    starts of equal length. Host node2, where there is one, waits longer for its data than the others.
    """
    done = {"finished": steps, "starting": 0, "compiling": 0}.get(state, done)
    starts = starts if done else 1
    (folder / "hosts").mkdir(parents=True)
    config = Config(name=name, optim=OptimConfig(learning_rate=learning_rate),
                    train=TrainConfig(steps=steps, log_every=log_every, validate_every=validate_every))  # fmt: skip
    _json(folder / "config.json", to_dict(config))
    began = now - done * step_seconds * 1.1 - 60 * starts
    lines = metrics(steps, done, starts, log_every, validate_every, step_seconds, floor_nats, learning_rate, skipped,
                    rollbacks, mfu, processes, seed)  # fmt: skip
    if done:
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for step in range(100, done + 1, 100):
        made_checkpoint(folder, step, unix=now - (done - step) * step_seconds)
    useful, wall = done * step_seconds, now - began
    lost = {"start": 9.0 * starts, "compile": 31.0 * starts, "save": 0.015 * done, "validate": 0.04 * done,
            "data": done * 0.003, "repeated": 40 * step_seconds * (starts > 1),
            "between starts": 20.0 * (starts - 1)}  # fmt: skip
    _json(folder / "goodput.json", {
        "starts": [{"began_unix": began + k * wall / starts, "last_unix": began + (k + 1) * wall / starts,
                    "first_step": k * done // starts, "last_step": (k + 1) * done // starts,
                    "seconds": {"step": useful / starts}, "repeated_seconds": 0.0} for k in range(starts)],
        "goodput": useful / wall, "lost": lost,
    })  # fmt: skip
    _events(folder, state, now, began, done, starts, step_seconds)
    if state == "finished":
        _json(folder / "done.json", {"step": steps, "unix": now - 2, "seconds": wall})
    doing = _DOING.get(state, "end" if state in ("finished", "stopped", "failed") else "step")
    stuck_s = 700.0 if state == "hung" else 0.5
    for process in range(processes):
        slow = 0.12 if process == 2 else 0.0
        _json(folder / "hosts" / f"{process}.json", {
            "process": process, "processes": processes, "host": f"node{process}", "pid": 4000 + process,
            "unix": now - beat_ago_s, "step": done, "steps": steps, "doing": doing, "since_unix": now - stuck_s,
            "step_seconds": step_seconds if done else None, "data_wait_seconds": 0.004 + slow if done else None,
            "host_seconds": 0.0011 if done else None, "probe_seconds": 0.0031 + process * 1e-6,
            "memory_gib": 3.2 + 0.1 * process,
        })  # fmt: skip
    return folder


def metrics(steps, done, starts, log_every, validate_every, step_seconds, floor_nats, learning_rate, skipped, rollbacks,
            mfu, processes, seed) -> list[dict]:  # fmt: skip
    """The lines of metrics.jsonl up to step `done`: a loss that falls to a floor, with noise."""
    noise, lines = random.Random(seed), []
    for step in range(1, done + 1):
        within = step - (step - 1) * starts // done * done // starts  # steps of its start
        loss = floor_nats + 1.6 * math.exp(-step / 45) + noise.gauss(0, 0.02)
        if step % log_every == 0 or step == steps:
            lines.append({
                "step": step, "loss_nats_per_detection": loss, "gene_nats": loss - 0.4, "total_nats": 0.4,
                "first_group_nats": loss + 0.1, "last_group_nats": None if step % 3 else loss - 0.2,
                "gradient_norm": 0.3 + 2 * math.exp(-step / 30), "learning_rate": learning_rate * min(1, step / 50),
                "detections": 41_000.0, "tokens_per_second": 21_400.0 + noise.gauss(0, 200),
                "step_seconds": step_seconds, "data_wait_seconds": 0.004, "host_seconds": 0.0011, "mfu": mfu,
                "goodput": 0.8, "memory_gib": 3.2, "host_memory_gib": 1.4, "skipped_steps": skipped,
                "rollbacks": rollbacks, "seconds": 40 + within * step_seconds * 1.05,
                "slowest_host": f"node{2 if processes > 2 else 0}", "slowest_host_seconds": step_seconds,
            })  # fmt: skip
        if step % validate_every == 0 or step == steps:
            lines.append(
                {"step": step, "validation_nats_per_detection": floor_nats + 0.05 + 1.6 * math.exp(-step / 45)}
            )
    return lines


def made_checkpoint(workdir: Path, step: int, *, unix: float = NOW, sealed: bool = True, size_bytes: int = 14_000_000):
    """A folder of Orbax's name with a file of that size (a hole: it takes no room), and the seal."""
    place = workdir / "checkpoints" / str(step)
    place.mkdir(parents=True)
    with (place / "array").open("wb") as file:
        file.truncate(size_bytes)
    if sealed:
        (place / "tario_seal.json").write_text("{}")
        os.utime(place / "tario_seal.json", (unix, unix))
    os.utime(place, (unix, unix))


def add_event(workdir: Path, event: str, text: str = "", *, step: int = 0, unix: float = NOW) -> None:
    with (workdir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"unix": unix, "step": step, "event": event, "text": text}) + "\n")


def _events(folder: Path, state: str, now: float, began: float, done: int, starts: int, step_seconds: float) -> None:
    add_event(folder, "started", "1 process, 1 device", unix=began)
    for start in range(1, starts):
        step = start * done // starts
        add_event(folder, "resumed", f"from checkpoint {step // 100 * 100}", step=step,
                  unix=began + start * (now - began) / starts)  # fmt: skip
    for step in range(100, done + 1, 100):
        add_event(folder, "saved", f"checkpoints/{step}", step=step, unix=now - (done - step) * step_seconds)
    if state == "stopped":
        add_event(folder, "stopping", "SIGTERM", step=done, unix=now - 9)
        add_event(folder, "stopped", "SIGTERM: saved step 260 in 1.9 s", step=done, unix=now - 7)
    if state == "failed":
        add_event(folder, "failed", "step 260: the loss is nan 20 times in a row", step=done, unix=now - 7)
    if state == "finished":
        add_event(folder, "finished", "", step=done, unix=now - 2)
    events = folder / "events.jsonl"
    events.write_text("".join(sorted(events.read_text().splitlines(True), key=lambda line: json.loads(line)["unix"])))


def _json(path: Path, value) -> None:
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    for wanted in sys.argv[2:] or ["training"]:
        place = Path(sys.argv[1]) / wanted
        made_run(place, wanted, now=time.time(), processes=4)
        print(place)

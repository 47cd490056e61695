"""What a run tells while it trains: metrics.jsonl, events.jsonl, and the line of progress. By the first process."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tario_jax.config import Config
from tario_jax.parallel.hosts import is_first
from tario_jax.tokens.batch import Layout
from tario_jax.train.clock import STEP, Clock
from tario_jax.train.run_files import VALIDATED, heartbeats
from tario_jax.train.state import StepMetrics
from tario_jax.whole_file import write_whole

_LOOK_EVERY_S, _LOOK_SHARE = 5.0, 50.0  # at the heartbeats of all hosts, and so many times as long as that takes
_SILENT_S = 60.0  # a heartbeat older than this says nothing of now
_GIB = 1 << 30


class JsonLines:
    """A file of one JSON object a line. A disk that is full loses lines, and no training; it is told once."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self._path, self._say, self._failed = path, say, False
        self._torn = _is_torn(path)  # the last line, which a full disk or a kill cut off

    def keep_until(self, step: int) -> None:
        """Drops lines of later steps, which are done again, and a torn last one."""
        kept = [line for line in self.read() if line["step"] <= step]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._torn = False

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        return list(filter(None, map(_object, self._path.read_bytes().splitlines())))

    def write(self, **values: Any) -> None:
        if not is_first():
            return
        plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in values.items()}  # fmt: skip
        try:
            with self._path.open("a") as file:
                file.write("\n" * self._torn + json.dumps(plain) + "\n")
            self._torn = False
        except OSError as error:
            self._torn = True
            if not self._failed:
                self._say(f"{self._path}: {error.strerror}; lines are lost until there is room")
            self._failed = True


def _is_torn(path: Path) -> bool:
    """Whether a file of lines ends within one."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def _object(line: bytes) -> dict[str, Any] | None:
    """None of a line that was cut off, or holds anything else."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None


class Rates:
    """Seconds a step since the last time they were asked for, by what the process did."""

    def __init__(self, clock: Clock, step: int):
        self._clock = clock
        self.last: dict[str, float] = {}
        self.begin(step)

    def begin(self, step: int) -> None:
        """What follows is counted from `step` on: the run starts there, or went back to it."""
        self._step, self._seconds = step, self._clock.seconds()

    def at(self, step: int) -> dict[str, float]:
        now, steps = self._clock.seconds(), max(step - self._step, 1)
        of_step = {
            doing: (now.get(doing, 0.0) - self._seconds.get(doing, 0.0)) / steps for doing in (*STEP, "data", "log")
        }
        self._step, self._seconds = step, now
        self.last = {
            "step_seconds": sum(of_step.values()) - of_step["data"],
            "data_wait_seconds": of_step["data"],
            "host_seconds": of_step["place"] + of_step["dispatch"] + of_step["log"],
        }
        return self.last


class Metrics:
    """Turns what steps say of themselves into lines."""

    def __init__(self, workdir: Path, config: Config, layout: Layout, clock: Clock, flops: float, first: int,
                 start: int, say: Callable[[str], None]):  # fmt: skip
        self._config, self._clock, self._say, self._flops = config, clock, say, flops
        self._unit = "nats/value" if config.train.learns == "he" else "nats/detection"
        self._tokens = config.data.rows * layout.tokens(contents=config.writes_contents)
        self._workdir = workdir
        self.rates = Rates(clock, first)
        self.lines = JsonLines(workdir / "metrics.jsonl", say)
        self._start, self._began = start, time.monotonic()
        self.peak_flops: float | None = None  # of all devices; MFU is told once it is known
        self._look_again_s = 0.0
        self._slowest: tuple[str | None, float | None] = None, None

    def is_due(self, step: int) -> bool:
        return step % self._config.train.log_every == 0 or step == self._config.train.steps

    def step(self, step: int, fetched: StepMetrics, learning_rate: float, goodput: float) -> dict[str, Any]:
        """Writes and says the line of a step; returns its values."""
        sums, health = fetched.sums, fetched.health
        detections = max(float(sums.detections), 1.0)
        rates = self.rates.at(step)
        cycle_s = max(rates["step_seconds"] + rates["data_wait_seconds"], 1e-9)
        host, host_seconds = self._slowest
        values = {
            "step": step,
            "loss_nats_per_detection": float(sums.total_nats + sums.gene_nats) / detections,
            "gene_nats": float(sums.gene_nats) / detections,
            "total_nats": float(sums.total_nats) / detections,
            "first_group_nats": _mean(sums.first_nats, sums.first_detections),
            "last_group_nats": _mean(sums.last_nats, sums.last_detections),
            **({"z_nats": float(sums.z_nats) / detections} if self._config.optim.z_loss else {}),
            "detections": float(sums.detections),
            "gradient_norm": float(fetched.gradient_norm),
            "learning_rate": learning_rate,
            "tokens_per_second": self._tokens / cycle_s,
            **rates,
            "mfu": self._flops / cycle_s / self.peak_flops if self.peak_flops else None,
            "goodput": goodput,
            "memory_gib": device_memory_gib(),
            "host_memory_gib": host_memory_gib(),
            "skipped_steps": int(health.skipped),
            "rollbacks": int(health.rollbacks),
            "slowest_host": host,
            "slowest_host_seconds": host_seconds,
            "start": self._start,
            "seconds": time.monotonic() - self._began,
        }
        self.lines.write(**values)
        eta = (self._config.train.steps - step) * cycle_s
        mfu = "" if values["mfu"] is None else f"  MFU {values['mfu']:.2f}"
        self._say(
            f"step {step:>6}/{self._config.train.steps}  loss {values['loss_nats_per_detection']:.4f} {self._unit}  "
            f"gradient {values['gradient_norm']:.2f}  {values['tokens_per_second']:,.0f} tokens/s{mfu}  "
            f"ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        )
        return values

    def validation(self, step: int, loss: float) -> None:
        self.lines.write(**{"step": step, VALIDATED: loss})
        self._say(f"step {step:>6}/{self._config.train.steps}  validation {loss:.4f} {self._unit}")

    def find_slowest(self) -> None:
        """Looks which process's own work (batches, and the loop's Python) takes longest a step, by the heartbeats.

        By the watch: there may be a thousand of them on a slow disk, and the loop does not wait for that.
        """
        if time.monotonic() < self._look_again_s:
            return
        found, began = [], time.monotonic()
        for beat in heartbeats(self._workdir):
            own = beat.host_seconds, beat.data_wait_seconds
            if time.time() - beat.unix < _SILENT_S and None not in own:
                found.append((sum(own), f"{beat.process} on {beat.host}"))
        self._look_again_s = time.monotonic() + max(_LOOK_EVERY_S, _LOOK_SHARE * (time.monotonic() - began))
        if found:
            seconds, name = max(found)
            self._slowest = name, seconds


def _mean(nats, detections) -> float | None:
    """Nats per detection; None where the batch has no bin of the kind."""
    return float(nats) / float(detections) if detections else None


def device_memory_gib() -> float | None:
    """The most that a device of this process has held; None where it does not tell, as a CPU."""
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices()
             if (stats := device.memory_stats()) and "peak_bytes_in_use" in stats]  # fmt: skip
    return max(peaks) / _GIB if peaks else None


def host_memory_gib() -> float | None:
    """Memory of this process; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / _GIB

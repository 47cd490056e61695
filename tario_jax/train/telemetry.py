"""What a run tells of itself while it trains, and to whom: one object that the loop talks to."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from tario_jax.config import Config, InputError
from tario_jax.parallel.hosts import is_first
from tario_jax.tokens.batch import Layout
from tario_jax.train.clock import Clock, Ledger
from tario_jax.train.in_flight import InFlight
from tario_jax.train.metrics import JsonLines, Metrics, device_memory_gib
from tario_jax.train.probe import DeviceProbe
from tario_jax.train.profile_request import ProfileRequest
from tario_jax.train.run_files import VALIDATED
from tario_jax.train.state import StepMetrics
from tario_jax.train.stop import Stop, Stopped
from tario_jax.train.trackers import trackers
from tario_jax.train.watch import Watch
from tario_jax.whole_file import write_whole

DONE = "done.json"
"""The marker of completion: whoever follows the run stops at it."""


class Telemetry:
    """metrics.jsonl, events.jsonl, goodput.json, hosts/, traces/, done.json; docs/telemetry.md tells what they hold.

    The first process writes them, but for its own heartbeat, which each process does.
    """

    def __init__(self, workdir: Path, config: Config, layout: Layout, clock: Clock, *, first: int, skipped: int,
                 flops: float, schedule: optax.Schedule, stop: Stop, say: Callable[[str], None]):  # fmt: skip
        self._workdir, self._config, self._say = workdir, config, say
        # by now: asked of the device while the run goes, a rate would wait for the step that was dispatched
        self._rates = np.asarray(jax.jit(jax.vmap(schedule))(np.arange(config.train.steps)))
        self.clock, self._step, self._skipped, self._probed = clock, first, skipped, None
        self._events = JsonLines(workdir / "events.jsonl", say)
        self._tracker = trackers(config.train.track if is_first() else (), workdir, config, first, say)
        self._ledger = Ledger(workdir / "goodput.json", first, clock)
        self._metrics = Metrics(workdir, config, layout, clock, flops, first, self._ledger.starts, say)
        self._request = ProfileRequest(workdir, lambda step, folder: self.event(
            "traced", step, f"{folder}", printed=f"profiler trace up to step {step}: {folder}"), say)  # fmt: skip
        self._in_flight = InFlight()
        clock.device_idle_since = self._in_flight.idle_since
        self._watch = Watch(
            workdir, clock, self._progress, hang_minutes=config.train.hang_minutes, grace_s=config.train.grace_s,
            signal_s=stop.listen, beat=self._beat, ending=lambda event, text: self.event(event, self._step, text),
        )  # fmt: skip

    def __enter__(self) -> "Telemetry":
        if is_first():
            (self._workdir / DONE).unlink(missing_ok=True)
            self._metrics.lines.keep_until(self._step)
            self._request.look()
        steps = self._config.train.steps
        if (lost := self._ledger.lost_at_last_stop()) is None:
            self.event("started", self._step, f"step {self._step} of {steps}")
        else:
            again, seconds, between_s = lost
            text = f"resumed at step {self._step} of {steps}"
            done_again = f"{again} steps are done again, {seconds:.1f} s of work; " if again else ""
            self.event("resumed", self._step, f"{done_again}{between_s:.1f} s since the run stopped", printed=text)
            self._say(f"the stop cost: {done_again}{between_s:.1f} s until this start")
        self._watch.__enter__()
        return self

    def __exit__(self, kind, error, _) -> None:
        self.enter("end")
        if isinstance(error, Stopped):
            self.event("stopped", self._step, str(error))
        elif error is not None:
            self.event("failed", self._step, " ".join(f"{kind.__name__}: {error}".split()))
        self._request.end(self._step)
        self._in_flight.end()
        self._watch.__exit__()
        self._tracker.close()
        if is_first():
            with contextlib.suppress(OSError):  # an account, not a state; what went wrong before is to be told
                self._ledger.write()

    def enter(self, doing: str) -> None:
        """What the process does from now on: see clock.py."""
        self.clock.enter(doing)

    def event(self, event: str, step: int, text: str, printed: str | None = None) -> None:
        """A line of events.jsonl; printed: what people read of it, if they do."""
        self._events.write(unix=time.time(), step=step, event=event, text=text)
        if printed is not None:
            self._say(printed)

    def of_checkpoint(self, event: str, step: int, text: str) -> None:
        """What the writer of checkpoints tells; a failure is printed too."""
        self.event(event, step, text, printed=text if event == "save_failed" else None)

    def before_step(self, step: int, metrics: StepMetrics | None) -> None:
        """To be called before step number `step` is dispatched; metrics: of the one before, if it was not looked at."""

        def drain() -> None:
            self.enter("trace")
            jax.block_until_ready(metrics)

        self._request.before_step(step, drain)

    def dispatched(self, metrics: StepMetrics) -> None:
        """A step was given to the device, and will have these metrics."""
        self._in_flight.begin(metrics.gradient_norm)

    def step(self, step: int, metrics: StepMetrics | None) -> StepMetrics | None:
        """Waits for the metrics of a step that was dispatched, and tells them where it is time to.

        Raises `InputError` where too many steps in a row were skipped.
        """
        if metrics is None:
            return None
        self.enter("wait")
        fetched = jax.device_get(metrics)
        self.enter("log")
        self._step = step
        self._ledger.note(step)
        self._refuse_skipping(step, fetched)
        if self._metrics.is_due(step):
            goodput = self._ledger.account()["goodput"]
            updates = step - int(fetched.health.skipped)  # a skipped step is none
            rate = float(self._rates[max(updates - 1, 0)])
            self._track(step, self._metrics.step(step, fetched, rate, goodput))
        return fetched

    def _refuse_skipping(self, step: int, fetched: StepMetrics) -> None:
        skipped, in_row = int(fetched.health.skipped), int(fetched.health.skipped_in_row)
        limit = self._config.train.skip_limit
        if skipped > self._skipped:
            text = (f"step {step}: loss or gradients are not finite; the step is skipped, "
                    f"{in_row} in a row ({limit} are allowed), {skipped} in all")  # fmt: skip
            self.event("skipped", step, text, printed=text)
        self._skipped = skipped
        if in_row > limit:
            raise InputError(
                f"step {step}: the loss is not finite for {limit + 1} steps in a row (train.skip_limit = {limit}); the "
                "run diverged: lower optim.learning_rate, raise optim.warmup_steps, or look for faults with "
                "'tario check'"
            )

    def _track(self, step: int, values: dict[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if name != "step" and not isinstance(value, str)}
        self._tracker.write(step, numbers)

    def probe(self, probe: DeviceProbe) -> None:
        """Times a product on each local device, while nothing else runs there."""
        self._probed = probe.seconds()
        if self._metrics.peak_flops is None:
            self._metrics.peak_flops = probe.peak_flops()

    def validation(self, step: int, loss: float | None) -> None:
        if loss is not None:
            self._metrics.validation(step, loss)
            self._track(step, {VALIDATED: loss})

    def lacks_validation(self, step: int) -> bool:
        """Whether no line tells of a validation at this step, as the first process reads them; the same on all."""
        is_told = is_first() and any(line["step"] == step and VALIDATED in line for line in self._metrics.lines.read())
        return not int(multihost_utils.broadcast_one_to_all(np.int32(is_told)))

    def saving(self, step: int) -> None:
        """A restart from here on does no step up to this one again."""
        self._ledger.saved(step)

    def rolled_back(self, step: int, spike: int, skipped: int, text: str) -> None:
        """The run went from the spike back to the checkpoint of `step`, before which `skipped` steps were."""
        self._skipped = skipped
        self._ledger.rolled_back(step)
        if is_first():
            self._metrics.lines.keep_until(step)
        self._metrics.rates.begin(step)
        self._step = step
        self.event("rolled_back", spike, text, printed=text)

    def finished(self, step: int) -> None:
        """Writes the marker of completion."""
        self._request.end(step)
        self.event("finished", step, f"step {step} is done and saved")
        if is_first():
            wall = self._ledger.account()["wall_seconds"]
            done = {"step": step, "unix": time.time(), "seconds": wall}
            write_whole(self._workdir / DONE, json.dumps(done))

    def _progress(self) -> dict[str, Any]:
        """Of the heartbeat."""
        none = dict.fromkeys(("step_seconds", "data_wait_seconds", "host_seconds"))
        return {"step": self._step, "steps": self._config.train.steps, "probe_seconds": self._probed,
                "memory_gib": device_memory_gib(), **none, **self._metrics.rates.last}  # fmt: skip

    def _beat(self) -> None:
        """By the watch, about once a second."""
        if is_first():
            self._ledger.write()
            self._request.look()
            self._metrics.find_slowest()

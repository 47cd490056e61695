"""What saving and the loop itself cost the 10M config on this machine: `measure_saving.py OUT.json`.

One run with rows of one window of 256 µm (the config's rows of 1,152 µm take a CPU a minute a step, beside which a
save is nothing), all genes, a checkpoint each 50 steps. What a save costs is what the loop waited for it, and how much
longer than the usual one the steps after it took, since they share the cores with whoever writes: beside the usual 50.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from tario_jax.cli.main import main as tario
from tario_jax.train import loop
from tario_jax.train.clock import STEP, Clock

EVERY, BESIDE, SAVES = 50, 10, 8  # the writing is over long before 10 steps
_SIMULATE = ("simulate", "--patients=6", "--validation=0", "--held-out=1", "--section-um=512", "--regions=core",
             "--workers=2")  # fmt: skip
_CONFIG = (
    "--config=configs/tario2_10m.py", f"--config.train.steps={EVERY * (SAVES + 1)}",
    f"--config.train.checkpoint_every={EVERY}", "--config.train.validate_every=100000",
    "--config.train.calibration_rows=4", "--config.data.tile_um=128", "--config.data.window_um=256",
    "--config.data.rows=1", "--config.data.prefetch=2", "--config.model.attention_block=128",
    "--config.train.keep_checkpoints=1",
)  # fmt: skip


class StepClock(Clock):
    """A clock that also keeps what each step took, by doing: one ends when its numbers are looked at."""

    steps: list[dict[str, float]] = []
    _step: dict[str, float] = {}

    def enter(self, doing: str) -> None:
        before, spent = self.doing, self.since_s()
        super().enter(doing)
        if before in (*STEP, "log"):
            self._step[before] = self._step.get(before, 0.0) + spent
        if before == "log":
            self.steps.append(dict(self._step))
            self._step.clear()


def main() -> None:
    loop.Clock = StepClock
    with tempfile.TemporaryDirectory() as folder:
        corpus, workdir = Path(folder) / "corpus", Path(folder) / "run"
        assert tario([*_SIMULATE, f"--out={corpus}"]) == 0
        assert tario(["train", f"--corpus={corpus}", f"--workdir={workdir}", *_CONFIG]) == 0
        (start,) = json.loads((workdir / "goodput.json").read_text())["starts"]
        size = sum(path.stat().st_size for path in (workdir / "checkpoints").rglob("*") if path.is_file())
    steps = StepClock.steps
    assert len(steps) == EVERY * (SAVES + 1)
    seconds = [sum(step.values()) for step in steps]
    host = [sum(step.values()) - step["wait"] for step in steps[EVERY:]]
    # of each interval: its first steps, beside the median of the others
    extra = []
    for first in range(EVERY, len(steps), EVERY):
        usual = statistics.median(seconds[first + BESIDE : first + EVERY])
        extra.append(sum(step - usual for step in seconds[first : first + BESIDE]))
    usual = statistics.median(seconds)
    waited = start["seconds"]["save"] / (SAVES + 1)
    result = {
        "checkpoint_mb": size / 1e6, "usual_step_seconds": usual, "waited_seconds_a_save": waited,
        "slower_seconds_a_save": statistics.median(extra),
        "share": (waited + statistics.median(extra)) / (EVERY * usual),
        "host_milliseconds": 1e3 * statistics.median(host),
        "doings_milliseconds": {name: 1e3 * spent / len(steps) for name, spent in start["seconds"].items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""What saving and the loop itself cost the 10M config on this machine: `measure_saving.py OUT.json`.

One run with rows of one window of 256 µm (the config's rows of 1,152 µm take a CPU a minute a step, beside which a
save is nothing), all genes, a checkpoint each 50 steps. What a save costs is what the loop waited for it, and how much
longer than the usual one the steps after it took, since they share the cores with whoever writes: beside the usual 50.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EVERY, SAVES = 50, 5
_SIMULATE = ("simulate", "--patients=6", "--validation=0", "--held-out=1", "--section-um=512", "--regions=core",
             "--workers=2")  # fmt: skip
_CONFIG = (
    "--config=configs/tario2_10m.py", f"--config.train.steps={EVERY * (SAVES + 1)}", "--config.train.log_every=1",
    f"--config.train.checkpoint_every={EVERY}", "--config.train.validate_every=100000",
    "--config.train.calibration_rows=4", "--config.data.tile_um=128", "--config.data.window_um=256",
    "--config.data.rows=1", "--config.data.prefetch=2", "--config.model.attention_block=128",
    "--config.train.keep_checkpoints=1",
)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, workdir = Path(folder) / "corpus", Path(folder) / "run"
        tario = [sys.executable, "-m", "tario_jax.cli"]
        subprocess.run([*tario, *_SIMULATE, f"--out={corpus}"], check=True)
        subprocess.run([*tario, "train", f"--corpus={corpus}", f"--workdir={workdir}", *_CONFIG], check=True,
                       env=os.environ | {"JAX_PLATFORMS": "cpu"})  # fmt: skip
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        (start,) = json.loads((workdir / "goodput.json").read_text())["starts"]
        size = sum(path.stat().st_size for path in (workdir / "checkpoints").rglob("*") if path.is_file())
    seconds = {line["step"]: line["step_seconds"] for line in lines if "step_seconds" in line}
    host = [line["host_seconds"] for line in lines if "host_seconds" in line and line["step"] > EVERY]
    saved = range(EVERY, EVERY * (SAVES + 1), EVERY)
    # of each interval: its first steps, beside the median of its second half, when the writing is long over
    extra = []
    for first in saved:
        usual = statistics.median(seconds[step] for step in range(first + EVERY // 2, first + EVERY + 1))
        extra.append(sum(seconds[step] - usual for step in range(first + 1, first + EVERY // 2)))
    usual = statistics.median(seconds.values())
    waited = start["seconds"]["save"] / (SAVES + 1)
    result = {
        "checkpoint_mb": size / 1e6, "usual_step_seconds": usual, "waited_seconds_a_save": waited,
        "slower_seconds_a_save": statistics.median(extra),
        "share": (waited + statistics.median(extra)) / (EVERY * usual),
        "host_milliseconds": 1e3 * statistics.median(host),
        "doings_milliseconds": {name: 1e3 * spent / (EVERY * (SAVES + 1)) for name, spent in start["seconds"].items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

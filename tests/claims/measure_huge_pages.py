"""The quickstart's step with and without huge pages asked for, by turns: `measure_huge_pages.py OUT.json [ROUNDS]`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tario_jax.cli.huge_pages import TUNABLE

COMMAND = (sys.executable, "-m", "tario_jax.cli", "bench", "step", "--config=configs/quickstart.py", "--rounds=3",
           "--leave-out=torch")  # fmt: skip


def step(asked: int, folder: Path) -> tuple[float, float]:
    """Seconds of a step, and the most GB that the process held."""
    found = folder / "step.json"
    environment = os.environ | {"GLIBC_TUNABLES": f"{TUNABLE}={asked}", "JAX_PLATFORMS": "cpu"}
    started = subprocess.Popen([*COMMAND, f"--json={found}"], stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(started.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(COMMAND)}: ended with {os.waitstatus_to_exitcode(status)}")
    return json.loads(found.read_text())["seconds_a_step"], usage.ru_maxrss / 1e6


def main() -> None:
    rounds, ratios, held = int(sys.argv[2]) if len(sys.argv) > 2 else 3, [], []
    lines = [f"{'round':<7}{'s a step: pages of 4 kB':>25}{'huge':>8}{'ratio':>8}{'most GB held':>15}{'huge':>8}"]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, rounds + 1):
            (small_s, small_gb), (huge_s, huge_gb) = (step(asked, Path(folder)) for asked in (0, 1))
            ratios.append(small_s / huge_s)
            held.append(huge_gb / small_gb)
            lines.append(f"{number:<7}{small_s:>25.3f}{huge_s:>8.3f}{ratios[-1]:>8.2f}"
                         f"{small_gb:>15.2f}{huge_gb:>8.2f}")  # fmt: skip
            print(lines[-1], flush=True)
    faster, memory = statistics.median(ratios), statistics.median(held)
    lines.append(f"median of {rounds}: {faster:.2f} times as fast, {memory:.2f} times the memory")
    print(lines[-1])
    Path(sys.argv[1]).write_text(json.dumps({"faster": faster, "memory": memory, "table": "\n".join(lines)}))


if __name__ == "__main__":
    main()

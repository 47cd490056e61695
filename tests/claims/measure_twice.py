"""The quickstart's training, 500 steps, twice on one corpus: `measure_twice.py OUT.json`. Which bits differ?"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from runs_beside import states_beside

STEPS = 500


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus, workdirs = Path(folder) / "first" / "corpus", [Path(folder) / name for name in ("first", "second")]
        for workdir in workdirs:
            command = [sys.executable, "-m", "tario_jax.cli", "train", "--config=configs/quickstart.py",
                       f"--workdir={workdir}", f"--config.train.steps={STEPS}"]  # fmt: skip
            if workdir != workdirs[0]:  # the first run simulates it
                command.append(f"--corpus={corpus}")
            subprocess.run(command, check=True)
        result = states_beside(*workdirs, corpus, STEPS)
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

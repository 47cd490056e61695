"""Patient 17 alone, among 93 and among 2,758, with one worker and with two: `measure_virtual_bits.py OUT.json`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tario_jax.config import SourceConfig
from tario_jax.virtual.cohort import simulate_cohort

PATIENT, NUMBER = "vt00017", 17
LARGE = dict(train_patients=2545, validation_patients=0, held_out_patients=213)
SMALL = dict(train_patients=93, validation_patients=0, held_out_patients=1, regions=("core",), section_um=512.0)


def contents(root: Path) -> dict[str, str]:
    """Checksums of all that the patient's sections hold, by section."""
    return {
        path.parent.name: json.loads(path.read_text())["content"]
        for path in sorted(root.glob(f"sections/{PATIENT}_*/seal.json"))
    }


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in ("alone", "among_2758", "one_worker", "two_workers", "again")}
        parts = {"alone": (SMALL, (NUMBER + 1, 94)), "among_2758": (LARGE, (NUMBER + 1, 2758))}
        for name, (config, part) in parts.items():
            simulate_cohort(SourceConfig(**config, workers=1), places[name], print, part)
        for name, workers in (("one_worker", 1), ("two_workers", 2)):
            simulate_cohort(SourceConfig(**SMALL, workers=workers), places[name], print)
        # killed half-way, and run again
        words = [str(Path(sys.executable).parent / "tario"), "simulate", f"--out={places['again']}", "--patients=93",
                 "--validation=0", "--held-out=1", "--regions=core"]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            while len(list(places["again"].glob("sections/*/seal.json"))) < 40:
                assert process.poll() is None, "the simulation ended before it could be killed"
            process.kill()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found = {name: contents(place) for name, place in places.items()}
        seals = {name: json.loads((places[name] / "corpus.json").read_text())["seal"]
                 for name in ("one_worker", "two_workers", "again")}  # fmt: skip
    core = {name: sections[f"{PATIENT}_core"] for name, sections in found.items()}
    result = {
        "different_sections": len(set(core.values())) - 1,
        "different_corpora": len(set(seals.values())) - 1,
        "checksums": core,
        "seals": seals,
    }
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

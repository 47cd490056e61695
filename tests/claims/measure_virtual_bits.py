"""Patient 17 alone, among 94 and among 2,758, with one worker and with two: `measure_virtual_bits.py OUT.json`.

Sections of 256 µm, the curated panel; alone and among 2,758 also at the default size with all genes. All files of the
patient's sections are compared, the stored truth included.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tario_jax.config import SourceConfig
from tario_jax.virtual.cohort import simulate_cohort

PATIENT, NUMBER = "vt00017", 17
SIZES = {"section_um": 256.0, "panel": "curated", "validation_patients": 0}
SMALL = SIZES | {"train_patients": 93, "held_out_patients": 1}
LARGE = SIZES | {"train_patients": 2545, "held_out_patients": 213}
WHOLE = {"train_patients": 2545, "validation_patients": 0, "held_out_patients": 213}
EVERY, SOME = 60, 240  # of the large cohort, with neighbours on both workers


def checksums(root: Path) -> str:
    """Checksums of every file of the patient's sections, as one text."""
    seals = {path.parent.name: json.loads(path.read_text())["files"]
             for path in sorted(root.glob(f"sections/{PATIENT}_*/seal.json"))}  # fmt: skip
    assert len(seals) == 2 and all("truth.npz" in found for found in seals.values())
    return json.dumps(seals, sort_keys=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "alone": (SMALL, 1, (NUMBER + 1, 94)), "one_worker": (SMALL, 1, (1, 1)), "two_workers": (SMALL, 2, (1, 1)),
            "among_2758": (LARGE, 2, (NUMBER % EVERY + 1, EVERY)),
            "whole_alone": (WHOLE, 1, (NUMBER + 1, 2758)), "whole_among": (WHOLE, 2, (NUMBER % SOME + 1, SOME)),
        }  # fmt: skip
        places = {name: Path(folder) / name for name in (*runs, "again")}
        for name, (config, workers, part) in runs.items():
            simulate_cohort(SourceConfig(**config, workers=workers), places[name], print, part)
        # killed half-way, and run again
        words = [str(Path(sys.executable).parent / "tario"), "simulate", f"--out={places['again']}", "--patients=93",
                 "--validation=0", "--held-out=1", "--section-um=256", "--panel=curated"]  # fmt: skip
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            while len(list(places["again"].glob("sections/*/seal.json"))) < 90:
                assert process.poll() is None, "the simulation ended before it could be killed"
            process.kill()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        found = {name: checksums(place) for name, place in places.items()}
        seals = {name: json.loads((places[name] / "corpus.json").read_text())["seal"]
                 for name in ("one_worker", "two_workers", "again")}  # fmt: skip
    result = {
        "different_sections": len({files for name, files in found.items() if "whole" not in name}) - 1,
        "different_whole_sections": len({found["whole_alone"], found["whole_among"]}) - 1,
        "different_corpora": len(set(seals.values())) - 1,
        "seals": seals,
    }
    print(json.dumps(result, indent=1))
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

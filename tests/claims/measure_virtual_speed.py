"""What a virtual section of 512 µm with all genes costs on one core: `OMP_NUM_THREADS=1 … OUT.json`."""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tario_jax.corpus.write import begin_corpus, write_section
from tario_jax.virtual import Settings, simulate_section, virtual_panel

COHORT_SECTIONS = 2 * (2545 + 213)
CORES = 16
EACH = 12


def main() -> None:
    settings = Settings()
    simulate_section(0, "core", settings)  # imports, tables
    early, late = range(1, 1 + EACH), range(2545 - EACH, 2545)
    seconds: dict[str, list[float]] = {"early": [], "late": [], "write": []}
    detections, cells = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        begin_corpus(root, virtual_panel(), "virtual", {"measured": "speed"})
        for pair in zip(early, late, strict=True):  # in turns, so that both see the same machine
            for when, number in zip(("early", "late"), pair, strict=True):
                began = time.process_time()
                section = simulate_section(number, ("core", "border")[number % 2], settings)
                seconds[when].append(time.process_time() - began)
                began = time.process_time()
                write_section(root, virtual_panel(), "virtual", section)
                seconds["write"].append(time.process_time() - began)
                detections.append(len(section.detections))
                cells.append(section.quality["cells"])
    simulate = statistics.mean(seconds["early"] + seconds["late"])
    whole = simulate + statistics.mean(seconds["write"])
    result = {
        "seconds_a_section": simulate,
        "seconds_a_section_written": whole,
        "sections_a_core_hour": 3600 / whole,
        "late_over_early": statistics.median(seconds["late"]) / statistics.median(seconds["early"]),
        "cohort_minutes_on_16_cores": COHORT_SECTIONS * whole / CORES / 60,
        "detections_a_section": statistics.mean(detections),
        "detections_a_cell": sum(detections) / sum(cells),
    }
    for name, value in result.items():
        print(f"{name:<30} {value:,.2f}")
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

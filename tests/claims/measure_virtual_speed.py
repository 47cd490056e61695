"""What a virtual section of 512 µm with all genes costs on one core: `OMP_NUM_THREADS=1 … OUT.json`."""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tario_jax.config import SourceConfig
from tario_jax.corpus.write import begin_corpus, write_section
from tario_jax.virtual import Settings, simulate_section, virtual_panel
from tario_jax.virtual.cohort import simulate_cohort

COHORT_SECTIONS = 2 * (2545 + 213)
CORES = 16
SECTIONS, TURNS = 24, 6


def main() -> None:
    settings = Settings()
    simulate_section(0, "core", settings)  # imports, tables
    simulated, written, detections, cells = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        begin_corpus(root, virtual_panel(), "virtual", {"measured": "speed"})
        for number in range(1, 1 + SECTIONS):
            began = time.process_time()
            section = simulate_section(number, ("core", "border")[number % 2], settings)
            simulated.append(time.process_time() - began)
            began = time.process_time()
            write_section(root, virtual_panel(), "virtual", section)
            written.append(time.process_time() - began)
            detections.append(len(section.detections))
            cells.append(section.quality["cells"])
        # the same patient as a part of a small and of a large cohort, in turns, so that both see the same machine
        of_cohort: dict[int, list[float]] = {94: [], 2758: []}
        for turn in range(TURNS):
            for size, spent in of_cohort.items():
                config = SourceConfig(train_patients=size - 1, validation_patients=0, held_out_patients=1, workers=1)
                began = time.process_time()
                simulate_cohort(config, Path(folder) / f"{size}_{turn}", lambda line: None, (2 + turn, size))
                spent.append(time.process_time() - began)
    simulate = statistics.mean(simulated)
    whole = simulate + statistics.mean(written)
    result = {
        "seconds_a_section": simulate,
        "seconds_a_section_written": whole,
        "sections_a_core_hour": 3600 / whole,
        "large_over_small": sum(of_cohort[2758]) / sum(of_cohort[94]),
        "cohort_minutes_on_16_cores": COHORT_SECTIONS * whole / CORES / 60,
        "detections_a_section": statistics.mean(detections),
        "detections_a_cell": sum(detections) / sum(cells),
    }
    for name, value in result.items():
        print(f"{name:<30} {value:,.2f}")
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""How many nuclei of virtual patients are found in their H&E, and what is found that is none: `… OUT.json`.

24 patients of all cancer types by turns, core regions of 512 µm. A nucleus is found where one lies within 4 µm of it,
one to one. The table tells looks apart: what shows as a thin line or a ghost is missed more often.
"""

import json
import sys

import numpy as np

from tario_jax.evaluate.finer.nucleus_match import NEAR_UM, NucleusScore, match_places
from tario_jax.predict.nuclei import find_nuclei
from tario_jax.predict.tissue import ImageSection
from tario_jax.virtual import Settings, simulate_section
from tario_jax.virtual.cell_truth import he_shift_um, stored_cells
from tario_jax.virtual.kinds import LOOKS

PATIENTS = 24


def main() -> None:
    scores, ratio = [], []
    by_look = np.zeros((2, len(LOOKS) + 1), int)  # true and found; the last: necrotic, of any look
    for number in range(PATIENTS):
        data = simulate_section(number, "core", Settings(panel="curated"))
        cells = stored_cells(data.truth)
        places = np.stack([cells.x_um_N, cells.y_um_N], 1) + he_shift_um(data.truth)
        nuclei = find_nuclei(ImageSection(data.he, data.he_um_per_px, genes=1, name=data.section_id))
        mine = match_places(nuclei.centre_um_Nx2, places)
        scores.append(NucleusScore.of(mine, len(cells)))
        kind = np.where(cells.necrotic_N, len(LOOKS), cells.look_N)
        by_look += [np.bincount(some, minlength=len(LOOKS) + 1) for some in (kind, kind[mine[mine >= 0]])]
        true_um2_N = np.pi * cells.nucleus_um_Nx2.prod(1)
        ratio.append(float(np.median(nuclei.area_um2_N[mine >= 0] / true_um2_N[mine[mine >= 0]])))
        print(f"nuclei: {number + 1}/{PATIENTS} patients", flush=True)
    result = {name: float(np.mean([getattr(score, name) for score in scores]))
              for name in ("recall", "precision", "count_error")}  # fmt: skip
    result |= {
        "lowest_recall": min(score.recall for score in scores), "near_um": NEAR_UM, "patients": PATIENTS,
        "lowest_precision": min(score.precision for score in scores), "area_ratio": float(np.mean(ratio)),
        "largest_count_error": max(abs(score.count_error) for score in scores),
    }  # fmt: skip
    lines = [f"{name:<22}{value:>9.3f}" for name, value in result.items()]
    lines += ["", f"{'look':<14}{'drawn':>8}{'found':>8}{'share':>8}"]
    for name, true, found in zip((*LOOKS, "necrotic"), *by_look, strict=True):
        lines.append(f"{name:<14}{true:>8,}{found:>8,}{found / max(true, 1):>8.2f}")
    result["table"] = "\n".join(lines)
    print(result["table"])
    with open(sys.argv[1], "w") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()

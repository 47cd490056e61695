"""Are detections conserved? Vendor's rows = kept + dropped; bins of 35, 18 and 9 µm hold all of them:
`measure_corpus_totals.py CORPUS INGEST.json OUT.json`.

The bins are those of windows that tile the section whole, in steps of 630 µm, the least side that all three divide.
"""

import dataclasses
import json
import sys
from pathlib import Path

from tario_jax.config import DataConfig
from tario_jax.corpus.read import Corpus
from tario_jax.tokens.window import begin_bins

BIN_UM, SIDE_UM = (35.0, 18.0, 9.0), 630.0


def main() -> None:
    corpus = Corpus.open(sys.argv[1])
    tallies = json.loads(Path(sys.argv[2]).read_text())["report"]["tallies"]
    lost = sum(abs(tally["read"] - tally["kept"] - sum(tally["dropped"].values())) for tally in tallies)
    kept = sum(tally["kept"] for tally in tallies if tally["what"] == "detections")
    data = DataConfig(window_um=SIDE_UM, tile_um=SIDE_UM, patch_px=18, he_um_per_px=1.0, min_measured=0.01)
    totals = {bin_um: sum(_binned(section, dataclasses.replace(data, bin_um=bin_um)) for section in corpus.sections)
              for bin_um in BIN_UM}  # fmt: skip
    result = {"lost": lost, "kept": kept, "binned": {f"{bin_um:g}": total for bin_um, total in totals.items()},
              "difference": lost + sum(abs(total - kept) for total in totals.values())}  # fmt: skip
    print(json.dumps(result))
    Path(sys.argv[3]).write_text(json.dumps(result))


def _binned(section, data: DataConfig) -> int:
    total, y_um = 0, 0.0
    # one step beyond: the last place of a section may be read a thousandth of a µm beyond its edge
    while y_um <= section.height_um:
        x_um = 0.0
        while x_um <= section.width_um:
            total += int(begin_bins(section, x_um, y_um, data)().count_E.sum())
            x_um += SIDE_UM
        y_um += SIDE_UM
    return total


if __name__ == "__main__":
    main()

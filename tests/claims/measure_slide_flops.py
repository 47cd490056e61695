"""An estimate: GPU minutes that the 200M model takes for a slide of 15 × 15 mm, by counted FLOPs: … OUT.json.

A pass forward costs a third of a step of one-shot training (tario_jax/model/flops.py); all of the slide is tissue.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.tario2_200m import get_config  # noqa: E402
from tario_jax.model.flops import step_flops  # noqa: E402
from tario_jax.parallel.chips import chip_of_device  # noqa: E402
from tario_jax.predict.cover import BinPlaces  # noqa: E402
from tario_jax.tokens.batch import make_layout  # noqa: E402
from tario_jax.virtual.genes import virtual_panel  # noqa: E402

SIDE_UM, SHARE, H100 = 15_000.0, 0.3, "NVIDIA H100 80GB HBM3"


class Slide(NamedTuple):
    width_um: float = SIDE_UM
    height_um: float = SIDE_UM
    id: str = "slide"


def main() -> None:
    peak, genes = chip_of_device(H100).rates.matmul_flops, len(virtual_panel())
    result, lines = {}, []
    for bin_um in (36.0, 18.0):
        config = get_config()
        data = config.data.of_one_scale(bin_um=bin_um, bin_mixture=(), windows_per_row=1, sequence="window",
                                        groups=((1, 1.0),), rows=1)  # fmt: skip
        config = dataclasses.replace(config, data=data)
        places = BinPlaces(Slide(), data)
        layout = make_layout(data, genes, bins_per_tile=places.per_tile, largest_bin_um=bin_um, count_capacity=1)
        windows = len(places.corners(config.evaluate.overlap))
        flops = step_flops(config, layout).total / 3
        minutes = windows * flops / peak / SHARE / 60
        result[f"minutes_{bin_um:.0f}um"] = minutes
        lines.append(f"{bin_um:g} µm: {len(places.x_um_N):,} bins in {windows:,} windows of {data.window_um:g} µm, "
                     f"overlap {config.evaluate.overlap:g}, {flops:.2e} FLOPs each; one H100 at {SHARE:.0%} of its "
                     f"{peak / 1e12:.0f} TFLOP/s: {minutes:.1f} GPU minutes (an estimate)")  # fmt: skip
    result["table"] = "\n".join(lines)
    print(result["table"])
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

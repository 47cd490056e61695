"""What a mm² costs in windows of 256 to 2,048 µm: `measure_context_cost.py OUT.json`.

Forward and backward of the decoder alone (encoders and gene head cost the same of every mm²), at 4.2 mm² a step: 64
windows of 256 µm, or one of 2,048. Once with local layers only, once with three local ones to a global one, once with
global ones only. Medians; the windows take turns, so that a slow moment of the machine meets all of them.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tario_jax.bench.made_batch import made_batch
from tario_jax.config import Config, DataConfig, ModelConfig
from tario_jax.model.build import build
from tario_jax.model.model import visibilities
from tario_jax.ops.attention.tiles import Tiles
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.batch import make_layout, square_bins_per_tile

WINDOWS_UM, STEP_MM2, GENES, ROUNDS = (256.0, 512.0, 1024.0, 2048.0), 2.048**2, 64, 3
PATTERNS = {"local": ("local",) * 4, "three local, one global": ("local",) * 3 + ("global",), "global": ("global",) * 4}


def main() -> None:
    programs = {(name, window_um): program(pattern, window_um) for name, pattern in PATTERNS.items()
                for window_um in WINDOWS_UM}  # fmt: skip
    seconds: dict[tuple[str, float], list[float]] = {key: [] for key in programs}
    for _ in range(ROUNDS):
        for key, step in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(step())
            seconds[key].append(time.perf_counter() - began)
    per_mm2 = {name: [statistics.median(seconds[name, window_um]) / STEP_MM2 for window_um in WINDOWS_UM]
               for name in PATTERNS}  # fmt: skip
    growth = {name: values[-1] / values[0] for name, values in per_mm2.items()}
    lines = [f"{'seconds a mm²':<26}" + "".join(f"{f'{window_um:g} µm':>10}" for window_um in WINDOWS_UM)
             + f"{'growth':>10}"]  # fmt: skip
    lines += [f"{name:<26}" + "".join(f"{value:>10.3f}" for value in values) + f"{growth[name]:>9.2f}×"
              for name, values in per_mm2.items()]  # fmt: skip
    table = "\n".join(lines)
    print(table)
    Path(sys.argv[1]).write_text(json.dumps({"seconds_per_mm2": per_mm2, "growth": growth, "table": table}))


def program(pattern: tuple[str, ...], window_um: float):
    """A compiled forward and backward pass over tokens that are random, at places of real windows."""
    rows = round((2048 / window_um) ** 2)
    data = DataConfig(window_um=window_um, tile_um=128.0, bin_um=32.0, he_um_per_px=0.5, patch_px=32, rows=rows,
                      groups=((4, 1.0),))  # fmt: skip
    model = ModelConfig(width=128, layers=4, heads=4, kv_heads=4, head_dim=32, mlp_width=320, gene_dim=16,
                        stem_width=8, pattern=pattern)  # fmt: skip
    config = Config(data=data, model=model)
    layout = make_layout(data, GENES, bins_per_tile=square_bins_per_tile(data), largest_bin_um=32.0, count_capacity=64)
    batch = made_batch(config, layout, GENES, seed=0)
    built = build(model, GENES, data.patch_px, content=True)
    parameters, calibration = built.initialise(0, make_mesh(config.mesh))
    B, T, P, _ = batch.patch_xy_um_BxTxPx2.shape
    N = batch.bin_step_BxTxN.shape[2]
    seen_xy = np.concatenate(
        [batch.patch_xy_um_BxTxPx2.reshape(B, -1, 2), batch.bin_xy_um_BxTxNx2.reshape(B, -1, 2)], 1
    )
    bin_xy = batch.bin_xy_um_BxTxNx2.reshape(B, -1, 2)
    # without the pixels, which no part of the decoder reads
    placed = jax.device_put(batch._replace(he_BxTxPxYxXx3=np.zeros((B, T, P, 1, 1, 3), np.uint8)))

    def energy(decoder_parameters, seen, queries, placed):
        decoder = built.merge(parameters | {"decoder": decoder_parameters}, calibration).decoder
        visibility = {kind: visibilities(placed, True, local=kind == "local") for kind in dict.fromkeys(pattern)}
        out = decoder(
            seen, queries, jnp.asarray(seen_xy), jnp.asarray(bin_xy), visibility, Tiles.of(P, N, content=True)
        )
        return sum(jnp.sum(part**2) for part in out)

    keys = jax.random.split(jax.random.key(0))
    seen = jax.random.normal(keys[0], (B, T * (P + N), model.width))
    queries = jax.random.normal(keys[1], (B, T * N, model.width))
    compiled = jax.jit(jax.grad(energy, (0, 1, 2))).lower(parameters["decoder"], seen, queries, placed).compile()
    jax.block_until_ready(compiled(parameters["decoder"], seen, queries, placed))
    return lambda: compiled(parameters["decoder"], seen, queries, placed)


if __name__ == "__main__":
    main()

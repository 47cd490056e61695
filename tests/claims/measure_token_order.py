"""What a ring of 8 computes with the tokens of a rank in two orders, counted: run with OUT.json.

By modality: the H&E of all its tiles, then their contents, then their queries, as in the model. Tile by tile: each
tile's H&E and contents side by side, and the queries behind.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tario_jax.bench.sequences import Sequence, make_sequence, ring_balance
from tario_jax.ops.visibility import KeyVisibility, QueryVisibility

_RANKS, _TOKENS, _BLOCKS = 8, 65536, (64, 128, 256)
_OF_TILE = 256, 64  # patches, bins


def main() -> None:
    computed = {}
    for kind, layer in (("tario", "global"), ("tario_local", "local")):
        by_modality = make_sequence(kind, _TOKENS, _RANKS, 256)
        for order, sequence in (("tile by tile", _by_tile(by_modality)), ("by modality", by_modality)):
            computed[f"{layer}, {order}"] = {
                str(block): ring_balance(sequence, _RANKS, block).computed for block in _BLOCKS
            }
    lines = [f"pairs computed over pairs allowed, a window of {_TOKENS:,} seen tokens on a ring of {_RANKS}, by block",
             f"{'layers, order':<24}" + "".join(f"{block:>8}" for block in _BLOCKS)]  # fmt: skip
    lines += [f"{name:<24}" + "".join(f"{share:>8.2f}" for share in row.values()) for name, row in computed.items()]
    gain = computed["global, by modality"]["128"] / computed["global, tile by tile"]["128"]
    Path(sys.argv[1]).write_text(json.dumps({"computed": computed, "gain": gain, "table": "\n".join(lines)}))


def _by_tile(sequence: Sequence) -> Sequence:
    """The same tokens, each rank's seen ones tile by tile."""
    seen = sequence.keys.segment_BxS.shape[1] // _RANKS
    patches, bins = _OF_TILE
    tiles = seen // (patches + bins)
    he, contents = np.arange(tiles * patches).reshape(tiles, patches), np.arange(tiles * bins).reshape(tiles, bins)
    order_S = np.concatenate([he, tiles * patches + contents], 1).ravel()

    def reordered(field_1xA: np.ndarray) -> np.ndarray:
        field_RxA = field_1xA.reshape(_RANKS, -1).copy()
        field_RxA[:, :seen] = field_RxA[:, order_S]
        return field_RxA.reshape(1, -1)

    return Sequence(QueryVisibility(*map(reordered, sequence.queries)), KeyVisibility(*map(reordered, sequence.keys)))


if __name__ == "__main__":
    main()

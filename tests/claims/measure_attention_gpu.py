"""The GPU kernel beside cudnn without a mask, at four sizes, and under this project's masks: run with OUT.json."""

import json
import sys
from pathlib import Path

from tario_jax.bench.attention import Shape, bench_attention

_HEADS = 16
_LEFT_OUT = ("blockwise", "dense XLA", "jax.nn XLA")  # minutes each at these sizes
_CASES = [("full", tokens, width) for tokens in (8192, 32768) for width in (64, 128)]
_CASES += [("causal", 32768, 64), ("causal", 8192, 128), ("tario", 32768, 64), ("tario", 32768, 128)]


def main() -> None:
    beside, tables = {}, []
    for mask, tokens, width in _CASES:
        told = bench_attention(Shape(tokens, _HEADS, _HEADS, width, "bfloat16", 256), mask, 1, 7, _LEFT_OUT)
        tables.append(told["table"])
        if mask == "full":
            beside[f"{tokens} tokens of width {width}"] = {
                part: 1 / seconds for part, seconds in told["beside"]["jax.nn cudnn"].items()
            }
    # figures are speeds: of the kernel's, over cudnn's
    least = {part: min(at[part] for at in beside.values()) for part in ("forward", "backward")}
    table = "\n\n".join(tables)
    Path(sys.argv[1]).write_text(json.dumps({"speed_beside_cudnn": beside, "least": least, "table": table}, indent=1))


if __name__ == "__main__":
    main()

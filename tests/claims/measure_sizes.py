"""Trunk of each `configs/tario2_*.py` against its name, from abstract parameters: `measure_sizes.py OUT.json`."""

import json
import sys
from pathlib import Path

from tario_jax.config_files import load_config
from tario_jax.model.build import model_sizes

NAMED = {"10m": 10e6, "50m": 50e6, "200m": 200e6, "1b": 1e9, "4b": 4e9}
GENES = 18963  # the article's panel


def main() -> None:
    sizes = {}
    for name, parameters in NAMED.items():
        found = model_sizes(load_config(f"configs/tario2_{name}.py"), GENES)
        sizes[name] = {"trunk": found.trunk, "gene_tables": found.gene_tables, "off": abs(found.trunk / parameters - 1)}
        print(f"tario2_{name}: {found}")
    result = {"sizes": sizes, "worst": max(size["off"] for size in sizes.values())}
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

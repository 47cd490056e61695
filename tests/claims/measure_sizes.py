"""Sizes of the configs' models, from abstract parameters: `measure_sizes.py OUT.json`.

The trunk of each `configs/tario2_*.py` stands against its name; gene tables are told apart, since they grow with the
panel: the article's 18,963 genes, but for the quickstart's.
"""

import json
import sys
from pathlib import Path

from tario_jax.config_files import load_config
from tario_jax.model.build import model_sizes
from tario_jax.tokens.batch import make_layout, square_bins_per_tile

NAMED = {"10m": 10e6, "50m": 50e6, "200m": 200e6, "1b": 1e9, "4b": 4e9}
SMALL = {"quickstart": 1024, "virtual_1h": 18963}  # genes
GENES = 18963  # the article's panel


def main() -> None:
    head = (f"{'config':<12}{'trunk':>10}{'gene tables':>13}{'genes':>8}{'width':>7}{'layers':>8}{'local':>7}"
            f"{'window':>10}{'bins':>7}{'tokens':>9}")  # fmt: skip
    sizes, lines = {}, [head]
    for name, genes in {**SMALL, **{f"tario2_{name}": GENES for name in NAMED}}.items():
        config = load_config(f"configs/{name}.py")
        found, model, data = model_sizes(config, genes), config.model, config.data
        layout = make_layout(data, genes, bins_per_tile=square_bins_per_tile(data), count_capacity=1,
                             largest_bin_um=data.largest_bin_um)  # fmt: skip
        tokens = layout.tiles_per_window * (layout.patches_per_tile + 2 * layout.bins_per_tile)
        local = model.layers * model.pattern.count("local") // len(model.pattern)
        lines.append(f"{name:<12}{found.trunk / 1e6:>9,.2f}M{found.gene_tables / 1e6:>12,.2f}M{genes:>8,}"
                     f"{model.width:>7,}{model.layers:>8}{local:>7}{data.window_um:>7,.0f} µm{data.bin_um:>4.0f} µm"
                     f"{tokens:>9,}")  # fmt: skip
        if size := NAMED.get(name.removeprefix("tario2_")):
            off = abs(found.trunk / size - 1)
            sizes[name] = {"trunk": found.trunk, "gene_tables": found.gene_tables, "off": off}
    table = "\n".join(lines)
    print(table)
    result = {"sizes": sizes, "worst": max(size["off"] for size in sizes.values()), "table": table}
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""Each config is of the size that its name says."""

from pathlib import Path

import pytest

from tario_jax.config_files import load_config
from tario_jax.model.build import model_sizes

GENES = 18963
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "parameters"), [("10m", 10e6), ("50m", 50e6), ("200m", 200e6), ("1b", 1e9), ("4b", 4e9)]
)
def test_trunk_is_within_five_percent_of_its_name(name, parameters):
    sizes = model_sizes(load_config(str(CONFIGS / f"tario2_{name}.py")), GENES)
    assert abs(sizes.trunk / parameters - 1) <= 0.05
    assert f"{sizes.gene_tables / 1e6:,.2f}M" in str(sizes)  # printed apart


def test_gene_tables_alone_grow_with_the_panel():
    config = load_config(str(CONFIGS / "tario2_10m.py"))
    small, large = model_sizes(config, 1000), model_sizes(config, GENES)
    assert small.trunk == large.trunk
    assert large.gene_tables == 19 * small.gene_tables  # 1,024 and 19 x 1,024 padded genes

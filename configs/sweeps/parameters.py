"""Trunks of 0.25 to 22 million parameters, two seeds each, one learning rate by muP.

    python -m launch configs/sweeps/parameters.py --workdir=sweeps/parameters

xs to l are those of configs/sweeps/study.py; xl is the largest that two cores train in an afternoon. Cost on two cores:
about an hour for xs to l, some hours for xl. Not run here as a whole: docs/scaling_study.md holds xs to l.
"""

import importlib.util
from pathlib import Path

from tario_jax.config import Config
from tario_jax.config_files import chosen
from tario_jax.sweeps import changed, product, runs

_SPEC = importlib.util.spec_from_file_location("study", Path(__file__).parent / "study.py")
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)

SIZES = (study.XS, study.S, study.M, study.L, study.size("xl", 480, 8))


def get_sweep() -> dict[str, Config]:
    return runs(changed(study.BASE, {"name": "parameters"}), product(SIZES, study.SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

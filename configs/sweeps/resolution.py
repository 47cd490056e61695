"""The same checkpoint read at bins of 36, 18 and 9 µm, all compared on the grid of 36 µm; two seeds.

    python -m launch configs/sweeps/resolution.py --workdir=sweeps/resolution

One model that learnt from bins of all three sides. Cost: about an hour on two cores, the cohort included.
Outcome: docs/scaling_study.md, where the same two runs stand beside the others.
"""

import importlib.util
from pathlib import Path

from tario_jax.config import Config
from tario_jax.config_files import chosen
from tario_jax.sweeps import changed, product, runs

_SPEC = importlib.util.spec_from_file_location("study", Path(__file__).parent / "study.py")
study = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(study)


def get_sweep() -> dict[str, Config]:
    return runs(changed(study.BASE, {"name": "resolution"}), product((study.M,), (study.MIXED,), study.SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

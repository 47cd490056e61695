"""Each part of the quickstart's model removed in turn, at equal compute; two seeds each.

    whole        nothing
    contents     bins are never read: every window is predicted in one group
    near         queries know nothing at once of contents around them
    depth        no window is told how deep its section was measured
    reach        heads begin as means over all that they see
    principal    the table of genes begins at random
    rare         all detections weigh alike
    poisson      totals are negative binomial, with one dispersion that is learnt
    muon         AdamW on matrices too
    stain        no jitter of stains in training
    turns        windows are neither turned nor flipped in training

    python -m launch configs/sweeps/ablation.py --workdir=sweeps/ablation

Without contents a step takes 0.92 of the FLOPs (model/flops.py), and without Muon 0.97 of the time (`tario bench
step`): these take more steps. The others cost what the whole does, within a hundredth.

Cost: 9 minutes a run on one core; 22 runs take an hour and three quarters on two, where both seeds run side by side
(--only). Outcome: docs/tables/model_ablation.txt.
"""

import importlib.util
from pathlib import Path

from tario_jax.config import Config
from tario_jax.config_files import chosen
from tario_jax.sweeps import Variant, changed, product, runs

_SPEC = importlib.util.spec_from_file_location("quickstart", Path(__file__).parents[1] / "quickstart.py")
quickstart = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(quickstart)

PARTS = {
    "whole": {},
    "contents": {"data.groups": ((1, 1.0),), "train.steps": 347},
    "near": {"data.near_bins": 0},
    "depth": {"data.depth_told": 0.0},
    "reach": {"model.reach_um": ()},
    "principal": {"model.principal_start": False},
    "rare": {"model.rare_gene_weight": 0.0},
    "poisson": {"model.total_likelihood": "negative_binomial"},
    "muon": {"optim.optimiser": "adamw", "train.steps": 330},
    "stain": {"data.stain_jitter": 0.0},
    "turns": {"data.turn": False, "data.flip": False},
}
SEEDS = tuple(Variant(f"seed{seed}", {"data.seed": seed, "train.seed": seed}) for seed in (0, 1))


def get_sweep() -> dict[str, Config]:
    parts = tuple(Variant(f"without_{name}" if changes else name, changes) for name, changes in PARTS.items())
    return runs(changed(quickstart.get_config(), {"name": "ablation"}), product(parts, SEEDS))


def get_config(name: str) -> Config:
    return chosen(name, get_sweep())

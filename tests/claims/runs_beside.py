"""Two finished runs beside each other: the final states, array by array, and the lines of their logs."""

import json
from pathlib import Path

import jax
import numpy as np

from tario_jax.config_files import from_dict
from tario_jax.corpus.read import Corpus
from tario_jax.train.checkpoint import Checkpoints
from tario_jax.train.run import Run

_NUMBERS = "step", "loss_nats_per_detection", "gradient_norm", "validation_nats_per_detection"


def states_beside(whole: Path, other: Path, corpus: Path, step: int) -> dict:
    """How many arrays of the states after `step` differ in a bit, how far the parameters are apart (relative L2), and
    how many lines of the logs differ in what does not depend on the clock."""
    states, lines = [], []
    for workdir in (whole, other):
        run = Run.of(from_dict(json.loads((workdir / "config.json").read_text())), Corpus.open(corpus))
        with Checkpoints(workdir) as checkpoints:
            states.append(jax.device_get(checkpoints.restore(step, run.abstract)))
        log = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        lines.append([tuple(line.get(name) for name in _NUMBERS) for line in log])
    pairs = list(zip(*map(jax.tree.leaves, states), strict=True))
    one, two = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.parameters)]) for state in states)
    different = sum(ours != theirs for ours, theirs in zip(*lines, strict=False)) + abs(len(lines[0]) - len(lines[1]))
    return {
        "arrays": len(pairs), "different_arrays": sum(not np.array_equal(ours, theirs) for ours, theirs in pairs),
        "parameters_off": float(np.linalg.norm(two - one) / np.linalg.norm(one)),
        "lines": len(lines[0]), "different_lines": different,
    }  # fmt: skip

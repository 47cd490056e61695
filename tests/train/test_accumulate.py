"""Parts of a batch one after the other: the step of the whole, and no row leaves its device."""

import json

import pytest
from refusals import refused
from tiny_tissue import tiny_config

from tario_jax.config import MeshConfig
from tario_jax.config_files import to_dict
from tario_jax.parallel.mesh import check_rows, make_mesh

# one step of plain descent, so long that what it moved is the gradient; losses of the same batch
_PROGRAM = """
import json, re, sys
import jax, numpy as np, optax
from tario_jax.config import MeshConfig
from tario_jax.config_files import from_dict
from tario_jax.corpus.read import Corpus
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.state import TrainState, make_loss, make_train_step, state_shardings, to_devices

corpus, config = Corpus.open(sys.argv[1]), from_dict(json.loads(sys.argv[2]))
genes = len(corpus.panel)
built = build(config.model, genes, config.data.patch_px, content=not config.data.one_shot)
batch = BatchSource(corpus.sections, config.data, corpus_layout(corpus.sections, config.data, genes), steps=1)[0]
by_row = [int(count.sum()) for count in batch.count_BxC]
optimiser = optax.sgd(1e6)
rng = np.random.default_rng(0)
parameters, calibration = jax.tree.map(
    lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), built.abstract())
start = TrainState.begin(parameters, jax.tree.map(lambda leaf: 1 + abs(leaf), calibration),
                   jax.device_get(optimiser.init(parameters)))

def run(mesh, parts):
    state = jax.device_put(start, state_shardings(built, optimiser, mesh))
    here = to_devices(batch, mesh)
    without = make_loss(built, mesh, parts)(state.parameters, state.calibration, here)
    step = make_train_step(built, optimiser, mesh, parts).lower(state, here).compile()
    state, metrics = step(state, here)
    moved = np.concatenate([(after - before).astype(np.float64).ravel() for after, before in zip(
        jax.tree.leaves(jax.device_get(state.parameters)), jax.tree.leaves(parameters), strict=True)])
    told = np.array([float(x) for x in (*metrics.sums, metrics.gradient_norm)])
    return moved, told, np.array([float(x) for x in without]), step.as_text()

def off(found, expected):
    there = expected != 0  # z_nats are 0
    assert (found[~there] == 0).all()
    return float(abs(found[there] / expected[there] - 1).max())

whole, metrics, without, _ = run(make_mesh(MeshConfig(), jax.devices()[:1]), 1)
for parts, sizes in json.loads(sys.argv[3]):
    count = int(np.prod(sizes))
    moved, told, told_without, text = run(make_mesh(MeshConfig(*sizes), jax.devices()[:count]), parts)
    sent = set()
    for line in text.splitlines():
        if found := re.search(r"= (.*?) (all-\\S+?|reduce-scatter|collective-\\S+?)(?:-start)?\\(", line):
            sent |= {(found[2], kind) for kind in re.findall(r"([a-z][a-z0-9]+)\\[", found[1])}
    print(json.dumps({
        "parts": parts, "mesh": sizes, "gradients": float(np.linalg.norm(moved - whole) / np.linalg.norm(whole)),
        "metrics": off(told, metrics), "loss": off(told_without, without),
        "sent": sorted(sent), "by_row": by_row}))
"""


@pytest.mark.slow
def test_parts_of_a_batch_make_the_step_of_the_whole_and_stay_where_they_are(devices8, tiny_corpus):
    """On replica x fsdp each device cuts its own rows into parts; the whole batch on one device is the measure."""
    config = tiny_config(data={"rows": 12, "groups": ((1, 1.0), (4, 1.0)), "bin_um": 24.0})
    cases = [(1, (2, 2, 1, 1)), (3, (2, 2, 1, 1))]
    said = devices8(_PROGRAM, str(tiny_corpus.root), json.dumps(to_dict(config)), json.dumps(cases))
    results = list(map(json.loads, said.splitlines()))
    for result in results:
        assert len(set(result["by_row"])) > 6  # parts of unlike numbers of detections
        assert result["gradients"] < 2e-6, result
        assert result["metrics"] < 2e-6 and result["loss"] < 2e-6, result
    *_, whole, in_parts = (result["sent"] for result in results)
    # never pixels (u8), places in the row or counts (s32); in parts, nothing is sent that the whole does not send
    assert in_parts and in_parts == whole and {dtype for _, dtype in in_parts} == {"f32"}


def test_rows_that_do_not_make_equal_parts_are_one_line():
    mesh = make_mesh(MeshConfig())
    check_rows(mesh, 12, 3)
    refused(lambda: check_rows(mesh, 12, 5), "--config.data.rows=12",
            "a multiple of replica × fsdp × train.accumulate = 5")  # fmt: skip
    with pytest.raises(ValueError, match="train.accumulate is 0; expected more than 0"):
        tiny_config(train={"accumulate": 0})

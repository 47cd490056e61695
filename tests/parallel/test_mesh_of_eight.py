"""Eight virtual devices: the same numbers on every mesh, and one line where a mesh does not fit."""

import json

import jax
import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_config

from tario_jax.config import InputError, MeshConfig
from tario_jax.config_files import to_dict
from tario_jax.model.build import build
from tario_jax.parallel.mesh import check_host_memory, check_rows, make_mesh
from tario_jax.parallel.rules import RULES, partition_spec
from tario_jax.train.checkpoint import Checkpoints
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import abstract_state

_PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
import jax, numpy as np
from tario_jax.config import MeshConfig
from tario_jax.config_files import from_dict
from tario_jax.corpus.read import Corpus
from tario_jax.model.build import build
from tario_jax.parallel.mesh import make_mesh
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.train.checkpoint import CheckpointWriter
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.provenance import Provenance
from tario_jax.train.state import TrainState, make_train_step, state_shardings, to_devices

corpus, config = Corpus.open(sys.argv[1]), from_dict(json.loads(sys.argv[2]))
genes = len(corpus.panel)
def build_with(attention):
    model = dataclasses.replace(config.model, attention=attention)
    return build(model, genes, config.data.patch_px, content=not config.data.one_shot)

built = build_with(config.model.attention)
optimiser = make_optimiser(config.optim, 6, built)
batches = BatchSource(corpus.sections, config.data, corpus_layout(corpus.sections, config.data, genes), steps=3)
rng = np.random.default_rng(0)
parameters, calibration = jax.tree.map(
    lambda leaf: (0.2 * rng.standard_normal(leaf.shape)).astype(np.float32), built.abstract())
calibration = jax.tree.map(lambda leaf: 1 + abs(leaf), calibration)
start = TrainState.begin(parameters, calibration, jax.device_get(optimiser.init(parameters)))

def run(mesh, built):
    state = jax.device_put(start, state_shardings(built, optimiser, mesh))
    step = make_train_step(built, optimiser, mesh)
    losses = []
    for t in range(3):
        state, metrics = step(state, to_devices(batches[t], mesh))
        losses.append([float(value) for value in (*metrics.sums, metrics.gradient_norm)])
    table = state.parameters["gene_table"]
    return np.array(losses), jax.device_get(state.parameters), table.sharding.shard_shape(table.shape), state

alone = run(make_mesh(MeshConfig(), jax.devices()[:1]), build_with("reference"))
for replica, fsdp, context, tensor in json.loads(sys.argv[3]):
    losses, parameters, shard, state = run(make_mesh(MeshConfig(replica, fsdp, context, tensor)), built)
    errors = jax.tree.leaves_with_path(jax.tree.map(
        lambda a, b: np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6), parameters, alone[1]))
    worst, error = max(errors, key=lambda found: found[1])
    there = alone[0] != 0  # z_nats are 0
    loss_error = abs(losses[there] / alone[0][there] - 1).max()
    print(json.dumps({"mesh": [replica, fsdp, context, tensor], "parameters": float(error), "loss": float(loss_error),
                      "worst": jax.tree_util.keystr(worst), "table_shard": list(shard)}))
layout = corpus_layout(corpus.sections, config.data, genes)
provenance = Provenance(config, corpus.panel, corpus.seal, corpus.kind, "patient", (), (), layout,
                        seen_patients=(), bin_um=18.0)
with CheckpointWriter(Path(sys.argv[4]), keep=1, keep_every=0, say=print) as checkpoints:
    checkpoints.save(state, provenance)
    checkpoints.finish()
np.savez(Path(sys.argv[4]) / "leaves.npz", *jax.tree.leaves(jax.device_get(state)))
print(json.dumps({"moved": float(max(jax.tree.leaves(jax.tree.map(
    lambda a, b: abs(a - b).max(), alone[1], start.parameters))))}))
"""


# Bins of 24 µm reach over the edges of tiles of 36 µm; two windows of four tiles are in a row.
_CONTENT = {"groups": ((1, 1.0), (4, 1.0)), "windows_per_row": 2, "bin_um": 24.0}


@pytest.mark.parametrize(
    ("meshes", "data", "attention"),
    [
        pytest.param({(2, 2, 1, 2): [512, 8]}, {}, "auto", id="three axes at once", marks=pytest.mark.slow),
        pytest.param({(1, 2, 2, 2): [512, 8]}, _CONTENT, "ring", id="content, ring"),
        pytest.param(
            {(8, 1, 1, 1): [1024, 16], (1, 8, 1, 1): [1024, 2], (1, 4, 1, 2): [512, 4], (1, 2, 2, 2): [512, 8]},
            {}, "auto", id="each axis, and context", marks=pytest.mark.slow,
        ),
        pytest.param(
            {(1, 1, 4, 2): [512, 16], (2, 1, 2, 2): [512, 16], (1, 1, 8, 1): [1024, 16]},
            _CONTENT, "ring", id="content, ring, other meshes", marks=pytest.mark.slow,
        ),
        pytest.param(
            {(1, 2, 2, 2): [512, 8], (1, 1, 4, 2): [512, 16], (1, 1, 8, 1): [1024, 16]},
            _CONTENT, "all_gather", id="content, all-gather", marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_three_steps_are_those_of_one_device_and_resume_on_one(
    devices8, tiny_corpus, tmp_path, meshes, data, attention
):
    """meshes: (replica, fsdp, context, tensor) and what each device then holds of the gene table.

    On the one device attention is dense: on all of the mesh it is to be the same.
    """
    model = {"kv_heads": 2, "pattern": ("local", "global") if data else ("global",), "attention": attention}
    config = tiny_config(data={"rows": 8} | data, model=model)
    said = devices8(_PROGRAM, str(tiny_corpus.root), json.dumps(to_dict(config)), json.dumps(list(meshes)),
                    str(tmp_path))  # fmt: skip
    *found, moved = map(json.loads, said.splitlines())
    assert len(found) == len(meshes) and moved["moved"] > 1e-4
    for result in found:
        # Adam divides by a gradient's own size: where it is near 0, rounding moves parameters; errors do by 1e-2
        assert result["parameters"] < 1e-4 and result["loss"] < 1e-5, result
    assert [result["table_shard"] for result in found] == list(meshes.values())
    # the state of the last mesh, saved from eight devices, is bit for bit that which one device restores
    built = build(config.model, 12, config.data.patch_px, content=not config.data.one_shot)
    abstract = abstract_state(built, make_optimiser(config.optim, 6, built), make_mesh(MeshConfig()))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [3] and checkpoints.provenance(3).panel == PANEL
        restored = jax.tree.leaves(jax.device_get(checkpoints.restore(3, abstract)))
    saved = np.load(tmp_path / "leaves.npz")
    assert len(restored) == len(saved.files)
    for leaf, name in zip(restored, saved.files, strict=True):
        np.testing.assert_array_equal(leaf, saved[name])


def test_a_mesh_that_does_not_fit_is_answered_in_one_line():
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "context": 1, "tensor": 1}
    with pytest.raises(InputError, match=r"replica=1, fsdp=3, context=1, tensor=1 does not multiply to 1 devices"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(InputError, match="does not multiply to 1 devices"):
        make_mesh(MeshConfig(fsdp=-1, tensor=2))
    with pytest.raises(InputError, match="at most one −1"):
        MeshConfig(replica=-1, fsdp=-1)
    check_rows(mesh, 7)


def test_devices_without_their_hosts_memory_do_not_offload():
    class Chip:
        device_kind = "chip"

        def addressable_memories(self):
            return jax.devices()[0].addressable_memories()[:1]

    check_host_memory(jax.devices(), "offload")
    check_host_memory([Chip()], "full")
    with pytest.raises(InputError, match="--config.model.remat=offload: chip reaches no memory of its host"):
        check_host_memory([Chip()], "offload")


class _Shape:
    """As much of a mesh as the rules read."""

    shape = {"replica": 1, "fsdp": 4, "context": 1, "tensor": 2}


def test_a_parameter_is_laid_out_by_its_logical_axes():
    spec = partition_spec(("layers", "embed", "heads", "head_dim"), (2, 32, 4, 16), _Shape, "q")
    assert tuple(spec) == (None, "fsdp", "tensor", None)
    with pytest.raises(InputError, match="parameter k: axis 'kv_heads' of size 1 does not divide over tensor=2"):
        partition_spec(("layers", "embed", "kv_heads", "head_dim"), (2, 32, 1, 16), _Shape, "k")
    spec = partition_spec(("pixels", "hidden"), (32, 64), _Shape, "stem_out")
    assert tuple(spec) == (None, ("fsdp", "tensor"))  # stored in eight parts, though it is multiplied whole
    with pytest.raises(InputError, match="axis 'hidden' of size 36 does not divide over fsdp=4 × tensor=2"):
        partition_spec(("pixels", "hidden"), (32, 36), _Shape, "stem_out")
    with pytest.raises(InputError, match="lay 'fsdp' twice"):
        partition_spec(("embed", "hidden"), (32, 32), _Shape, "w")
    with pytest.raises(InputError, match="logical axis 'embd' has no rule"):
        partition_spec(("embd",), (32,), _Shape, "w")
    with pytest.raises(InputError, match="expected one axis a dimension"):
        partition_spec(("embed",), (32, 2), _Shape, "w")
    assert {axis for axes in RULES.values() for axis in axes} <= set(_Shape.shape)

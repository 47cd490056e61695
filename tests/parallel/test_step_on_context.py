"""The compiled step of training where tokens are split over context: what travels between devices, and where."""

import json
import math

from tiny_tissue import tiny_config

from tario_jax.config import MeshConfig
from tario_jax.config_files import to_dict

_ROWS, _FSDP, _CONTEXT = 6, 2, 4  # three rows a device: no parameter has an axis of three

_PROGRAM = """
import json, re, sys
import jax
from tario_jax.config_files import from_dict
from tario_jax.model.build import build
from tario_jax.parallel.mesh import batch_shardings, make_mesh
from tario_jax.tokens.batch import empty_batch, make_layout, square_bins_per_tile
from tario_jax.train.optimiser import make_optimiser
from tario_jax.train.state import abstract_state, make_train_step

config = from_dict(json.loads(sys.argv[1]))
genes, data = 12, config.data
built = build(config.model, genes, data.patch_px, content=True)
optimiser, mesh = make_optimiser(config.optim, 6, built), make_mesh(config.mesh)
layout = make_layout(data, genes, bins_per_tile=square_bins_per_tile(data), largest_bin_um=data.bin_um,
                     count_capacity=512)
place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
batch = jax.tree.map(place, empty_batch(data.rows, layout), batch_shardings(mesh))
step = make_train_step(built, optimiser, mesh)
moved = []
for line in step.lower(abstract_state(built, optimiser, mesh), batch).compile().as_text().splitlines():
    found = re.search(r"= (.*?) (all-\\S+|reduce-scatter|collective-\\S+?)(?:-start)?\\(", line)
    if found:
        in_layers = "/while/body/" in re.search(r'op_name="(.*?)"', line)[1]
        for shape in re.findall(r"[a-z][a-z0-9]+\\[([0-9,]*)\\]", found[1]):
            moved.append([found[2], in_layers, [int(size) for size in shape.split(",") if size]])
stacks = [variable.shape for variable in jax.tree.leaves(built.abstract()[0]["decoder"])]
print(json.dumps({"moved": moved, "layout": [layout.tiles, layout.bins_per_tile, layout.patches_per_bin],
                  "stacks": stacks}))
"""


def test_in_layers_only_the_ring_moves_tokens_and_pixels_never_move(devices8):
    config = tiny_config(
        data={"rows": _ROWS, "groups": ((1, 1.0), (4, 1.0)), "windows_per_row": 2, "bin_um": 24.0},
        model={"kv_heads": 2, "layers": 4, "pattern": ("local", "global"), "attention": "ring"},
        mesh=MeshConfig(fsdp=_FSDP, context=_CONTEXT),
    )
    said = json.loads(devices8(_PROGRAM, json.dumps(to_dict(config))))
    rows = _ROWS // _FSDP
    of_batch = [(kind, in_layers, tuple(shape)) for kind, in_layers, shape in said["moved"] if rows in shape]
    of_parameters = {kind for kind, in_layers, shape in said["moved"] if in_layers and rows not in shape}
    assert "all-gather" in of_parameters and "all-to-all" not in of_parameters
    # a stack of all layers' weights is never whole anywhere: one layer's at a time, within the scan
    period = len(config.model.pattern)
    stacks = {(layers // every, *shape) for layers, *shape in said["stacks"] for every in (1, period) if len(shape) > 1}
    gathered = {tuple(shape) for kind, in_layers, shape in said["moved"] if kind == "all-gather" and not in_layers}
    assert stacks and not stacks & gathered
    # keys with values, the integers, and the gradients of keys with values
    tiles, bins, under = said["layout"]
    seen = tiles * round(config.data.tile_um / config.data.patch_um) ** 2 + tiles * bins
    keys = (2, rows, seen // _CONTEXT, config.model.kv_heads, config.model.head_dim)
    assert {(kind, shape) for kind, in_layers, shape in of_batch if in_layers} == {
        ("collective-permute", keys), ("collective-permute", keys[:3])
    }  # fmt: skip
    # once a step: which patches lie under the bins, their shares, the sums over ranks, and the gradients of these;
    # likewise of contents around bins, and when each was written
    outside = sorted((kind, math.prod(shape)) for kind, in_layers, shape in of_batch if not in_layers)
    of_bins, width = rows * tiles * bins, config.model.width
    assert outside == sorted([
        *(("all-gather", of_bins * each) for number in (under, config.data.near_bins)
          for each in (number, number, width)),
        *[("reduce-scatter", of_bins * width // _CONTEXT)] * 2, ("all-gather", of_bins),
        ("all-reduce", rows * config.data.windows_per_row),  # the last step of writing of each sequence
    ])  # fmt: skip

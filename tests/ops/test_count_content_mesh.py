"""Contents of bins split over rows, bins and genes, on eight virtual devices."""

import json
from pathlib import Path

import pytest

_PROGRAM = """
import json, math, re, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from content_case import assert_near, case, compiled, oracle
from tario_jax.config import InputError, MeshConfig
from tario_jax.ops.sparse_counts import SparseCounts
from tario_jax.parallel.mesh import make_mesh

given, dense = case(B=4, N=24)
expected = oracle(given, dense)
rows, bins = ("replica", "fsdp"), jax.P(("replica", "fsdp"), "context")
specs = {"table_Gxr": jax.P("tensor", "fsdp"), "frequency_G": jax.P("tensor"),
         "counts": SparseCounts(*[jax.P(rows)] * 3), "gene_mask_BxWxG": jax.P(rows), "mask_of_bin_BxN": bins}
size = lambda dimensions: math.prod(map(int, filter(None, dimensions.split(","))))
for sizes in json.loads(sys.argv[2]):
    mesh = make_mesh(MeshConfig(*sizes))
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), given, specs)
        for chunk in (2, 5, 0):
            found = compiled(placed, chunk)
            assert_near(found, expected, 1e-6)
        low = placed | {"table_Gxr": placed["table_Gxr"].astype("bfloat16")}
        assert_near(compiled(low, 5), expected, 1e-2)
        held, _, d_table = found
        assert held.addressable_shards[0].data.size == held.size * sizes[3] // 8
        assert d_table.sharding.shard_shape(d_table.shape) == placed["table_Gxr"].sharding.shard_shape(d_table.shape)
        text = compiled.lower(placed, 5).compile().as_text()
    moved = {(match[2], size(shape)) for match in re.finditer(
        r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\\(", text)
        for shape in re.findall(r"[a-z][a-z0-9]+\\[([0-9,]*)\\]", match[1])}
    print(json.dumps([sizes, sorted(moved)]))
given, _ = case(B=4, N=22)
with jax.set_mesh(make_mesh(MeshConfig(context=8))):
    try:
        compiled(given, 5)
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([(2, 1, 2, 2)], id="several axes at once"),
        pytest.param([(1, 2, 2, 2), (1, 1, 8, 1), (1, 1, 1, 8), (1, 2, 1, 4)], id="others", marks=pytest.mark.slow),
    ],
)
def test_content_is_that_of_the_oracle_on_every_mesh_and_no_counts_travel(devices8, meshes):
    *found, refusal = map(json.loads, devices8(_PROGRAM, str(Path(__file__).parent), json.dumps(meshes)).splitlines())
    assert [tuple(mesh) for mesh, _ in found] == meshes
    width, genes, windows = 12, 128, 2
    for (replica, fsdp, context, tensor), moved in found:
        rows, bins, table = 4 // (replica * fsdp), 24 // context, genes // tensor * width
        may = {
            "all-gather": {table} if fsdp > 1 else set(),
            "all-reduce": {rows * windows, rows * bins * width, table, table // fsdp},
            "reduce-scatter": {table // fsdp},
        }
        for kind, size in moved:
            assert size in may.get(kind, ()), (kind, size)
    assert refusal == "--config.mesh: 22 bins of a row do not divide over context = 8; expected a multiple"

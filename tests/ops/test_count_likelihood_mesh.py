"""The count likelihood split over rows, bins and genes, on eight virtual devices."""

import json
from pathlib import Path

import pytest

_BEGIN = """
import json, re, sys
import jax, numpy as np
sys.path.insert(0, sys.argv[1])
from count_case import DIFFERENTIABLE, GROUPS, G, allowed_genes, assert_near, case, compiled, oracle
from tario_jax.config import InputError, MeshConfig
from tario_jax.ops.count_likelihood import count_nll, log_rates
from tario_jax.parallel.mesh import make_mesh
"""

_NUMBERS = (
    _BEGIN
    + """
inputs, dense = case(B=4, N=24)
expected = oracle(inputs, dense)
alone = log_rates(*(inputs[name] for name in (*DIFFERENTIABLE, "gene_mask_BxWxG", "mask_of_bin_BxN")))
for sizes in json.loads(sys.argv[2]):
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
        for chunk, gene_chunk in ((2, G), (5, 7), (0, 0)):
            assert_near(compiled(inputs, 1.0, chunk, gene_chunk), expected, 2e-6)
            sums = jax.jit(lambda x: count_nll(**x, chunk=chunk, gene_chunk=gene_chunk, groups=GROUPS))(inputs)
            for x, y in zip(sums, expected[0], strict=True):
                np.testing.assert_allclose(x, y, rtol=2e-6)
        assert_near(compiled(inputs, 1.0, 5, 7, 0.05), oracle(inputs, dense, 0.05), 2e-6)
        low = inputs | {name: jax.numpy.bfloat16(inputs[name]) for name in ("h_BxNxd", "table_Gxd")}
        assert_near(compiled(low, 1.0, 5, G), expected, 1e-2)
        rates = jax.jit(log_rates)(*(inputs[name] for name in (*DIFFERENTIABLE, "gene_mask_BxWxG", "mask_of_bin_BxN")))
        np.testing.assert_allclose(rates, alone, rtol=1e-5, atol=1e-5)
        assert rates.addressable_shards[0].data.size == rates.size // 8
    print(*sizes)
"""
)


@pytest.fixture
def tests_of_ops() -> str:
    return str(Path(__file__).parent)


@pytest.mark.parametrize(
    "meshes",
    [
        pytest.param([(2, 1, 2, 2)], id="several axes at once"),
        pytest.param(
            [(1, 2, 1, 4), (1, 1, 1, 8), (1, 1, 8, 1), (1, 2, 2, 2), (2, 2, 1, 2)], id="others", marks=pytest.mark.slow
        ),
    ],
)
def test_sums_and_gradients_are_those_of_the_oracle_on_every_mesh(devices8, tests_of_ops, meshes):
    said = devices8(_NUMBERS, tests_of_ops, json.dumps(meshes))
    assert said.splitlines() == [" ".join(map(str, mesh)) for mesh in meshes]


_PROGRAM = (
    _BEGIN
    + """
import math
from tario_jax.ops.count_likelihood import SparseCounts
rows, bins, genes, width, capacity = 4, 256, 2048, 16, 1024
shape = jax.ShapeDtypeStruct
inputs = {
    "h_BxNxd": shape((rows, bins, width), np.float32), "table_Gxd": shape((genes, width), np.float32),
    "bias_G": shape((genes,), np.float32), "log_total_BxN": shape((rows, bins), np.float32),
    "counts": SparseCounts(*[shape((rows, capacity), np.int32)] * 3), "bin_valid_BxN": shape((rows, bins), np.bool),
    "gene_mask_BxWxG": shape((rows, 1, genes), np.bool), "mask_of_bin_BxN": shape((rows, bins), np.int32),
    "group_of_bin_BxN": shape((rows, bins), np.int32),
}
mesh = make_mesh(MeshConfig(*json.loads(sys.argv[2])))
chunk, gene_chunk = json.loads(sys.argv[3])
with jax.set_mesh(mesh):
    of_bins, table = jax.P(("replica", "fsdp"), "context"), jax.P("tensor", "fsdp")
    specs = {name: of_bins for name in inputs} | {
        "table_Gxd": table, "bias_G": jax.P("tensor"), "counts": SparseCounts(*[jax.P(("replica", "fsdp"))] * 3),
        "gene_mask_BxWxG": jax.P(("replica", "fsdp"), None, "tensor")}
    place = lambda x, spec: shape(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))
    placed = jax.tree.map(place, inputs, specs)
    text = compiled.lower(placed, 1.0, chunk, gene_chunk).compile().as_text()
size = lambda dimensions: math.prod(map(int, filter(None, dimensions.split(","))))
shapes = re.compile(r"\\b(?:f32|bf16|s32|pred|u32)\\[([0-9,]*)\\]")
kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
moved = [(match[2], max(map(size, shapes.findall(match[1]))))
         for match in re.finditer(r"= (.*?) (" + kinds + r")(?:-start)?\\(", text)]
print(json.dumps({"moved": moved, "largest": max(map(size, shapes.findall(text)))}))
"""
)


@pytest.mark.parametrize(
    ("mesh", "chunk", "gene_chunk"), [((2, 1, 2, 2), 32, 2048), ((1, 2, 1, 4), 32, 128), ((1, 1, 1, 8), 32, 2048)]
)
def test_no_logits_travel_and_none_exist_but_a_chunk(devices8, tests_of_ops, mesh, chunk, gene_chunk):
    found = json.loads(devices8(_PROGRAM, tests_of_ops, json.dumps(mesh), json.dumps((chunk, gene_chunk))))
    replica, fsdp, context, tensor = mesh
    rows, bins, genes, width = 4 // (replica * fsdp), 256 // context, 2048 // tensor, 16
    logits = rows * chunk * min(gene_chunk, genes)
    table, of_bins = genes * width, rows * bins * width
    assert found["largest"] <= max(logits, table, of_bins) < rows * bins * genes
    assert max(size for _, size in found["moved"]) <= max(table, of_bins), found["moved"]
    # within the walk: two numbers of each bin of a chunk; after it: the gradients, once
    gathered = [size for kind, size in found["moved"] if kind == "all-gather" and size != table]
    assert gathered == [2 * rows * chunk * tensor], found["moved"]
    assert not {kind for kind, _ in found["moved"]} & {"all-to-all", "collective-permute"}


def test_a_batch_that_does_not_divide_is_answered_in_one_line(devices8, tests_of_ops):
    said = devices8(
        _BEGIN
        + """
inputs, _ = case(B=4, N=24)
for sizes in ((8, 1, 1, 1), (1, 1, 8, 1), (1, 8, 1, 1)):
    cut = {name: x[:, :22] for name, x in inputs.items() if "BxN" in name} if sizes[2] == 8 else {}
    if sizes[1] == 8:
        inputs, _ = case(B=8, N=24)
    with jax.set_mesh(make_mesh(MeshConfig(*sizes))):
        try:
            compiled(inputs | cut, 1.0, 8)
        except InputError as error:
            print(error)
""",
        tests_of_ops,
    )
    assert said.splitlines() == [
        "--config.mesh: 4 rows do not divide over replica × fsdp = 8; expected a multiple",
        "--config.mesh: 22 bins of a row do not divide over context = 8; expected a multiple",
        "--config.mesh: 12 columns of the gene table do not divide over fsdp = 8; expected a multiple",
    ]

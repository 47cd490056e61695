"""What one device does in a training step, part by part: the estimate that stands beside the counted FLOPs.

Counted FLOPs (model/flops.py) say what a step is worth. Here is what it takes: what remat computes again, products that
a kernel makes twice, exponentials, what is read from memory and written to it, and what devices send each other.

Memory: a product reads its operands and writes its result once, and so does a loop over elements. The compiler of an
accelerator joins a loop to the product before or after it: then only what the product would not have read is counted.
Blocks of a kernel's attention do not leave the chip; nothing else is assumed to stay in a cache.

Axes of a device: A tokens of both streams that it holds, of all its rows, S of them seen and Q queries, d width.
"""

from collections.abc import Mapping
from typing import NamedTuple

from tario_jax.config import MESH_AXES, Config, ModelConfig
from tario_jax.model.flops import allowed_pairs
from tario_jax.model.he_encoder import WIDE, WIDE_LAYERS, Pyramid
from tario_jax.model.stain import texture_count
from tario_jax.ops.attention.tiles import Tiles
from tario_jax.tokens.batch import Layout

_F32 = 4


class Part(NamedTuple):
    """Of one device and step."""

    name: str
    flops: float = 0.0
    exponentials: float = 0.0  # and logarithms, roots, tangents and quotients: what takes more than a sum or a product
    bytes: float = 0.0

    def __add__(self, other: "Part") -> "Part":
        return Part(self.name, *(a + b for a, b in zip(self[1:], other[1:], strict=True)))

    def times(self, factor: float) -> "Part":
        return Part(self.name, *(factor * value for value in self[1:]))


class Machine(NamedTuple):
    """What the program's shape depends on, beside the mesh."""

    element_bytes: int  # of the compute type
    kernel_block: int  # tokens of a block of the attention kernel; 0: plain XLA, whose blocks of scores meet memory
    parts: int  # of a batch, one after the other
    joins: bool  # whether loops over elements are joined to products, and all of a convolution is an instruction


def device_work(
    config: Config, layout: Layout, mesh: Mapping[str, int], machine: Machine, parameters: int
) -> list[Part]:
    """Parts of a step of one device of a mesh of this shape. parameters: all that the optimiser updates."""
    model = config.model
    rows = config.data.rows / (mesh["replica"] * mesh["fsdp"])
    patches = layout.tiles * layout.patches_per_tile * rows / mesh["context"]
    bins = layout.tiles * layout.bins_per_tile * rows / mesh["context"]
    contents = 0 if config.data.one_shot else bins
    seen, tensor = patches + contents, mesh["tensor"]
    stored = parameters / (mesh["fsdp"] * tensor)
    again = 0 if model.remat == "none" else 1
    return [
        _projections(model, seen, bins, tensor, again, machine),
        _elementwise(model, seen, bins, tensor, again, machine),
        _attention(config, layout, rows / mesh["context"], seen + bins, seen, tensor, machine),
        _gene_head(model, layout.genes_padded, bins, contents, tensor, machine),
        _encoders(model, layout, patches, bins, contents, machine),
        # parameters, two moments and gradients are read, the first three written; the norm reads the gradients before,
        # and where nothing is joined they are read and written to be scaled, and read for the norm that is told
        # parts of a batch are added up: read, read and written
        Part(
            "optimiser",
            exponentials=2 * stored,
            bytes=((8 if machine.joins else 11) + 3 * (machine.parts - 1)) * _F32 * stored,
        ),
    ]


def _product(name: str, m: float, k: float, n: float, again: float, machine: Machine, *, inputs: bool = True) -> Part:
    """[m, k] × [k, n] with weights in the middle: forward, `again` times more, and backward.

    inputs: whether the gradient of the left side is asked for.
    """
    backward = 2 if inputs else 1
    weights = machine.parts * k * n  # read, and their gradients written, for each part of a batch
    operands = m * k + weights + m * n
    moved = machine.element_bytes * ((again + backward) * operands + m * k + m * n) + _F32 * weights
    return Part(name, 2 * m * k * n * (1 + again + backward), bytes=moved)


def _projections(model: ModelConfig, seen, queries, tensor: int, again: int, machine: Machine) -> Part:
    d, heads, keys = model.width, model.heads * model.head_dim / tensor, model.kv_heads * model.head_dim / tensor
    tokens, hidden, period = seen + queries, model.mlp_width / tensor, len(model.pattern)
    name = "projections and MLP"
    layer = _product(name, tokens, d, heads, again, machine) + _product(name, tokens, heads, d, again, machine)
    layer += _product(name, seen, d, keys, again, machine).times(2)
    layer += _product(name, tokens, d, hidden, again, machine).times(2)
    # the last product of what is computed again is wanted by nobody
    layer += _product(name, tokens, hidden, d, again * (period - 1) / period, machine)
    if not machine.joins:
        # weights are cut from their stack, and turned for the backward product; gradients are laid into a stack, and
        # that is parted by the layers of a period: read and written each
        layer += Part(name, bytes=machine.parts * 4 * 2 * _F32 * d * (2 * heads + 2 * keys + 3 * hidden))
    return layer.times(model.layers)


def _elementwise(model: ModelConfig, seen, queries, tensor: int, again: int, machine: Machine) -> Part:
    """Norms, rotary places, the gate, residual sums, and parting the streams: elements read and written."""
    d, heads, keys = model.width, model.heads * model.head_dim / tensor, model.kv_heads * model.head_dim / tensor
    tokens, hidden = seen + queries, model.mlp_width / tensor
    turned = tokens * heads + seen * keys  # norms of heads and rotary places, which attention wants written
    if machine.joins:
        forward = 2 * tokens * d + tokens * hidden + 2 * turned
        backward = 2 * 4 * tokens * d + tokens * d + 3 * tokens * hidden + 3 * turned
    else:
        forward = 2 * (2 + 2) * tokens * d + 3 * tokens * hidden + 2 * seen * d + 2 * turned
        backward = 2 * 4 * tokens * d + 2 * tokens * d + 5 * tokens * hidden + 3 * turned
    exponentials = 2 * tokens * hidden * (2 + again)  # and the quotient of each
    return Part("norms, gate, rotary", 0.0, exponentials,
                machine.element_bytes * ((1 + again) * forward + backward)).times(model.layers)  # fmt: skip


def _attention(config: Config, layout: Layout, rows: float, tokens, seen, tensor: int, machine: Machine) -> Part:
    """Of all layers. rows: of a device, a part of one where its tokens are split over context."""
    model, b = config.model, machine.element_bytes
    again, width, heads = int(model.remat == "full"), model.head_dim, model.heads / tensor
    kinds = {kind: model.layers * model.pattern.count(kind) / len(model.pattern) for kind in set(model.pattern)}
    ends = width * (tokens * heads + seen * model.kv_heads / tensor)  # q and out, k and v: halves
    whole = Part("attention")
    tiles = _tiles(config, layout)
    for kind, layers in kinds.items():
        in_tiles = kind == "local" and tiles.are_small
        pairs = allowed_pairs(config, layout, local=kind == "local")
        if in_tiles:  # dense, whatever the order of writing
            pairs = layout.tiles * sum(tiles.queries) * sum(tiles.keys)
        moved = b * ends * (2 * (1 + again) + 5)
        if machine.kernel_block and not in_tiles:
            # backward: scores and dP are made twice, for dQ and for dK with dV
            products, exponentials = 2 * (1 + again) + 7, (1 + again) + 2
            group = model.heads / model.kv_heads  # heads that share a block of keys
            of_scores = 2 * width * b / machine.kernel_block * ((2 + again) / group + 1)
        else:
            products, exponentials = 2 * (1 + again) + 5, (1 + again) + 1
            # scores: written, read for the largest and for the sum; weights written and read; backward dP and dS too
            of_scores = (1 + again) * (3 * _F32 + 2 * b) + 4 * _F32 + 5 * b
        pairs *= rows * heads
        whole += Part("", 2.0 * width * pairs * products, pairs * exponentials, moved + pairs * of_scores).times(layers)
    return whole


def _tiles(config: Config, layout: Layout) -> Tiles:
    return Tiles.of(layout.patches_per_tile, layout.bins_per_tile, content=not config.data.one_shot)


def _gene_head(model: ModelConfig, genes: int, bins, contents, tensor: int, machine: Machine) -> Part:
    """Projection to the gene table's width, likelihood with its gradients, and contents read through the table."""
    name, d, r, b = "gene head", model.width, model.gene_dim, machine.element_bytes
    logits, residuals = bins * genes / tensor, contents * genes / tensor
    head = _product(name, bins, d, r, 0, machine) + _product(name, bins, r, genes / tensor, 0, machine)
    # logits: written, read for the largest, for the sum, for the gradient, which is written and read twice
    # in float32; the products count three of these as the compute type already
    head += Part(name, 0.0, 2 * logits, logits * (4 * _F32 + 3 * b) - 6 * b * logits)
    # residuals are made in both passes: zeros written, counts added, read; then written and read
    return head + Part(name, 4.0 * residuals * r, 4 * residuals, 2 * residuals * (2 * _F32 + 2 * b))


def _encoders(model: ModelConfig, layout: Layout, patches, bins, contents, machine: Machine) -> Part:
    name, d, c, b = "encoders", model.width, model.stem_width, machine.element_bytes
    pyramid, wide, pixels = Pyramid.of(layout.patch_px), WIDE * c, patches * layout.patch_px**2
    large = patches * pyramid.large**2
    small, inside = large * pyramid.cells**2, 3 * pyramid.cell_px**2
    features = texture_count(layout.patch_px)
    part = _convolution(small, inside, c, machine, inputs=False) + _convolution(small, c, c, machine)
    part += _product(name, large, pyramid.cells**2 * c, wide, 0, machine)
    part += _convolution(large, wide, wide, machine).times(WIDE_LAYERS)
    part += _product(name, patches, pyramid.large**2 * wide, d, 0, machine) + _product(name, patches, d, d, 0, machine)
    part += _product(name, patches, features, d, 0, machine, inputs=False)
    if layout.frozen_features:
        axes = min(model.frozen_axes, layout.frozen_features)
        forward = Part(name, 2 * patches * layout.frozen_features * axes, 0.0, 2 * patches * layout.frozen_features)
        part += forward + _product(name, patches, axes, d, 0, machine, inputs=False)
    part += _product(name, bins, d, d, 0, machine) + _product(name, contents, model.gene_dim, d, 0, machine)
    # what is written around each bin is added up for its query, a bin after the other, and its gradient likewise
    around = 2 * contents * layout.near_bins * d
    part += _product(name, contents, d, d, 0, machine) + Part(name, 2 * around, 0.0, around * (b + 2 * _F32))
    bent = 2 * small * c + (1 + WIDE_LAYERS) * large * wide + patches * d  # elements that pass a gelu
    # densities: uint8 in, float32 out, read by three statistics and by the stem
    return part + Part(name, 0.0, 3 * pixels + 2 * bent, pixels * 3 * (1 + 5 * _F32 + 2 * b))


def _convolution(cells: float, k: int, n: int, machine: Machine, *, inputs: bool = True) -> Part:
    """3 × 3, of k channels to n."""
    part, b = _product("encoders", cells, 9 * k, n, 0, machine, inputs=inputs), machine.element_bytes
    # it reads each cell once
    part = part._replace(bytes=part.bytes - (3 if inputs else 2) * b * 8 * cells * k)
    # on a CPU the nine neighbours of each cell are written and read for the gradient of the weights
    return part if machine.joins else part + Part("encoders", 0.0, 0.0, 2 * b * 9 * cells * k)


def device_links(
    config: Config, layout: Layout, mesh: Mapping[str, int], machine: Machine, parameters: int
) -> dict[str, float]:
    """Bytes that one device receives in a step along each axis, as the program is written: to rank meshes by.

    What the compiler makes of it (`parallel/collectives.py`) differs by weights that it gathers once more, and by sums
    that it takes together.
    """
    model, b = config.model, machine.element_bytes
    rows = config.data.rows / (mesh["replica"] * mesh["fsdp"])
    patches, bins = layout.tiles * layout.patches_per_tile, layout.tiles * layout.bins_per_tile
    contents = 0 if config.data.one_shot else bins
    here = rows / mesh["context"]
    stored = parameters / (mesh["fsdp"] * mesh["tensor"])
    others = {axis: (mesh[axis] - 1) for axis in MESH_AXES}
    share = {axis: others[axis] / mesh[axis] for axis in MESH_AXES}
    # weights gathered forward and backward, gradients scattered in float32: of each part of a batch
    of_fsdp = config.train.accumulate * (2 * b + _F32) * stored * others["fsdp"]
    summed = config.train.accumulate * 2 * _F32 * stored
    keys = 2 * here * (patches + contents) * model.kv_heads * model.head_dim / mesh["tensor"]
    again = {"none": 0, "full": 1}.get(model.remat, 0)
    hops = keys * others["context"] * ((2 + again) * b + _F32)
    ring = [kind for kind in model.pattern if kind == "global" or not _tiles(config, layout).are_small]
    token = here * (patches + contents + bins) * model.width * b
    products = 4 + (model.remat != "none")  # whose results lie in parts over `tensor`: two forward, two backward
    return {
        "replica": summed * share["replica"],
        "fsdp": of_fsdp,
        "context": model.layers * len(ring) / len(model.pattern) * hops + summed * share["context"],
        "tensor": model.layers * products * 2 * share["tensor"] * token,
    }

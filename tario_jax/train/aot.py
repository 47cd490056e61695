"""A training step compiled for a pod that is not here: what it holds, what it sends, how fast it can be at best."""

import dataclasses
import math
import re
import time
from collections.abc import Callable
from typing import Any

import jax

from tario_jax.config import MESH_AXES, Config, InputError
from tario_jax.model.build import build, model_sizes
from tario_jax.model.flops import step_flops
from tario_jax.parallel.chips import SLICE_LINK_BYTES_PER_SECOND, Chip, chip_of
from tario_jax.parallel.collectives import Collective, collectives
from tario_jax.parallel.mesh import batch_shardings, check_rows, make_mesh
from tario_jax.parallel.topology import topology_devices
from tario_jax.tokens.batch import Layout, batch_arrays, make_layout, square_bins_per_tile
from tario_jax.tokens.deal import check_tiles
from tario_jax.train.state import abstract_state, make_optimiser, make_train_step

_GIB = 1 << 30
ENTRIES_PER_UM2 = 0.6  # (bin, gene, count) of dense tissue, 770 a bin of 36 µm; only where no corpus says better


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip."""

    arguments: int  # state and batch
    outputs: int  # beyond what the old state's memory holds
    temporaries: int
    program: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries + self.program


def compile_step(config: Config, topology: str, *, slices: int = 1, genes: int = 18963,
                 say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Compiles the training step of `config` for `slices` pods of `topology`; returns what was found, with a "table".

    The batch's capacity for counts is `config.data.count_capacity`, or else that of dense tissue. Raises `InputError`
    for a pod that does not exist and for a mesh that does not fit it, the batch or the model.
    """
    chip = chip_of(topology)
    devices = topology_devices(topology, slices)
    mesh = make_mesh(config.mesh, devices)
    check_rows(mesh, config.data.rows)
    layout = pod_layout(config, genes)
    check_tiles(layout.tiles, mesh.shape["context"])
    built = build(config.model, genes, config.data.patch_px, content=not config.data.one_shot)
    optimiser = make_optimiser(config.optim, config.train.steps, built)
    batch = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        batch_arrays(config.data.rows, layout), batch_shardings(mesh),
    )  # fmt: skip
    sizes = model_sizes(config, genes)
    say(f"compile: {sizes}, for {len(devices)} chips of {chip.name}: minutes for a large model")
    began = time.monotonic()
    arrays = abstract_state(built, optimiser, mesh), batch
    lowered = make_train_step(built, optimiser, mesh).lower(*arrays)
    asked, found = None, []
    memory = Memory(0, 0, 0, 0)
    loops = 0
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        asked = _asked_bytes(str(error), _bytes_a_chip(arrays))
        if asked is None:
            raise
    else:
        told = program.memory_analysis()
        memory = Memory(told.argument_size_in_bytes, told.output_size_in_bytes - told.alias_size_in_bytes,
                        told.temp_size_in_bytes, told.generated_code_size_in_bytes)  # fmt: skip
        found, loops = collectives(program.as_text(), dict(mesh.shape), slices)
    flops = step_flops(config, layout)
    result: dict[str, Any] = {
        "topology": topology, "slices": slices, "chips": len(devices), "mesh": dict(mesh.shape),
        "rows": config.data.rows, "tokens_a_row": layout.tiles * layout.patches_per_tile
        + layout.tiles * layout.bins_per_tile * (0 if config.data.one_shot else 1),
        "queries_a_row": layout.tiles * layout.bins_per_tile, "head_dim": config.model.head_dim,
        "count_capacity": layout.count_capacity, "parameters": dataclasses.asdict(sizes),
        "memory_bytes": dataclasses.asdict(memory) | {"total": memory.total if asked is None else asked},
        "state_bytes": _bytes_a_chip(arrays[0]), "chip_memory_bytes": chip.memory_bytes, "fits": asked is None,
        "collectives": [dataclasses.asdict(one) for one in found], "loops_of_unknown_length": loops,
        "flops": dataclasses.asdict(flops) | {"total": flops.total},
        "seconds": bounds(chip, len(devices), flops.total, found, slices), "compile_seconds": time.monotonic() - began,
    }  # fmt: skip
    slowest = max(result["seconds"], key=result["seconds"].get)
    # all that is sent may overlap with what is computed: nothing can be faster than the slowest of them
    result["bound"] = {"by": slowest, "mfu": result["seconds"]["flops"] / result["seconds"][slowest]}
    result["table"] = table(result)
    return result


def pod_layout(config: Config, genes: int) -> Layout:
    """Batch sizes of square bins, without a corpus."""
    data = config.data
    area_um2 = data.windows_per_row * data.window_um**2
    return make_layout(data, genes, bins_per_tile=square_bins_per_tile(data), largest_bin_um=max(data.trained_bins_um),
                       count_capacity=data.count_capacity or math.ceil(ENTRIES_PER_UM2 * area_um2))  # fmt: skip


def bounds(chip: Chip, chips: int, flops: float, found: list[Collective], slices: int) -> dict[str, float]:
    """Seconds that a step takes at least: for its FLOPs, and for what a chip receives, over the links of its axes.

    An axis within a slice has the two directions of one link of its own; `replica` crosses slices where there are some.
    """
    by_axis = {axis: sum(one.bytes / len(one.axes) for one in found if axis in one.axes) for axis in MESH_AXES}
    rates = {axis: SLICE_LINK_BYTES_PER_SECOND if axis == "replica" and slices > 1 else 2 * chip.link_bytes_per_second
             for axis in MESH_AXES}  # fmt: skip
    return {"flops": flops / chips / chip.bf16_flops} | {axis: by_axis[axis] / rates[axis] for axis in MESH_AXES}


def _asked_bytes(message: str, arguments: int) -> int | None:
    """Bytes that a program would have taken, of the compiler's refusal; None where it refuses something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    units = {"K": 1 << 10, "M": 1 << 20, "G": _GIB}
    for words, more in ((r"Used ([\d.]+)([KMG]) of", 0), (r"HLO temporaries \(([\d.]+)([KMG])\)", arguments)):
        if used := re.search(words, message):
            return round(float(used[1]) * units[used[2]]) + more
    raise InputError(f"compile: out of memory: {' '.join(message.split())[:200]}")


def _bytes_a_chip(arrays) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)
    )


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in result["mesh"].items() if size > 1) or "one device"
    memory, held = result["memory_bytes"], result["chip_memory_bytes"]
    sizes, flops, seconds = result["parameters"], result["flops"], result["seconds"]
    lines = [
        f"{result['chips']} chips of {result['topology']}"
        + f" × {result['slices']} slices" * (result["slices"] > 1)
        + f": {mesh}",
        f"{result['rows']} rows of {result['tokens_a_row']:,} tokens and {result['queries_a_row']:,} queries; heads of "
        f"{result['head_dim']}; up to {result['count_capacity']:,} counts a row",
        f"parameters: trunk {sizes['trunk'] / 1e6:,.0f}M, gene tables {sizes['gene_tables'] / 1e6:,.0f}M",
    ]
    if result["fits"]:
        lines += [f"memory of a chip: {memory['total'] / _GIB:.2f} of {held / _GIB:.1f} GiB: arguments "
                  f"{memory['arguments'] / _GIB:.2f}, temporaries {memory['temporaries'] / _GIB:.2f}, outputs "
                  f"{memory['outputs'] / _GIB:.2f}, program {memory['program'] / _GIB:.2f}"]  # fmt: skip
        lines += [f"{'a chip receives in a step':<28}{'axes':<20}{'times':>8}{'MiB':>12}"]
        lines += [f"{one['kind']:<28}{' × '.join(one['axes']):<20}{one['count']:>8,}{one['bytes'] / 2**20:>12,.1f}"
                  for one in result["collectives"]] or ["nothing"]  # fmt: skip
    lines += [
        f"FLOPs of a step: {flops['total']:.3g} (decoder {flops['decoder'] / flops['total']:.0%}, attention "
        f"{flops['attention'] / flops['total']:.0%}, gene head {flops['gene_head'] / flops['total']:.0%}, encoders "
        f"{flops['encoders'] / flops['total']:.0%}): 6 a weight and row, attention 12 a pair, head and width",
    ]
    if result["fits"]:
        told = ", ".join(f"{name} {value * 1e3:,.1f} ms" for name, value in seconds.items() if value)
        bound = result["bound"]
        lines.append(f"a step takes at least: {told}: bound by {bound['by']}, MFU at most {bound['mfu']:.0%} (without "
                     "memory traffic, softmax and what is computed again)")  # fmt: skip
    lines += ["verdict: fits" if result["fits"] else
              f"verdict: does not fit: takes {memory['total'] / _GIB:.1f} GiB, "
              f"{(memory['total'] - held) / _GIB:.1f} too many"]  # fmt: skip
    return "\n".join(lines)

"""The best mesh for a config on a pod: all that fit together are ranked, and the first that fits its memory is told."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from tario_jax.config import MESH_AXES, Config, InputError
from tario_jax.config_files import override
from tario_jax.model.decoder import compute_dtype
from tario_jax.parallel.mesh import traced_on
from tario_jax.train.aot import CompilerCrash, OutOfMemory, Plan, Pod, compile_apart
from tario_jax.train.aot_table import mesh_words
from tario_jax.train.roofline import estimate, written_links

_GIB = 1 << 30


def search_mesh(config: Config, pod: Pod, *, genes: int = 18963, tries: int = 4,
                say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Compiles the step on the meshes of the shortest estimated steps, in their order, until one fits.

    tries: at most so many compiles, some minutes each. Returns what `compile_step` does of the mesh that fits (or of
    the last one compiled), with "candidates" and a "table" that begins with them. Raises `InputError` where no mesh
    divides the batch and the model.
    """
    say(f"search: ranking the meshes of {len(pod.devices)} chips")
    ranked, refusals = _ranked(config, pod, genes)
    if not ranked:
        raise InputError(f"--search: no mesh of {len(pod.devices)} chips divides the batch and the model; the last one "
                         f"tried: {refusals[-1]}")  # fmt: skip
    say(f"search: {len(ranked)} meshes divide batch and model; compiling them from the shortest estimated step on")
    result: dict[str, Any] = {}
    left = tries
    for candidate in ranked:
        if candidate["held_bytes"] > pod.chip.memory_bytes:
            candidate["verdict"] = "cannot fit"
            continue
        if not left:
            break
        left -= 1
        of_mesh = override(config, {f"mesh.{axis}": str(size) for axis, size in candidate["mesh"].items()})
        try:
            result = compile_apart(of_mesh, pod.topology, pod.slices, genes=genes, say=say)
        except CompilerCrash:
            candidate["verdict"] = "compiler crashed"
            continue
        except OutOfMemory as error:
            candidate["verdict"] = "does not fit"
            say(f"search: {mesh_words(candidate['mesh'])}: {error}")
            continue
        candidate |= {"verdict": "does not fit", "memory_bytes": result["memory_bytes"]["total"]}
        if result["fits"]:
            line = result["roofline"]
            candidate |= {"verdict": "fits", "mfu": line["mfu"], "bound_by": line["bound_by"]}
        say(f"search: {mesh_words(candidate['mesh'])}: {candidate['verdict']}")
        if result["fits"]:
            break
    found = f"best mesh that fits: {mesh_words(result['mesh'])}" if result.get("fits") else (
        f"none of the {tries - left} meshes compiled fits; take more chips, fewer rows, model.remat, or more --tries"
    )  # fmt: skip
    table = f"{_table(ranked, pod)}\n{found}"
    return result | {"candidates": ranked, "table": "\n\n".join([table, result["table"]] if result else [table])}


def _ranked(config: Config, pod: Pod, genes: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Meshes by their estimated step, the shortest first, and why others were refused."""
    found, refusals = [], []
    for sizes in _meshes(len(pod.devices), pod.slices):
        mesh = dict(zip(MESH_AXES, sizes, strict=True))
        try:
            of_mesh = override(config, {f"mesh.{axis}": str(size) for axis, size in mesh.items()})
            plan = Plan.of(of_mesh, genes, pod.devices)
            links = written_links(of_mesh, plan.layout, genes, plan.mesh, pod.chip, pod.slices)
            line = estimate(of_mesh, plan.layout, genes, plan.mesh, pod.chip.rates, links)
        except InputError as refused:
            refusals.append(str(refused))
            continue
        found.append({"mesh": mesh, "estimated_seconds": line.seconds, "mfu": line.mfu, "bound_by": line.bound_by,
                      "link_seconds": sum(line.links.values()), "held_bytes": plan.state_bytes + _carried_bytes(plan),
                      "verdict": "not tried"})  # fmt: skip
    # of those within a per cent that with the least to send, which is hidden most easily
    return sorted(
        found, key=lambda one: (round(100 * math.log(one["estimated_seconds"])), one["link_seconds"])
    ), refusals


def _meshes(chips: int, slices: int) -> Iterator[tuple[int, ...]]:
    """Sizes of the axes: `replica` crosses the slices, and within one it takes what `fsdp` cannot divide."""
    within = chips // slices
    for replica, context, tensor in itertools.product(_divisors(within), repeat=3):
        if within % (replica * context * tensor) == 0:
            yield slices * replica, within // (replica * context * tensor), context, tensor


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _carried_bytes(plan: Plan) -> int:
    """Of a chip, at the least: gradients, and what the scan over layers keeps for the backward pass.

    That is the tokens before each period, or with no remat at all the tokens and both halves of the gate of each layer.
    """
    model, mesh, layout = plan.config.model, plan.mesh.shape, plan.layout
    bins = layout.bins_per_tile * (1 if plan.config.data.one_shot else 2)
    tokens = plan.config.data.rows * layout.tiles * (layout.patches_per_tile + bins)
    here = tokens // (mesh["replica"] * mesh["fsdp"] * mesh["context"] * plan.config.train.accumulate)
    size = traced_on(plan.mesh, lambda: compute_dtype(model).itemsize)()
    kept = {"none": model.layers * (model.width + 2 * model.mlp_width // mesh["tensor"]), "offload": 0}
    of_token = kept.get(model.remat, model.layers // len(model.pattern) * model.width)
    return plan.state_bytes // 3 + here * of_token * size


def _table(ranked: list[dict[str, Any]], pod: Pod) -> str:
    lines = [f"{'mesh':<44}{'step, s':>10}{'MFU':>7}  {'bound by':<14}{'GiB':>8}  verdict"]
    for one in ranked[:12]:
        held = one.get("memory_bytes", one["held_bytes"]) / _GIB
        bytes_ = f"{held:.1f}" if "memory_bytes" in one else f"> {held:.1f}"
        lines.append(f"{mesh_words(one['mesh']):<44}{one['estimated_seconds']:>10.3g}{one['mfu']:>7.0%}  "
                     f"{one['bound_by']:<14}{bytes_:>8}  {one['verdict']}")  # fmt: skip
    if len(ranked) > 12:
        lines.append(f"… and {len(ranked) - 12} slower ones")
    return "\n".join(lines)

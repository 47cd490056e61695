"""Ranking the meshes of a pod, on eight virtual devices with a TPU's rates; nothing is compiled."""

import json

import pytest

_PROGRAM = """
import json
import jax
from tario_jax.config import InputError, MESH_AXES
from tario_jax.config_files import load_config, override
from tario_jax.parallel.chips import chip_of
from tario_jax.train import mesh_search
from tario_jax.train.aot import CompilerCrash, OutOfMemory, Pod

config = load_config("CONFIGS/tario2_200m.py", {"data.rows": "4", "data.window_um": "288"})
pod = Pod("v5e:2x4", 1, chip_of("v5e:2x4"), jax.devices())

def told(fits):
    compiled = []
    def compile_apart(config, topology, slices, *, genes, say):
        mesh = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
        compiled.append(mesh)
        if fits == "crash" and len(compiled) == 1:
            raise CompilerCrash("what it said")
        if fits == "kernel" and len(compiled) == 1:
            raise OutOfMemory("the kernel does not fit vmem")
        that = 2 if fits in ("crash", "kernel") else fits
        return {"mesh": mesh, "fits": len(compiled) == that, "roofline": {"mfu": 0.5, "bound_by": "products"},
                "memory_bytes": {"total": 1 << 30}, "table": "what was compiled"}
    mesh_search.compile_apart = compile_apart
    said = []
    found = mesh_search.search_mesh(config, pod, tries=3, say=said.append)
    return {"compiled": compiled, "said": said, **found}

second, none, crash, kernel = told(2), told(9), told("crash"), told("kernel")
try:
    mesh_search.search_mesh(override(config, {"data.rows": "3", "data.tile_um": "288"}), pod)
except InputError as refused:
    print(json.dumps([second, none, crash, kernel, str(refused)]))
"""


@pytest.mark.slow
def test_the_best_that_fits_is_told(devices8, repository):
    said = devices8(_PROGRAM.replace("CONFIGS", str(repository / "configs")))
    second, none, crash, kernel, refused = json.loads(said.splitlines()[-1])
    ranked = second["candidates"]
    # four rows, four tiles and four key heads: every way to part eight chips among them
    parts = (1, 2, 4)
    assert {tuple(one["mesh"].values()) for one in ranked} == {
        (replica, fsdp, context, tensor) for replica in parts for fsdp in parts for context in parts
        for tensor in parts if replica * fsdp * context * tensor == 8 and replica * fsdp <= 4
    }  # fmt: skip
    seconds = [one["estimated_seconds"] for one in ranked]
    assert all(later > 0.98 * before for before, later in zip(seconds[:-1], seconds[1:], strict=True))
    assert [one["verdict"] for one in ranked[:3]] == ["does not fit", "fits", "not tried"]
    assert second["compiled"] == [one["mesh"] for one in ranked[:2]] and second["mesh"] == ranked[1]["mesh"]
    assert "best mesh that fits: " in second["table"] and "what was compiled" in second["table"]
    assert len(none["compiled"]) == 3 and "none of the 3 meshes compiled fits" in none["table"]
    assert [one["verdict"] for one in crash["candidates"][:2]] == ["compiler crashed", "fits"]
    assert [one["verdict"] for one in kernel["candidates"][:2]] == ["does not fit", "fits"]
    assert any("the kernel does not fit vmem" in line for line in kernel["said"])
    assert "--search: no mesh of 8 chips divides the batch and the model" in refused

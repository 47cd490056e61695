"""The step compiled for pods that are not here. Needs libtpu; bad input does not."""

import dataclasses
import json
import subprocess

import jax
import numpy as np
import pytest
from refusals import refused

from tario_jax.config import MESH_AXES, load_config, override
from tario_jax.parallel.chips import chip_of
from tario_jax.parallel.topology import topology_devices, why_not

_SMALL = ("--config.model.width=256", "--config.model.layers=4", "--config.model.mlp_width=512",
          "--config.model.gene_dim=128", "--config.model.stem_width=32")  # fmt: skip


def compile_(cli_tario, *arguments: str) -> subprocess.CompletedProcess:
    return cli_tario("compile", "--config=configs/tario2_200m.py", *_SMALL, *arguments)


@pytest.mark.parametrize(("arguments", "words"), [
    (("--topology=v9:2x2",), ("--topology=v9:2x2", "no such chip", "v5e, v5p, v6e")),
    (("--topology=v5p-512",), ("no such chip",)),
    (("--topology=v5p:512",), ("expected a chip and its grid",)),
    (("--topology=v5e:2x2", "--mesh=fsdp:4"), ("--mesh=fsdp:4", "expected AXIS=N")),
    (("--topology=v5e:2x2", "--mesh=rows=4"), ("axes replica, fsdp, context, tensor",)),
    (("--topology=v5e:2x2", "--mesh=fsdp=4", "--search"), ("--mesh=fsdp=4: --search chooses the mesh",)),
    (("--topology=v5e:2x2", "--tries=2"), ("--tries=2: only --search tries several meshes",)),
])  # fmt: skip
def test_one_line_where_it_cannot_be(cli_tario, arguments, words):
    done = compile_(cli_tario, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


def test_a_missing_compiler_is_named(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    refused(lambda: topology_devices("v5e:2x2"), "libtpu", "is not installed", "pip install 'tario-jax[tpu]'")


needs_libtpu = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_a_small_step_on_eight_chips(cli_tario, tmp_path):
    """State falls as 1 / (fsdp x tensor), the ring's messages are on context, and a wrong mesh is one line."""
    told = {}
    for name, mesh in (("ring", "fsdp=2,context=4"), ("spread", "fsdp=4,tensor=2")):
        done = compile_(cli_tario, "--topology=v5e:2x4", f"--mesh={mesh}", "--batch=8", f"--json={tmp_path / name}",
                        "--config.model.attention=ring")  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "verdict: fits" in done.stdout
        told[name] = json.loads((tmp_path / name).read_text())
    assert any(one["kind"] == "collective-permute" and one["axes"] == ["context"]
               for one in told["ring"]["collectives"])  # fmt: skip
    state = {name: told[name]["state_bytes"] for name in told}
    assert 3.5 < state["ring"] / state["spread"] <= 4  # of a model this small, vectors are a part
    assert {axis for one in told["spread"]["collectives"] for axis in one["axes"]} <= {"fsdp", "tensor"}
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=fsdp=8", "--batch=12")
    assert done.returncode == 2 and "--config.data.rows=12: expected a multiple of replica × fsdp = 8" in done.stderr
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=fsdp=3", "--batch=12")
    assert done.returncode == 2 and "does not multiply to 8 devices" in done.stderr
    done = compile_(cli_tario, "--topology=v5e:2x4", "--mesh=context=8", "--config.data.tile_um=1152")
    assert done.returncode == 2 and "--config.mesh.context=8: a row holds 1 tiles" in done.stderr


def test_meshes_are_ranked_by_their_estimated_step(monkeypatch):
    """Without a compiler: the first that fits is compiled last, and is what is told."""
    from tario_jax.train import mesh_search
    from tario_jax.train.aot import Pod

    config = load_config("configs/tario2_200m.py", {"data.rows": "4", "data.window_um": "288"})
    compiled = []

    def compile_step(config, pod, *, genes, say):
        mesh = {axis: getattr(config.mesh, axis) for axis in MESH_AXES}
        compiled.append(mesh)
        line = {"mfu": 0.5, "bound_by": "products"}
        return {"mesh": mesh, "fits": len(compiled) == 2, "roofline": line, "memory_bytes": {"total": 1 << 30},
                "table": "what was compiled"}  # fmt: skip

    monkeypatch.setattr(mesh_search, "compile_step", compile_step)
    pod = Pod("v5e:2x2", 1, chip_of("v5e:2x2"), jax.devices() * 4)
    monkeypatch.setattr(mesh_search.Plan, "of", _on_shape(mesh_search.Plan.of))
    said = []
    result = mesh_search.search_mesh(config, pod, say=said.append)
    assert len(compiled) == 2 and result["mesh"] == compiled[-1]
    ranked = result["candidates"]
    assert [one["verdict"] for one in ranked[:3]] == ["does not fit", "fits", "not tried"]
    seconds = [one["estimated_seconds"] for one in ranked]
    assert all(later > 0.98 * before for before, later in zip(seconds, seconds[1:], strict=False))
    # every way to part four chips that four rows, four tiles and four key heads allow
    assert len(ranked) == 10 and "best mesh that fits" in result["table"] and "what was compiled" in result["table"]
    monkeypatch.setattr(mesh_search, "compile_step", lambda *_, **__: compile_step(config, pod, genes=0, say=None))
    assert (
        "none of the 1 meshes compiled fits" in mesh_search.search_mesh(config, pod, tries=1, say=said.append)["table"]
    )
    refused(lambda: mesh_search.search_mesh(override(config, {"data.rows": "3"}), pod), "--search: no mesh of 4 chips")


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_libtpu
def test_what_does_not_fit_is_told_with_its_bytes(cli_tario, tmp_path):
    done = cli_tario("compile", "--config=configs/tario2_1b.py", "--topology=v5e:2x2", "--mesh=fsdp=4", "--batch=16",
                     f"--json={tmp_path / 'told'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told").read_text())
    assert not told["fits"] and told["memory_bytes"]["total"] > told["chip_memory_bytes"]
    assert "verdict: does not fit" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_libtpu
def test_offload_takes_what_layers_leave_from_the_chip_to_its_host(cli_tario, tmp_path):
    """Of many thin layers, so that what they leave is most of the memory; over context too, by the ring."""
    told = {}
    for remat in ("save_attention", "offload"):
        done = compile_(cli_tario, "--topology=v5e:2x2", "--mesh=fsdp=2,context=2", "--batch=4",
                        f"--json={tmp_path / remat}", f"--config.model.remat={remat}", "--config.model.attention=ring",
                        "--config.model.layers=64", '--config.model.pattern=("global",)',
                        "--config.data.window_um=576")  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[remat] = json.loads((tmp_path / remat).read_text())["memory_bytes"]
        assert ("; of its host " in done.stdout) == (remat == "offload")
    kept, sent = told["save_attention"], told["offload"]
    assert kept["host"] == 0 < sent["host"]
    assert sent["temporaries"] < kept["temporaries"] - 0.5 * sent["host"]
    assert sent["total"] < kept["total"]

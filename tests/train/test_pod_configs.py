"""Every config on every pod that it names: mesh, batch, rows and parameters fit together. Nothing is compiled."""

import json
import math
from pathlib import Path

import pytest
from refusals import refused

from tario_jax.config_files import load_config
from tario_jax.train.mesh_search import _meshes

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ("10m", "50m", "200m", "1b", "4b")

_PROGRAM = """
import json, runpy, sys
import jax
jax.config.update("jax_num_cpu_devices", 1024)
from tario_jax.config import MESH_AXES
from tario_jax.config_files import load_config, override
from tario_jax.train.aot import Plan

CHIPS = {"v5e:16x16": 256, "v6e:16x16": 256, "v5p:4x8x8": 256, "v5p:8x8x8": 512, "2xv5p:8x8x8": 1024, "8xH100": 8}
for path in sys.argv[1:]:
    for on in filter(None, runpy.run_path(path)["ON"]):
        config = load_config(f"{path}:{on}")
        plan = Plan.of(config, 18963, jax.devices()[:CHIPS[on]])
        parts = plan.mesh.shape["fsdp"] * plan.mesh.shape["tensor"]
        alone = Plan.of(override(config, {f"mesh.{axis}": "1" for axis in MESH_AXES}), 18963, jax.devices()[:1])
        print(json.dumps({"path": path, "on": on, "rows": config.data.rows, "window_um": config.data.window_um,
                          "tokens": plan.layout.tiles * (plan.layout.patches_per_tile + 2 * plan.layout.bins_per_tile),
                          "mesh": dict(plan.mesh.shape), "remat": config.model.remat,
                          "state": plan.state_bytes * parts / alone.state_bytes}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *(str(CONFIGS / f"tario2_{name}.py") for name in NAMES)],
        cwd=CONFIGS.parent, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_all_pods_are_there_and_the_docstrings_say_what_the_configs_hold(told):
    assert {(one["path"][-7:], one["on"]) for one in told} >= {
        (f"tario2_{name}.py"[-7:], on) for name in NAMES
        for on in ("v5e:16x16", "v6e:16x16", "v5p:4x8x8", "v5p:8x8x8", "8xH100")
    }  # fmt: skip
    for one in told:
        mesh = " × ".join(f"{axis} {size}" for axis, size in one["mesh"].items() if size > 1)
        line = [one["on"], f"{one['window_um']:,.0f}", f"{one['tokens']:,}", str(one["rows"]), *mesh.split(),
                one["remat"]]  # fmt: skip
        assert line in [words.split() for words in Path(one["path"]).read_text().splitlines()], line


def test_state_falls_as_fsdp_times_tensor(told):
    beyond = {(Path(one["path"]).stem, one["on"]): one["state"] for one in told if not 1 <= one["state"] < 1.05}
    assert not beyond


@pytest.mark.parametrize("window_um", [256, 512, 1024, 2048, 4096])
def test_windows_from_256_to_4096_um(window_um):
    from tario_jax.train.aot import pod_layout

    for name in NAMES:
        config = load_config(str(CONFIGS / f"tario2_{name}.py"),
                             {"data.tile_um": "128", "data.window_um": str(window_um)})  # fmt: skip
        layout = pod_layout(config, 18963)
        assert layout.tiles == (window_um / 128) ** 2 and layout.patches_per_tile == 64


def test_a_search_tries_the_mesh_of_every_config(told):
    tried = {(chips, slices): set(_meshes(chips, slices)) for chips, slices in ((256, 1), (512, 1), (1024, 2), (8, 1))}
    for one in told:
        sizes, slices = tuple(one["mesh"].values()), 2 if one["on"].startswith("2x") else 1
        assert sizes in tried[math.prod(sizes), slices], one


def test_a_pod_that_a_config_does_not_name():
    refused(lambda: load_config(str(CONFIGS / "tario2_4b.py") + ":v5p:8x8"), "v5p:8x8:", "expected one of",
            "did you mean 'v5p:8x8x8'?")  # fmt: skip

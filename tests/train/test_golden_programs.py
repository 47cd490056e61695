"""Two small steps as the TPU's compiler makes them: what they send and hold is what was written down.

A change is a change of the program: look at it, and if it is wanted, write the new figures down with
`python tests/train/test_golden_programs.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tario_jax.parallel.topology import why_not

GOLDEN = Path(__file__).with_name("golden_programs.json")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--config.model.width=512", "--config.model.layers=4", "--config.model.heads=4", "--config.model.kv_heads=2",
         "--config.model.head_dim=128", "--config.model.mlp_width=1024", "--config.model.gene_dim=128",
         "--config.model.stem_width=32", "--config.model.pattern=('local','global')", "--batch=16")  # fmt: skip
PROGRAMS = {
    "ring, remat": ("--topology=v5e:2x4", "--mesh=fsdp=2,context=2,tensor=2", "--config.model.attention=ring"),
    "two slices": ("--topology=v5p:2x2x1", "--slices=2", "--mesh=replica=2,fsdp=4", "--config.model.remat=none"),
}
ALLOWED = 0.05


def told(arguments: tuple[str, ...], folder: Path) -> dict[str, float]:
    """Bytes by kind and axes, how often, and the memory of a chip."""
    words = ["compile", "--config=configs/tario2_200m.py", *SMALL, *arguments, f"--json={folder / 'told.json'}"]
    done = subprocess.run([sys.executable, "-m", "tario_jax.cli", *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=1200, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "told.json").read_text())
    found: dict[str, float] = {"memory": result["memory_bytes"]["total"]}
    for one in result["collectives"]:
        name = f"{one['kind']} {' × '.join(one['axes'])}"
        found |= {f"{name}, bytes": one["bytes"], f"{name}, times": one["count"]}
    return found


def differences(found: dict[str, float], golden: dict[str, float]) -> list[str]:
    return [f"{name}: {golden.get(name, 0):,} before, {found.get(name, 0):,} now" for name in sorted(found | golden)
            if abs(found.get(name, 0) - golden.get(name, 0)) > ALLOWED * golden.get(name, 0)]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("name", PROGRAMS)
def test_collectives_and_memory_are_those_written_down(name, tmp_path):
    assert not differences(told(PROGRAMS[name], tmp_path), json.loads(GOLDEN.read_text())[name])


def test_more_than_five_per_cent_is_told():
    golden = json.loads(GOLDEN.read_text())["ring, remat"]
    kept = dict(golden, memory=golden["memory"] * 1.04)
    assert not differences(kept, golden)
    other = {name: value for name, value in golden.items() if not name.startswith("collective-permute context,")}
    other |= {"memory": golden["memory"] * 1.06, "all-to-all fsdp, bytes": 1}
    assert {line.partition(":")[0] for line in differences(other, golden)} == {
        "memory", "all-to-all fsdp, bytes", "collective-permute context, bytes", "collective-permute context, times"
    }  # fmt: skip


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps({name: told(PROGRAMS[name], Path(scratch)) for name in PROGRAMS}, indent=1) + "\n")

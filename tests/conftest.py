"""What every test stands on.

Devices: one CPU device. Eight virtual devices share two cores with everything else, and a mesh that takes all of them
(the default) would shard every small training test eight ways. A test of the mesh runs its program in a process of its
own with the fixture `devices8`. `JAX_PLATFORMS` set outside wins: `JAX_PLATFORMS=cuda,cpu make test` tests on a GPU.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports jax: it reads its platform once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the excerpts of real tissue; skips where it is absent."""
    named = os.environ.get("TARIO_REAL_DATA")
    place = Path(named) if named else ROOT.parent / "shared" / "data"
    if not place.is_dir():
        found = f"TARIO_REAL_DATA={named} is not a folder" if named else "TARIO_REAL_DATA is not set"
        pytest.skip(f"no real tissue here: {found}")
    return place


@pytest.fixture
def devices8(tmp_path: Path) -> Callable[..., str]:
    """`devices8(program, *arguments)` runs Python source on eight virtual CPU devices and returns what it printed.

    Fails the test, with the program's own traceback, where it exits with another status than 0.
    """

    def run(program: str, *arguments: str, timeout_s: float = 240) -> str:
        path = tmp_path / "on_eight_devices.py"
        path.write_text(program)
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip(),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))),
        }
        done = subprocess.run(
            [sys.executable, str(path), *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.fail(f"exit status {done.returncode} on eight devices\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    return run

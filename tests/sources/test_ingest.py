"""An ingest that is refused leaves the corpus that was there as usable as it was."""

import dataclasses
import json
import shutil

import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_section, write_corpus

from tario_jax.config import SplitConfig
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.split import split_corpus, write_split
from tario_jax.corpus.write import begin_corpus, seal_corpus, write_section
from tario_jax.panel import Panel
from tario_jax.sources.check import check
from tario_jax.sources.ingest import ingest, panel_to_take
from tario_jax.sources.ingested import Ingested, IngestReport

FIRST, SECOND, THIRD = (tiny_section(f"{name}1", name, seed, detections=60) for seed, name in enumerate("ABC"))


def ingested(root, *sections, panel=PANEL, said=None):
    source = Ingested(panel, iter(sections), len(sections), IngestReport("made", "by a test"))
    return ingest(source, root, (lambda line: None) if said is None else said.append)


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return ingested(tmp_path / "c", FIRST)


def test_a_known_patient_with_another_cohort_is_refused_before_anything_is_touched(corpus):
    files = {path: path.read_bytes() for path in corpus.root.local.rglob("*") if path.is_file()}
    for change in ({"cohort": "LUDA"}, {"patient": {"stage": "II"}}):
        other = dataclasses.replace(SECOND, patient_id="A", **change)
        refused(lambda other=other: ingested(corpus.root, other), "patient 'A' is described as", "section 'B1'")
        assert {path: path.read_bytes() for path in corpus.root.local.rglob("*") if path.is_file()} == files


def test_a_later_section_that_is_refused_leaves_those_before_it_sealed(corpus):
    typo = dataclasses.replace(THIRD, patient_id="B", cohort="LUDA")
    refused(lambda: ingested(corpus.root, SECOND, typo), "patient 'B' is described as")
    assert [section.id for section in Corpus.open(corpus.root).sections] == ["A1", "B1"]


def test_one_section_under_two_names_is_not_taken_and_the_corpus_stays_sealed(corpus):
    twin = dataclasses.replace(FIRST, section_id="A2")
    refused(lambda: ingested(corpus.root, twin), "sections 'A1' and 'A2' hold the same data", "'A2' is not taken")
    assert Corpus.open(corpus.root).seal == corpus.seal and not (corpus.root.local / "sections/A2").exists()
    assert len(ingested(corpus.root, SECOND).sections) == 2  # and it grows further


def test_a_corpus_does_not_grow_over_a_section_whose_seal_was_altered_until_it_is_written_anew(corpus):
    folder = corpus.root.local / "sections/A1"
    whole = (folder / "seal.json").read_text()
    for damaged in (whole.replace('"width_um": 180.0', '"width_um": 190.0'), whole[:-9], ""):
        assert damaged != whole
        (folder / "seal.json").write_text(damaged)
        refused(lambda: ingested(corpus.root, SECOND), "sections/A1/seal.json", "differs from the corpus seal",
                "delete the folder of its section")  # fmt: skip
    (corpus.root.local / "corpus.json").unlink()  # nor where it is not sealed
    refused(lambda: ingested(corpus.root, SECOND), "sections/A1/seal.json", "delete the folder of its section")
    shutil.rmtree(folder)
    assert ingested(corpus.root, FIRST).seal == corpus.seal


def test_a_section_whose_folder_is_gone_is_named_when_the_corpus_grows(corpus):
    shutil.rmtree(corpus.root.local / "sections/A1")
    said: list[str] = []
    assert [section.id for section in ingested(corpus.root, SECOND, said=said).sections] == ["B1"]
    assert any("A1, which the corpus held" in line and "ingest it again" in line for line in said)
    assert [section.id for section in ingested(corpus.root, FIRST, said=said).sections] == ["A1", "B1"]
    assert sum("which the corpus held" in line for line in said) == 1
    shutil.rmtree(corpus.root.local / "sections/B1")  # nor is it lost in silence where the ingest ends in a mistake
    typo = dataclasses.replace(SECOND, section_id="B2", patient_id="C", cohort="LUDA")
    refused(lambda: ingested(corpus.root, THIRD, typo, said=said), "patient 'C' is described as")
    assert sum("B1, which the corpus held" in line for line in said) == 1


def test_a_note_that_lacks_the_panel_lets_no_other_panel_in(corpus):
    note = corpus.root.local / "ingest.json"
    whole = json.loads(note.read_text())
    note.write_text(json.dumps({"source": whole["source"]}))
    other = Panel(PANEL.symbols[::-1])
    refused(lambda: begin_corpus(corpus.root, other, "real", whole["source"]), "ingest.json", "with panel_hash")
    assert panel_to_take(corpus.root, None) == PANEL == Corpus.open(corpus.root).panel
    assert len(ingested(corpus.root, SECOND).sections) == 2 and json.loads(note.read_text()) == whole
    note.write_text(json.dumps({"source": whole["source"]}))
    (corpus.root.local / "corpus.json").unlink()
    refused(lambda: panel_to_take(corpus.root, None), "ingest.json: does not say which panel", "restore it")


@pytest.mark.parametrize("damage", [None, b"", b'{"kind": "re'])
def test_a_note_that_is_lost_or_damaged_is_written_again_when_the_corpus_grows(corpus, damage):
    note = corpus.root.local / "ingest.json"
    before = json.loads(note.read_text())
    note.unlink() if damage is None else note.write_bytes(damage)
    assert panel_to_take(corpus.root, None) == PANEL
    assert len(ingested(corpus.root, SECOND).sections) == 2 and json.loads(note.read_text()) == before
    note.write_bytes(b"")
    refused(lambda: ingested(corpus.root, THIRD, panel=Panel(PANEL.symbols[::-1])), "was begun with panel_hash")


def test_of_virtual_tissue_a_lost_note_is_refused_since_nothing_else_says_how_it_was_made(tmp_path):
    write_corpus(tmp_path / "c", [FIRST])
    (tmp_path / "c/ingest.json").unlink()
    refused(lambda: begin_corpus(tmp_path / "c", PANEL, "virtual", {"made": "otherwise"}), "begun with source = None")


@pytest.mark.parametrize("damage", [None, b"", b"symbol\nGENE0\n", b"symbol\n\xff\n"])
def test_a_panel_that_is_lost_or_damaged_is_taken_from_a_copy_of_it_and_no_other(corpus, tmp_path, damage):
    there, copy, other = corpus.root.local / "panel.tsv", tmp_path / "copy.tsv", tmp_path / "other.tsv"
    whole = there.read_bytes()
    copy.write_bytes(whole)
    other.write_text(Panel(PANEL.symbols[::-1]).to_text())
    there.unlink() if damage is None else there.write_bytes(damage)
    for file in (None, other):
        refused(lambda file=file: panel_to_take(corpus.root, file), "panel.tsv: is not the panel", "--panel=FILE")
    ingested(corpus.root, FIRST, panel=panel_to_take(corpus.root, copy))
    assert there.read_bytes() == whole and Corpus.open(corpus.root).seal == corpus.seal


def test_two_ingests_begun_at_once_on_different_panels_do_not_mix_their_genes(tmp_path):
    other = Panel(PANEL.symbols[::-1])
    for panel in (PANEL, other):
        begin_corpus(tmp_path, panel, "real", {})  # both before the first section is sealed
    for panel, section in ((PANEL, FIRST), (other, SECOND)):
        write_section(tmp_path, panel, "real", section)
    refused(lambda: seal_corpus(tmp_path, PANEL, "real"), "panel.tsv: has the hash " + other.hash, PANEL.hash)
    refused(lambda: seal_corpus(tmp_path, other, "real"), "sections/A1: is real", PANEL.hash, other.hash)


def test_who_comes_after_the_split_is_named_by_ingest_check_and_split(corpus):
    corpus = ingested(corpus.root, SECOND)
    write_split(corpus.root, {"A": "train", "B": "held_out"})
    said: list[str] = []
    corpus = ingested(corpus.root, THIRD, said=said)
    assert "split.tsv names no side of C:" in said[-1] and "tab and train" in said[-1]
    found = check(corpus, lambda line: None)
    assert "on no side of split.tsv, 1 patients: C" in found.table(longest=1)
    assert (
        "patients: 1 have counts and stand on no side of the split (C, …)"
        in split_corpus(corpus, SplitConfig()).described()
    )
    assert split_corpus(corpus, SplitConfig(train=("A", "C"), held_out=("B",))).on_no_side == ()
    said.clear()
    write_split(corpus.root, {"A": "train", "B": "held_out", "C": "train"})
    ingested(corpus.root, THIRD, said=said)
    assert "names no side" not in said[-1]


def test_a_corpus_of_held_out_patients_alone_is_no_fault(tmp_path):
    """A further test set, which nothing is trained on."""
    root = tmp_path / "held_out"
    begin_corpus(root, PANEL, "virtual", {"made": "by a test"})
    write_section(root, PANEL, "virtual", tiny_section("A1", "A", 0))
    found = check(seal_corpus(root, PANEL, "virtual", {"A": "held_out"}), lambda line: None)
    assert [finding.note for finding in found.findings if finding.subject == "split"] == [
        "sections by patient: 0 train, 0 validation, 1 held out"]  # fmt: skip
    unknown = check(Corpus.open(root), lambda line: None, SplitConfig(train=("A",), held_out=("B",)))
    assert any("'B'" in finding.fault for finding in unknown.findings if finding.subject == "split")

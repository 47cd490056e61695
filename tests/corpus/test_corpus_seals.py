"""Nothing half-written is read, nothing altered goes unnoticed, and no patient is on two sides."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import shutil

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.config import InputError, SplitConfig
from tario_jax.corpus import layout, stored_section
from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import Detections
from tario_jax.corpus.split import split_corpus
from tario_jax.corpus.write import begin_corpus, seal_corpus, section_is_sealed, write_section
from tario_jax.panel import Panel
from tario_jax.whole_file import PARTIAL


def faults(root) -> list[str]:
    return [finding.fault for finding in check_corpus(Corpus.open(root)) if finding.fault]


class Killed(BaseException):
    """Stands for the end of the process: no handler of errors sees it."""


SECTIONS = [tiny_section(f"{patient}1", patient, seed, detections=300) for seed, patient in enumerate("ABC")]


@pytest.mark.parametrize("die_at", [0, 1, 4, 5, 6, 15, 16])
def test_a_killed_ingest_is_refused_and_completed_by_running_again(tmp_path, monkeypatch, die_at):
    """Killed at any of its writes, the ingest leaves no readable corpus, and the second run gives the same seal."""
    whole = write_corpus(tmp_path / "whole", SECTIONS).seal
    root, writes = tmp_path / "killed", 0

    def dying(write):
        def counted(path, *arguments):
            nonlocal writes
            writes += 1
            if writes > die_at:
                path.local.parent.mkdir(parents=True, exist_ok=True)
                path.local.with_name(path.name + PARTIAL).write_bytes(b"{")
                raise Killed
            return write(path, *arguments)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(layout, "write_array", dying(layout.write_array))
        patched.setattr(layout, "write_json", dying(layout.write_json))
        with pytest.raises(Killed):
            write_corpus(root, SECTIONS)
    words = ("is not sealed", "run the same ingest again") if die_at else ("holds no corpus.json",)
    refused(lambda: Corpus.open(root), *words)
    begin_corpus(root, PANEL, "virtual", {"made": "by a test"})
    for section in SECTIONS:
        if not section_is_sealed(root, section.section_id):
            write_section(root, PANEL, "virtual", section)
    assert seal_corpus(root, PANEL, "virtual").seal == whole
    assert faults(root) == []


def begin_again_and_again(root) -> None:
    for _ in range(25):
        begin_corpus(root, PANEL, "virtual", {"made": "by a test"})


def test_jobs_that_share_a_folder_begin_it_at_the_same_time(tmp_path):
    with concurrent.futures.ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        for begun in [pool.submit(begin_again_and_again, tmp_path / "c") for _ in range(8)]:
            begun.result()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["ingest.json", "panel.tsv"]


def test_a_section_that_another_job_ends_during_the_sealing_is_in_the_corpus(tmp_path, monkeypatch):
    whole, root = write_corpus(tmp_path / "whole", SECTIONS), tmp_path / "c"
    begin_corpus(root, PANEL, "virtual", {"made": "by a test"})
    for section in SECTIONS[:2]:
        write_section(root, PANEL, "virtual", section)
    write_json = layout.write_json

    def meanwhile(place, content):
        if place.name == "corpus.json" and not section_is_sealed(root, SECTIONS[2].section_id):
            write_section(root, PANEL, "virtual", SECTIONS[2])
            assert seal_corpus(root, PANEL, "virtual").seal == whole.seal
        write_json(place, content)

    monkeypatch.setattr(layout, "write_json", meanwhile)
    assert seal_corpus(root, PANEL, "virtual").seal == whole.seal
    assert faults(root) == []


def test_a_section_whose_rewriting_was_killed_is_not_sealed(tmp_path, monkeypatch):
    write_corpus(tmp_path / "c", SECTIONS[:1])

    def killed(path, **_):
        next(path.rglob("zarr.json")).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        write_section(tmp_path / "c", PANEL, "virtual", SECTIONS[0])
    assert not section_is_sealed(tmp_path / "c", "A1")


def test_an_ingest_of_something_else_into_the_same_folder_is_refused(tmp_path):
    source = {"path": "here"}
    begin_corpus(tmp_path / "c", PANEL, "real", source)
    write_section(tmp_path / "c", PANEL, "real", SECTIONS[0])
    begin_corpus(tmp_path / "c", PANEL, "real", source)  # the same continues
    for kind, panel, word in (
        ("virtual", PANEL, "kind = 'real', now 'virtual'"),
        ("real", Panel(("OTHER",)), "panel_hash"),
    ):
        refused(lambda k=kind, p=panel: begin_corpus(tmp_path / "c", p, k, source), word, "another folder")
    begin_corpus(tmp_path / "v", PANEL, "virtual", source)
    write_section(tmp_path / "v", PANEL, "virtual", SECTIONS[0])
    refused(lambda: begin_corpus(tmp_path / "v", PANEL, "virtual", {"path": "there"}), "source", "another folder")
    assert Panel.from_text((tmp_path / "c" / "panel.tsv").read_text(), "panel.tsv") == PANEL
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    refused(lambda: begin_corpus(tmp_path / "full", PANEL, "real", source), "not empty and not a corpus")
    refused(lambda: Corpus.open(tmp_path / "full"), "holds no corpus.json")
    refused(lambda: Corpus.open(tmp_path / "nowhere"), "no such folder")


def test_real_tissue_of_several_sources_may_meet_in_one_folder_and_all_are_noted(tmp_path):
    noted = [{"source": name} for name in ("CosMx", "Visium", "Visium", "CosMx", "ST")]
    for source in noted:
        begin_corpus(tmp_path, PANEL, "real", source)
        write_section(tmp_path, PANEL, "real", SECTIONS[0])
    begun = json.loads((tmp_path / "ingest.json").read_text())
    assert begun["source"] == noted[0] and begun["also"] == [noted[1], noted[4]]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A corpus with every kind of array."""
    rng = np.random.default_rng(0)
    truth = {"cells_x_um_N": rng.random(40), "hidden_type_N": rng.integers(0, 9, 40).astype(np.int8)}
    first = tiny_section("A1", "A", 0, detections=300, truth=truth, measured=rng.random((38, 45)) < 0.7)
    kept = first.detections.gene_D > 0  # the first gene is not measured
    places = (values[kept] for values in (first.detections.x_um_D, first.detections.y_um_D, first.detections.gene_D))
    first = dataclasses.replace(first, detections=Detections(*places), measured_gene_G=np.arange(len(PANEL)) > 0)
    second = spot_section("B1", "B", 1, x_um=[50.0, 90.0], y_um=[60.0, 70.0])
    split = {"A": "train", "B": "held_out"}
    return write_corpus(tmp_path_factory.mktemp("sealed") / "c", [first, second], split=split).root.local


def flipped(path, position: int) -> bytes:
    """Flips the lowest bit of one byte and returns what the file held."""
    before = path.read_bytes()
    position %= len(before)
    path.write_bytes(before[:position] + bytes([before[position] ^ 1]) + before[position + 1 :])
    return before


def test_a_flipped_byte_in_any_file_is_named(sealed):
    """Each file in turn, at its first, a middle and its last byte: the check, or already the opening, names it."""
    assert faults(sealed) == []
    # split.tsv is the user's to edit; ingest.json is read by a resumed ingest only
    files = [path for path in sealed.rglob("*") if path.is_file() and path.name not in ("split.tsv", "ingest.json")]
    assert len(files) > 25
    for path in files:
        for position in (0, path.stat().st_size // 2, -1):
            before = flipped(path, position)
            try:
                found = faults(sealed)
            except InputError as error:
                found = [str(error)]
            finally:
                path.write_bytes(before)
            # opening takes what corpus.json says of a file for true: there either of the two may be named
            named = "differs from the corpus seal" if path.name == "corpus.json" else str(path)
            assert any(named in fault or str(path) in fault for fault in found), (path, position, found)
            assert not any("\n" in fault for fault in found)
    assert faults(sealed) == []


@pytest.mark.parametrize("name", ["cohort", "width_um", "patient", "he_um_per_px", "detections", "registration"])
def test_an_edited_record_is_noticed(sealed, name):
    """Whole JSON that says something else than what was sealed."""
    path = sealed / "sections" / "A1" / "seal.json"
    before = path.read_text()
    seal = json.loads(before)
    seal["record"][name] = 2 * seal["record"][name]
    path.write_text(json.dumps(seal, indent=1, sort_keys=True))
    try:
        assert any(str(path) in fault and "differs" in fault for fault in faults(sealed))
    finally:
        path.write_text(before)


@pytest.mark.parametrize("name", ["kind", "panel_hash", "genes", "units", "sections", "patients", "seal", "files"])
def test_an_edited_corpus_seal_is_noticed(sealed, name):
    path = sealed / "corpus.json"
    before = path.read_text()
    for change in (lambda seal: seal.pop(name), lambda seal: seal.update({name: type(seal[name])()})):
        seal = json.loads(before)
        change(seal)
        path.write_text(json.dumps(seal))
        try:
            found = faults(sealed)
        except InputError as error:
            found = [str(error)]
        finally:
            path.write_text(before)
        assert any(str(path) in fault for fault in found), found


def test_a_damaged_note_of_what_the_corpus_was_begun_with_is_named(sealed):
    note = sealed / "ingest.json"
    whole = note.read_bytes()
    try:
        note.write_bytes(whole[:-9])
        assert ["is not whole JSON" in fault and "ingest again" in fault for fault in faults(sealed)] == [True]
    finally:
        note.write_bytes(whole)


def test_a_panel_that_the_corpus_seal_does_not_describe_is_refused_when_it_is_opened(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "c")
    path = tmp_path / "c/corpus.json"
    path.write_text(path.read_text().replace(PANEL.hash, "0" * 16))
    refused(lambda: Corpus.open(tmp_path / "c"), "corpus.json: 'panel_hash' is 0000", PANEL.hash)


def test_a_corpus_seal_that_is_no_object_is_refused(sealed, tmp_path):
    shutil.copytree(sealed, tmp_path / "c")
    (tmp_path / "c/corpus.json").write_text("[]")
    refused(lambda: Corpus.open(tmp_path / "c"), "corpus.json: holds a list")


def test_a_missing_array_is_named(sealed, tmp_path):
    copy = tmp_path / "c"
    shutil.copytree(sealed, copy)
    shutil.rmtree(copy / "sections" / "B1" / "spots" / "count")
    assert any("spots/count" in fault and "missing" in fault for fault in faults(copy))


def test_the_same_data_under_two_names_are_refused(tmp_path):
    twin = tiny_section("B7", "B", 0, detections=300)  # the pixels and detections of A1
    refused(lambda: write_corpus(tmp_path / "c", [SECTIONS[0], twin]), "'A1' and 'B7' hold the same data", "remove one")


def test_a_patient_described_in_two_ways_is_refused(tmp_path):
    first = tiny_section("A1", "A", 0, patient={"stage": "I"})
    second = tiny_section("A2", "A", 1, patient={"stage": "II"})
    refused(lambda: write_corpus(tmp_path / "c", [first, second]), "patient 'A' is described as")


def test_the_seal_is_of_the_content(tmp_path):
    first, again = (write_corpus(tmp_path / name, SECTIONS).seal for name in "ab")
    assert first == again
    assert write_corpus(tmp_path / "c", SECTIONS[:2]).seal != first
    assert write_corpus(tmp_path / "d", SECTIONS, kind="real").seal != first
    assert write_corpus(tmp_path / "e", SECTIONS, panel=Panel(PANEL.symbols[::-1])).seal != first


@pytest.fixture(scope="module")
def two_sections_each(tmp_path_factory):
    sections = [tiny_section(f"{p}{n}", p, seed, detections=50) for seed, (p, n) in
                enumerate((p, n) for p in "AB" for n in "12")]  # fmt: skip
    return write_corpus(tmp_path_factory.mktemp("two") / "c", sections, split={"A": "train", "B": "held_out"})


def ids(sections) -> list[str]:
    return [section.id for section in sections]


def test_patients_are_split_whole(two_sections_each):
    split = split_corpus(two_sections_each, SplitConfig())
    assert (split.by, ids(split.train), ids(split.held_out)) == ("patient", ["A1", "A2"], ["B1", "B2"])


def test_a_patient_on_two_sides_is_refused(two_sections_each):
    def split(**lists):
        return lambda: split_corpus(two_sections_each, SplitConfig(**lists))

    refused(split(train=("A", "B"), held_out=("B",)), "patient 'B'", "'train'", "'held_out'")
    refused(split(train=("A",), validation=("A",), held_out=("B",)), "patient 'A'", "'validation'")
    refused(split(train=("A1",), held_out=("A2",)), "patient 'A1' is not in the corpus")
    refused(split(train=("A",)), "no section is on the side 'held_out'")
    table = two_sections_each.root.local / "split.tsv"
    before = table.read_text()
    table.write_text(before + "A\theld_out\n")
    try:
        refused(split(), str(table), "patient 'A'")
        # as spreadsheets save it
        for content in (before.encode("utf-8-sig"), before.replace("\n", "\r\n").encode()):
            table.write_bytes(content)
            assert ids(split()().train) == ids(split_corpus(two_sections_each, SplitConfig()).train)
        table.write_bytes(before.encode("utf-16"))
        refused(split(), str(table), "is not UTF-8")
    finally:
        table.write_text(before)


def test_sections_of_a_patient_are_split_only_when_said(two_sections_each):
    lists = {"train": ("A1", "B1"), "held_out": ("A2",)}
    split = split_corpus(two_sections_each, SplitConfig(by="section", **lists))
    assert (split.by, ids(split.train), ids(split.held_out)) == ("section", ["A1", "B1"], ["A2"])
    refused(lambda: split_corpus(two_sections_each, SplitConfig(**lists)), "patient")
    refused(lambda: split_corpus(two_sections_each, SplitConfig(by="section")), "needs its lists")
    twice = SplitConfig(by="section", train=("A1",), held_out=("A1",))
    refused(lambda: split_corpus(two_sections_each, twice), "section 'A1'", "one side")


def test_the_panel_hash_knows_the_order():
    assert Panel(("A", "B")).hash != Panel(("B", "A")).hash != Panel(("A",)).hash
    assert Panel(("AB", "C")).hash != Panel(("A", "BC")).hash
    assert Panel.from_text(PANEL.to_text(), "panel.tsv").hash == PANEL.hash
    refused(lambda: Panel.from_text("gene\nA\n", "panel.tsv"), "panel.tsv", "expected the header 'symbol'")
    refused(lambda: Panel(("A", "B", "A")), "'A' stands twice")


def test_genes_are_counted_block_by_block(two_sections_each, monkeypatch):
    monkeypatch.setattr(stored_section, "_COUNTED_AT_ONCE", 7)
    for section in two_sections_each.sections:
        np.testing.assert_array_equal(section.count_genes(), section.gene_totals_G)

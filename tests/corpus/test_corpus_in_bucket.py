"""The same corpus on a local disk and in a bucket: the same seal, the same bits, the same refusals."""

import subprocess
import sys

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, spot_section, tiny_section, write_corpus

from tario_jax.config import DataConfig
from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.place import Place
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.write import begin_corpus, seal_corpus, write_section
from tario_jax.tokens.capacity import corpus_layout
from tario_jax.tokens.pipeline import BatchSource

SECTIONS = [tiny_section(f"{patient}1", patient, seed, detections=300) for seed, patient in enumerate("ABC")]
DATA = DataConfig(bin_um=18.0, window_um=144.0, tile_um=144.0, rows=4)


def test_a_place_in_a_bucket_reads_what_was_written(bucket):
    place = Place(bucket) / "notes/a.txt"
    assert not place.exists()
    with pytest.raises(FileNotFoundError):
        place.read()
    place.write(b"one")
    place.write(b"two")
    (Place(bucket) / "notes/b.txt").write(b"")
    assert place.exists() and place.read() == b"two" and place.local is None
    assert (Place(bucket) / "notes").below() == ["a.txt", "b.txt"]
    place.remove()
    assert (Place(bucket) / "notes").below() == ["b.txt"]
    (Place(bucket) / "notes").remove_below()
    assert (Place(bucket) / "notes").below() == []
    assert str(place) == "s3://tissue/notes/a.txt" and place == Place("s3://tissue/notes/a.txt")


def test_seal_and_batches_are_those_of_the_local_disk(bucket, tmp_path):
    here, there = (write_corpus(root, SECTIONS) for root in (tmp_path / "c", f"{bucket}/c"))
    assert here.seal == there.seal and str(there.root) == "s3://tissue/c"
    assert [finding.fault for finding in check_corpus(there) if finding.fault] == []
    sources = [BatchSource(corpus.sections, DATA, corpus_layout(corpus.sections, DATA, len(PANEL)), steps=6)
               for corpus in (here, Corpus.open(f"{bucket}/c"))]  # fmt: skip
    for t in (5, 0, 3):
        for one, other in zip(sources[0][t], sources[1][t], strict=True):
            np.testing.assert_array_equal(one, other)


def test_names_that_begin_with_one_anothers_are_in_the_order_of_names(bucket, tmp_path):
    """The keys of S-2/ come before those of S/."""
    sections = [tiny_section(name, "A", seed, detections=200) for seed, name in enumerate(("S", "S-2", "S.3"))]
    here, there = (write_corpus(root, sections) for root in (tmp_path / "c", f"{bucket}/names"))
    assert here.seal == there.seal
    assert [finding.fault for finding in check_corpus(there) if finding.fault] == []


def test_spots_are_read_from_a_bucket(bucket):
    spots = spot_section("S1", "S", 1, x_um=[50.0, 90.0], y_um=[60.0, 70.0])
    corpus = write_corpus(f"{bucket}/spots", [spots])
    assert len(corpus.section("S1").spots) == 2


def test_a_stopped_ingest_continues(bucket):
    root = f"{bucket}/stopped"
    begin_corpus(root, PANEL, "virtual", {"made": "by a test"})
    write_section(root, PANEL, "virtual", SECTIONS[0])
    refused(lambda: Corpus.open(root), root, "is not sealed", "after 1 sections", "run the same ingest again")
    begin_corpus(root, PANEL, "virtual", {"made": "by a test"})
    write_section(root, PANEL, "virtual", SECTIONS[1])
    assert seal_corpus(root, PANEL, "virtual").seal == Corpus.open(root).seal
    refused(lambda: begin_corpus(root, PANEL, "real", {}), "kind = 'virtual', now 'real'")


def test_a_damaged_object_is_named(bucket):
    root = Place(bucket) / "damaged"
    corpus = write_corpus(root, SECTIONS[:1])
    shard = root / "sections/A1/detections/place_and_gene/c/0/0"
    content = shard.read()
    shard.write(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    read = lambda: Corpus.open(root).section("A1").all_detections()  # noqa: E731
    refused(read, "s3://tissue/damaged", "place_and_gene/c/0/0", "Digest mismatch", "delete the folder of its section")
    assert any(str(shard) in finding.fault for finding in check_corpus(corpus))
    shard.remove()
    refused(read, "A1/detections/place_and_gene", "cannot be read", "missing")


def tario(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tario_jax.cli", *words], capture_output=True, text=True, check=False)


def test_the_command_simulates_into_a_bucket_and_checks_it(bucket):
    place = f"--out={bucket}/simulated"
    few = ("--patients=2", "--validation=1", "--held-out=1", "--section-um=128", "--panel=curated", "--regions=core")
    made = tario("simulate", place, *few, "--workers=2")
    assert made.returncode == 0, made.stderr
    checked = tario("check", f"{bucket}/simulated")
    # so small a section has now and then a registration that cannot be told; seals and contents are whole
    assert "4 sections, virtual" in checked.stdout and "ingest" not in checked.stdout and not checked.stderr
    lost = tario("check", f"{bucket}/nowhere")
    assert lost.returncode == 2 and lost.stderr.count("\n") == 1 and "s3://tissue/nowhere" in lost.stderr

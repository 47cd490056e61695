"""A section that is larger than memory: the same bytes as one that is held at once, in whatever blocks it comes."""

import dataclasses
import errno
import tempfile

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import PANEL, tiny_section, write_corpus

from tario_jax.corpus import layout, sort
from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.place import Place
from tario_jax.corpus.section import DetectionBlocks, Detections
from tario_jax.corpus.write import same_as_sealed


def flagged(rows: int = 5000):
    """A section whose detections pile up on few places, so that most tie within their tile and gene."""
    section = tiny_section("A1", "A", 3, detections=rows)
    found = section.detections
    cell_D = np.arange(len(found), dtype=np.int32)  # tells ties apart: their order is what is tested
    nucleus_D = found.x_um_D % 2 < 1
    return dataclasses.replace(section, detections=dataclasses.replace(found, in_nucleus_D=nucleus_D, cell_D=cell_D))


def in_blocks(section, ends, read=lambda: None):
    """The same section, its detections in blocks that end there."""
    found, starts = section.detections, [0, *ends]

    def blocks():
        for start, end in zip(starts, [*ends, len(found)], strict=True):
            read()
            arrays = (getattr(found, field.name) for field in dataclasses.fields(Detections))
            yield Detections(*(None if array is None else array[start:end] for array in arrays))

    return dataclasses.replace(section, detections=DetectionBlocks(blocks))


def files(root):
    place = root / "sections/A1"
    return {name: (place / name).read_bytes() for name in Place(place).below()}


@pytest.fixture
def small(monkeypatch):
    """Runs of some hundred detections, shards that no run fills, and every spill a file."""
    monkeypatch.setattr(sort, "RUN", 300)
    monkeypatch.setattr(sort, "_IN_MEMORY_BYTES", 1000)
    monkeypatch.setitem(layout.CHUNKS, "place_and_gene", ((128, 3), (1024, 3)))
    monkeypatch.setitem(layout.CHUNKS, "nucleus", ((128,), (1024,)))
    monkeypatch.setitem(layout.CHUNKS, "cell", ((128,), (1024,)))


@pytest.mark.parametrize("ends", [[], [1, 1, 2, 700, 4000], list(range(100, 5000, 100))])
def test_blocks_give_the_bytes_and_the_seal_of_the_whole(tmp_path, monkeypatch, small, ends):
    section = flagged()
    with monkeypatch.context() as patched:
        patched.setattr(sort, "RUN", 1 << 22)
        whole = write_corpus(tmp_path / "whole", [section])
    blocks = write_corpus(tmp_path / "blocks", [in_blocks(section, ends)])
    assert files(tmp_path / "whole") == files(tmp_path / "blocks") and blocks.seal == whole.seal
    assert [finding.fault for finding in check_corpus(blocks) if finding.fault] == []
    # and both are what a stable sort of everything by tile and gene gives
    side, found = layout.DETECTION_TILE_UM, section.detections
    tile_D = found.y_um_D // side * np.ceil(section.width_um / side) + found.x_um_D // side
    order = np.lexsort((found.gene_D, tile_D))
    np.testing.assert_array_equal(blocks.section("A1").all_detections().cell_D, order)


def test_no_more_than_a_few_runs_are_ever_sorted_at_once(tmp_path, monkeypatch, small):
    sorted_at_once, key = [], sort._key
    monkeypatch.setattr(sort, "_key", lambda records: sorted_at_once.append(len(records)) or key(records))
    monkeypatch.setattr(sort, "RUN", 1000)
    write_corpus(tmp_path / "c", [in_blocks(flagged(), list(range(100, 5000, 100)))])
    assert len(sorted_at_once) > 8 and max(sorted_at_once) <= 1100


def test_every_shard_is_written_once_and_whole(tmp_path, monkeypatch, small):
    parts, found = [], layout._parts
    monkeypatch.setattr(
        layout, "_parts", lambda array, rows: (parts.append((array.shape, rows)), found(array, rows))[1]
    )
    write_corpus(tmp_path / "c", [in_blocks(flagged(), [2500])])
    rows_at_once = {rows for shape, rows in parts if shape == (5000,) and rows < 5000}
    assert rows_at_once == {1024}


def test_a_sealed_section_is_recognised_in_blocks(tmp_path, small):
    section = flagged()
    write_corpus(tmp_path / "c", [section], kind="real")
    assert same_as_sealed(tmp_path / "c", PANEL, "real", in_blocks(section, [10, 3000]))
    moved = dataclasses.replace(section.detections, x_um_D=np.roll(section.detections.x_um_D, 1))
    other = in_blocks(dataclasses.replace(section, detections=moved), [10, 3000])
    assert not same_as_sealed(tmp_path / "c", PANEL, "real", other)


def test_an_adapter_changes_blocks_when_their_turn_comes_and_may_drop_rows(tmp_path, small):
    section, reads = flagged(), []
    lazy = in_blocks(section, [1000, 2000], read=lambda: reads.append(1))

    def renumbered(block):
        kept_D = block.gene_D > 0
        return Detections(block.x_um_D[kept_D], block.y_um_D[kept_D], block.gene_D[kept_D] - 1,
                          block.in_nucleus_D[kept_D], block.cell_D[kept_D])  # fmt: skip

    changed = lazy.detections.map(renumbered)
    assert not reads
    blocks = write_corpus(tmp_path / "b", [dataclasses.replace(section, detections=changed)])
    whole = write_corpus(tmp_path / "w", [dataclasses.replace(section, detections=section.detections.map(renumbered))])
    assert (
        blocks.seal == whole.seal and blocks.section("A1").record["detections"] == (section.detections.gene_D > 0).sum()
    )
    np.testing.assert_array_equal(changed.gathered().cell_D, renumbered(section.detections).cell_D)


def test_a_spill_leaves_nothing_behind_and_lies_beside_the_corpus(tmp_path, monkeypatch, small):
    folders, temporary = [], tempfile.SpooledTemporaryFile
    monkeypatch.setattr(
        tempfile, "SpooledTemporaryFile", lambda size, dir: folders.append(dir) or temporary(size, dir=dir)
    )
    root = tmp_path / "c"

    def seen():
        assert not [name for name in Place(root).below() if "tmp" in name], "a spill has a name"

    write_corpus(root, [in_blocks(flagged(), [100, 2000], read=seen)])
    assert set(folders) == {root}
    assert {name.split("/")[0] for name in Place(root).below()} == {
        "corpus.json", "ingest.json", "panel.tsv", "patients.parquet", "sections.parquet", "sections"
    }  # fmt: skip


def test_a_full_disk_is_named_with_what_is_needed(tmp_path, monkeypatch, small):
    def full(self, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    refused(lambda: write_corpus(tmp_path / "c", [flagged()]), str(tmp_path / "c"), "is full", "30 bytes for each")


def test_an_empty_section_is_written_in_blocks_too(tmp_path, small):
    section = flagged()
    nothing = section.detections.map(lambda found: Detections(*(
        getattr(found, field.name)[:0] for field in dataclasses.fields(found))))  # fmt: skip
    section = dataclasses.replace(section, detections=nothing)
    blocks = write_corpus(tmp_path / "b", [in_blocks(section, [0])])
    assert blocks.seal == write_corpus(tmp_path / "w", [section]).seal
    assert len(blocks.section("A1").all_detections()) == 0

"""An H&E that is read block by block is stored, hashed and sealed as the same image in one piece."""

import dataclasses
import json

import numpy as np
import pytest
from refusals import refused

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.section import BlockImage, SectionData
from tario_jax.corpus.write import begin_corpus, same_as_sealed, seal_corpus, section_is_sealed, write_section
from tario_jax.panel import Panel

PANEL = Panel(("EPCAM", "TP53"))
HEIGHT_PX, WIDTH_PX, SHARD_PX = 203, 150, 64


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setitem(layout.CHUNKS, "he", ((16, 16, 3), (SHARD_PX, SHARD_PX, 3)))
    monkeypatch.setattr(layout, "_BAND_BYTES", 40 * WIDTH_PX * 3)  # bands of 32 rows


def section(he):
    return SectionData("S1", "P1", "lung", WIDTH_PX * 0.5, HEIGHT_PX * 0.5, 0.5, he)


def noise():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT_PX, WIDTH_PX, 3), np.uint8)


def in_blocks(image, asked=None):
    def read(rows, columns):
        if asked is not None:
            asked.append((rows, columns))
        return image[rows, columns]

    return BlockImage(*image.shape[:2], read)


def written(root, he):
    begin_corpus(root, PANEL, "real", {"source": "test"})
    write_section(root, PANEL, "real", section(he))
    seal_corpus(root, PANEL, "real")
    return json.loads((root / "sections/S1/seal.json").read_text())


def test_the_seal_is_the_same_whether_the_image_came_whole_or_in_blocks(tmp_path):
    image = noise()
    whole, blocks = written(tmp_path / "whole", image), written(tmp_path / "blocks", in_blocks(image))
    assert blocks == whole  # content, and the bytes of every file
    np.testing.assert_array_equal(Corpus.open(tmp_path / "blocks").sections[0].he(), image)


def test_a_sealed_section_is_known_again_from_its_blocks_and_another_image_is_not(tmp_path):
    image = noise()
    written(tmp_path / "c", in_blocks(image))
    assert same_as_sealed(tmp_path / "c", PANEL, "real", section(in_blocks(image)))
    assert same_as_sealed(tmp_path / "c", PANEL, "real", section(image))
    image[-1, -1, 2] ^= 1
    assert not same_as_sealed(tmp_path / "c", PANEL, "real", section(in_blocks(image)))


def test_every_pixel_is_asked_for_once_and_never_more_than_a_shard_at_a_time(tmp_path):
    asked = []
    written(tmp_path / "c", in_blocks(noise(), asked))
    times = np.zeros((HEIGHT_PX, WIDTH_PX), int)
    for rows, columns in asked:
        times[rows, columns] += 1
        assert rows.stop - rows.start <= SHARD_PX and columns.stop - columns.start <= SHARD_PX
    assert (times == 1).all()


def test_a_slide_that_breaks_halfway_leaves_no_section_and_is_written_when_it_is_mended(tmp_path):
    image = noise()

    def read(rows, columns):
        if rows.start:
            raise InputError("slide.tif: cannot be read at row 64")
        return image[rows, columns]

    begin_corpus(tmp_path / "c", PANEL, "real", {"source": "test"})
    broken = section(BlockImage(HEIGHT_PX, WIDTH_PX, read))
    message = refused(lambda: write_section(tmp_path / "c", PANEL, "real", broken), "slide.tif", "row 64")
    assert "could not be written" not in message  # it is the slide's fault, not the disk's
    assert not section_is_sealed(tmp_path / "c", "S1")
    assert written(tmp_path / "c", in_blocks(image)) == written(tmp_path / "d", image)


def test_a_block_of_another_shape_is_an_error_of_the_reader():
    image = BlockImage(10, 10, lambda rows, columns: np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(RuntimeError, match="expected uint8"):
        image[0:4, 0:4]
    assert image[4:4, 2:9].shape == (0, 7, 3)


def test_a_section_takes_no_other_image_than_uint8_rgb():
    refused(lambda: dataclasses.replace(section(noise()), he=noise()[..., :2]), "expected uint8 [H, W, 3]")

"""The features of a corpus: of the right squares, resumed, and never of two cards in one place."""

import numpy as np
import pytest
from made_encoders import made_encoder
from refusals import refused
from tiny_tissue import spot_section, tiny_section, write_corpus

from tario_jax.corpus.read import Corpus
from tario_jax.he_features import encode
from tario_jax.he_features.encode import encode_corpus, encode_missing, encode_section, encoder_for, grid_of
from tario_jax.predict.tissue import ImageSection


def silent(line: str) -> None:
    pass


def expected(he: np.ndarray, um_per_px: float, row: int, column: int, card) -> np.ndarray:
    """From the definition: the square around the place, mirrored at the edge of the H&E, at whole px."""
    scale = round(card.um_per_px / um_per_px)
    height, width = (size // scale * scale for size in he.shape[:2])
    coarse = he[:height, :width].astype(float).reshape(height // scale, scale, width // scale, scale, 3).mean((1, 3))
    side, pitch = card.input_px, round(card.pitch_um / card.um_per_px)
    beyond = side
    padded = np.pad(coarse, ((beyond, beyond), (beyond, beyond), (0, 0)), mode="symmetric")
    top, left = (round((at + 0.5) * pitch - side / 2) + beyond for at in (row, column))
    x = padded[top : top + side, left : left + side]
    halves = x[:, : side // 2, 0].mean(), x[: side // 2, :, 0].mean()
    return np.array([*x.mean((0, 1)), *halves])


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    spots = spot_section("B1", "B", 1, x_um=[40.0, 90.0], y_um=[50.0, 60.0])
    return write_corpus(tmp_path / "corpus", [tiny_section("A1", "A", 0, width_um=200.0), spots])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_vectors_are_of_the_squares_around_their_places(corpus, batch):
    seen: list[int] = []
    encoder = made_encoder(seen)
    for section in corpus.sections:
        vectors = encode_section(section, encoder, batch=batch)
        rows, columns = -(-section.height_um // 16), -(-section.width_um // 16)
        assert vectors.shape == (rows, columns, 5) and vectors.dtype == np.float16
        he = section.he()
        for row, column in ((0, 0), (0, 5), (4, 7), (8, 2), (vectors.shape[0] - 1, vectors.shape[1] - 1)):
            found = vectors[row, column].astype(float)
            np.testing.assert_allclose(found, expected(he, 0.5, row, column, encoder.card), atol=0.6)
    assert set(seen) == {batch}  # one shape: one compiled program


def test_an_image_is_encoded_as_its_section_is(corpus):
    section = corpus.sections[0]
    image = ImageSection(section.he(), section.he_um_per_px, genes=3)
    grid = grid_of(image, made_encoder())
    np.testing.assert_array_equal(grid.read(slice(None), slice(None))(), encode_section(section, made_encoder()))


def test_a_corpus_is_encoded_section_by_section_and_resumed(corpus):
    said: list[str] = []
    alone = encode_corpus(corpus, made_encoder(), sections=("B1",), say=said.append)
    assert (alone.written, alone.kept) == (("B1",), ())
    before = (corpus.section("B1").place / "features/made/seal.json").read()
    rest = encode_corpus(corpus, made_encoder(), say=said.append)
    assert (rest.written, rest.kept) == (("A1",), ("B1",))
    assert (corpus.section("B1").place / "features/made/seal.json").read() == before
    assert "left" in said[0] and "vectors" in said[0]
    for section in Corpus.open(corpus.root).sections:
        stored = section.feature_grid("made")
        np.testing.assert_array_equal(stored.read(slice(None), slice(None))(), encode_section(section, made_encoder()))
        assert stored.card == made_encoder().card.to_json()


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_parts_share_the_sections_whichever_ends_first(tmp_path, order):
    names = [f"A{k}" for k in range(5)]
    corpus = write_corpus(
        tmp_path / "corpus", [tiny_section(name, "A", seed, width_um=100.0) for seed, name in enumerate(names)]
    )
    written = {k: encode_corpus(corpus, made_encoder(), part=(k, 2), say=silent).written for k in order}
    assert (written[1], written[2]) == (("A0", "A2", "A4"), ("A1", "A3"))


def test_another_card_in_the_same_place_is_refused_before_anything_is_encoded(corpus):
    encode_corpus(corpus, made_encoder(), sections=("B1",), say=silent)
    seen: list[int] = []
    other = made_encoder(seen, pitch_um=20.0)
    refused(lambda: encode_corpus(corpus, other, say=silent), "B1", "pitch_um = 16.0, now 20.0", "--name")
    assert not seen
    renamed = made_encoder(pitch_um=20.0, name="wider")
    assert encode_corpus(corpus, renamed, say=silent).written == ("A1", "B1")
    # words are not numbers
    assert encode_corpus(corpus, made_encoder(about="the same"), sections=("B1",), say=silent).kept == ("B1",)


def test_where_all_have_features_no_encoder_is_needed(corpus):
    refused(lambda: encode_missing(corpus, "made", silent), "'made'", "is not known")
    encode_corpus(corpus, made_encoder(), say=silent)
    encode_missing(corpus, "made", silent)


def test_a_corpus_goes_on_by_the_card_that_it_holds(corpus, monkeypatch):
    """Under a name that no catalogue knows: that of --name, or of a card's file."""
    encode_corpus(corpus, made_encoder(pitch_um=20.0, name="wider"), sections=("B1",), say=silent)
    asked = []

    def of_card(card, weights=None):
        asked.append(card)
        return made_encoder(pitch_um=card.pitch_um, name=card.name)

    monkeypatch.setattr(encode, "encoder_of", of_card)
    encode_missing(corpus, "wider", silent)
    assert asked == [made_encoder(pitch_um=20.0, name="wider").card]
    assert corpus.section("A1").feature_grid("wider").card_hash == corpus.section("B1").feature_grid("wider").card_hash
    refused(lambda: encoder_for(corpus, "narrower"), "'narrower'", "is not known")


def test_vectors_that_are_no_numbers_are_refused(corpus):
    encoder = made_encoder()
    broken = encoder._replace(features=lambda pixels: encoder.features(pixels) * 1e5)
    refused(lambda: encode_corpus(corpus, broken, say=silent), "not finite", "A1")
    assert not (corpus.section("A1").place / "features/made/seal.json").exists()

"""Stored features: what is read is what was written, interpolated, and never half of it or another section's."""

import numpy as np
import pytest
from refusals import refused
from tiny_tissue import spot_section, tiny_section, write_corpus

from tario_jax.corpus.check import check_corpus
from tario_jax.corpus.feature_grid import common_card, grid_place, grid_size, held_grid, write_grid
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.write import seal_corpus, write_section
from tario_jax.panel import Panel

PITCH = 20.0
CARD = {"name": "made", "pitch_um": PITCH, "features": 5}


def made_vectors(section, features: int = 5) -> np.ndarray:
    rows, columns = grid_size(section.width_um, section.height_um, PITCH)
    return np.random.default_rng(7).normal(size=(rows, columns, features)).astype(np.float16)


def store(section, vectors, card_hash: str = "abc") -> None:
    write_grid(section.place, "made", section.seal_sha256, held_grid(CARD, card_hash, vectors), vectors)


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    spots = spot_section("B1", "B", 1, x_um=[40.0, 90.0], y_um=[50.0, 60.0])
    return write_corpus(tmp_path / "corpus", [tiny_section("A1", "A", 0), spots])


def between(vectors: np.ndarray, x_um: float, y_um: float) -> np.ndarray:
    """Float64, from the definition: weights of the four places around; what is outside is moved onto the edge."""
    column, row = (min(max(at / PITCH - 0.5, 0), vectors.shape[axis] - 1) for axis, at in ((1, x_um), (0, y_um)))
    total = np.zeros(vectors.shape[2])
    for i in range(vectors.shape[0]):
        for j in range(vectors.shape[1]):
            total += max(0, 1 - abs(row - i)) * max(0, 1 - abs(column - j)) * vectors[i, j].astype(float)
    return total


@pytest.mark.parametrize("corner", [(31.0, 42.0), (-25.0, -9.0), (120.0, 100.0), (400.0, 33.0)])
def test_a_square_is_read_between_the_stored_places(corpus, corner):
    section = corpus.sections[0]
    vectors = made_vectors(section)
    store(section, vectors)
    found = section.feature_grid("made").begin_square(*corner, 4, 13.0)()
    assert found.shape == (4, 4, 5) and found.dtype == np.float16
    for i in range(4):
        for j in range(4):
            expected = between(vectors, corner[0] + 13.0 * (j + 0.5), corner[1] + 13.0 * (i + 0.5))
            np.testing.assert_allclose(found[i, j], expected, atol=4e-3)


def test_without_features_the_command_is_named(corpus):
    section = corpus.section("B1")
    words = refused(lambda: section.feature_grid("efficientnet-lite0"), "B1", "no features")
    assert f"tario encode --corpus={corpus.root} --encoder=efficientnet-lite0" in words


def test_a_half_written_array_is_never_read(corpus):
    section = corpus.sections[0]
    store(section, made_vectors(section))
    (grid_place(section.place, "made") / "seal.json").remove()  # as a killed write leaves it
    refused(lambda: section.feature_grid("made"), "tario encode")
    (section.place / "features/made/seal.json").write(b'{"format_version": 9}')
    refused(lambda: section.feature_grid("made"), "format 9", "encode again")


def test_they_are_outside_of_the_seal_and_of_one_ingest(corpus):
    section = corpus.sections[0]
    store(section, made_vectors(section))
    again = Corpus.open(corpus.root)
    assert again.seal == corpus.seal
    assert not [finding.fault for finding in check_corpus(again) if finding.fault]
    kept = {name: (section.place / name).read() for name in section.place.below() if "features" in name}
    write_section(corpus.root, corpus.panel, "virtual", tiny_section("A1", "A", 5))  # another H&E under its name
    assert not [name for name in section.place.below() if "features" in name]
    changed = seal_corpus(corpus.root, corpus.panel, "virtual")
    for name, content in kept.items():  # copied back by hand
        (section.place / name).write(content)
    refused(lambda: changed.section("A1").feature_grid("made"), "another ingest", "tario encode")


def test_sections_with_different_cards_are_not_mixed(corpus):
    for section, card in zip(corpus.sections, ("abc", "abd"), strict=True):
        store(section, made_vectors(section), card)
    refused(lambda: common_card(corpus.sections, "made"), "B1", "abd", "A1", "abc")
    store(corpus.sections[1], made_vectors(corpus.sections[1]))
    again = Corpus.open(corpus.root).sections
    assert common_card(again, "made") == CARD | {"hash": "abc"}


def test_a_sealed_array_of_another_shape_is_refused(corpus):
    section = corpus.sections[0]
    vectors = made_vectors(section)
    write_grid(section.place, "made", section.seal_sha256, held_grid(CARD, "abc", vectors), vectors)
    from tario_jax.corpus import layout

    layout.write_array(section.place / "features/made/vectors", vectors[:, :-1])
    refused(lambda: section.feature_grid("made"), "its seal says")


def test_panel_is_not_asked(tmp_path):
    """Features are of the H&E: a section without counts has them too."""
    import dataclasses

    plain = dataclasses.replace(tiny_section("A1", "A", 0), detections=None)
    corpus = write_corpus(tmp_path / "he", [plain], panel=Panel(("G1", "G2")))
    store(corpus.sections[0], made_vectors(corpus.sections[0]))
    assert corpus.sections[0].feature_grid("made").shape[-1] == 5

"""A model of stored features: trained, resumed and asked with those of its own card, and no others."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_encoders import made_encoder
from refusals import refused
from tiny_tissue import tiny_config, tiny_section, write_corpus

from tario_jax import load
from tario_jax.config import StartConfig
from tario_jax.corpus.read import Corpus
from tario_jax.he_features.encode import encode_corpus
from tario_jax.predict import frozen_card
from tario_jax.predict.tissue import ImageSection
from tario_jax.train.loop import train

SIDES = dict(zip("ABCDEF", ["train"] * 4 + ["validation", "held_out"], strict=True))
CONFIG = tiny_config(data={"frozen_encoder": "made"}, train={"steps": 20, "validate_every": 10, "checkpoint_every": 10})


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    sections = [tiny_section(f"{patient}1", patient, seed) for seed, patient in enumerate(SIDES)]
    return write_corpus(tmp_path_factory.mktemp("encoded") / "corpus", sections, split=SIDES)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("frozen") / "run"
    refused(lambda: train(CONFIG, corpus, workdir, silent), "no features", "tario encode", "--encoder=made")
    encode_corpus(corpus, made_encoder(), say=silent)
    train(CONFIG, corpus, workdir, silent)
    return workdir


def copied(corpus: Corpus, folder: Path) -> Corpus:
    shutil.copytree(corpus.root.local, folder)
    return Corpus.open(folder)


def encoded_anew(corpus: Corpus, **card) -> Corpus:
    for section in corpus.sections:
        (section.place / "features/made").remove_below()
    encode_corpus(corpus, made_encoder(**card), say=silent)
    return Corpus.open(corpus.root)


def test_the_checkpoint_remembers_the_card(run):
    card = load(run).provenance.frozen_card
    assert card == made_encoder().card.to_json() | {"hash": made_encoder().card.hash}


def test_its_maps_change_with_the_features(run, corpus, tmp_path):
    section = corpus.section("F1")
    predictor = load(run)
    maps = predictor.predict_section(section, tissue="virtual")
    again = encoded_anew(copied(corpus, tmp_path / "again"))
    np.testing.assert_array_equal(predictor.predict_section(again.section("F1"), tissue="virtual").rates_NxG,
                                  maps.rates_NxG)  # fmt: skip
    place = again.section("F1").place / "features/made/vectors"
    from tario_jax.corpus import layout

    layout.write_array(place, layout.read_array(place)[::-1, ::-1].copy())
    other = predictor.predict_section(Corpus.open(again.root).section("F1"), tissue="virtual")
    assert np.abs(np.log(other.rates_NxG / maps.rates_NxG)).max() > 1e-3


def test_features_of_another_card_are_refused(run, corpus, tmp_path):
    other = encoded_anew(copied(corpus, tmp_path / "other"), um_per_px=0.5)
    refused(lambda: load(run).predict_section(other.section("F1"), tissue="virtual"),
            "F1", "another card", "um_per_px = 0.5, the model's 1.0")  # fmt: skip
    longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=30))
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    refused(lambda: train(longer, other, workdir, silent), "features of card")
    start = dataclasses.replace(CONFIG, start=StartConfig(checkpoint=str(run)))
    refused(lambda: train(start, other, tmp_path / "new", silent), "another model", "features of card")


def test_a_section_without_features_names_the_command(run, corpus, tmp_path):
    bare = copied(corpus, tmp_path / "bare")
    (bare.section("F1").place / "features/made").remove_below()
    refused(lambda: load(run).predict_section(bare.section("F1"), tissue="virtual"),
            f"tario encode --corpus={bare.root} --encoder=made")  # fmt: skip
    load(run).cover(bare.section("F1"), tissue="virtual", bin_um=None, overlap=0.5, he=False)  # reads none


def test_an_image_is_encoded_when_it_is_asked_for(run, corpus, monkeypatch):
    section = corpus.section("F1")
    predictor = load(run)
    asked = {"um_per_px": section.he_um_per_px, "tissue": "virtual"}
    refused(lambda: predictor.predict(section.he(), **asked), "ONNX", "tario ingest --source=slide")
    monkeypatch.setattr(frozen_card, "encoder_of", lambda card: made_encoder())
    found = predictor.predict(section.he(), **asked)
    expected = predictor.predict_section(section, tissue="virtual")
    np.testing.assert_allclose(found.rates_NxG, expected.rates_NxG, rtol=1e-5)
    seen: list[int] = []
    monkeypatch.setattr(frozen_card, "encoder_of", lambda card: made_encoder(seen))
    image = ImageSection(section.he(), section.he_um_per_px, genes=3)
    frozen_card.make_ready(image, predictor.provenance.frozen_card)
    batches = len(seen)
    frozen_card.make_ready(image, predictor.provenance.frozen_card)
    assert len(seen) == batches > 0  # once, however often the image is asked for
    other = predictor.provenance.frozen_card | {"hash": "0", "weights_sha256": "2"}
    refused(lambda: frozen_card.make_ready(image, other), "image", "another card")  # of another model, the same name
    seen.clear()
    monkeypatch.setattr(frozen_card, "encoder_of", lambda card: made_encoder(seen, weights_sha256="1"))
    refused(lambda: predictor.predict(section.he(), **asked), "image", "another card", "weights_sha256 = '1'")
    assert not seen  # before anything is encoded


def test_the_config_of_another_run_is_refused(run, corpus, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    plain = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, frozen_encoder=""))
    refused(lambda: train(plain, corpus, workdir, silent), "frozen_encoder")

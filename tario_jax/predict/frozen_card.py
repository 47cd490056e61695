"""Features that a model reads must be those that it learnt from: of one card."""

from typing import Any

from tario_jax.config import InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.encoders import encoder_of
from tario_jax.predict.tissue import ImageSection


def make_ready(section: Section | ImageSection, card: dict[str, Any]) -> None:
    """Works out the features of an image, by the model's own card; a section of a corpus has them.

    Raises `InputError` where it has none or has those of another card, or an image's encoder cannot be run here.
    """
    if not section.holds("he"):
        return  # nothing of it is seen
    if isinstance(section, ImageSection):
        if section.has_features(card["name"]):  # of another prediction of this image, and maybe of another model
            grid = section.feature_grid(card["name"])
            return _refuse_other(section.id, grid.card, grid.card_hash, card)
        told = {name: value for name, value in card.items() if name != "hash"}
        try:
            encoder = encoder_of(EncoderCard.from_json(told, "the model's encoder"))
        except InputError as error:
            raise InputError(f"{error}; or ingest the image as a slide ('tario ingest --source=slide'), 'tario encode' "
                             "that corpus, and predict its section") from None  # fmt: skip
        _refuse_other(section.id, encoder.card.to_json(), encoder.card.hash, card)  # before anything is encoded
        section.encode(encoder)
    else:
        grid = section.feature_grid(card["name"])
        _refuse_other(section.id, grid.card, grid.card_hash, card)


def _refuse_other(name: str, found: dict[str, Any], found_hash: str, card: dict[str, Any]) -> None:
    if found_hash != card["hash"]:
        names = [field for field in card if field not in ("hash", "about", "source", "licence")]
        differs = ", ".join(f"{field} = {found.get(field)!r}, the model's {card[field]!r}"
                            for field in names if found.get(field) != card[field])  # fmt: skip
        raise InputError(f"{name}: has features {card['name']!r} of another card than the model learnt from "
                         f"({differs}); encode it as the model's corpus was")  # fmt: skip

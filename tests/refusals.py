"""How a user's mistake must be answered."""

import pytest

from tario_jax.config import InputError


def refused(action, *words) -> str:
    """`action()` raises an InputError of one line that holds these words."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message

"""How many threads BLAS takes: its own, set against those that work side by side, make either 10 to 50 times slower."""

import contextlib
import functools
from collections.abc import Iterator

from tario_jax.config import InputError


@functools.cache
def _controller():
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError as error:
        raise InputError("evaluate: threadpoolctl is not installed; pip install 'tario-jax[eval]'") from error
    return ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For small products, and those that several threads make at once. Raises `InputError` without threadpoolctl."""
    with _controller().limit(limits=1, user_api="blas"):
        yield

"""One run at a time in a workdir."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from tario_jax.config import InputError
from tario_jax.corpus.one_writer import locked
from tario_jax.parallel.hosts import is_first

_LOCK = ".running"


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Holds the workdir for this run; raises `InputError` where another one does.

    The system lets it go when the process ends, however it does. Where the disk knows no locks, nothing is held.
    """
    if not is_first():
        yield
        return
    with (workdir / _LOCK).open("w") as file:
        if not locked(file):
            raise InputError(f"{workdir}: {_who(workdir)} trains there now; wait until it has ended, or stop it, or "
                             "use another --workdir")  # fmt: skip
        yield


def _who(workdir: Path) -> str:
    try:
        beat = json.loads((workdir / "hosts" / "0.json").read_text())
        return f"process {beat['pid']} on {beat['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

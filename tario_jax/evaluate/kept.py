"""Arrays that were worked out once, kept in a folder: an interrupted job, or another process, goes on from them."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.whole_file import UNREADABLE, write_whole

Arrays = dict[str, np.ndarray]
_KEY = "key"


def key_of(**parts: Any) -> str:
    """A short name of everything that arrays depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Kept:
    """Files of arrays by name and key, <name>.<key>.npz; a broken one counts as absent."""

    def __init__(self, folder: Path | None):
        """folder: None keeps nothing, and everything is worked out when it is asked for."""
        self._folder = folder

    def read(self, name: str, key: str) -> Arrays | None:
        if self._folder is None:
            return None
        try:
            with np.load(io.BytesIO(self._path(name, key).read_bytes()), allow_pickle=False) as file:
                if file[_KEY].item() != key:
                    return None
                return {field: file[field] for field in file.files if field != _KEY}
        except UNREADABLE:
            return None

    def get(self, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """What is kept under the name, or what `make` gives, which is kept then."""
        found = self.read(name, key)
        if found is None:
            found = make()
            if self._folder is not None:
                memory = io.BytesIO()
                np.savez(memory, **found, **{_KEY: np.array(key)})
                path = self._path(name, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, memory.getvalue())
        return found

    def _path(self, name: str, key: str) -> Path:
        return self._folder / f"{name}.{key[:12]}.npz"


def by_turns(items: Sequence[Any], part: tuple[int, int]) -> list[Any]:
    """All items, the k-th n-th of them first, of a part (k, n); then those of the other parts, from their ends.

    Processes that share a folder begin with different items, and then help each other out: each finds what the others
    have kept meanwhile, and makes what nobody has, so none waits for another, and one that dies is no loss.
    """
    k, n = part
    mine = list(items[k - 1 :: n])
    others = [list(items[(k - 1 + step) % n :: n])[::-1] for step in range(1, n)]
    return mine + [item for other in others for item in other]

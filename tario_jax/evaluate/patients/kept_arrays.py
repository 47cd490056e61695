"""Arrays that are kept beside embeddings: NumPy's .npz, absent or whole, of a known version or not read."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.whole_file import UNREADABLE, write_whole


def write_arrays(path: Path, version: int, **values: Any) -> None:
    memory = io.BytesIO()
    np.savez(memory, version=version, **values)
    write_whole(path, memory.getvalue())


def read_arrays(path: Path, version: int, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """None where it is absent, damaged, of another version, or lacks one of the names: it is made again then."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as held:
            return {name: held[name] for name in names} if int(held["version"]) == version else None
    except (*UNREADABLE, TypeError):
        return None

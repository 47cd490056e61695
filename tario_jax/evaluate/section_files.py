"""One small file a section, whole or absent: a job that was killed goes on with the sections that are left."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.train.whole_file import write_whole

_KEY = "key"


class SectionFiles:
    """Arrays by section in `folder`. What was measured of another model, corpus or setting is measured again.

    depends_on: all that a section's numbers depend on but the section itself, as JSON values.
    """

    def __init__(self, folder: Path, depends_on: dict[str, Any]):
        self._folder = folder
        self._key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)

    def read(self, section: str) -> dict[str, np.ndarray] | None:
        """What was written of the section, or None."""
        try:
            with np.load(io.BytesIO(self._path(section).read_bytes()), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return arrays if str(arrays.pop(_KEY, "")) == self._key else None

    def write(self, section: str, arrays: dict[str, np.ndarray]) -> None:
        memory = io.BytesIO()
        np.savez_compressed(memory, **{_KEY: np.array(self._key)}, **arrays)
        write_whole(self._path(section), memory.getvalue())

    def _path(self, section: str) -> Path:
        return self._folder / f"{section}.npz"

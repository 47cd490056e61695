"""Files that a backend makes, for a user to read, keep and edit: one that was edited is left as it is."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tario_jax.train.whole_file import write_whole

_WRITTEN = ".written.json"


def write_files(folder: Path, files: dict[str, str], *, rewrite: bool, say: Callable[[str], None]) -> None:
    """Writes `files` by name. One that differs from what was last written there is kept, unless `rewrite`.

    Scripts (.sh) are made executable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = _written(folder)
    for name, text in files.items():
        path = folder / name
        if path.exists() and not rewrite and _checksum(path.read_text()) not in (written.get(name), _checksum(text)):
            say(f"{path}: was edited, and is kept; --rewrite makes it anew")
            continue
        if not path.exists() or path.read_text() != text:
            write_whole(path, text)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
        written[name] = _checksum(text)
    write_whole(folder / _WRITTEN, json.dumps(written, indent=1))


def _written(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / _WRITTEN).read_text())
    except (OSError, ValueError):
        return {}


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

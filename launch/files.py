"""Files that a backend makes, for a user to read, keep and edit: one that was edited is left as it is."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from tario_jax.config import InputError
from tario_jax.whole_file import write_whole

_WRITTEN = ".written.json"


def write_files(folder: Path, files: dict[str, str], *, always: Collection[str] = (), rewrite: bool,
                say: Callable[[str], None]) -> None:  # fmt: skip
    """Writes `files` by name. One that differs from what was last written there is kept, unless `rewrite`.

    always: those that say what is missing now, and are nobody's to edit. Scripts (.sh) are made executable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = _written(folder)
    for name, text in files.items():
        path = folder / name
        before = path.read_bytes() if path.exists() else None
        is_new = rewrite or name in always or before is None
        if not is_new and _checksum(before) not in (written.get(name), _checksum(text.encode())):
            say(
                f"{path}: was edited, and is kept as it is, whatever flags and configs say now; --rewrite makes it anew"
            )
            continue
        if before != text.encode():
            write_whole(path, text)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
        written[name] = _checksum(text.encode())
    write_whole(folder / _WRITTEN, json.dumps(written, indent=1))


def run_script(path: Path) -> None:
    """Raises `InputError` with the last line that it said, where it fails."""
    done = subprocess.run([str(path)], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise InputError(f"{path}: {said[-1] if said else f'ended with status {done.returncode}, and said nothing'}")


def _written(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _WRITTEN).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

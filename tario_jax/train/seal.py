"""The seal of a checkpoint: the size and CRC-32 of each of its files, written last.

Orbax makes a checkpoint visible by a rename. Whether its bytes are still those that were written, it does not tell: the
arrays' own bytes bear no checksum, and a flipped bit would be read as a weight.
"""

import json
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tario_jax.config import InputError

SEAL = "tario_seal.json"
_REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the time of the rename to it, and reads without it
_PIECE = 1 << 22  # bytes read at once
_AGAIN_AFTER_S = 1.0  # a disk across a network may stumble once


def seal(folder: Path) -> None:
    """Writes the seal of what the folder holds now."""
    files = _files(folder)
    with ThreadPoolExecutor() as pool:  # zlib and reading let other threads run
        found = pool.map(lambda path: [path.stat().st_size, _crc32(path)], files.values())
        (folder / SEAL).write_text(json.dumps({"files": dict(zip(files, found, strict=True))}))


def seal_id(folder: Path) -> str | None:
    """Tells a checkpoint from every other one, also of the same step; None where it has no seal."""
    try:
        return f"{zlib.crc32((folder / SEAL).read_bytes()):08x}"
    except OSError:
        return None


def checkpoint_id(workdir: Path, step: int) -> str:
    """Tells this checkpoint of a run from all others: its step, and its seal's id."""
    return f"{step}-{seal_id(workdir / 'checkpoints' / str(step))}"


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What of the sealed files is not as it was, in words; None where all are whole.

    Several processes may share the work: each looks at every `parts`-th file, from `part` on. Raises `InputError` where
    a file cannot be read: it may be whole.
    """
    try:
        text = _twice(lambda: (folder / SEAL).read_bytes(), folder / SEAL)
    except FileNotFoundError:
        text = b""
    try:
        sealed = json.loads(text)["files"]
    except (ValueError, KeyError):
        return f"{SEAL} is absent or torn (checkpoints of an older tario have none)"

    def fault(file: tuple[str, list[int]]) -> str | None:
        name, (size, crc32) = file
        return _twice(lambda: _fault(folder / name, name, size, crc32), folder / name)

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(fault, sorted(sealed.items())[part::parts])), None)


def _fault(path: Path, name: str, size: int, crc32: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} bytes, {size} were written"
        return None if _crc32(path) == crc32 else f"{name} has other bytes than were written"
    except FileNotFoundError:
        return f"{name} is absent"


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != _REWRITTEN}  # fmt: skip


def _twice(read: Callable[[], Any], path: Path) -> Any:
    """What `read` returns, at the second try where the first fails. Raises `InputError` where the path cannot be read,
    and `FileNotFoundError` where it is none."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError:
        time.sleep(_AGAIN_AFTER_S)
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), and may be whole; make it readable, and run the "
                         "same command again") from None  # fmt: skip


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found

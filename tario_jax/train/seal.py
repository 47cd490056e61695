"""The seal of a checkpoint: the size and CRC-32 of each of its files, written last.

Orbax makes a checkpoint visible by a rename. Whether its bytes are still those that were written, it does not tell: the
arrays' own bytes bear no checksum, and a flipped bit would be read as a weight.
"""

import json
import zlib
from pathlib import Path

SEAL = "tario_seal.json"
_REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the time of the rename to it, and reads without it
_PIECE = 1 << 22  # bytes read at once


def seal(folder: Path) -> None:
    """Writes the seal of what the folder holds now."""
    files = {name: [path.stat().st_size, _crc32(path)] for name, path in _files(folder).items()}
    (folder / SEAL).write_text(json.dumps({"files": files}))


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

    Several processes may share the work: each looks at every `parts`-th file, from `part` on.
    """
    try:
        sealed = json.loads((folder / SEAL).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{SEAL} is absent or torn (checkpoints of an older tario have none)"
    for name, (size, crc32) in sorted(sealed.items())[part::parts]:
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes, {size} were written"
            if _crc32(path) != crc32:
                return f"{name} has other bytes than were written"
        except FileNotFoundError:
            return f"{name} is absent"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != _REWRITTEN}  # fmt: skip


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found

"""A small file that is never read half-written."""

import os
import platform
import zipfile
import zlib
from pathlib import Path

PARTIAL = ".partial"  # ends the name of what a killed write left
UNREADABLE = (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)  # of a torn .npz


def partial_of(path: Path) -> Path:
    """Where this process writes what is to stand at `path`: no other does, on whatever machine."""
    return path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{PARTIAL}")


def write_whole(path: Path, content: str | bytes, synced: bool = False) -> None:
    """Replaces `path` by one rename: killed meanwhile, it is the old one or the new one.

    Processes that write the same file at once, on whatever machines, do not meet: the last rename counts. Raises
    `OSError` that names the file, which a full disk's does not by itself.

    synced: whether the bytes are on the disk before the name is, so that a loss of power leaves no name without them.
    """
    content = content.encode() if isinstance(content, str) else content
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None

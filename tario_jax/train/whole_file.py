"""A small file that is never read half-written."""

import os
import platform
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces `path` by one rename: killed meanwhile, it is the old one or the new one.

    Processes that write the same file at once, on whatever machines, do not meet: the last rename counts. Raises
    `OSError` that names the file, which a full disk's does not by itself.
    """
    partial = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None

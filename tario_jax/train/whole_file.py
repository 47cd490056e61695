"""A small file that is never read half-written."""

from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replaces `path` by one rename: killed meanwhile, it is the old one or the new one.

    Raises `OSError` that names the file, which a full disk's does not by itself.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None

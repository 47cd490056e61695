"""Outputs that are whole or absent, and say why they cannot be written."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tario_jax.config import InputError

_SPARE_BYTES = 4 << 20  # for what a format keeps beside the values
_CANNOT = re.compile("No space|quota|write|Write|flush|decrement id")  # of HDF5 and zarr


@contextlib.contextmanager
def whole_output(path: Path) -> Iterator[Path]:
    """A place beside it to write to, file or folder: what comes to stand at `path` is whole.

    Raises `InputError` where a folder stands there already, and where it cannot be written; nothing is left then.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder already, which is not written over; remove it, or give another name")
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # HDF5 and zarr tell of a full disk by either
        if isinstance(error, RuntimeError) and not _CANNOT.search(str(error)):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:160]
        raise InputError(f"{path}: cannot be written: {reason}; make room there, or give another place") from None
    finally:
        _remove(partial)


def refuse_full(path: Path, values_bytes: int) -> None:
    """Raises `OSError` before the disk of `path` is full: HDF5 crashes at a file that it has no room to close."""
    if shutil.disk_usage(path.parent).free < values_bytes + _SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()

"""Outputs that are whole or absent, and say why they cannot be written."""

import contextlib
import errno
import glob
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tario_jax.config import InputError
from tario_jax.whole_file import PARTIAL, partial_of

_DAY_S = 86_400
_SPARE_BYTES = 4 << 20  # for what a format keeps beside the values
_CANNOT = re.compile("No space|quota|write|Write|flush|decrement id")  # of HDF5 and zarr


@contextlib.contextmanager
def whole_output(path: Path) -> Iterator[Path]:
    """A place beside it to write to, file or folder: what comes to stand at `path` is whole.

    Two processes that write to one path do not meet: the last rename counts. Raises `InputError` where a folder stands
    there already, and where it cannot be written; nothing is left then.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder already, which is not written over; remove it, or give another name")
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        _remove(partial)  # of a process of this number, in a container that was started again
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


def _remove_abandoned(path: Path) -> None:
    """What killed processes left of it, as large as the output: of this machine, and of others if it is a day old."""
    begins = f".{path.name}."
    for partial in path.parent.glob(f"{glob.escape(begins)}*{PARTIAL}"):
        node, _, number = partial.name.removeprefix(begins).removesuffix(PARTIAL).rpartition("-")
        with contextlib.suppress(FileNotFoundError):  # whose it is may end it now
            here = node == platform.node() and number.isdecimal()
            ended = not _is_alive(int(number)) if here else time.time() - partial.stat().st_mtime > _DAY_S
            if ended:
                _remove(partial)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()

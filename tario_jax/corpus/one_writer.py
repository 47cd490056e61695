"""One writer at a time in a corpus."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import IO

from tario_jax.config import Absent
from tario_jax.corpus.place import Place


def locked(file: int | IO, *, shared: bool = False) -> bool:
    """Whether this process holds an open file or folder now, until it closes it; False: another one does. Where the
    disk knows no locks, nothing is held, and nobody is refused."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def one_writer(root: Place, *, shared: bool = False) -> Iterator[None]:
    """Holds the folder of a corpus while it is written; raises `Absent` where another process does.

    shared: with others that share too, the parts of one job. The system lets it go when the process ends, however it
    does. Between processes of one machine: on a disk that several machines share, and in a bucket, nothing is held.
    """
    if root.local is None or root.local.is_file():  # which whoever writes refuses
        yield
        return
    root.local.mkdir(parents=True, exist_ok=True)
    folder = os.open(root.local, os.O_RDONLY)
    try:
        if not locked(folder, shared=shared):
            raise Absent(f"corpus {root}: another process writes it now; wait until it has ended, or stop it, or use "
                         "another folder")  # fmt: skip
        yield
    finally:
        os.close(folder)

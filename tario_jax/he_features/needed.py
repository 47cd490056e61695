"""What an encoder needs of a machine: a library that may not be installed, and files of weights."""

import hashlib
import importlib
import os
from pathlib import Path

from tario_jax.config import InputError
from tario_jax.config_files import expand


def imported(module: str, extra: str, what: str):
    """A library that a user may lack. Raises `InputError` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{what}: needs the Python package {module.partition('.')[0]!r}, which cannot be imported "
                         f"({error}); pip install 'tario-jax[{extra}]'") from None  # fmt: skip


def file_sha256(path: Path, what: str) -> str:
    """Checksum of a file, or of all files of a folder with their names. Raises `InputError` where there is none."""
    path = Path(expand(str(path)))
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted(Path(place) / name for place, _, names in os.walk(path) for name in names)
    if not files:
        raise InputError(f"{what}: {path}: no such file; expected its weights")
    digest = hashlib.sha256()
    for found in files:
        digest.update(f"{found.relative_to(path).as_posix()} {file_sha256(found, what)}\n".encode())
    return digest.hexdigest()

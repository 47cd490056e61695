"""A PyTorch checkpoint read without PyTorch, and without running anything that the file asks for.

Both layouts are read: the zip archive of torch ≥ 1.6 (one pickle, one file a storage), and the older stream (five
pickles, then the storages one after the other, each after its number of elements). A tensor is a view of a storage with
an offset and strides, and need not be contiguous.
"""

import collections
import io
import math
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tario_jax.config import InputError

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


class _Storage(NamedTuple):
    """A storage that the pickle names; its bytes lie elsewhere in the file."""

    key: str
    kind: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def _tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


class _Restricted(pickle.Unpickler):
    """Makes ordered dicts, tensors and storages, and refuses every other name: a pickle can else run any program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")

    def persistent_load(self, told: Any) -> _Storage:
        kind, storage, key = told[:3]
        if kind != "storage" or not isinstance(storage, np.dtype) or (len(told) > 5 and told[5] is not None):
            raise pickle.UnpicklingError(f"it holds {kind!r}, expected a plain storage")
        return _Storage(str(key), storage)


def read_state(path: Path | str) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name. Raises `InputError` where the file is missing, broken or holds else."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            told, bytes_of = _archive(file) if zipfile.is_zipfile(file) else _stream(file)
        if not isinstance(told, dict) or not all(isinstance(value, _Tensor) for value in told.values()):
            raise pickle.UnpicklingError("it holds no state dict")
        return {name: _array(name, tensor, bytes_of) for name, tensor in told.items()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the weights of an encoder") from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
            MemoryError, OverflowError, NotImplementedError, RuntimeError, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise InputError(f"{path}: is no readable PyTorch state dict ({error}); expected a whole file of tensors "
                         "alone") from None  # fmt: skip


def _archive(file: io.BufferedReader) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        found = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise ValueError(f"it holds {len(found)} files data.pkl, expected one")
        root = found[0].removesuffix("data.pkl")
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine")
        told = _Restricted(io.BytesIO(archive.read(found[0]))).load()
        bytes_of = {name.removeprefix(f"{root}data/"): archive.read(name) for name in archive.namelist()
                    if name.startswith(f"{root}data/")}  # fmt: skip
    return told, bytes_of


def _stream(file: io.BufferedReader) -> tuple[Any, dict[str, bytes]]:
    file.seek(0)
    magic, protocol, system = (_Restricted(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"]:
        raise ValueError("it is of another format, or of a big-endian machine")
    kinds: dict[str, np.dtype] = {}

    class Noted(_Restricted):
        def persistent_load(self, told: Any) -> _Storage:
            storage = super().persistent_load(told)
            kinds[storage.key] = storage.kind
            return storage

    told, keys = Noted(file).load(), _Restricted(file).load()
    bytes_of = {}
    for key in keys:
        number = int.from_bytes(file.read(8), "little")
        bytes_of[key] = file.read(number * kinds[key].itemsize)
    return told, bytes_of


def _array(name: str, tensor: _Tensor, bytes_of: dict[str, bytes]) -> np.ndarray:
    """A copy of the tensor, contiguous."""
    storage = np.frombuffer(bytes_of[tensor.storage.key], tensor.storage.kind)
    if len(tensor.shape) != len(tensor.strides) or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"{name}: of shape {tensor.shape} and strides {tensor.strides}")
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and last >= len(storage):  # as_strided would read beyond it
        raise ValueError(f"{name}: reaches to element {last} of a storage of {len(storage)}")
    step_bytes = [step * storage.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, step_bytes, writeable=False)
    return np.array(view, order="C")

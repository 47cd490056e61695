"""Writes safetensors files piece by piece.

The format (github.com/huggingface/safetensors): 8 bytes with the length of a JSON header, the header, then the tensors'
bytes, little-endian, one after the other.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

MOST_BYTES = 4 << 30  # of a file
_CODES = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}
_SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}


class Tensor(NamedTuple):
    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[np.ndarray]]  # of its rows, in this dtype

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _SIZES[self.dtype]


def write_tensors(folder: Path, stem: str, tensors: list[Tensor], *, most_bytes: int = MOST_BYTES,
                  progress: Callable[[int, int], None] | None = None) -> list[str]:  # fmt: skip
    """Writes `<stem>.safetensors`, or several files and an index beside them; returns the names of what it wrote."""
    files: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if files[-1] and sum(one.bytes for one in files[-1]) + tensor.bytes > most_bytes:
            files.append([])
        files[-1].append(tensor)
    names = [f"{stem}.safetensors"] if len(files) == 1 else [
        f"{stem}-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]  # fmt: skip
    done, total = 0, sum(tensor.bytes for tensor in tensors)
    for name, some in zip(names, files, strict=True):
        header, begin = {}, 0
        for tensor in some:
            header[tensor.name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape),
                                   "data_offsets": [begin, begin + tensor.bytes]}  # fmt: skip
            begin += tensor.bytes
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for tensor in some:
                written = 0
                for piece in tensor.pieces():
                    content = np.ascontiguousarray(piece)
                    file.write(content.view(np.uint8).data if content.ndim else content.tobytes())
                    written += content.nbytes
                    done += content.nbytes
                    if progress is not None:
                        progress(done, total)
                if written != tensor.bytes:
                    raise RuntimeError(f"{tensor.name}: {written} bytes were given, {tensor.bytes} were announced")
    if len(files) > 1:
        where = {tensor.name: name for name, some in zip(names, files, strict=True) for tensor in some}
        index = f"{stem}.safetensors.index.json"
        (folder / index).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
        names.append(index)
    return names

"""Names, versions and array formats of a corpus on disk.

corpus/  corpus.json  ingest.json  panel.tsv  patients.parquet  sections.parquet  split.tsv
         sections/<id>/seal.json                   written last: without it the section does not exist
         sections/<id>/he                          uint8 [H, W, 3]
         sections/<id>/measured                    uint8 [rows, columns], 1 = imaged
         sections/<id>/detections/place            uint16 [D, 2], x and y from the tile's corner in steps of 1/1024 µm
         sections/<id>/detections/gene             uint16 [D]
         sections/<id>/detections/offset           int64 [tiles + 1], first detection of each tile, row by row
         sections/<id>/detections/{nucleus,cell}   uint8 [D], int32 [D], where the vendor gives them
         sections/<id>/spots/{place,indptr,gene,count,array}
         sections/<id>/{gene_totals,measured_genes}  int64 [G], uint8 [G]
         sections/<id>/truth/<name>                of virtual tissue, to compute its truth; outside the corpus seal
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

FORMAT_VERSION = 2
DETECTION_TILE_UM = 64.0
PLACE_STEPS_PER_UM = 65536 / DETECTION_TILE_UM  # a place is read as the middle of its step: off by at most 0.0005 µm

# Inner chunk and shard by array; arrays that are not named are one chunk. A window reads whole inner chunks only.
CHUNKS = {
    "he": ((256, 256, 3), (4096, 4096, 3)),
    "place": ((32768, 2), (4194304, 2)),
    "gene": ((32768,), (4194304,)),
    "nucleus": ((32768,), (4194304,)),
    "cell": ((32768,), (4194304,)),
}

_COMPRESSION = {"name": "zstd", "configuration": {"level": 3}}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}


def _context() -> ts.Context:
    """One cache for the process: neighbouring windows share chunks."""
    return ts.Context({"cache_pool": {"total_bytes_limit": 256 << 20}})


_CONTEXT: dict[int, ts.Context] = {}


def _spec(path: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path.resolve()}/"}}


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a whole array; its last path part chooses the chunks."""
    spec = _spec(path)
    metadata: dict[str, Any] = {"shape": list(array.shape), "data_type": str(array.dtype)}
    if path.name in CHUNKS and array.size:
        inner, shard = CHUNKS[path.name]
        # a shard never reaches far beyond its array: small sections stay small files
        shard = [min(s, -(-n // c) * c) for s, n, c in zip(shard, array.shape, inner, strict=True)]
        codec = {"name": "sharding_indexed",
                 "configuration": {"chunk_shape": list(inner), "codecs": [_BYTES, _COMPRESSION]}}  # fmt: skip
        metadata |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}}, "codecs": [codec]}
    else:
        shape = [max(1, n) for n in array.shape]
        metadata |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
                     "codecs": [_BYTES, _COMPRESSION]}  # fmt: skip
    store = ts.open(spec | {"metadata": metadata}, create=True, delete_existing=True).result()
    if array.size:
        store.write(array).result()


def open_array(path: Path) -> ts.TensorStore:
    """Opens an array for reading."""
    process = os.getpid()  # a context does not survive a fork
    context = _CONTEXT.setdefault(process, _context())
    return ts.open(_spec(path), open=True, read=True, context=context).result()


def read_array(path: Path) -> np.ndarray:
    return open_array(path).read().result()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is either absent, old or whole."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True))
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_sha256(arrays: dict[str, np.ndarray]) -> str:
    """Hash of names, shapes, types and values: what a section holds, however it is compressed."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()

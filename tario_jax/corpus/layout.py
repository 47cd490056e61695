"""Names, versions and array formats of a corpus on disk.

corpus/  corpus.json  ingest.json  panel.tsv  patients.parquet  sections.parquet  split.tsv
         sections/<id>/seal.json                   written last: without it the section does not exist
         sections/<id>/he                          uint8 [H, W, 3]
         sections/<id>/measured                    uint8 [rows, columns], 1 = imaged
         sections/<id>/detections/place_and_gene   uint16 [D, 3]: x and y from the tile's corner in steps of 1/1024 µm,
                                                   and the gene; by tile, within a tile by gene
         sections/<id>/detections/offset           int64 [tiles + 1], first detection of each tile, row by row
         sections/<id>/detections/{nucleus,cell}   uint8 [D], int32 [D], where the vendor gives them
         sections/<id>/spots/{place,indptr,gene,count,array}
         sections/<id>/{gene_totals,measured_genes}  int64 [G], uint8 [G]
         sections/<id>/features/<encoder>/         features of H&E patches (feature_grid.py); outside the corpus seal
         sections/<id>/truth.npz                   of virtual tissue, to compute its truth; outside the corpus seal

Every chunk and every shard's index carries a checksum: a flipped byte is an error that names its file.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from tario_jax.config import InputError
from tario_jax.corpus.place import Place, plainly
from tario_jax.corpus.section import BlockImage
from tario_jax.whole_file import UNREADABLE

FORMAT_VERSION = 3
DETECTION_TILE_UM = 64.0
PLACE_STEPS_PER_UM = 65536 / DETECTION_TILE_UM  # a place is read as the middle of its step: off by at most 0.0005 µm

WHOLE = 0  # of a chunk's side: the whole axis
# Inner chunk and shard by array; arrays that are not named are one chunk. A window reads whole inner chunks only.
CHUNKS = {
    "he": ((128, 128, 3), (4096, 4096, 3)),
    "place_and_gene": ((32768, 3), (4194304, 3)),
    "nucleus": ((32768,), (4194304,)),
    "cell": ((32768,), (4194304,)),
    "gene": ((32768,), (4194304,)),
    "count": ((32768,), (4194304,)),
    "vectors": ((16, 16, WHOLE), (128, 128, WHOLE)),
}

_BAND_BYTES = 96 << 20  # of an image that is hashed in bands of rows
_HASHED_BYTES = 16 << 20  # at once


class Rows(Protocol):
    """What the corpus takes for an array: a numpy array, or rows that lie elsewhere and are read when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __getitem__(self, rows: slice) -> np.ndarray: ...


_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CODECS = [_BYTES, {"name": "zstd", "configuration": {"level": 3}}, {"name": "crc32c"}]
# a column of place_and_gene after the other: genes, which rise within a tile, nearly vanish
_BY_COLUMN = {"place_and_gene": [{"name": "transpose", "configuration": {"order": [1, 0]}}]}


SECTION_AGAIN = "restore it, or delete the folder of its section and make it again with the command that made it"
_CORPUS_AGAIN = "restore it or ingest again"
CACHE_BYTES = 256 << 20
"""Of decoded chunks, for the whole process: neighbouring windows share them."""


def _context() -> ts.Context:
    return ts.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


_CONTEXT: dict[int, ts.Context] = {}


def array_spec(place: Place) -> dict[str, Any]:
    """TensorStore's spec of an array of a corpus."""
    # every chunk is stored, zeros too: one that is missing is an error, never zeros
    return {"driver": "zarr3", "kvstore": place.kvstore, "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False}  # fmt: skip


def sealed_names(root: Place) -> list[str]:
    """Names of the sealed sections of a corpus, finished or not, in order."""
    if root.local is not None:
        return sorted(seal.parent.name for seal in root.local.glob("sections/*/seal.json"))
    names = (name.split("/") for name in (root / "sections").below())
    return sorted(section for section, *rest in names if rest == ["seal.json"])  # a bucket's "S-2/" is before its "S/"


def write_array(place: Place, array: Rows | BlockImage) -> None:
    """Writes a whole array, shard by shard or a row of shards at a time, so that each is written once and whole.

    The last part of its place chooses the chunks. Raises `InputError` where it cannot be written.
    """
    metadata: dict[str, Any] = {"shape": list(array.shape), "data_type": str(array.dtype)}
    rows_at_once, holds_any = max(1, array.shape[0]), 0 not in array.shape
    if place.name in CHUNKS and holds_any:
        inner, shard = ([side or size for side, size in zip(sides, array.shape, strict=True)]
                        for sides in CHUNKS[place.name])  # fmt: skip
        # a shard never reaches far beyond its array: small sections stay small files
        shard = [min(s, -(-n // c) * c) for s, n, c in zip(shard, array.shape, inner, strict=True)]
        configuration = {"chunk_shape": list(inner), "codecs": [*_BY_COLUMN.get(place.name, []), *_CODECS],
                         "index_codecs": [_BYTES, {"name": "crc32c"}]}  # fmt: skip
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
        metadata |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}}, "codecs": codecs}
        rows_at_once = shard[0]
    else:
        shape = [max(1, n) for n in array.shape]
        metadata |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}, "codecs": _CODECS}
    spec = array_spec(place) | {"metadata": metadata}
    try:
        store = ts.open(spec, create=True, delete_existing=True).result()
        if holds_any and isinstance(array, BlockImage):
            writing = None
            for part in _shards(array, shard):
                block = array[part]  # decoded while the one before is compressed and written
                if writing is not None:
                    writing.result()
                writing = store[part].write(block)
            writing.result()
        elif holds_any:
            for rows, part in _parts(array, rows_at_once):
                store[rows].write(part).result()
    except InputError:  # the slide's own: it could not be read
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"{place}: could not be written: {plainly(error)}") from None


def _shards(image: BlockImage, shard: list[int]) -> Iterator[tuple[slice, slice]]:
    for top in range(0, image.height_px, shard[0]):
        for left in range(0, image.width_px, shard[1]):
            yield (slice(top, min(top + shard[0], image.height_px)),
                   slice(left, min(left + shard[1], image.width_px)))  # fmt: skip


def stored_image(place: Place) -> BlockImage:
    """An image that was written, to be read again block by block."""
    store = open_array(place)
    height_px, width_px, _ = store.shape
    return BlockImage(height_px, width_px, lambda *part: result_of(store[part].read(), place))


def begin_open(place: Place) -> ts.Future:
    """Starts to open an array for reading; `result_of` waits for it."""
    process = os.getpid()  # a context does not survive a fork
    context = _CONTEXT.setdefault(process, _context())
    return ts.open(array_spec(place), open=True, read=True, context=context)


def open_array(place: Place) -> ts.TensorStore:
    """Opens an array for reading. Raises `InputError` where it is missing or its metadata are damaged."""
    return result_of(begin_open(place), place)


def result_of(reading: ts.Future, place: Place) -> Any:
    """What opening an array gives, or reading it. Raises `InputError` where something is damaged or missing."""
    try:
        return reading.result()
    except (ValueError, RuntimeError, OSError) as error:
        raise damaged(place, error) from None


def read_array(place: Place) -> np.ndarray:
    return result_of(open_array(place).read(), place)


def damaged(place: Place, error: Exception) -> InputError:
    return InputError(f"{place}: cannot be read: {plainly(error)}; {SECTION_AGAIN}")


def write_truth(place: Place, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays into one compressed file, the same bytes for the same arrays."""
    content = io.BytesIO()
    np.savez_compressed(content, **{name: arrays[name] for name in sorted(arrays)})
    place.write(content.getvalue())


def read_truth(place: Place) -> dict[str, np.ndarray]:
    """The arrays of `write_truth`. Raises `InputError` where the file is missing or damaged."""
    try:
        with np.load(io.BytesIO(place.read())) as stored:
            return {name: stored[name] for name in stored.files}
    except UNREADABLE as error:
        raise damaged(place, error) from None


def write_json(place: Place, value: Any) -> None:
    """Writes JSON so that the file is either absent, old or whole."""
    place.write(json.dumps(value, indent=1, sort_keys=True).encode())


def read_sealed(place: Place, expected: str | None, fix: str = _CORPUS_AGAIN) -> bytes:
    """The file's bytes. Raises `InputError` where they are not those that the corpus seal names."""
    try:
        content = place.read()
    except FileNotFoundError:
        content = None
    if content is None or hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"{place}: differs from the corpus seal; {fix}")
    return content


def read_json(place: Place, fix: str = _CORPUS_AGAIN) -> dict[str, Any]:
    """Raises `InputError` where the file is missing or no whole JSON."""
    try:
        value = json.loads(place.read())
    except FileNotFoundError:
        raise InputError(f"{place}: no such file; {fix}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{place}: is not whole JSON ({error}); {fix}") from None
    if not isinstance(value, dict):
        raise InputError(f"{place}: holds a {type(value).__name__}; expected an object; {fix}")
    return value


def array_sha256(arrays: dict[str, Rows | BlockImage]) -> str:
    """Hash of names, shapes, types and values row by row: what a section holds, however it is read or compressed."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\n".encode())
        row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        if isinstance(array, BlockImage):
            parts = _bands(array)
        else:
            parts = (part for _, part in _parts(array, max(1, _HASHED_BYTES // max(1, row_bytes))))
        for part in parts:
            digest.update(np.ascontiguousarray(part).data if part.size else b"")
    return digest.hexdigest()


def _bands(image: BlockImage) -> Iterator[np.ndarray]:
    """The image from top to bottom, in bands of whole inner chunks: each of them is read once."""
    step = CHUNKS["he"][0][0]
    step *= max(1, _BAND_BYTES // (step * max(1, image.width_px) * 3))
    for top in range(0, image.height_px, step):
        yield image[top : top + step, :]


def _parts(array: Rows, rows_at_once: int) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, array.shape[0], rows_at_once):
        rows = slice(start, min(start + rows_at_once, array.shape[0]))
        yield rows, array[rows]

"""Gene maps of a slide on disk: gene-major, so that one gene of 18,963 is a few small reads.

    NAME.maps/
      rates/            zarr3, float32 [genes, slots], expected detections per bin; sharded, compressed
      measured/         alike, of a section that was measured: detections per bin; NaN where nothing is known
      spread/           alike, where it was asked for: deviation between samples, or the windows that hold a bin
      drawn/            alike, where steps were asked for: detections of all bins as one sample drew them
      x_um, y_um/       zarr3, float64 [slots]: centres of bins in the slide's frame; NaN where a slot is empty
      bin_total/        zarr3, float64 [slots]: expected detections of all genes
      gene_mean, gene_largest/   zarr3, float64 [genes], over bins
      panel.tsv validation.parquet overview.jpg tissue.png
      maps.json         what the maps are of; written last: without it they are not whole

A bin has a slot. Bins are numbered row by row, and cut into runs of whole rows that fill at most a chunk of slots, so
that each run is written once, as whole shards.

Axes: G genes, S slots, N bins, n bins of a run.
"""

import dataclasses
import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from tario_jax.config import InputError
from tario_jax.panel import Panel
from tario_jax.predict.gene_validation import FILE as VALIDATION
from tario_jax.predict.gene_validation import SPLIT_BY_SECTION, GeneValidation, read_gene_validation
from tario_jax.predict.maps import GeneMaps
from tario_jax.whole_file import write_whole

FORMAT, FORMAT_VERSION = "tario map store", 1
FILE = "maps.json"
SLOTS = 4096  # of a chunk
GENES_READ, GENES_WRITTEN = 8, 2048  # of a chunk, of a shard
KEPT_BITS = 12  # of the 23 of a float32's mantissa: a rate is off by 1.2e-4 of itself at most, and compresses
ARRAYS = ("rates", "measured", "spread", "drawn")
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_BLOSC = {"name": "blosc", "configuration": {"cname": "zstd", "clevel": 3, "shuffle": "bitshuffle", "typesize": 4}}


@dataclasses.dataclass(frozen=True)
class Slots:
    """Where each bin's values lie: those of run r, bins first[r] up to first[r + 1], begin at slot start[r]."""

    first: np.ndarray  # int64 [R + 1], bins
    start: np.ndarray  # int64 [R + 1], slots

    @classmethod
    def of_rows(cls, row_N: np.ndarray, most: int = SLOTS) -> "Slots":
        """Of bins in ascending rows: runs of whole rows, of at most so many bins, or of a single longer row."""
        in_row = np.bincount(row_N)
        first, held = [0], 0
        for number in in_row[in_row > 0].tolist():
            if held and held + number > most:
                first.append(first[-1] + held)
                held = 0
            held += number
        first.append(first[-1] + held)
        chunk = cls.chunk_of(np.diff(first), most)
        start = np.concatenate([[0], np.cumsum(-(-np.diff(first) // chunk) * chunk)])
        return cls(np.array(first), start)

    @staticmethod
    def chunk_of(bins_R: np.ndarray, most: int) -> int:
        """Slots of a chunk: no more than the longest run needs."""
        return min(most, -(-int(bins_R.max()) // 64) * 64)

    @property
    def chunk(self) -> int:
        return self.chunk_of(np.diff(self.first), SLOTS)

    @property
    def bins(self) -> int:
        return int(self.first[-1])

    @property
    def number(self) -> int:
        return int(self.start[-1])

    def __len__(self) -> int:
        return len(self.first) - 1

    def run(self, number: int) -> tuple[slice, slice]:
        """Bins and slots of a run."""
        size = int(self.first[number + 1] - self.first[number])
        start = int(self.start[number])
        return slice(int(self.first[number]), int(self.first[number + 1])), slice(start, start + size)

    @property
    def slot_N(self) -> np.ndarray:
        return np.concatenate([np.arange(of.start, of.stop) for _, of in map(self.run, range(len(self)))])


class MapWriter:
    """Writes a store run by run; killed, it goes on with the runs that are missing."""

    def __init__(self, folder: Path, panel: Panel, slots: Slots, more: Sequence[str] = ()):
        """more: of ARRAYS, what is held beside the rates."""
        self.folder, self._panel, self.slots = folder, panel, slots
        self._arrays = {name: _open_values(folder / name, len(panel), slots, create=True) for name in ("rates", *more)}

    def write(self, run: int, values: dict[str, np.ndarray]) -> None:
        """values: by array, float32 [n, G] of the bins of a run. Raises `OSError` where the disk is full."""
        start, end = (int(self.slots.start[at]) for at in (run, run + 1))
        for name, values_nxG in values.items():
            for first in range(0, len(self._panel), GENES_WRITTEN):  # a shard each, written whole
                genes = slice(first, min(first + GENES_WRITTEN, len(self._panel)))
                part_gxs = np.full((genes.stop - genes.start, end - start), np.nan, np.float32)
                part_gxs[:, : len(values_nxG)] = _rounded(values_nxG[:, genes]).T
                _write(self._arrays[name][genes, start:end], part_gxs, self.folder)

    def read(self, run: int, name: str) -> np.ndarray:
        """What was written of a run, float32 [n, G]."""
        _, slots = self.slots.run(run)
        return _result(self._arrays[name][:, slots].read(), self.folder).T

    def finish(self, about: dict[str, Any], x_um_N: np.ndarray, y_um_N: np.ndarray, *, total_N: np.ndarray,
               mean_G: np.ndarray, largest_G: np.ndarray, validation: GeneValidation | None) -> None:  # fmt: skip
        """Writes what is left, and the seal."""
        for name, of_N in (("x_um", x_um_N), ("y_um", y_um_N), ("bin_total", total_N)):
            of_S = np.full(self.slots.number, np.nan)
            of_S[self.slots.slot_N] = of_N
            _write_plain(self.folder / name, of_S)
        for name, of_G in (("gene_mean", mean_G), ("gene_largest", largest_G)):
            _write_plain(self.folder / name, np.asarray(of_G, np.float64))
        write_whole(self.folder / "panel.tsv", self._panel.to_text())
        if validation is not None:
            validation.write(self.folder / VALIDATION)
        write_whole(
            self.folder / "zarr.json", json.dumps({"zarr_format": 3, "node_type": "group", "attributes": about})
        )
        held = {"format": FORMAT, "format_version": FORMAT_VERSION, "run_first": self.slots.first.tolist(),
                "run_start": self.slots.start.tolist(), "arrays": sorted(self._arrays)}  # fmt: skip
        write_whole(self.folder / FILE, json.dumps(held | {"about": about}, indent=1))


class MapStore:
    """The gene maps of a slide, read gene by gene or run by run."""

    def __init__(self, folder: Path):
        """Raises `InputError` where the folder holds no whole maps, or those of another version."""
        self.folder = folder
        held = _read_seal(folder)
        self.about: dict[str, Any] = held["about"]
        self.slots = _slots_of(held, folder / FILE)
        self.panel = _read_panel(folder / "panel.tsv")
        if self.panel.hash != self.about["panel_hash"]:
            raise InputError(f"{folder}: its panel.tsv is not that of its maps.json; restore it or predict again")
        self._arrays = {name: _open_values(folder / name, len(self.panel), self.slots) for name in held["arrays"]}
        self.slot_N = self.slots.slot_N
        of_slots = [_read_plain(folder / name, self.slots.number) for name in ("x_um", "y_um", "bin_total")]
        self.x_um_N, self.y_um_N, self.total_N = (of_S[self.slot_N] for of_S in of_slots)
        self.mean_G, self.largest_G = (_read_plain(folder / name) for name in ("gene_mean", "gene_largest"))
        filled = np.isfinite(of_slots[0]).sum() == np.isfinite(self.x_um_N).sum() == self.slots.bins
        if not filled or len(self.mean_G) != len(self.panel):
            raise InputError(f"{folder}: its arrays are not those of its maps.json; restore them, or predict again")

    def __len__(self) -> int:
        """Number of bins."""
        return self.slots.bins

    @property
    def bin_um(self) -> float:
        return self.about["bin_um"]

    @property
    def full_um_per_px(self) -> float:
        """Of the full-resolution image: a section's H&E may be stored coarser than it was scanned."""
        return self.about.get("he_full_um_per_px", self.about["he_um_per_px"])

    @property
    def origin_px(self) -> tuple[float, float]:
        """Where the H&E of these maps begins (x, y) in the full-resolution image that it was cut from."""
        return tuple(self.about.get("he_origin_px", (0.0, 0.0)))

    @property
    def arrays(self) -> tuple[str, ...]:
        """rates, and what else is held of each bin and gene."""
        return tuple(sorted(self._arrays, key=ARRAYS.index))

    @property
    def validation(self) -> GeneValidation | None:
        path = self.folder / VALIDATION
        return read_gene_validation(path) if path.exists() else None

    @property
    def warnings(self) -> list[str]:
        """Of the prediction, and of what its genes were validated on."""
        validation = self.validation
        by_section = validation is not None and validation.split_by == "section"
        return [*self.about["warnings"], *([f"Validation: {SPLIT_BY_SECTION}"] if by_section else [])]

    def positions(self, symbols: Sequence[str]) -> np.ndarray:
        """Of genes in the panel. Raises `InputError` for one that is not in it."""
        missing = [symbol for symbol in symbols if symbol not in self.panel.index]
        if missing:
            raise InputError(f"gene {missing[0]!r} is not among the {len(self.panel)} of {self.folder}")
        return np.array([self.panel.index[symbol] for symbol in symbols], int)

    def gene(self, symbol: str, array: str = "rates") -> np.ndarray:
        """Expected detections per bin, float32 [N]."""
        (position,) = self.positions([symbol])
        return self._read(array, slice(position, position + 1))[:, 0]

    def genes(self, positions: np.ndarray, array: str = "rates") -> np.ndarray:
        """Float32 [N, g] of genes at these positions of the panel."""
        return self._read(array, np.asarray(positions, int))

    def run(self, number: int, array: str = "rates", genes: Any = slice(None)) -> np.ndarray:
        """Float32 [n, g] of the bins of a run."""
        _, slots = self.slots.run(number)
        return _result(self._arrays[array][genes, slots].read(), self.folder).T

    def gene_maps(self, symbols: Sequence[str] | None = None) -> GeneMaps:
        """In memory: of some genes, or all of them."""
        if symbols is None:
            positions, panel = np.arange(len(self.panel)), self.panel
        else:
            positions = self.positions(symbols)
            panel = Panel(tuple(symbols))
        about = self.about
        return GeneMaps(about["section"], panel, self.x_um_N, self.y_um_N, self.bin_um, self.genes(positions),
                        self.full_um_per_px, about["trained_on"], about["tissue"], decoding=about["decoding"],
                        he_origin_px=self.origin_px, validation=self.validation)  # fmt: skip

    def _read(self, array: str, genes: Any) -> np.ndarray:
        if array not in self._arrays:
            how = {"spread": "predict with --uncertainty", "measured": "it is of a slide that was not measured",
                   "drawn": "predict with --steps=K"}  # fmt: skip
            raise InputError(
                f"{self.folder}: holds no {array}; {how.get(array, 'it holds ' + ', '.join(self._arrays))}"
            )
        values_gxS = _result(self._arrays[array][genes].read(), self.folder)
        return np.ascontiguousarray(values_gxS[:, self.slot_N].T)


def _read_seal(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / FILE).read_text())
        found = held["format"], held["format_version"]
    except FileNotFoundError:
        what = (
            "its prediction has not ended; run the same 'tario predict' again" if folder.is_dir() else "no such folder"
        )
        raise InputError(f"{folder}: no gene maps: {what}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(_damaged(folder / FILE)) from None
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(f"{folder}: is {found[0]}, version {found[1]}; this tario reads version {FORMAT_VERSION} of "
                         f"{FORMAT}; predict again, or use the tario that wrote it")  # fmt: skip
    about, arrays = held.get("about"), held.get("arrays")
    kinds = all(isinstance(about, dict) and isinstance(about.get(name), kind) for name, kind in _TOLD.items())
    if not kinds or not about["bin_um"] > 0 or not about["he_um_per_px"] > 0 or not isinstance(arrays, list) or (
        "rates" not in arrays or not set(arrays) <= set(ARRAYS)):  # fmt: skip
        raise InputError(_damaged(folder / FILE))
    return held


def _slots_of(held: dict[str, Any], path: Path) -> Slots:
    try:
        slots = Slots(np.array(held["run_first"], np.int64), np.array(held["run_start"], np.int64))
        bins_R, room_R = np.diff(slots.first), np.diff(slots.start)
        whole = slots.first[0] == slots.start[0] == 0 and (bins_R > 0).all() and (bins_R <= room_R).all()
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        whole = False
    if not whole or not len(bins_R):
        raise InputError(_damaged(path))
    return slots


def _damaged(path: Path) -> str:
    return f"{path}: is damaged; restore it, or predict again"


def _read_panel(path: Path) -> Panel:
    try:
        return Panel.from_text(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: is missing or damaged; restore it, or predict again") from None


def _rounded(values: np.ndarray) -> np.ndarray:
    """Float32 with KEPT_BITS of mantissa, to the nearest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    dropped = 23 - KEPT_BITS
    bits = (bits + np.uint32(1 << (dropped - 1))) & np.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
    return bits.view(np.float32)


def _open_values(folder: Path, genes: int, slots: Slots, *, create: bool = False) -> ts.TensorStore:
    shard = [min(GENES_WRITTEN, -(-genes // GENES_READ) * GENES_READ), slots.chunk]
    inside = {"chunk_shape": [GENES_READ, slots.chunk], "codecs": [_BYTES, _BLOSC],
              "index_codecs": [_BYTES, {"name": "crc32c"}]}  # fmt: skip
    metadata = {"shape": [genes, slots.number], "data_type": "float32", "fill_value": "NaN",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "codecs": [{"name": "sharding_indexed", "configuration": inside}]}  # fmt: skip
    # an empty slot is NaN within a chunk that is there; one that is missing is an error
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"},
            "store_data_equal_to_fill_value": True, "fill_missing_data_reads": False} | (
                {"metadata": metadata} if create else {})  # fmt: skip
    return _result(ts.open(spec, open=True, create=create, read=True, write=create), folder)


def _write_plain(folder: Path, of: np.ndarray) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": {
        "shape": list(of.shape), "data_type": str(of.dtype), "fill_value": "NaN",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, len(of))]}},
        "codecs": [_BYTES, {"name": "zstd", "configuration": {"level": 3}}, {"name": "crc32c"}]}}  # fmt: skip
    # over the same one, where several processes end a store: another may be reading it already
    _write(_result(ts.open(spec, open=True, create=True), folder), of, folder)


# what every reader of a store counts on
_TOLD = {"section": str, "place": dict, "slide_px": list, "he_um_per_px": (int, float), "panel_hash": str,
         "trained_on": str, "tissue": str, "banner": str, "unit": str, "decoding": str, "bin_um": (int, float),
         "checkpoint": str, "model": str, "warnings": list}  # fmt: skip


def _read_plain(folder: Path, number: int | None = None) -> np.ndarray:
    """number: of its values, where it is known."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/"}, "fill_missing_data_reads": False}
    found = _result(_result(ts.open(spec, open=True, read=True), folder).read(), folder)
    if found.ndim != 1 or number not in (None, len(found)):
        raise InputError(f"{folder}: has not the shape that its maps.json says; restore it, or predict again")
    return found


def _write(store: ts.TensorStore, values: np.ndarray, folder: Path) -> None:
    _result(store.write(values), folder)


def _result(future: ts.Future, folder: Path) -> Any:
    try:
        return future.result()
    except (ValueError, RuntimeError, OSError) as error:
        told = str(error)
        if "No space left" in told or "Disk quota" in told:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from None
        raise InputError(f"{folder}: cannot be read or written: {' '.join(told.split())[:200]}; restore it, or predict "
                         "again") from None  # fmt: skip

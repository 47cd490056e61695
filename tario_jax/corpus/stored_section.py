"""One section of a corpus, as it is stored, and any window of it."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from tario_jax.config import InputError
from tario_jax.corpus import layout
from tario_jax.corpus.feature_grid import FeatureGrid, open_grid
from tario_jax.corpus.place import Place
from tario_jax.corpus.resample import box_means, crop_later
from tario_jax.corpus.section import COARSER, BlockImage, DetectionBlocks, Detections, PlacedSpots, Spots

_TABLE, _OFFSET = "detections/place_and_gene", "detections/offset"
_TILE_STEPS = 1 << 16
_COUNTED_AT_ONCE = 4 << 20  # detections
_GLASS = 0.01  # of the mean tile
SEAL_ONLY = ("spot_names",)  # of a record: thousands of words a section, which a corpus of many need not hold
Places = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]


class Section:
    """One sealed section. Arrays are opened at first use; places are in µm in the section's frame."""

    def __init__(self, place: Place, record: dict[str, Any], seal_sha256: str, genes: int):
        self.place = place
        self.record = record
        self._seal_sha256 = seal_sha256
        self._genes = genes
        self._opening: dict[str, ts.Future] = {}
        self._reading: dict[str, ts.Future] = {}  # arrays that are held whole, once read
        self._grids: dict[str, FeatureGrid] = {}  # by encoder

    def __reduce__(self):
        """A process that it is sent to opens its arrays itself."""
        return Section, (self.place, self.record, self._seal_sha256, self._genes)

    @functools.cached_property
    def seal(self) -> dict[str, Any]:
        """Record and checksums as they were sealed. Raises `InputError` where seal.json is missing or was altered."""
        return json.loads(layout.read_sealed(self.place / "seal.json", self._seal_sha256, layout.SECTION_AGAIN))

    @property
    def id(self) -> str:
        return self.record["section"]

    @property
    def patient(self) -> str:
        return self.record["patient"]

    @property
    def cohort(self) -> str:
        return self.record["cohort"]

    @property
    def width_um(self) -> float:
        return self.record["width_um"]

    @property
    def height_um(self) -> float:
        return self.record["height_um"]

    @property
    def he_um_per_px(self) -> float | None:
        return self.record["he_um_per_px"]

    @property
    def he_full_um_per_px(self) -> float | None:
        """Of the full-resolution image that the stored H&E comes from: a slide may be stored in means of its pixels."""
        return self.record["quality"].get("he_full_um_per_px", self.he_um_per_px)

    @property
    def he_origin_px(self) -> tuple[float, float]:
        """Where the stored H&E begins (x, y) in the full-resolution image that it was cut from."""
        quality = self.record["quality"]
        return quality.get("he_origin_x_px", 0.0), quality.get("he_origin_y_px", 0.0)

    @property
    def he_shape_px(self) -> tuple[int, int]:
        """(height, width) of the stored H&E."""
        return tuple(self._array("he").shape[:2])

    @property
    def has_detections(self) -> bool:
        """Whether there are transcripts at places, as against spots or an H&E alone."""
        return self.holds(_TABLE)

    @property
    def has_counts(self) -> bool:
        """Whether there are transcripts or spots, as against an H&E alone: something to learn or to be measured on."""
        return self.has_detections or self.holds("spots/place")

    @property
    def place_precision_um(self) -> float:
        """Side of the square within which the place of a detection is known; 0 where the assay gives the place."""
        return self.record["quality"].get("place_precision_um", 0.0)

    def check_bins(self, bin_um: float) -> None:
        """Raises `InputError` where bins of this side are too small for what is known of the places."""
        least_um = 2 * self.place_precision_um
        if self.has_detections and bin_um < least_um:
            raise InputError(
                f"section {self.id!r}: places are known to squares of {self.place_precision_um:g} µm only; bins "
                f"of {bin_um:g} µm are too small for it; expected at least {least_um:g} µm, or smaller squares ingested"
            )

    def he_alone(self) -> "Section":
        """The same section as if nothing had been measured on it."""
        record = {**self.record, "arrays": [name for name in self.record["arrays"] if name == "he"], "truth": []}
        return Section(self.place, record, self._seal_sha256, self._genes)

    def holds(self, name: str) -> bool:
        return name in self.record["arrays"]

    def _array(self, name: str) -> ts.TensorStore:
        return layout.result_of(self._begin_open(name), self.place / name)

    def _begin_open(self, name: str) -> ts.Future:
        opening = self._opening.get(name)  # another thread may close the section meanwhile
        if opening is None:
            opening = self._opening[name] = layout.begin_open(self.place / name)
        return opening

    def _whole(self, name: str) -> np.ndarray:
        return layout.result_of(self._begin_whole(name), self.place / name)

    def _begin_whole(self, name: str) -> ts.Future:
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = self._array(name).read()
            self._opening.pop(name, None)  # it is held whole: its store, several KB, is not needed again
        return reading

    def _begin(self, name: str, part: ts.TensorStore) -> Callable[[], np.ndarray]:
        """Starts to read a part of an array; what comes back waits for it."""
        reading = part.read(order="F" if name == _TABLE else "C")  # column by column, as it is stored
        return lambda: layout.result_of(reading, self.place / name)

    def begin(self) -> Callable[[], None]:
        """Starts to open what every window of the section needs, so that many sections need not wait for each other.

        What comes back waits for it. Raises `InputError` there where an array is missing or its metadata are damaged.
        """
        stores = [name for name in ("he", _TABLE) if self.holds(name)]
        whole = [name for name in (_OFFSET, "spots/place", "spots/indptr") if self.holds(name)]
        for name in [*stores, *whole]:
            self._begin_open(name)

        def end() -> None:
            for name in stores:
                self._array(name)
            for name in whole:
                self._begin_whole(name)

        return end

    def close(self) -> None:
        """Lets go of what `begin` opened; whatever is asked for later opens it again."""
        self._opening.clear()
        self._reading.clear()
        self._grids.clear()
        for name in ("tissue", "measured", "placed_spots", "spots"):
            self.__dict__.pop(name, None)

    @property
    def gene_totals_G(self) -> np.ndarray:
        """Detections (or spot counts) by gene, int64 [G]."""
        return layout.read_array(self.place / "gene_totals")

    @property
    def measured_gene_G(self) -> np.ndarray:
        """Genes that the assay of this section measured, bool [G]."""
        if not self.holds("measured_genes"):
            return np.ones(self._genes, bool)
        return _one_of_each(self._whole("measured_genes").astype(bool).tobytes())

    def he(self) -> np.ndarray:
        """The whole H&E, uint8 [H, W, 3]."""
        if not self.holds("he"):
            raise InputError(f"section {self.id!r}: has no H&E")
        return self._begin("he", self._array("he"))()

    def he_blocks(self) -> BlockImage:
        """The H&E, read block by block."""
        if not self.holds("he"):
            raise InputError(f"section {self.id!r}: has no H&E")
        return layout.stored_image(self.place / "he")

    def he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> np.ndarray:
        """H&E of a square whose top left corner is (x_um, y_um): uint8 [side_px, side_px, 3], averaged by area.

        Outside of the image it is white.
        """
        return self.begin_he_window(x_um, y_um, side_px, um_per_px)()

    def begin_he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> Callable[[], np.ndarray]:
        """Starts to read `he_window`; what comes back waits for it."""
        if not self.holds("he"):
            raise InputError(f"section {self.id!r}: has no H&E")
        store = self._array("he")
        return crop_later(store, store.shape, self.he_um_per_px, x_um, y_um, side_px, um_per_px,
                          lambda part: self._begin("he", part))  # fmt: skip

    @property
    def seal_sha256(self) -> str:
        """Checksum of the section's seal: what else is stored of it says so, and is not taken for another's."""
        return self._seal_sha256

    def feature_grid(self, encoder: str) -> FeatureGrid:
        """The stored features of an encoder. Raises `InputError`, naming what makes them, where there are none."""
        grid = self._grids.get(encoder)  # another thread may close the section meanwhile
        if grid is None:
            corpus = str(self.place).removesuffix(f"/sections/{self.id}")
            command = f"tario encode --corpus={corpus} --encoder={encoder}"
            grid = self._grids[encoder] = open_grid(self.place, encoder, self._seal_sha256, command)
        return grid

    def detections(
        self, x_um: float, y_um: float, width_um: float, height_um: float, *, flags: bool = False
    ) -> Detections:
        """Detections with x in [x_um, x_um + width_um) and y likewise, places still in the section's frame (float64).

        flags: read the vendor's nucleus flags and cell ids too, where it gives them.
        """
        return self.begin_detections(x_um, y_um, width_um, height_um, flags=flags)()

    def begin_detections(
        self, x_um: float, y_um: float, width_um: float, height_um: float, *, flags: bool = False
    ) -> Callable[[], Detections]:
        """Starts to read `detections`; what comes back waits for them."""
        optional = {"in_nucleus_D": "detections/nucleus", "cell_D": "detections/cell"} if flags else {}
        optional = {field: name for field, name in optional.items() if self.holds(name)}
        end_places = self.begin_places(x_um, y_um, width_um, height_um, tuple(optional.values()))

        def end() -> Detections:
            parts = list(end_places())
            x_step_D, y_step_D, gene_D = (np.concatenate([np.zeros(0, kind), *(part[axis] for part in parts)])
                                          for axis, kind in enumerate((np.int32, np.int32, np.uint16)))  # fmt: skip
            # float64: beyond 8 mm a float32 place can round onto its tile's edge, and fall between two windows
            x, y = ((step_D + 0.5) / layout.PLACE_STEPS_PER_UM for step_D in (x_step_D, y_step_D))
            inside = (x >= x_um) & (x < x_um + width_um) & (y >= y_um) & (y < y_um + height_um)
            further = {field: np.concatenate([np.zeros(0, np.int8), *(part[3][name] for part in parts)])[inside]
                       for field, name in optional.items()}  # fmt: skip
            if "in_nucleus_D" in further:
                further["in_nucleus_D"] = further["in_nucleus_D"].astype(bool)
            return Detections(x[inside], y[inside], gene_D[inside].astype(np.int32), **further)

        return end

    def tile_runs(
        self, x_um: float, y_um: float, width_um: float, height_um: float
    ) -> list[tuple[int, np.ndarray, slice]]:
        """(row, detections by tile, their slice) of each row of tiles that a box touches: they lie side by side."""
        side = layout.DETECTION_TILE_UM
        columns, rows = int(np.ceil(self.width_um / side)), int(np.ceil(self.height_um / side))
        column0, column1 = int(max(x_um // side, 0)), int(min(np.ceil((x_um + width_um) / side), columns))
        row0, row1 = int(max(y_um // side, 0)), int(min(np.ceil((y_um + height_um) / side), rows))
        offset = self._whole(_OFFSET)
        found = []
        for row in range(row0, row1):
            ends = offset[row * columns + column0 : row * columns + max(column1, column0) + 1]
            if len(ends) > 1 and ends[-1] > ends[0]:
                found.append((row, np.diff(ends), slice(int(ends[0]), int(ends[-1]))))
        return found

    @functools.cached_property
    def tissue(self) -> np.ndarray:
        """Tiles of detections that hold tissue, bool [rows, columns]: glass holds next to nothing, what was not imaged
        nothing at all. A tile is tissue from a hundredth of the mean of those that hold any detection."""
        columns = int(np.ceil(self.width_um / layout.DETECTION_TILE_UM))
        held_RxC = np.diff(self._whole(_OFFSET)).reshape(-1, columns)
        return held_RxC > _GLASS * held_RxC.sum() / max(np.count_nonzero(held_RxC), 1)

    @functools.cached_property
    def density_per_um2(self) -> float:
        """Mean detections per µm² of tissue, or spot counts per µm² of spots: how deep the assay went. 0: none."""
        if self.has_spots:
            area_um2 = self.record["spots"] * np.pi * (self.record["spot_diameter_um"] / 2) ** 2
            detections = float(self.gene_totals_G.sum())
        elif self.has_detections:
            tiles = np.diff(self._whole(_OFFSET))[self.tissue.ravel()]
            area_um2, detections = tiles.size * layout.DETECTION_TILE_UM**2, float(tiles.sum())
        else:
            return 0.0
        return detections / max(area_um2, 1.0)

    def begin_places(
        self, x_um: float, y_um: float, width_um: float, height_um: float, others: tuple[str, ...] = ()
    ) -> Callable[[], Iterator[Places]]:
        """Starts to read the detections of all tiles that a box touches, as they are stored; what comes back waits.

        It gives, row of tiles by row of tiles, (x_step_D, y_step_D, gene_D, further arrays by name): int32 steps of
        1/1024 µm from the section's corner (the detection lies in the middle of its step), and uint16 genes. Detections
        beyond the box are among them.
        """
        if not self.has_detections:
            raise InputError(f"section {self.id!r}: has no detections")
        runs = [
            (row, in_tile, {name: self._begin(name, self._array(name)[run]) for name in (_TABLE, *others)})
            for row, in_tile, run in self.tile_runs(x_um, y_um, width_um, height_um)
        ]
        first_column = int(max(x_um // layout.DETECTION_TILE_UM, 0))

        def end() -> Iterator[Places]:
            for row, in_tile, readings in runs:
                table = readings[_TABLE]()
                corners = (first_column + np.arange(len(in_tile), dtype=np.int32)) * _TILE_STEPS
                x_step_D, y_step_D = np.repeat(corners, in_tile), table[:, 1].astype(np.int32)
                x_step_D += table[:, 0]
                y_step_D += np.int32(row * _TILE_STEPS)
                yield x_step_D, y_step_D, table[:, 2], {name: readings[name]() for name in others}

        return end

    def count_genes(self) -> np.ndarray:
        """Detections by gene, counted now and block by block, int64 [G]; `gene_totals_G` says what they were."""
        counted_G = np.zeros(self._genes, np.int64)
        if self.has_detections:
            table = self._array(_TABLE)
            for first in range(0, table.shape[0], _COUNTED_AT_ONCE):
                end = min(first + _COUNTED_AT_ONCE, table.shape[0])
                gene_D = self._begin(_TABLE, table[first:end, 2])()
                counted_G += np.bincount(gene_D, minlength=self._genes)
        return counted_G

    def all_detections(self) -> Detections:
        """All of them in memory, with their flags."""
        return DetectionBlocks(self.detection_blocks).gathered()

    def detection_blocks(self) -> Iterator[Detections]:
        """All of them with their flags, rows of tiles by rows of tiles: some million at once, one block at least."""
        side = layout.DETECTION_TILE_UM
        columns = int(np.ceil(self.width_um / side))
        ends = self._whole(_OFFSET)[::columns]  # of the rows of tiles
        first, rows = 0, len(ends) - 1
        while first < max(rows, 1):
            end = max(first + 1, int(np.searchsorted(ends, ends[first] + _COUNTED_AT_ONCE, side="right")) - 1)
            # one tile more at the end: a section's last place may be read a thousandth of a µm beyond its edge
            yield self.detections(0.0, first * side, self.width_um + side, (end - first + (end >= rows)) * side,
                                  flags=True)  # fmt: skip
            first = end

    @property
    def has_spots(self) -> bool:
        """Whether there are spots, as against transcripts at places, or an H&E alone."""
        return self.holds("spots/place")

    @functools.cached_property
    def placed_spots(self) -> PlacedSpots:
        """Where the spots lie: a thousandth of what their counts take."""
        place = self._whole("spots/place")
        return PlacedSpots(place[:, 0], place[:, 1], self.record["spot_diameter_um"], self._whole("spots/indptr"))

    @functools.cached_property
    def spots(self) -> Spots | None:
        """The spots with all of their counts, which are some hundred MB of a whole slide."""
        if not self.has_spots:
            return None
        placed = self.placed_spots
        return Spots(
            placed.x_um_N, placed.y_um_N, placed.diameter_um, placed.indptr,
            gene_E=self._whole("spots/gene").astype(np.int32),
            count_E=self._whole("spots/count"),
            name_N=tuple(self.seal["record"]["spot_names"]),
            array_xy_Nx2=self._whole("spots/array") if self.holds("spots/array") else None,
        )  # fmt: skip

    def begin_entries(self, spot_n: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Starts to read the counts of these spots (in rising order); what comes back waits for their genes and
        counts, int32 [E] each, spot by spot."""
        indptr, names, readings = self.placed_spots.indptr, ("spots/gene", "spots/count"), []
        for run in np.split(spot_n, np.flatnonzero(np.diff(spot_n) > 1) + 1) if len(spot_n) else ():
            entries = slice(int(indptr[run[0]]), int(indptr[run[-1] + 1]))
            if entries.start < entries.stop:
                readings.append([self._begin(name, self._array(name)[entries]) for name in names])

        def end() -> tuple[np.ndarray, np.ndarray]:
            parts = [(gene(), count()) for gene, count in readings]
            return tuple(np.concatenate([np.zeros(0, np.int32), *of]).astype(np.int32, copy=False)
                         for of in (zip(*parts, strict=True) if parts else ((), ())))  # fmt: skip

        return end

    def measured_share(self, x_um_N: np.ndarray, y_um_N: np.ndarray, side_um: float) -> np.ndarray:
        """Share of squares with these centres that the assay imaged, float32 [N]; all of the section if unstated."""
        if self.holds("measured"):
            return box_means(*self.measured, x_um_N, y_um_N, side_um)
        half = side_um / 2
        across = np.minimum(x_um_N + half, self.width_um) - np.maximum(x_um_N - half, 0)
        down = np.minimum(y_um_N + half, self.height_um) - np.maximum(y_um_N - half, 0)
        return (np.maximum(across, 0) * np.maximum(down, 0) / side_um**2).astype(np.float32)

    @functools.cached_property
    def measured(self) -> tuple[np.ndarray, float]:
        """The mask of the imaged area, uint8 [rows, columns] of 0 and 1, where it is stated, and its µm per px."""
        return self._whole("measured"), self.record["measured_um_per_px"]

    @functools.cached_property
    def truth(self) -> dict[str, np.ndarray] | None:
        """What the truth of virtual tissue is computed from, for evaluation only; None for real tissue."""
        return layout.read_truth(self.place / "truth.npz") if self.record["truth"] else None


def coarser_he(sections: Sequence[Section], um_per_px: float) -> str:
    """A warning of sections whose stored H&E is coarser than it is to be read; nothing where there is none."""
    coarser = [section for section in sections if (section.he_um_per_px or 0.0) > COARSER * um_per_px]
    if not coarser:
        return ""
    worst = max(coarser, key=lambda section: section.he_um_per_px)
    return (f"warning: the H&E of {len(coarser)} of {len(sections)} sections is stored coarser than the "
            f"{um_per_px:g} µm per px that are read ({worst.id}: {worst.he_um_per_px:.3g}), and shows no more than "
            "that; ingest the scan (--image)")  # fmt: skip


@functools.cache
def _one_of_each(content: bytes) -> np.ndarray:
    """bool [G]; thousands of sections that measured the same genes share one array."""
    return np.frombuffer(content, bool)

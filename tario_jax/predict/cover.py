"""How windows cover a section: the places that are predicted, and what several windows say of one of them."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.spatial

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.stored_section import Section
from tario_jax.tokens.batch import Batch, make_layout, square_bins_per_tile, tokenise
from tario_jax.tokens.capacity import densest_spots, spot_reach_um
from tario_jax.tokens.coarse import with_coarse
from tario_jax.tokens.window import Window, read_window, turn_places


class Placed(NamedTuple):
    """Where the n bins of a window go; Q bin slots of a row, N places of the section."""

    slot_n: np.ndarray
    number_n: np.ndarray  # of the place
    weight_n: np.ndarray  # 1 in the middle of the window, falling smoothly, never 0


class Cover:
    """The windows of a section, and the places (square bins, or its spots) that they predict.

    Windows have one group; `count_capacity` entries fit a row. overlap: of neighbouring windows, from 0 to below 1.
    """

    def __init__(self, section: Section, data: DataConfig, genes: int, *, overlap: float, count_capacity: int = 1,
                 places=None, frozen_features: int = 0, turned: bool = False, coarse: bool = False):  # fmt: skip
        """places: others than the section's own; frozen_features: length of those that the section holds;
        turned: whether windows that overlap are shown in different turns, of which a blend is then a mean;
        coarse: the larger bins of `data.coarse_um` are places too, after the others.
        """
        self.section, self.genes = section, genes
        alike = {"bin_mixture": (), "windows_per_row": 1, "sequence": "window", "groups": ((1, 1.0),)}
        self.data = dataclasses.replace(data, **alike) if coarse else data.of_one_scale(**alike)
        own = SpotPlaces if section.has_spots else NestedPlaces if coarse else BinPlaces
        self.places = own(section, self.data) if places is None else places
        self.layout = make_layout(self.data, genes, bins_per_tile=self.places.per_tile,
                                  largest_bin_um=max([self.places.size_um, *self.data.coarse_um]),
                                  count_capacity=count_capacity,
                                  frozen_features=frozen_features)  # fmt: skip
        self.corners = self.places.corners(overlap)
        # neighbours in a row, and those in the next, differ
        along = [np.unique(at, return_inverse=True)[1] for at in np.array(self.corners).T]
        self._quarter_turns = (along[0] + 2 * along[1]) % 4 * (turned and self.places.turn)

    def __len__(self) -> int:
        """Number of places."""
        return len(self.places.x_um_N)

    @property
    def section_key(self) -> int:
        """64 bits that tell the section from others, for generators of random numbers."""
        return int.from_bytes(hashlib.sha256(self.section.id.encode()).digest()[:8], "little")

    def batches(self, rows: int, read: Callable[[tuple[float, float]], Window] | None = None,
                numbers: Sequence[int] | None = None, shares: int = 0,
                ) -> Iterator[tuple[Sequence[int], Batch]]:  # fmt: skip
        """Batches of so many rows with the numbers of their windows: one a row, the last rows may be padding.

        read(corner) gives the window there; its H&E without counts by default. numbers: of the windows, all by default.
        shares: where the last batch may be one of fewer rows, those that all batches are a multiple of.
        """
        numbers = range(len(self.corners)) if numbers is None else numbers
        for first in range(0, len(numbers), rows):
            some = numbers[first : first + rows]
            held = fewer_rows(len(numbers), rows, shares) if shares and len(some) < rows else rows
            yield some, self.batch([self.read(n) if read is None else read(self.corners[n]) for n in some], held)

    def batch(self, windows: Sequence[Window], rows: int) -> Batch:
        """A window a row, further rows are padding; of this section, or of any with the same data config."""
        unused = np.random.default_rng(0)  # one group: no order is drawn
        held = [[window] for window in windows] + [[]] * (rows - len(windows))
        return tokenise(held, self.data, self.layout, np.ones((rows, 1), int), [[unused]] * rows)

    def read(self, number: int) -> Window:
        """The window of this number, as it is turned."""
        return self.window(self.corners[number], int(self._quarter_turns[number]))

    def window(self, corner: tuple[float, float], quarter_turns: int = 0) -> Window:
        """The window's H&E, and its bins without counts."""
        window = read_window(self.section, *corner, self.data, quarter_turns=quarter_turns, with_counts=False)
        if self.data.coarse_um:
            window = with_coarse(window, window.bins, self.data)
        # the model predicts its own panel, whatever the section measured
        return dataclasses.replace(window, measured_gene_G=np.ones(self.genes, bool))

    def placed(self, batch: Batch, row: int, window: int) -> Placed:
        """Where the bins of a row go, which holds the window of this number."""
        slot_n = np.flatnonzero(batch.bin_measured_BxTxN[row].ravel() > 0)
        x, y = batch.bin_xy_um_BxTxNx2[row].reshape(-1, 2)[slot_n].astype(np.float64).T
        x_um, y_um = self.corners[window]
        weight_n = towards_middle(x, y, self.data.window_um)
        x, y = turn_places(x, y, self.data.window_um, -int(self._quarter_turns[window]), False)
        size_um_n = batch.bin_size_um_BxTxN[row].ravel()[slot_n]
        return Placed(slot_n, self.places.number(x + x_um, y + y_um, size_um_n), weight_n)


def fewer_rows(windows: int, rows: int, shares: int) -> int:
    """Rows of the last batch, a multiple of `shares`: those of the others, or half of them as often as its windows fit,
    where padding would be more than a quarter of all that is predicted: each number of rows is a program to compile."""
    last, held = windows % rows, rows
    if not last or 4 * (rows - last) <= windows + rows - last:
        return rows
    while held % (2 * shares) == 0 and held // 2 >= last:
        held //= 2
    return held


class Blend:
    """Means over windows at the places of a section, weighed towards the middle of a window."""

    def __init__(self, places: int, genes: int):
        self._summed_NxG = np.zeros((places, genes), np.float32)
        self._weights_N = np.zeros(places, np.float64)

    def add(self, placed: Placed, values_QxG: np.ndarray) -> None:
        """values: of the bin slots of the window; genes beyond those of the blend are padding."""
        genes = self._summed_NxG.shape[1]
        # products in float64, a row at a time, which stays in the cache: of thousands of genes twice as fast
        for number, weight, slot in zip(placed.number_n, placed.weight_n, placed.slot_n, strict=True):
            self._summed_NxG[number] += weight * values_QxG[slot, :genes]
        self._weights_N[placed.number_n] += placed.weight_n

    @property
    def seen_N(self) -> np.ndarray:
        """Places that some window predicted, bool [N]."""
        return self._weights_N > 0

    def mean(self) -> np.ndarray:
        """Float32 [N, G]; NaN at places that no window predicted."""
        weights_N = np.where(self.seen_N, self._weights_N, np.nan)
        return self._summed_NxG / weights_N[:, None].astype(np.float32)


class BinPlaces:
    """Square bins of a section, row by row: those of which at least `min_measured` lies on it."""

    def __init__(self, section, data: DataConfig):
        self._data = data
        self._columns, self._rows = (
            int((extent + (1 - data.min_measured) * data.bin_um) / data.bin_um + 1e-6)
            for extent in (section.width_um, section.height_um)
        )
        shares = (
            np.minimum(extent / data.bin_um - np.arange(number), 1.0)
            for extent, number in ((section.height_um, self._rows), (section.width_um, self._columns))
        )
        # a bin in the corner may lack too much though its row and its column do not
        row, column = np.nonzero(np.outer(*shares) >= data.min_measured - 1e-6)
        if not len(row):
            raise InputError(
                f"{section.id}: is {section.width_um:.0f} x {section.height_um:.0f} µm; expected at least one bin of "
                f"{data.bin_um:g} µm"
            )
        self.number_YxX = np.full((self._rows, self._columns), -1)
        self.number_YxX[row, column] = np.arange(len(row))
        self.x_um_N, self.y_um_N = (column + 0.5) * data.bin_um, (row + 0.5) * data.bin_um
        self.size_um, self.pitch_um, self.per_tile = data.bin_um, data.bin_um, square_bins_per_tile(data)
        # else the bins of a turned window are others
        self.turn = math.isclose(data.window_um / data.bin_um, round(data.window_um / data.bin_um), abs_tol=1e-6)
        self.per_window = int(data.window_um / data.bin_um + 1e-6) ** 2

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows on the bins' grid that cover the section."""
        held = int(self._data.window_um / self._data.bin_um + 1e-6)
        unit = round(self._data.largest_bin_um / self._data.bin_um)  # the same coarse bins in all windows
        step = max(unit, round(held * (1 - overlap) / unit) * unit)

        def starts(number: int) -> list[int]:
            if number <= held:
                return [-((held - number) // 2 // unit) * unit]  # the section lies in the middle of its only window
            last = -(-(number - held) // unit) * unit
            return sorted({*range(0, last, step), last})

        bin_um = self._data.bin_um
        return [(x * bin_um, y * bin_um) for y in starts(self._rows) for x in starts(self._columns)]

    def number(self, x_um: np.ndarray, y_um: np.ndarray, size_um: np.ndarray) -> np.ndarray:
        """Numbers of the bins with these centres and sides."""
        del size_um
        bin_um = self._data.bin_um
        return self.number_YxX[(y_um // bin_um).astype(int), (x_um // bin_um).astype(int)]


class NestedPlaces(BinPlaces):
    """The same bins, and after them the larger ones of `data.coarse_um`, scale by scale, that they are parts of."""

    def __init__(self, section, data: DataConfig):
        super().__init__(section, data)
        self.number_of_bins = len(self.x_um_N)
        self.scales = [_Scale(self, side_um, data) for side_um in data.coarse_um]
        self.per_window += sum(scale.per_window for scale in self.scales)
        self.x_um_N, self.y_um_N = (np.concatenate([own, *(getattr(scale, name) for scale in self.scales)])
                                    for own, name in ((self.x_um_N, "x_um_N"), (self.y_um_N, "y_um_N")))  # fmt: skip

    def number(self, x_um: np.ndarray, y_um: np.ndarray, size_um: np.ndarray) -> np.ndarray:
        """Numbers of the bins with these centres and sides."""
        found, first = np.zeros(len(x_um), int), self.number_of_bins
        bins = np.isclose(size_um, self.size_um)
        found[bins] = super().number(x_um[bins], y_um[bins], size_um[bins])
        for scale in self.scales:
            own = np.isclose(size_um, scale.size_um)
            found[own] = first + scale.number(x_um[own], y_um[own])
            first += len(scale.x_um_N)
        return found

    @property
    def scale_N(self) -> np.ndarray:
        """Of each place its scale: 0 the coarsest, the largest number that of the bins."""
        of_scales = [np.full(len(scale.x_um_N), number) for number, scale in enumerate(self.scales)]
        return np.concatenate([np.full(self.number_of_bins, len(self.scales)), *of_scales])


class _Scale:
    """Larger bins, those that windows of an image count (tokens/coarse.py): by the parts that count."""

    def __init__(self, bins: BinPlaces, size_um: float, data: DataConfig):
        self.size_um, parts = size_um, round(size_um / data.bin_um)
        rows, columns = (-(-size // parts) for size in bins.number_YxX.shape)
        area_YxX = np.zeros((rows * parts, columns * parts))
        counted = bins.number_YxX >= 0
        area_YxX[: counted.shape[0], : counted.shape[1]] = counted  # windows of an image predict whole bins
        share_YxX = area_YxX.reshape(rows, parts, columns, parts).mean((1, 3))
        row, column = np.nonzero(share_YxX >= data.min_measured - 1e-6)
        self._number_YxX = np.full((rows, columns), -1)
        self._number_YxX[row, column] = np.arange(len(row))
        self.x_um_N, self.y_um_N = (column + 0.5) * size_um, (row + 0.5) * size_um
        self.per_window = round(data.window_um / size_um) ** 2

    def number(self, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        return self._number_YxX[(y_um // self.size_um).astype(int), (x_um // self.size_um).astype(int)]


class SpotPlaces:
    """The spots of a section."""

    turn = True

    def __init__(self, section: Section, data: DataConfig):
        spots = section.placed_spots
        self._px_um = section.he_um_per_px or 1.0  # without an H&E there is no grid to keep to
        self._reach_um = spot_reach_um(section, data.window_um)
        if self._reach_um <= 0:
            raise InputError(
                f"{section.id}: spots of {spots.diameter_um:g} µm do not fit windows of {data.window_um:g} µm"
            )
        self._data, self._diameter_um = data, spots.diameter_um
        self.x_um_N, self.y_um_N = spots.x_um_N, spots.y_um_N
        self.size_um, self.pitch_um = spots.square_um, spots.pitch_um
        self.per_tile = densest_spots(spots.x_um_N, spots.y_um_N, data.tile_um)
        self.per_window = densest_spots(spots.x_um_N, spots.y_um_N, data.window_um)
        self._tree = scipy.spatial.cKDTree(np.stack([spots.x_um_N, spots.y_um_N], 1))

    def corners(self, overlap: float) -> list[tuple[float, float]]:
        """Corners of windows that hold every spot whole; windows without a spot are left out."""
        side, radius = self._data.window_um, self._diameter_um / 2
        step = min(side * (1 - overlap), self._reach_um)
        found = []
        for x, y in covering(self.x_um_N, self.y_um_N, radius, side, self._px_um, step):
            held = (self.x_um_N >= x + radius) & (self.x_um_N <= x + side - radius)
            held &= (self.y_um_N >= y + radius) & (self.y_um_N <= y + side - radius)
            if held.any():
                found.append((x, y))
        return found

    def number(self, x_um: np.ndarray, y_um: np.ndarray, size_um: np.ndarray) -> np.ndarray:
        """Numbers of the spots at these n centres, int [n]: of the nearest ones."""
        del size_um
        return self._tree.query(np.stack([x_um, y_um], 1))[1]


def covering(x_um_N: np.ndarray, y_um_N: np.ndarray, half_um: float, side_um: float, px_um: float,
              step_um: float) -> list[tuple[float, float]]:  # fmt: skip
    """Corners of windows of side_um, on whole px, that hold everything within half_um of these places."""

    def starts(places: np.ndarray) -> np.ndarray:
        low, high = places.min() - half_um - 1e-3, places.max() + half_um + px_um
        number = max(1, int(np.ceil((high - low - side_um) / step_um)) + 1)
        slack = (side_um + (number - 1) * step_um - (high - low)) / 2
        return np.floor((low - slack + step_um * np.arange(number)) / px_um) * px_um

    return [(float(x), float(y)) for y in starts(y_um_N) for x in starts(x_um_N)]


def towards_middle(x: np.ndarray, y: np.ndarray, side: float) -> np.ndarray:
    """Weight of a place in its window: 1 in the middle, falling smoothly, never 0."""
    return (np.sin(np.pi * x / side) * np.sin(np.pi * y / side)) ** 2 + 1e-3

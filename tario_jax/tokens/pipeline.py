"""The global batch of step t: a pure function of (corpus, data config, seed, t).

There is no iterator state: a run that stopped at t continues at t, on any number of processes.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.layout import DETECTION_TILE_UM
from tario_jax.corpus.read import Section
from tario_jax.tokens.batch import Batch, Layout, make_layout, square_bins_per_tile, tokenise
from tario_jax.tokens.window import Window, begin_bins, begin_window

_CAPACITY_MARGIN = 1.25
_SECTIONS_LOOKED_AT = 4
_OPENED_AT_ONCE = 16


class BatchSource:
    """batch(t) of random windows from `sections`; a random-access source for Grain.

    rows: the rows of the global batch that this process tokenises (all by default). The generator of a window is
    Philox keyed by (seed, t, row, window), so a row does not depend on who makes it.
    """

    def __init__(self, sections: Sequence[Section], data: DataConfig, layout: Layout, *, steps: int,
                 rows: range | None = None, stream: int = 0, augment: bool = True):  # fmt: skip
        if not sections:
            raise InputError("no section to draw windows from; check the split")
        self._sections, self._data, self._layout = list(sections), data, layout
        self._steps, self._rows, self._stream, self._augment = steps, rows or range(data.rows), stream, augment
        self._opened: set[str] = set()
        weights = np.array(_tissue(sections), float)
        self._chance = weights / weights.sum()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, t: int) -> Batch:
        rngs = [[self._rng(t, row, slot) for slot in range(self._data.windows_per_row)] for row in self._rows]
        groups = np.array([[self._draw_groups(rng) for rng in row] for row in rngs])
        drawn = [[self._draw_section(rng) for rng in row] for row in rngs]
        self._open([section for row in drawn for section in row])
        begun = [[self._begin_window(section, rng) for section, rng in zip(*row, strict=True)]
                 for row in zip(drawn, rngs, strict=True)]  # fmt: skip
        windows = [[end() for end in row] for row in begun]
        return tokenise(windows, self._data, self._layout, groups, rngs)

    def _open(self, sections: list[Section]) -> None:
        """Opens those of the sections that were not yet read, side by side."""
        unopened = {section.id: section for section in sections if section.id not in self._opened}
        if unopened:
            with concurrent.futures.ThreadPoolExecutor(min(len(unopened), _OPENED_AT_ONCE)) as pool:
                list(pool.map(Section.open, unopened.values()))
            self._opened.update(unopened)

    def _rng(self, t: int, row: int, slot: int) -> np.random.Generator:
        key = [self._data.seed << 32 | self._stream, t << 32 | row << 12 | slot]
        return np.random.Generator(np.random.Philox(key=key))

    def _draw_groups(self, rng: np.random.Generator) -> int:
        ks, weights = zip(*self._data.groups, strict=True)
        return int(rng.choice(ks, p=np.array(weights) / sum(weights)))

    def _draw_section(self, rng: np.random.Generator) -> Section:
        return self._sections[int(rng.choice(len(self._sections), p=self._chance))]

    def _begin_window(self, section: Section, rng: np.random.Generator) -> Callable[[], Window]:
        quarter_turns = int(rng.integers(4)) if self._augment and self._data.turn else 0
        flip = bool(rng.integers(2)) if self._augment and self._data.flip else False
        x_um, y_um = self._corner(section, rng)
        end = begin_window(section, x_um, y_um, self._data, quarter_turns=quarter_turns, flip=flip)
        if self._augment and self._data.stain_jitter:
            stain_mix_3x3 = _restain(self._data.stain_jitter, rng)
            return lambda: dataclasses.replace(end(), stain_mix_3x3=stain_mix_3x3)
        return end

    def _corner(self, section: Section, rng: np.random.Generator) -> tuple[float, float]:
        """A random corner on whole px of the stored H&E, so that most reads need no interpolation."""
        side, step = self._data.window_um, section.he_um_per_px or 1.0
        if section.spots is not None:  # around a spot, anywhere in the window: never a window without any
            spot = int(rng.integers(len(section.spots)))
            reach = max((side - section.spots.diameter_um) / 2 - step, 0.0)  # whole px: up to one step to the left
            centre = section.spots.x_um_N[spot], section.spots.y_um_N[spot]
            corner = [middle + rng.uniform(-reach, reach) - side / 2 for middle in centre]
        else:
            spans = (section.width_um - side, section.height_um - side)
            corner = [rng.uniform(0.0, span) if span > 0 else span / 2 for span in spans]
        return tuple(math.floor(value / step) * step for value in corner)


def _tissue(sections: Sequence[Section]) -> list[float]:
    """How often to draw each section: every place of tissue equally often, so by its area.

    Where all hold spots, by their number; beside other sections, a spot stands for the square of its pitch.
    """
    if all(section.spots is not None for section in sections):
        return [len(section.spots) for section in sections]
    return [s.width_um * s.height_um if s.spots is None else len(s.spots) * s.spots.pitch_um**2 for s in sections]


def _restain(jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Another laboratory's staining: a gain for each stain, and a little of each in the other; float32 [3, 3]."""
    strange = rng.standard_normal((3, 3)) * jitter
    mix = 0.3 * strange
    np.fill_diagonal(mix, np.exp(np.diag(strange)))
    return mix.astype(np.float32)


def load_batches(source: BatchSource, *, first: int, prefetch: int) -> Iterator[Batch]:
    """Batches from step `first` on, read ahead by Grain's threads."""
    dataset = grain.MapDataset.source(source).slice(slice(first, len(source)))
    options = grain.ReadOptions(num_threads=min(prefetch, 16), prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def corpus_layout(sections: Sequence[Section], data: DataConfig, genes: int) -> Layout:
    """Batch sizes that hold every window of `sections`.

    The capacity for counts is that of the densest window found in the densest sections, with a margin of a quarter; a
    denser one is an error at run time that names the capacity it needs, never a silent cut. Where spots stand beside
    sections of detections, each size is the larger of the two. Raises `InputError` for bins too small for a section.
    """
    spots = [section.spots for section in sections if section.spots is not None]
    others = [section for section in sections if section.spots is None]
    bins_per_tile, largest_um, entries = 0, 0.0, 0
    if spots:
        bins_per_tile = data.max_spots or max(densest_spots(s.x_um_N, s.y_um_N, data.tile_um) for s in spots)
        largest_um = max(float(np.sqrt(np.pi) * s.diameter_um / 2) for s in spots)
        entries_per_spot = max(int(np.diff(s.indptr).max(initial=0)) for s in spots)
        per_window = min(bins_per_tile * round(data.window_um / data.tile_um) ** 2,
                         max(densest_spots(s.x_um_N, s.y_um_N, data.window_um) for s in spots))  # fmt: skip
        entries = data.windows_per_row * per_window * entries_per_spot
    if others:
        for section in others:
            section.check_bins(data.bin_um)
        bins_per_tile, largest_um = max(bins_per_tile, square_bins_per_tile(data)), max(largest_um, data.bin_um)
        if not data.count_capacity:
            # reading every section would make the start grow with the cohort: the densest few decide
            ranked = sorted(others, key=lambda section: -_densest_square(section, data.window_um)[0])
            densest = max(_densest_entries(section, data) for section in ranked[:_SECTIONS_LOOKED_AT])
            entries = max(entries, math.ceil(densest * data.windows_per_row * _CAPACITY_MARGIN))
    capacity = -(-max(data.count_capacity or entries, 1) // 128) * 128
    return make_layout(data, genes, bins_per_tile=bins_per_tile, largest_bin_um=largest_um, count_capacity=capacity)


def trained_bin_um(sections: Sequence[Section], data: DataConfig) -> float:
    """Side of the squares that a model of these sections learns: the bins, or the square of a spot's area.

    Where sections of detections stand beside spots, it is the bins: both were learnt, and bins can tile a slide.
    """
    if any(section.spots is None for section in sections):
        return data.bin_um
    diameters = {section.spots.diameter_um for section in sections if section.spots is not None}
    if len(diameters) > 1:
        raise InputError(f"training sections have spots of {sorted(diameters)} µm; expected one diameter a run")
    return float(np.sqrt(np.pi) / 2 * diameters.pop()) if diameters else data.bin_um


def densest_spots(x_um: np.ndarray, y_um: np.ndarray, side_um: float) -> int:
    """Most spot centres in any square of this side, whose left and upper edges may be taken to touch a spot."""
    most = 0
    for left in np.unique(x_um):
        y = np.sort(y_um[(x_um >= left) & (x_um <= left + side_um)])
        most = max(most, int((np.searchsorted(y, y + side_um, side="right") - np.arange(len(y))).max(initial=0)))
    return most


def _densest_square(section: Section, window_um: float) -> tuple[float, float, float]:
    """(detections, x_um, y_um of its corner) of the densest square of about a window's size, as its record says."""
    side = DETECTION_TILE_UM
    known = min(section.record["densest"], key=lambda row: abs(row[0] * side - window_um), default=(0, 0, 0.0, 0.0))
    return known[1], known[2], known[3]


def _densest_entries(section: Section, data: DataConfig) -> int:
    """Entries (bin, gene) of the densest window, looked for around the section's densest square."""
    _, x0_um, y0_um = _densest_square(section, data.window_um)
    most, step = 0, data.window_um / 4
    for y_um in y0_um + step * np.arange(-2, 3):
        for x_um in x0_um + step * np.arange(-2, 3):
            corner = [min(max(at, 0.0), max(span - data.window_um, 0.0)) for at, span in
                      ((x_um, section.width_um), (y_um, section.height_um))]  # fmt: skip
            most = max(most, len(begin_bins(section, *corner, data)().bin_E))
    return most

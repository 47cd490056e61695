"""The global batch of step t: a pure function of (corpus, data config, seed, t).

There is no iterator state: a run that stopped at t continues at t, on any number of processes.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.layout import DETECTION_TILE_UM
from tario_jax.corpus.stored_section import Section
from tario_jax.tokens.batch import Batch, Layout, tokenise
from tario_jax.tokens.coarse import with_coarse
from tario_jax.tokens.memory import BatchMemory
from tario_jax.tokens.window import Window, begin_window
from tario_jax.tokens.workers import batches_of_processes

_HELD_OPEN = 1536  # sections: some 20 KB each; a larger cohort takes no more memory
_TRIES = 64  # to find a place beside the windows that a sequence holds already; without one, the rest of it is padding


class Draw(NamedTuple):
    """One window that is drawn: where it lies, and how it is turned and restained."""

    section: Section
    x_um: float
    y_um: float
    quarter_turns: int
    flip: bool
    stain_mix_3x3: np.ndarray | None
    bin_um: float  # of squares; spots are as they are
    groups: int
    depth_told: bool  # how deep the section was measured
    coarse: bool  # whether larger bins are written first
    rng: np.random.Generator  # goes on to draw the order of writing


class _Chosen(NamedTuple):
    """What is drawn of a window before its section is read."""

    section: Section
    bin_um: float
    groups: int
    rng: np.random.Generator


class BatchSource:
    """batch(t) of random windows from `sections`; a random-access source for Grain.

    rows: the rows of the global batch that this process tokenises (all by default). The generator of a window is
    Philox keyed by (seed, t, row, window), so a row does not depend on who makes it.
    """

    def __init__(self, sections: Sequence[Section], data: DataConfig, layout: Layout, *, steps: int,
                 rows: Sequence[int] | None = None, stream: int = 0, augment: bool = True):  # fmt: skip
        if not sections:
            raise InputError("no section to draw windows from; check the split")
        self.data, self.layout, self._sections = data, layout, list(sections)
        self._steps, self.rows, self._stream, self._augment = steps, rows or range(data.rows), stream, augment
        self._opened: dict[str, Section] = {}  # the last used at the end
        self._lock = threading.Lock()
        self._memory = BatchMemory(len(self.rows), layout)
        self._up_to = _shares(_tissue(sections))
        self._k_up_to = _shares([weight for _, weight in data.groups])
        self._bins_up_to = _shares([weight for _, weight in data.bin_mixture] or [1.0])
        # of one size each, since a window is of one
        self._of_bins = {side: dataclasses.replace(data, bin_um=side) for side in data.trained_bins_um}
        self._of_patient: dict[str, list[Section]] = {}
        for section in self._sections:
            self._of_patient.setdefault(section.patient, []).append(section)

    def __reduce__(self):
        """A process that it is sent to opens its sections, and has its memory, itself."""
        again = functools.partial(BatchSource, steps=self._steps, rows=self.rows, stream=self._stream,
                                  augment=self._augment)  # fmt: skip
        return again, (self._sections, self.data, self.layout)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, t: int) -> Batch:
        return self.batch(t, self._memory.batch())

    def batch(self, t: int, into: Batch) -> Batch:
        """The batch of step t. into: one of the same sizes, which is written over and returned."""
        draws = self.draws(t)
        begun = [[self._begin(draw) for draw in row] for row in draws]  # all reads of the batch at once
        windows = [_ended(row) for row in begun]
        groups = [[draw.groups for draw in row] for row in draws]
        rngs = [[draw.rng for draw in row] for row in draws]
        return tokenise(windows, self.data, self.layout, groups, rngs, into)

    def draws(self, t: int) -> list[list[Draw]]:
        """The windows of step t, by row: a pure function of (corpus, data config, seed, t)."""
        rngs = [[self._rng(t, row, slot) for slot in range(self.data.windows_per_row)] for row in self.rows]
        of_patient = self.data.sequence == "patient"  # then the first window of a row says whose the others are
        chosen = [[self._choose(rng, self._sections, self._up_to) for rng in row[: 1 if of_patient else None]]
                  for row in rngs]  # fmt: skip
        sections = [one.section for row in chosen for one in row]
        if of_patient:
            sections = [section for one in sections for section in self._of_patient[one.patient]]
        self._open(sections)  # side by side: where tissue lies is asked of each
        rows = [[self._placed(one) for one in row] for row in chosen]
        return [
            self._further(row[0], others[1:]) if of_patient else row for row, others in zip(rows, rngs, strict=True)
        ]

    def _further(self, first: Draw, rngs: list[np.random.Generator]) -> list[Draw]:
        """The windows of a row that is one sequence."""
        found = [first]
        sections = self._of_patient[first.section.patient]
        up_to = _shares(_tissue(sections))
        for rng in rngs:
            for _ in range(_TRIES):
                draw = self._placed(self._choose(rng, sections, up_to))
                if not any(_overlap(draw, other, self.data.window_um) for other in found):
                    # one sequence is written in one order of one length, and comes from one laboratory
                    same = {name: getattr(first, name) for name in ("groups", "stain_mix_3x3", "depth_told", "coarse")}
                    found.append(draw._replace(**same))
                    break
        return found

    def _open(self, sections: list[Section]) -> None:
        """Opens those of the sections that are not open, side by side, and closes those that were not used for long."""
        wanted = {section.id: section for section in sections}
        for end in [section.begin() for name, section in wanted.items() if name not in self._opened]:
            end()
        with self._lock:
            for name in wanted:
                self._opened.pop(name, None)
            self._opened.update(wanted)
            while len(self._opened) > max(_HELD_OPEN, len(wanted)):
                self._opened.pop(next(iter(self._opened))).close()

    def _rng(self, t: int, row: int, slot: int) -> np.random.Generator:
        key = [self.data.seed << 32 | self._stream, t << 32 | row << 12 | slot]
        return np.random.Generator(np.random.Philox(key=key))

    def _choose(self, rng: np.random.Generator, sections: list[Section], up_to: np.ndarray) -> "_Chosen":
        groups, _ = self.data.groups[_drawn(self._k_up_to, rng)]
        bins_um = self.data.trained_bins_um
        bin_um = bins_um[_drawn(self._bins_up_to, rng)] if len(bins_um) > 1 else bins_um[0]
        return _Chosen(sections[_drawn(up_to, rng)], bin_um, groups, rng)

    def _placed(self, chosen: "_Chosen") -> Draw:
        section, bin_um, groups, rng = chosen
        quarter_turns = int(rng.integers(4)) if self._augment and self.data.turn else 0
        flip = bool(rng.integers(2)) if self._augment and self.data.flip else False
        x_um, y_um = self._corner(section, rng)
        restain = self._augment and self.data.stain_jitter
        stain_mix_3x3 = _restain(self.data.stain_jitter, rng) if restain else None
        depth_told = self._augment and bool(rng.random() < self.data.depth_told)
        coarse = self._augment and bool(self.data.coarse_um) and bool(rng.random() < self.data.coarse_share)
        return Draw(section, x_um, y_um, quarter_turns, flip, stain_mix_3x3, bin_um, groups, depth_told, coarse, rng)

    def _begin(self, draw: Draw) -> Callable[[], Window]:
        end = begin_window(draw.section, draw.x_um, draw.y_um, self._of_bins[draw.bin_um],
                           quarter_turns=draw.quarter_turns, flip=draw.flip)  # fmt: skip
        known = {} if draw.stain_mix_3x3 is None else {"stain_mix_3x3": draw.stain_mix_3x3}
        if draw.depth_told and (density := draw.section.density_per_um2) > 0:
            known["log_depth"] = math.log(density)
        end_known = (lambda: dataclasses.replace(end(), **known)) if known else end
        return (lambda: _coarse_too(end_known(), self.data)) if draw.coarse else end_known

    def _corner(self, section: Section, rng: np.random.Generator) -> tuple[float, float]:
        """A random corner on whole px of the stored H&E, so that most reads need no interpolation.

        The middle of the window lies in tissue: a place on glass, or where nothing was imaged, is drawn once more from
        the tiles of tissue. So every place of tissue is as likely as another, and a section that is all tissue gives
        the windows that it would give without this.
        """
        side, step = self.data.window_um, section.he_um_per_px or 1.0
        if section.has_spots:  # around a spot, anywhere in the window: never a window without any
            spots = section.placed_spots
            spot = int(rng.integers(len(spots)))
            reach = max((side - spots.diameter_um) / 2 - step, 0.0)  # whole px: up to one step to the left
            centre = spots.x_um_N[spot], spots.y_um_N[spot]
            corner = [middle + rng.uniform(-reach, reach) - side / 2 for middle in centre]
        else:
            spans = (section.width_um - side, section.height_um - side)
            corner = [rng.uniform(0.0, span) if span > 0 else span / 2 for span in spans]
            if section.has_detections and max(spans) > 0:
                corner = self._in_tissue(corner, spans, section, rng)
        return tuple(math.floor(value / step) * step for value in corner)

    def _in_tissue(self, corner: list[float], spans: tuple[float, float], section: Section,
                   rng: np.random.Generator) -> list[float]:  # fmt: skip
        """The corner (x, y), or another one where the middle of its window is not in tissue."""
        tissue, half = section.tissue, self.data.window_um / 2
        column, row = (int((at + half) // DETECTION_TILE_UM) for at in corner)
        if tissue[row, column] or not tissue.any():
            return corner
        tile = np.flatnonzero(tissue)[rng.integers(np.count_nonzero(tissue))]
        middle = [(at + rng.random()) * DETECTION_TILE_UM for at in (tile % tissue.shape[1], tile // tissue.shape[1])]
        return [min(max(at - half, 0.0), span) if span > 0 else span / 2
                for at, span in zip(middle, spans, strict=True)]  # fmt: skip


def _ended(begun: list[Callable[[], Window]]) -> Iterator[Window]:
    """One window after the other: what was read for one is let go before the next asks for memory."""
    begun.reverse()
    while begun:
        yield begun.pop()()


def _coarse_too(window: Window, data: DataConfig) -> Window:
    """Spots are parts of no larger bins."""
    return with_coarse(window, window.bins, data) if window.bins.square else window


def _overlap(draw: Draw, other: Draw, side_um: float) -> bool:
    """Whether two windows share tissue: the content of one would then give away the other's."""
    apart_um = max(abs(draw.x_um - other.x_um), abs(draw.y_um - other.y_um))
    return draw.section is other.section and apart_um < side_um


def _tissue(sections: Sequence[Section]) -> list[float]:
    """How often to draw each section: by its area, so that every place is drawn equally often. Of sections of which the
    one has more glass than the other (`_corner`), the places of tissue of the former are drawn more often.

    Where all hold spots, by their number; beside other sections, a spot stands for the square of its pitch.
    """
    if all(section.has_spots for section in sections):
        return [section.record["spots"] for section in sections]
    return [s.record["spots"] * _pitch_um(s) ** 2 if s.has_spots else s.width_um * s.height_um for s in sections]


def _pitch_um(section: Section) -> float:
    """Of its spots, which are let go of again: all sections are asked, and few are drawn at once."""
    found = section.placed_spots.pitch_um
    section.close()
    return found


def _shares(weights: Sequence[float]) -> np.ndarray:
    """Where each one's share of [0, 1) ends."""
    ends = np.cumsum(np.asarray(weights, float))
    return ends / ends[-1]


def _drawn(ends: np.ndarray, rng: np.random.Generator) -> int:
    """One of `_shares`: what `rng.choice` draws, without its sums over thousands of sections for each window."""
    return int(ends.searchsorted(rng.random(), side="right"))


def _restain(jitter: float, rng: np.random.Generator) -> np.ndarray:
    """Another laboratory's staining: a gain for each stain, and a little of each in the other; float32 [3, 3]."""
    strange = rng.standard_normal((3, 3)) * jitter
    mix = 0.3 * strange
    np.fill_diagonal(mix, np.exp(np.diag(strange)))
    return mix.astype(np.float32)


def load_batches(source: BatchSource, *, first: int, prefetch: int, workers: int = 0,
                 say: Callable[[str], None] = print) -> Iterator[Batch]:  # fmt: skip
    """Batches from step `first` on, read ahead by Grain's threads or by processes, which gives the same bits.

    prefetch: batches that are held ready, by each worker where there are some: so much memory and no more.
    """
    if workers:
        return batches_of_processes(source, first=first, prefetch=prefetch, workers=workers, say=say)
    dataset = grain.MapDataset.source(source).slice(slice(first, len(source)))
    options = grain.ReadOptions(num_threads=min(prefetch, 16), prefetch_buffer_size=prefetch)
    return iter(dataset.to_iter_dataset(options))


def trained_bin_um(sections: Sequence[Section], data: DataConfig) -> float:
    """Side of the squares that a model of these sections learns: the bins, or the square of a spot's area.

    Where sections of detections stand beside spots, it is the bins: both were learnt, and bins can tile a slide.
    """
    if not all(section.has_spots for section in sections):
        return data.bin_um
    squares = {section.placed_spots.diameter_um: section.placed_spots.square_um for section in sections}
    if len(squares) > 1:
        raise InputError(f"training sections have spots of {sorted(squares)} µm; expected one diameter a run")
    return next(iter(squares.values()), data.bin_um)


def trained_sides_um(sections: Sequence[Section], data: DataConfig) -> tuple[float, ...]:
    """Sides of all squares that a model of these sections learns from, the smallest first."""
    sides = {section.placed_spots.square_um for section in sections if section.has_spots}
    if not all(section.has_spots for section in sections):
        sides |= {*data.trained_bins_um, *data.coarse_um}
    return tuple(sorted(float(side) for side in sides))

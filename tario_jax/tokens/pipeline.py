"""The global batch of step t: a pure function of (corpus, data config, seed, t).

There is no iterator state: a run that stopped at t continues at t, on any number of processes.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.read import Section
from tario_jax.tokens.batch import Batch, Layout, tokenise
from tario_jax.tokens.window import Window, begin_window

_OPENED_AT_ONCE = 16


class Draw(NamedTuple):
    """One window that is drawn: where it lies, and how it is turned and restained."""

    section: Section
    x_um: float
    y_um: float
    quarter_turns: int
    flip: bool
    stain_mix_3x3: np.ndarray | None
    groups: int
    rng: np.random.Generator  # goes on to draw the order of writing


class BatchSource:
    """batch(t) of random windows from `sections`; a random-access source for Grain.

    rows: the rows of the global batch that this process tokenises (all by default). The generator of a window is
    Philox keyed by (seed, t, row, window), so a row does not depend on who makes it.
    """

    def __init__(self, sections: Sequence[Section], data: DataConfig, layout: Layout, *, steps: int,
                 rows: range | None = None, stream: int = 0, augment: bool = True):  # fmt: skip
        if not sections:
            raise InputError("no section to draw windows from; check the split")
        self.data, self._sections, self._layout = data, list(sections), layout
        self._steps, self._rows, self._stream, self._augment = steps, rows or range(data.rows), stream, augment
        self._opened: set[str] = set()
        weights = np.array(_tissue(sections), float)
        self._chance = weights / weights.sum()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, t: int) -> Batch:
        draws = self.draws(t)
        self._open([draw.section for row in draws for draw in row])
        begun = [[self._begin(draw) for draw in row] for row in draws]  # all reads of the batch at once
        windows = [[end() for end in row] for row in begun]
        groups, rngs = (np.array([[draw.groups for draw in row] for row in draws]),
                        [[draw.rng for draw in row] for row in draws])  # fmt: skip
        return tokenise(windows, self.data, self._layout, groups, rngs)

    def draws(self, t: int) -> list[list[Draw]]:
        """The windows of step t, by row: a pure function of (corpus, data config, seed, t)."""
        return [[self._draw(self._rng(t, row, slot)) for slot in range(self.data.windows_per_row)]
                for row in self._rows]  # fmt: skip

    def _open(self, sections: list[Section]) -> None:
        """Opens those of the sections that were not yet read, side by side."""
        unopened = {section.id: section for section in sections if section.id not in self._opened}
        if unopened:
            with concurrent.futures.ThreadPoolExecutor(min(len(unopened), _OPENED_AT_ONCE)) as pool:
                list(pool.map(Section.open, unopened.values()))
            self._opened.update(unopened)

    def _rng(self, t: int, row: int, slot: int) -> np.random.Generator:
        key = [self.data.seed << 32 | self._stream, t << 32 | row << 12 | slot]
        return np.random.Generator(np.random.Philox(key=key))

    def _draw_groups(self, rng: np.random.Generator) -> int:
        ks, weights = zip(*self.data.groups, strict=True)
        return int(rng.choice(ks, p=np.array(weights) / sum(weights)))

    def _draw(self, rng: np.random.Generator) -> Draw:
        groups = self._draw_groups(rng)
        section = self._sections[int(rng.choice(len(self._sections), p=self._chance))]
        quarter_turns = int(rng.integers(4)) if self._augment and self.data.turn else 0
        flip = bool(rng.integers(2)) if self._augment and self.data.flip else False
        x_um, y_um = self._corner(section, rng)
        restain = self._augment and self.data.stain_jitter
        stain_mix_3x3 = _restain(self.data.stain_jitter, rng) if restain else None
        return Draw(section, x_um, y_um, quarter_turns, flip, stain_mix_3x3, groups, rng)

    def _begin(self, draw: Draw) -> Callable[[], Window]:
        end = begin_window(draw.section, draw.x_um, draw.y_um, self.data, quarter_turns=draw.quarter_turns,
                           flip=draw.flip)  # fmt: skip
        if draw.stain_mix_3x3 is None:
            return end
        return lambda: dataclasses.replace(end(), stain_mix_3x3=draw.stain_mix_3x3)

    def _corner(self, section: Section, rng: np.random.Generator) -> tuple[float, float]:
        """A random corner on whole px of the stored H&E, so that most reads need no interpolation."""
        side, step = self.data.window_um, section.he_um_per_px or 1.0
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

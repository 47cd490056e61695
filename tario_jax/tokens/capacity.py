"""Static sizes of a batch that hold every window of a corpus, found without reading the corpus."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tario_jax.config import DataConfig, InputError
from tario_jax.corpus.layout import DETECTION_TILE_UM
from tario_jax.corpus.stored_section import Section
from tario_jax.tokens.batch import Layout, make_layout, square_bins_per_tile
from tario_jax.tokens.window import begin_bins

LEAST_ADJACENT_UM = 36.0  # side of a bin that still holds much of the same tissue in the section next to it
_MARGIN = 1.25
_SECTIONS_LOOKED_AT, _WITH_OTHER_PANELS = 4, 16


@dataclasses.dataclass(frozen=True)
class CountCapacity:
    """Entries (bin, gene, count) of a row: those of its densest windows, and what is held ready."""

    needed: int  # by the densest windows found around the densest squares of the densest sections
    held: int  # the capacity: as configured, else `needed` with a margin of a quarter
    most: int  # no row can need more: every detection under its windows an entry of its own
    section: str  # the densest one

    @property
    def overflows(self) -> bool:
        return self.needed > self.held


def corpus_layout(sections: Sequence[Section], data: DataConfig, genes: int) -> Layout:
    """Batch sizes that hold every window of `sections`.

    Where spots stand beside sections of detections, each size is the larger of the two. The capacity for counts is that
    of `count_capacity`; a denser window is an error at run time that names the capacity it needs, never a silent cut.
    Raises `InputError` for bins too small for a section.
    """
    refuse_fine_bins(sections, min(data.trained_bins_um), force=data.force_adjacent)
    if data.coarse_um and all(section.has_spots for section in sections):
        raise InputError(f"data.coarse_um is {data.coarse_um}, and all sections hold spots, which are part of no "
                         "larger bin; leave it out")  # fmt: skip
    spotted = [section for section in sections if section.has_spots]
    for section in spotted:
        if spot_reach_um(section, data.window_um) <= 0:
            raise InputError(f"section {section.id!r}: spots of {section.record['spot_diameter_um']:g} µm do not fit "
                             f"windows of {data.window_um:g} µm; make data.window_um larger")  # fmt: skip
    densest = densest_of(spotted, data)
    bins_per_tile, largest_um = densest.per_tile, densest.square_um
    if len(spotted) < len(sections):
        bins_per_tile, largest_um = (
            max(bins_per_tile, square_bins_per_tile(data)),
            max(largest_um, data.largest_bin_um),
        )
    capacity = data.count_capacity or count_capacity(sections, data, densest).held
    frozen_features = sections[0].feature_grid(data.frozen_encoder).shape[-1] if data.frozen_encoder else 0
    return make_layout(data, genes, bins_per_tile=bins_per_tile, largest_bin_um=largest_um,
                       count_capacity=_whole(capacity), frozen_features=frozen_features)  # fmt: skip


def spot_reach_um(section: Section, window_um: float) -> float:
    """How far a window may be moved that holds a spot whole; not above 0: none does. It begins on a whole px, up to one
    to the left of where a spot would have it."""
    return window_um - section.record["spot_diameter_um"] - (section.he_um_per_px or 1.0) - 1e-3


@dataclasses.dataclass(frozen=True)
class DensestSpots:
    """What the densest of some sections hold; 0 of none."""

    per_tile: int = 0
    per_window: int = 0
    entries: int = 0  # of a spot
    square_um: float = 0.0  # the largest side of the square of a spot's area

    def and_of(self, other: "DensestSpots") -> "DensestSpots":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return DensestSpots(*(max(pair) for pair in pairs))


def densest_of(spotted: Sequence[Section], data: DataConfig) -> DensestSpots:
    """The densest tile, window and spot of sections of spots. Each is let go of again: all of them are looked at."""
    found = DensestSpots()
    for section in spotted:
        spots = section.placed_spots
        per_tile, per_window = (densest_spots(spots.x_um_N, spots.y_um_N, side_um)
                                for side_um in (data.tile_um, data.window_um))  # fmt: skip
        entries = int(np.diff(spots.indptr).max(initial=0))
        found = found.and_of(DensestSpots(data.max_spots or per_tile, per_window, entries, spots.square_um))
        section.close()
    return found


def count_capacity(sections: Sequence[Section], data: DataConfig, spots: DensestSpots | None = None) -> CountCapacity:
    """What the densest rows of `sections` need. spots: `densest_of` those that hold some, where it is known already.

    Reading every section would make the start grow with the cohort: records say where detections lie densest, and the
    windows around those places, in the few sections that can need most, are counted, of several panels where sections
    measured different genes: shallow counts of many are more entries than deep ones of few.
    """
    found = []
    spotted = [section for section in sections if section.has_spots]
    if spotted:
        spots = spots or densest_of(spotted, data)
        per_window = min(spots.per_tile * round(data.window_um / data.tile_um) ** 2, spots.per_window)
        needed = data.windows_per_row * per_window * spots.entries
        section = max(spotted, key=lambda one: one.record["spots"]).id
        found.append(CountCapacity(needed, data.count_capacity or _whole(needed), needed, section))
    others = [section for section in sections if not section.has_spots]
    if others:
        entries = {section.id: _densest_entries(section, data) for section in _most_promising(others, data)}
        densest = max(entries, key=entries.get)
        times = data.windows_per_row * (1 + len(data.coarse_um))  # a larger bin holds no more entries than its parts
        needed = entries[densest] * times
        most = max(_most_detections(section, data.window_um) for section in others) * times
        held = data.count_capacity or _whole(math.ceil(needed * _MARGIN))
        found.append(CountCapacity(needed, held, most, densest))
    return max(found, key=lambda one: one.held)


def _most_promising(sections: Sequence[Section], data: DataConfig) -> list[Section]:
    """The sections whose densest square may hold most entries, and of further panels the first one."""
    bins = math.ceil(data.window_um / min(data.trained_bins_um)) ** 2
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # in a bucket every read is a journey
        masks = pool.map(lambda section: section.measured_gene_G.tobytes(), sections)
        panels = {section.id: mask for section, mask in zip(sections, masks, strict=True)}
    genes = {panel: panel.count(1) for panel in set(panels.values())}

    def most_entries(section: Section) -> float:
        return min(_densest_square(section, data.window_um)[0], bins * genes[panels[section.id]])

    ranked, found = sorted(sections, key=most_entries, reverse=True), []
    for place, section in enumerate(ranked):
        if place < _SECTIONS_LOOKED_AT or all(panels[section.id] != panels[other.id] for other in found):
            found.append(section)
    return found[:_WITH_OTHER_PANELS]


def refuse_fine_bins(sections: Sequence[Section], bin_um: float, *, force: bool) -> None:
    """Raises `InputError` for bins finer than what is known of a section's places, or than its H&E can show.

    The H&E of an adjacent section shows other cells than such bins count; force: take it all the same.
    """
    for section in sections:
        section.check_bins(bin_um)
    if force or bin_um >= LEAST_ADJACENT_UM:
        return
    for section in sections:
        if section.record["registration"] == "adjacent" and section.has_detections:
            raise InputError(
                f"section {section.id!r}: its H&E is of an adjacent section, and bins of {bin_um:g} µm would count "
                f"other cells than it shows; expected at least {LEAST_ADJACENT_UM:g} µm (data.bin_um, --bin-um), "
                "or data.force_adjacent=True in the config that is trained"
            )


def _whole(capacity: int) -> int:
    """The next multiple of 128."""
    return -(-max(capacity, 1) // 128) * 128


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


def _most_detections(section: Section, window_um: float) -> int:
    """No window of this side lies over more: it touches so many tiles a side, or fewer."""
    touched = math.ceil(window_um / DETECTION_TILE_UM) + 1
    known = [held for tiles, held, *_ in section.record["densest"] if tiles >= touched]
    return int(min([*known, section.record["detections"]]))


def _densest_entries(section: Section, data: DataConfig) -> int:
    """Entries (bin, gene) of the densest window, looked for around the section's densest square."""
    _, x0_um, y0_um = _densest_square(section, data.window_um)
    finest = dataclasses.replace(data, bin_um=min(data.trained_bins_um))  # larger bins that nest hold fewer
    most, step = 0, data.window_um / 4
    for y_um in y0_um + step * np.arange(-2, 3):
        for x_um in x0_um + step * np.arange(-2, 3):
            corner = [min(max(at, 0.0), max(span - data.window_um, 0.0)) for at, span in
                      ((x_um, section.width_um), (y_um, section.height_um))]  # fmt: skip
            most = max(most, len(begin_bins(section, *corner, finest)().bin_E))
    return most

"""A window: a square of tissue read from a section, and turned together with everything in it."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from tario_jax.config import DataConfig
from tario_jax.corpus.layout import PLACE_STEPS_PER_UM
from tario_jax.corpus.stored_section import Places, Section


@dataclasses.dataclass(frozen=True)
class Bins:
    """Bins of one window in the window's frame; N bins, E entries (bin, gene, count)."""

    x_um_N: np.ndarray  # float64, centres
    y_um_N: np.ndarray
    size_um: float | np.ndarray  # side of the square, or of that of a spot's area; [N]: each its own, off a grid
    measured_N: np.ndarray  # float32, share of the area that is measured; 0 = does not count
    bin_E: np.ndarray  # int32, ascending
    gene_E: np.ndarray
    count_E: np.ndarray
    pitch_um: float
    square: bool  # the whole grid of a window, row by row; else spots


@dataclasses.dataclass(frozen=True)
class Window:
    """A square of tissue in its own frame: (0, 0) is its top left corner after turning."""

    side_um: float
    he: np.ndarray  # uint8 [side_px, side_px, 3]
    bins: Bins
    measured_gene_G: np.ndarray  # bool [G]
    stain_mix_3x3: np.ndarray = dataclasses.field(default_factory=lambda: np.eye(3, dtype=np.float32))
    log_depth: float = float("-inf")  # log of the section's mean detections per µm² of tissue, where it is told
    features_YxXxF: np.ndarray | None = None  # float16, of a frozen encoder, in the middle of each H&E patch
    coarse: tuple[Bins, ...] = ()  # that are written before the bins, the largest first


def read_window(
    section: Section, x_um: float, y_um: float, data: DataConfig, *, quarter_turns: int = 0, flip: bool = False,
    with_counts: bool = True,
) -> Window:  # fmt: skip
    """Reads the window whose top left corner is (x_um, y_um), flips it left to right, then turns it counter-clockwise.

    Image, measured area, places and detections are turned alike, so the augmented window is a window of turned tissue.
    Stored features are taken along to where their tissue goes; they stay those of the tissue as it was scanned.
    """
    return begin_window(
        section, x_um, y_um, data, quarter_turns=quarter_turns, flip=flip, with_counts=with_counts
    )()  # fmt: skip


def begin_window(
    section: Section, x_um: float, y_um: float, data: DataConfig, *, quarter_turns: int = 0, flip: bool = False,
    with_counts: bool = True,
) -> Callable[[], Window]:  # fmt: skip
    """Starts to read `read_window`; what comes back waits for it. So the reads of many windows run side by side."""
    side = data.window_um
    he = section.begin_he_window(x_um, y_um, round(side / data.he_um_per_px), data.he_um_per_px)
    bins = begin_bins(section, x_um, y_um, data, quarter_turns=quarter_turns, flip=flip, with_counts=with_counts)
    features = None
    if data.frozen_encoder:
        grid = section.feature_grid(data.frozen_encoder)
        features = grid.begin_square(x_um, y_um, round(side / data.patch_um), data.patch_um)
    return lambda: Window(
        side, turn_image(he(), quarter_turns, flip), bins(), section.measured_gene_G,
        features_YxXxF=None if features is None else turn_image(features(), quarter_turns, flip),
    )  # fmt: skip


def begin_bins(
    section: Section, x_um: float, y_um: float, data: DataConfig, *, quarter_turns: int = 0, flip: bool = False,
    with_counts: bool = True,
) -> Callable[[], Bins]:  # fmt: skip
    """Starts to read the bins of a window, or its spots; what comes back waits for them."""
    if section.has_spots:
        return _begin_spot_bins(section, x_um, y_um, data.window_um, quarter_turns, flip, with_counts)
    return _begin_square_bins(section, x_um, y_um, data, quarter_turns, flip, with_counts)


def turn_image(image: np.ndarray, quarter_turns: int, flip: bool) -> np.ndarray:
    """Flips left to right, then turns counter-clockwise; a view."""
    return np.rot90(image[:, ::-1] if flip else image, quarter_turns)


def turn_places(x: np.ndarray, y: np.ndarray, side: float, quarter_turns: int, flip: bool):
    """Where `turn_image` takes the places (x, y) of a square of side `side`; y grows downwards."""
    if flip:
        x = side - x
    for _ in range(quarter_turns % 4):
        x, y = y, side - x
    return x, y


def grid_centres(side_um: float, bin_um: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the whole bins of a square, row by row: x [N] and y [N]."""
    centres = (np.arange(int(side_um / bin_um + 1e-6)) + 0.5) * bin_um
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return x.ravel(), y.ravel()


def _begin_square_bins(section, x_um, y_um, data: DataConfig, quarter_turns, flip, with_counts) -> Callable[[], Bins]:
    side, bin_um = data.window_um, data.bin_um
    if with_counts:
        section.check_bins(bin_um)
    x_N, y_N = grid_centres(side, bin_um)
    # the section stays as stored: the bins are turned back to where their area lies in it
    back_x, back_y = x_N, y_N
    for _ in range(quarter_turns % 4):
        back_x, back_y = side - back_y, back_x
    if flip:
        back_x = side - back_x
    reading = section.begin_places(x_um, y_um, side, side) if with_counts and section.has_detections else None

    def end() -> Bins:
        if with_counts:
            measured_N = section.measured_share(x_um + back_x, y_um + back_y, bin_um)
        else:  # only the H&E is asked for: every bin on the image is predicted, for its whole area
            half = bin_um / 2
            inside_x = np.minimum(x_um + back_x + half, section.width_um) - np.maximum(x_um + back_x - half, 0)
            inside_y = np.minimum(y_um + back_y + half, section.height_um) - np.maximum(y_um + back_y - half, 0)
            share_N = np.maximum(inside_x, 0) * np.maximum(inside_y, 0) / bin_um**2
            measured_N = (share_N >= data.min_measured - 1e-6).astype(np.float32)
        counts_N = measured_N >= data.min_measured - 1e-6
        measured_N = np.where(counts_N, np.minimum(measured_N, 1.0), 0.0).astype(np.float32)
        entries = (np.zeros(0, np.int32),) * 3
        if reading is not None:
            entries = _count(reading(), (x_um, y_um), side, bin_um, quarter_turns, flip, measured_N > 0)
        return Bins(x_N, y_N, bin_um, measured_N, *entries, bin_um, True)

    return end


def _count(runs: Iterable[Places], corner_um: tuple[float, float], side_um: float, bin_um: float, quarter_turns: int,
           flip: bool, counts_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(bin, gene, count) of detections, in ascending order of bins and genes, for bins that count.

    Sorting keys of 32 bits is several times faster than counting into an array of bins and genes, or than 64 bits. Keys
    are made run by run and in place: half of a window's cost is the memory that its detections pass through.
    """
    columns = int(side_um / bin_um + 1e-6)
    wide = np.uint32 if columns**2 < 1 << 16 else np.uint64
    corner_steps = [np.int32(round(at * PLACE_STEPS_PER_UM)) for at in corner_um]
    side_steps, bin_steps = np.int32(round(side_um * PLACE_STEPS_PER_UM)), bin_um * PLACE_STEPS_PER_UM
    keys = [np.zeros(0, wide)]
    for *steps, gene_D, _ in runs:
        for step_D, corner in zip(steps, corner_steps, strict=True):
            step_D -= corner
        # a detection is in the middle of its step: what is left of the side is one step less
        steps = turn_places(*steps, side_steps - np.int32(1), quarter_turns, flip)
        column_D, row_D = (_line(step_D, bin_steps) for step_D in steps)
        key_D = row_D * wide(columns)
        key_D += column_D
        key_D <<= wide(16)
        key_D |= gene_D
        # numbers of those that are kept, then those: half the time of a mask, whose branches are hard to foresee
        keys.append(key_D.take(np.flatnonzero(np.maximum(column_D, row_D) < columns)))
    key_D = np.concatenate(keys)
    key_D.sort()
    is_first_D = np.ones(len(key_D), bool)
    np.not_equal(key_D[1:], key_D[:-1], out=is_first_D[1:])
    first_E = np.flatnonzero(is_first_D)
    key_E, count_E = key_D.take(first_E), np.diff(first_E, append=len(key_D)).astype(np.int32)
    bin_E, gene_E = ((key_E >> wide(16)).astype(np.int32), (key_E & wide(0xFFFF)).astype(np.int32))
    if counts_N.all():
        return bin_E, gene_E, count_E
    kept = np.flatnonzero(counts_N.take(bin_E))
    return bin_E.take(kept), gene_E.take(kept), count_E.take(kept)


def _line(step_D: np.ndarray, bin_steps: float) -> np.ndarray:
    """Column or row of the bin that holds a step, uint32; steps before the first bin are far beyond the last one."""
    if bin_steps == int(bin_steps):
        return step_D.view(np.uint32) // np.uint32(bin_steps)
    return np.floor((step_D + 0.5) / bin_steps).astype(np.int32).view(np.uint32)


def _begin_spot_bins(section, x_um, y_um, side, quarter_turns, flip, with_counts) -> Callable[[], Bins]:
    spots = section.placed_spots
    radius = spots.diameter_um / 2
    inside = np.flatnonzero(
        (spots.x_um_N >= x_um + radius) & (spots.x_um_N <= x_um + side - radius)
        & (spots.y_um_N >= y_um + radius) & (spots.y_um_N <= y_um + side - radius)
    )  # fmt: skip
    x, y = turn_places(spots.x_um_N[inside] - x_um, spots.y_um_N[inside] - y_um, side, quarter_turns, flip)
    counted = inside if with_counts else inside[:0]
    reading = section.begin_entries(counted)

    def end() -> Bins:
        gene_E, count_E = reading()
        sizes = spots.indptr[counted + 1] - spots.indptr[counted]
        bin_E = np.repeat(np.arange(len(counted), dtype=np.int32), sizes)
        measured_N = np.ones(len(x), np.float32)
        return Bins(x, y, spots.square_um, measured_N, bin_E, gene_E, count_E, spots.pitch_um, False)

    return end

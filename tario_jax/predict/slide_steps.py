"""A slide's bins written in steps, in a memory that does not grow with it, once its rates from the H&E are there.

    contents/<window>.npz   tokens of the bins that a window wrote, until all windows beside it have read them
    said/<window>.npz       the draw of its bins that is kept, and how far samples lie apart, until it is stored
    stored/<run>            empty: both lie in the maps

The same samples as `generate_section` draws of a section in memory. Batches are always of the same windows, so that
whoever writes one, and how often, it says the same; a window is written after those beside it that come before.

Axes: G genes, S samples, n bins of a window or a run, d width of contents.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tario_jax.predict.cover import Cover, Placed, towards_middle
from tario_jax.predict.map_store import MapWriter
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.slide_plan import SlidePlan
from tario_jax.predict.spool import drop_broken, save
from tario_jax.predict.writing import LEAST_MEAN, Sample, Steps, Writer, WritingPlan, Written, log_depth_of

KEPT = 0  # the sample whose draw is kept


class SlideSteps:
    """The windows of a slide that write, what waits for what, and a folder in which it waits."""

    def __init__(self, predictor: Predictor, plan: SlidePlan, steps: Steps, folder: Path, maps: MapWriter, *,
                 rows: int, total_N: np.ndarray, spread: bool):  # fmt: skip
        """rows: of a batch; total_N: expected detections of each bin; spread: the deviation between samples too."""
        self._plan, self._folder, self._maps, self._spread = plan, folder, maps, spread
        self._cover, self._rows = plan.cover, rows
        self._writing = WritingPlan(plan.cover, held_by(plan.cover), steps)
        log_depth = log_depth_of(total_N, plan.cover.places.size_um)
        self._writer = Writer(predictor, plan.cover, self._writing, steps, log_depth)
        self._samples, self._genes = steps.samples, len(predictor.panel)
        self._beside = beside(np.array(plan.cover.corners), self._writing.turns, plan.cover.data.window_um)
        self._batches = [turn[first : first + rows] for turn in self._writing.turns
                         for first in range(0, len(turn), rows)]  # fmt: skip
        self._batch_of = {window: number for number, batch in enumerate(self._batches) for window in batch}
        self._windows_of_run = [np.unique(self._writing.window_N[plan.slots.run(run)[0]]).tolist()
                                for run in range(len(plan.slots))]  # fmt: skip
        self._runs_of: dict[int, list[int]] = {window: [] for window in self._batch_of}
        for run, windows in enumerate(self._windows_of_run):
            for window in windows:
                self._runs_of[window].append(run)
        for name in ("contents", "said", "stored"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        drop_broken(folder)

    @property
    def windows(self) -> int:
        return len(self._batch_of)

    def windows_done(self) -> int:
        return sum(map(self._is_predicted, self._batch_of))

    def run(self, part: tuple[int, int] = (0, 1), tell: Callable[[], None] = lambda: None) -> bool:
        """Writes all windows, those of this part of the processes first; False where another has still to end one."""
        order = self._order()
        number, of = part
        own = order[number * len(order) // of : (number + 1) * len(order) // of]
        for wanted in (own, order[::-1]):  # the second: what others have left
            for batch in self._with_what_they_need(wanted):
                self._write(self._batches[batch])
                tell()
        for run in range(len(self._windows_of_run)):
            self._store(run)
        return all(map(self._is_stored, range(len(self._windows_of_run))))

    def _order(self) -> list[int]:
        """Batches, each after those that it needs, and otherwise from the top of the slide to its bottom."""
        found: dict[int, None] = {}
        top_um = [min(self._cover.corners[window][1] for window in batch) for batch in self._batches]
        for batch in sorted(range(len(self._batches)), key=top_um.__getitem__):
            self._add_with_needed(batch, found)
        return list(found)

    def _add_with_needed(self, batch: int, found: dict[int, None]) -> None:
        if batch not in found:
            for needed in self._needed(batch):
                self._add_with_needed(needed, found)  # as deep as there are turns
            found[batch] = None

    def _needed(self, batch: int) -> list[int]:
        windows = self._batches[batch]
        return sorted({self._batch_of[other] for window in windows for other in self._beside[window][0]})

    def _with_what_they_need(self, batches: Sequence[int]) -> Iterator[int]:
        """Those that are not written, each after those that it needs and that are not there either."""
        for batch in batches:
            if all(map(self._is_done, self._batches[batch])):
                continue
            for needed in self._needed(batch):
                yield from self._with_what_they_need([needed])
            if not all(map(self._is_done, self._batches[batch])):
                yield batch

    def _write(self, windows: Sequence[int]) -> None:
        try:
            contents = _Contents(self._writing, {
                window: [self._load(other) for other in self._beside[window][0]] for window in windows})  # fmt: skip
        except FileNotFoundError:
            if all(map(self._is_predicted, windows)):
                return  # another process wrote them meanwhile, and let go of what they needed
            raise
        drawn: dict[int, np.ndarray] = {}

        def keep(sample: Sample) -> None:
            if sample.number == KEPT:
                drawn[sample.window] = sample.counts_nxg

        genes_g = np.arange(self._genes, dtype=np.int32)
        for _, batch in self._cover.batches(self._rows, numbers=windows):
            told = self._writer.write(windows, batch, contents, genes_g, keep, lambda sample: sample == KEPT)
            for written in told:
                self._add(written, drawn[written.window], contents.wrote(written.window, self._samples))
        for window in windows:
            for run in self._runs_of[window]:
                self._store(run)
        for near in {near for window in windows for near in (window, *self._beside[window][0])}:
            if self._is_read(near):
                self._contents(near).unlink(missing_ok=True)

    def _add(self, written: Written, drawn_nxG: np.ndarray, content_Sxnxd: np.ndarray) -> None:
        order_n = np.argsort(written.own.number_n)
        number_n = written.own.number_n[order_n]
        # what it was drawn from is let go of next, and a prediction without its contents would not be made again
        save(self._contents(written.window), synced=True, number=number_n, content=content_Sxnxd[:, order_n])
        mean_nxG = np.maximum(written.mean_nxG[order_n, : self._genes], LEAST_MEAN)
        apart_nxG = np.sqrt(written.between_nxG[order_n, : self._genes]) / mean_nxG
        save(self._prediction_path(written.window), synced=True, number=number_n, drawn=drawn_nxG[order_n],
             **({"apart": apart_nxG} if self._spread else {}))  # fmt: skip

    def _store(self, run: int) -> None:
        """Where all that is predicted of a run is there: into the maps; and lets go of what no other run waits for."""
        windows = self._windows_of_run[run]
        if self._is_stored(run) or not all(self._prediction_path(window).exists() for window in windows):
            return
        bins, _ = self._plan.slots.run(run)
        values = {name: np.zeros((bins.stop - bins.start, self._genes), np.float32) for name in ("drawn", "spread")}
        try:
            for window in windows:
                with np.load(self._prediction_path(window)) as held:
                    low, high = np.searchsorted(held["number"], (bins.start, bins.stop))
                    at_n = held["number"][low:high] - bins.start
                    values["drawn"][at_n] = held["drawn"][low:high]
                    if self._spread:
                        values["spread"][at_n] = held["apart"][low:high]
        except FileNotFoundError:
            if self._is_stored(run):  # another process was first
                return
            raise
        if self._spread:
            values["spread"] *= self._maps.read(run, "rates")
        else:
            del values["spread"]
        self._maps.write(run, values)
        save(self._folder / "stored" / f"{run}.npz", synced=True)  # what is stored is let go of
        for window in windows:
            if all(map(self._is_stored, self._runs_of[window])):
                self._prediction_path(window).unlink(missing_ok=True)

    def _is_stored(self, run: int) -> bool:
        return (self._folder / "stored" / f"{run}.npz").exists()

    def _is_predicted(self, window: int) -> bool:
        return self._prediction_path(window).exists() or all(map(self._is_stored, self._runs_of[window]))

    def _is_done(self, window: int) -> bool:
        """Whether it is predicted, and those that come after it can read what it wrote, or have."""
        return self._is_predicted(window) and (self._contents(window).exists() or self._is_read(window))

    def _is_read(self, window: int) -> bool:
        """Whether nobody reads what it wrote any more: a batch of which a part is missing is written again as a whole,
        and reads all that it read."""
        batches = {self._batch_of[other] for other in self._beside[window][1]}
        return all(self._is_predicted(other) for batch in batches for other in self._batches[batch])

    def _load(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        with np.load(self._contents(window)) as held:
            return held["number"], held["content"]

    def _contents(self, window: int) -> Path:
        return self._folder / "contents" / f"{window}.npz"

    def _prediction_path(self, window: int) -> Path:
        return self._folder / "said" / f"{window}.npz"


class _Contents:
    """What windows of a batch read, and what they write."""

    def __init__(self, writing: WritingPlan, read: dict[int, list[tuple[np.ndarray, np.ndarray]]]):
        """read: by window, of each window beside it that came before, the numbers of its bins and [S, n, d]."""
        self._window_N = writing.window_N
        parts = {int(number_n[0]): (number_n, content) for of in read.values() for number_n, content in of}
        numbers = np.concatenate([number_n for number_n, _ in parts.values()]) if parts else np.zeros(0, int)
        order_n = np.argsort(numbers)
        self._number_n = numbers[order_n]
        self._content_Sxnxd = None
        if parts:
            self._content_Sxnxd = np.concatenate([content for _, content in parts.values()], 1)[:, order_n]
        self._wrote: dict[tuple[int, int], np.ndarray] = {}

    def of(self, sample: int, number_n: np.ndarray) -> np.ndarray:
        if self._content_Sxnxd is None or not len(number_n):
            return np.zeros((0, 1), np.float32)  # nothing was written before
        return self._content_Sxnxd[sample, np.searchsorted(self._number_n, number_n)]

    def put(self, sample: int, number_n: np.ndarray, content_nxd: np.ndarray) -> None:
        self._wrote[int(self._window_N[number_n[0]]), sample] = np.asarray(content_nxd, np.float32)

    def wrote(self, window: int, samples: int) -> np.ndarray:
        """Float32 [S, n, d]."""
        return np.stack([self._wrote[window, sample] for sample in range(samples)])


def held_by(cover: Cover) -> Iterator[Placed]:
    """What each window of square bins holds, without reading it: `Cover.placed` of all of them, but for their slots."""
    places = cover.places
    held, (rows, columns) = int(cover.data.window_um / places.size_um + 1e-6), places.number_YxX.shape
    for x_um, y_um in cover.corners:
        row, column = round(y_um / places.size_um), round(x_um / places.size_um)
        inside = places.number_YxX[max(row, 0) : min(row + held, rows), max(column, 0) : min(column + held, columns)]
        number_n = inside[inside >= 0]
        weight_n = towards_middle(places.x_um_N[number_n] - x_um, places.y_um_N[number_n] - y_um, cover.data.window_um)
        yield Placed(np.zeros_like(number_n), number_n, weight_n)


def beside(corner_Wx2: np.ndarray, turns: list[list[int]], side_um: float) -> dict[int, tuple[list[int], list[int]]]:
    """By window those that overlap it and come in earlier turns, and those that come in later ones."""
    turn_of = {window: turn for turn, some in enumerate(turns) for window in some}
    windows = np.array(sorted(turn_of), int)
    turn_n = np.array([turn_of[window] for window in windows.tolist()])
    found = {}
    for window, turn in zip(windows.tolist(), turn_n.tolist(), strict=True):
        near_n = (np.abs(corner_Wx2[windows] - corner_Wx2[window]) < side_um - 1e-6).all(1)
        found[window] = windows[near_n & (turn_n < turn)].tolist(), windows[near_n & (turn_n > turn)].tolist()
    return found

"""What each window said, on disk, until the bins that it shares with others are blended: so the memory does not grow
with the slide, and what was computed is not lost when a process is killed.

    plan.sha256             which windows and bins these are the numbers of
    windows/<number>.npz    numbers, weights and rates of the bins of a window
    runs/<number>.npz       that a run is blended and stored, with sums over its bins by gene

Several processes may work on one folder: each file is written by one rename, and says the same whoever writes it.

Axes: G genes, N bins of the slide, n bins of a window or a run.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tario_jax.config import InputError
from tario_jax.predict.cover import Placed
from tario_jax.predict.map_store import MapWriter
from tario_jax.predict.slide_plan import SlidePlan
from tario_jax.whole_file import UNREADABLE, partial_of, write_whole


@dataclasses.dataclass(frozen=True)
class Sums:
    """Over the bins of a slide, and over its genes."""

    of_gene_G: np.ndarray  # float64
    largest_G: np.ndarray
    of_bin_N: np.ndarray  # float64


def refuse_another_plan(work: Path, plan: SlidePlan, rows: int | None) -> None:
    """Windows and runs on disk go by number. Raises `InputError` where they were numbered otherwise: another version
    of a library may see other tissue. rows: of a batch in steps, which decides what is drawn; None without steps."""
    places = plan.cover.places
    parts = b"".join(np.ascontiguousarray(part).tobytes() for part in (
        places.x_um_N, places.y_um_N, np.asarray(plan.cover.corners), plan.slots.first))  # fmt: skip
    digest = hashlib.sha256(parts).hexdigest()
    path, found = work / "plan.sha256", f"{digest} rows {rows}"
    work.mkdir(parents=True, exist_ok=True)
    before = path.read_text() if path.exists() else found
    if before == hashlib.sha256(repr(rows).encode() + parts).hexdigest():  # as older versions noted the same
        before = found
    if before.partition(" ")[0] == digest and before != found:
        raise InputError(f"{work.parent}: its steps were begun in batches of {before.rpartition(' ')[2]} windows, and "
                         f"on these devices they would be of {rows}, which draws others; go on with devices like "
                         "those before, or remove it")  # fmt: skip
    if before != found:
        raise InputError(f"{work.parent}: was begun with other windows or bins, by another version of tario or of a "
                         "library that finds its tissue; go on with that one, or remove it")  # fmt: skip
    write_whole(path, found)


class Spool:
    """Windows and runs of a plan, in a folder."""

    def __init__(self, folder: Path, plan: SlidePlan, genes: int):
        self._folder, self._plan, self._genes = folder, plan, genes
        for name in ("windows", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        drop_broken(folder)

    def has_run(self, run: int) -> bool:
        return self._run(run).exists()

    def needs(self, window: int) -> bool:
        """Whether it has still to be predicted."""
        return any(not self.has_run(run) for run in self._plan.runs_of_window[window]) and not self.has_window(window)

    def has_window(self, window: int) -> bool:
        return self._window(window).exists()

    def add(self, window: int, placed: Placed, rates_QxG: np.ndarray) -> None:
        """rates: of the bin slots of the window, and of genes with their padding."""
        order_n = np.argsort(placed.number_n)
        rates_nxG = rates_QxG[placed.slot_n[order_n], : self._genes]
        save(self._window(window), number=placed.number_n[order_n], weight=placed.weight_n[order_n], rates=rates_nxG)

    def is_ready(self, run: int) -> bool:
        """Whether it can be blended: it is not yet, and all windows that it takes are there."""
        return not self.has_run(run) and all(map(self.has_window, self._plan.windows_of_run[run]))

    def blend(self, run: int, writer: MapWriter, *, spread: bool, measured: np.ndarray | None = None) -> None:
        """Stores the means over windows at the bins of a run, and lets go of windows that no other run waits for.

        Weighed towards the middle of a window. spread: with the deviation between windows, 0 where a bin is in one;
        measured: counts of the run's bins, to be stored beside them.
        """
        bins, _ = self._plan.slots.run(run)
        mean_nxG = np.zeros((bins.stop - bins.start, self._genes), np.float32)
        weight_n = np.zeros(len(mean_nxG))
        for number_n, of_window_n, rates_nxG in self._of_run(run, bins):
            mean_nxG[number_n] += of_window_n[:, None].astype(np.float32) * rates_nxG
            weight_n[number_n] += of_window_n
        mean_nxG /= weight_n[:, None].astype(np.float32)
        values = {"rates": mean_nxG}
        if spread:
            variance_nxG = np.zeros_like(mean_nxG)
            for number_n, of_window_n, rates_nxG in self._of_run(run, bins):
                share_n = (of_window_n / weight_n[number_n]).astype(np.float32)
                variance_nxG[number_n] += share_n[:, None] * (rates_nxG - mean_nxG[number_n]) ** 2
            values["spread"] = np.sqrt(variance_nxG)
        if measured is not None:
            values["measured"] = measured
        writer.write(run, values)
        save(self._run(run), synced=True, of_gene=mean_nxG.sum(0, dtype=np.float64), largest=mean_nxG.max(0),
              of_bin=mean_nxG.sum(1, dtype=np.float64))  # fmt: skip
        for window in self._plan.windows_of_run[run]:
            if all(self.has_run(other) for other in self._plan.runs_of_window[window]):
                self._window(window).unlink(missing_ok=True)  # another process may have been first

    def _of_run(self, run: int, bins: slice) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each window the bins that are the run's, by their number within it, with weights and rates."""
        for window in self._plan.windows_of_run[run]:
            with np.load(self._window(window)) as held:
                number_n, weight_n = held["number"], held["weight"]
                low, high = np.searchsorted(number_n, (bins.start, bins.stop))
                if low < high:
                    yield number_n[low:high] - bins.start, weight_n[low:high], held["rates"][low:high]

    def sums(self) -> Sums:
        """Run by run in their order."""
        of_gene_G, largest_G, of_bins = np.zeros(self._genes), np.zeros(self._genes), []
        for run in range(len(self._plan.slots)):
            with np.load(self._run(run)) as held:
                of_gene_G += held["of_gene"]
                largest_G = np.maximum(largest_G, held["largest"])
                of_bins.append(held["of_bin"])
        return Sums(of_gene_G, largest_G, np.concatenate(of_bins))

    def _window(self, number: int) -> Path:
        return self._folder / "windows" / f"{number}.npz"

    def _run(self, number: int) -> Path:
        return self._folder / "runs" / f"{number}.npz"


def drop_broken(folder: Path) -> None:
    """Removes files that a crash of the machine left unreadable."""
    for path in folder.glob("*/*.npz"):
        try:
            with zipfile.ZipFile(path) as archive:
                archive.infolist()
        except UNREADABLE:
            path.unlink(missing_ok=True)


def save(path: Path, *, synced: bool = False, **arrays: np.ndarray) -> None:
    """By one rename. synced: the bytes are on the disk before the name is. Raises `OSError` that names the file."""
    partial = partial_of(path)
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None

"""A slide's gene maps: over its tissue in windows that overlap, with a memory that does not grow with the slide.

Windows are predicted in batches that are always of the same windows, kept on disk until the bins that they share with
others are blended, and blended run by run into the store. So a prediction that was killed goes on, with the same bits,
and several processes may share one.
"""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from skimage.io import imsave

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.stored_section import Section
from tario_jax.model.model import Tario
from tario_jax.predict.generate import refuse_one_shot
from tario_jax.predict.map_store import KEPT_BITS, MapStore, MapWriter
from tario_jax.predict.maps import ONE_SHOT, banner_of
from tario_jax.predict.measured import MeasuredBins
from tario_jax.predict.outside import look_at, warnings
from tario_jax.predict.predictor import Predictor, diverged
from tario_jax.predict.slide import SlideSection, middle_of, opened_section, section_as_slide
from tario_jax.predict.slide_folder import SlideFolder
from tario_jax.predict.slide_plan import SlidePlan, TissueCover
from tario_jax.predict.slide_steps import SlideSteps
from tario_jax.predict.spool import Spool, refuse_another_plan
from tario_jax.predict.stain_match import StainMatch, StainStatistics, stain_of
from tario_jax.predict.tissue_mask import TissueMask, find_tissue, tissue_if_any
from tario_jax.predict.writing import Steps

_BATCH_BYTES = 256 << 20  # of the rates of a batch
_READ_AHEAD = 2
_MOST_ALONG = 256  # bins along a window
_RUNNING_BYTES = 2 << 30  # that a batch takes on CPUs while the model reads its H&E
_BYTES_PER_PX = 600  # of that; measured with configs/tario2_10m.py
_ALIKE_IN_STEPS = 4  # arrays as large as a batch's rates, while samples are drawn
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a slide.

    um_per_px: else what the file says; bin_um: else that of training; overlap: of neighbouring windows; everywhere: not
    in tissue alone; stain: densities that the slide's are taken to; steps: a draw of all bins, written in steps, too;
    spread: the deviation between windows too, or of steps that between samples; tissue: real or virtual; force:
    whatever the µm per px; part: of how many processes this is which, from 0.
    """

    um_per_px: float | None = None
    bin_um: float | None = None
    overlap: float = 0.5
    everywhere: bool = False
    stain: StainStatistics | None = None
    steps: Steps | None = None
    spread: bool = False
    tissue: str = "real"
    force: bool = False
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Done:
    """How far a prediction is."""

    what: str  # predict, or write: in steps
    windows: int
    of: int
    bins_per_s: float  # that went through the model here
    left_s: float


def predict_slide(predictor: Predictor, path: Path, out: Path, asked: Asked, *, say: Callable[[str], None] = print,
                  progress: Callable[[Done], None] | None = None) -> MapStore | None:  # fmt: skip
    """Writes the gene maps of a slide as a folder; None where other processes have still to end it.

    Raises `InputError` where the slide cannot be read, has no tissue or may not be predicted, and where `out` holds
    something else; `OSError` where the disk is full: the same call continues.
    """
    _refuse(predictor, path.name, asked)
    with opened_section(path, asked.um_per_px, genes=len(predictor.panel), force=asked.force, say=say) as section:
        folder = SlideFolder(out, _identity(predictor, section, asked))
        if (done := folder.begin(predictor.validation, say)) is not None:
            return done
        with folder.forgotten_if_refused():
            work = _Work(predictor, section, folder, asked, say, progress)
        return work.run()


def predict_measured(predictor: Predictor, corpus: Corpus, name: str, out: Path, asked: Asked, *,
                     say: Callable[[str], None] = print,
                     progress: Callable[[Done], None] | None = None) -> MapStore | None:  # fmt: skip
    """`predict_slide` for a section of a corpus, all of it, with what was measured in its bins beside the rates.

    Raises `InputError` as that, and where the section is measured in spots.
    """
    held = corpus.section(name)
    if held.has_spots:
        raise InputError(f"{name}: is measured in spots, which lie on no grid of bins; write AnnData (--out=NAME.h5ad)")
    _refuse(predictor, name, asked)
    section = section_as_slide(held, genes=len(predictor.panel))
    root = corpus.root if corpus.root.local is None else corpus.root.local.resolve()
    place = {"corpus": str(root), "section": name}
    folder = SlideFolder(out, _identity(predictor, section, asked) | {"corpus_seal": corpus.seal})
    if (done := folder.begin(predictor.validation, say)) is not None:
        return done
    with folder.forgotten_if_refused():
        measured = _measured_bins(held, corpus, predictor, asked, say)
        work = _Work(predictor, section, folder, asked, say, progress, measured, place)
    return work.run()


def _measured_bins(held: Section, corpus: Corpus, predictor: Predictor, asked: Asked,
                 say: Callable[[str], None]) -> MeasuredBins | None:  # fmt: skip
    """What was measured in the bins, where it is and they are not too small for the assay."""
    if not held.has_detections:
        return None
    try:
        held.check_bins(asked.bin_um or predictor.provenance.bin_um)
    except InputError as error:
        say(f"{held.id}: what was measured is left out of the maps: {error}")
        return None
    return MeasuredBins(held, corpus.panel, predictor.panel, predictor.provenance.config.data.min_measured)


def _refuse(predictor: Predictor, name: str, asked: Asked) -> None:
    """Raises `InputError` for what may not be asked."""
    predictor.refuse_tissue(name, asked.tissue)
    window_um = predictor.provenance.config.data.window_um
    if asked.bin_um is not None and asked.bin_um * _MOST_ALONG < window_um:
        raise InputError(f"{name}: bins of {asked.bin_um:g} µm; expected at least {window_um / _MOST_ALONG:.3g}, "
                         f"{_MOST_ALONG} along a window")  # fmt: skip
    if asked.steps is None:
        return
    if asked.steps.groups == 1:
        raise InputError(f"{name}: one step writes nothing that another bin is predicted from; give --steps=K with a K "
                         "other than 1, or leave it out")  # fmt: skip
    if asked.steps.coarse:
        raise InputError(f"{name}: larger bins are written first in sections alone; give another --order")
    if asked.spread and asked.steps.samples < 2:
        raise InputError(f"{name}: a deviation is between two samples or more; give --samples=2 or more")
    refuse_one_shot(predictor, "steps")


def _identity(predictor: Predictor, section: SlideSection, asked: Asked) -> dict[str, Any]:
    """What decides the maps: the pixels, the model, and what was asked."""
    image = section.file.levels[0]
    of_file = section.file.path.stat() if section.file.path.is_file() else None
    return {
        "slide": section.id, "bytes": None if of_file is None else of_file.st_size, "middle_sha256": middle_of(section),
        "px": [image.width_px, image.height_px], "um_per_px": section.he_um_per_px,
        "panel_hash": predictor.panel.hash, "checkpoint": predictor.checkpoint,
        "bin_um": asked.bin_um or predictor.provenance.bin_um, "overlap": asked.overlap,
        "everywhere": asked.everywhere, "stain": None if asked.stain is None else asked.stain.to_dict(),
        "spread": asked.spread, "tissue": asked.tissue, "steps": None if asked.steps is None else
        [asked.steps.groups, asked.steps.samples, asked.steps.order, asked.steps.seed],
    }  # fmt: skip


class _Work:
    """One process at one slide."""

    def __init__(self, predictor: Predictor, section: SlideSection, folder: SlideFolder, asked: Asked,
                 say: Callable[[str], None], progress: Callable[[Done], None] | None,
                 measured: MeasuredBins | None = None, place: dict[str, str] | None = None):  # fmt: skip
        """measured: of the bins; place: where the page finds the H&E, else the slide's file."""
        self._predictor, self._section, self._folder, self._asked = predictor, section, folder, asked
        self._progress = progress
        # tissue is looked for everywhere or not: glass would darken a stain, and is unlike any tissue
        tissue = tissue_if_any(section) if asked.everywhere else find_tissue(section)
        self._mask = None if asked.everywhere else tissue
        self._stain = None
        if asked.stain is not None:
            mask = tissue or find_tissue(section, "leave out --stain, which is matched on tissue")
            self._stain = StainMatch(stain_of(section, mask), asked.stain)
            section.changed = self._stain
        cover = predictor.tissue_cover(section, self._mask, tissue=asked.tissue, bin_um=asked.bin_um,
                                       overlap=asked.overlap)  # fmt: skip
        self._rows = rows_of(predictor, cover)
        self._plan = SlidePlan.of(cover, self._rows)
        area = "" if self._mask is None else f"{self._mask.area_mm2:.1f} mm² of tissue, "
        say(f"{section.id}: {section.he_um_per_px:.3g} µm per px, {area}{len(cover):,} bins of {cover.data.bin_um:g} "
            f"µm in {len(cover.corners):,} windows")  # fmt: skip
        self._look = look_at(cover, tissue, predictor.call_on, self._rows)
        self._warnings = warnings(self._look, section.he_um_per_px, cover.data.he_um_per_px)
        for line in self._warnings:
            say(f"{section.id}: warning: {line}")
        self._measured, self._place = measured, place or {"slide": str(section.file.path.resolve())}
        more = {"measured": measured is not None, "spread": asked.spread, "drawn": asked.steps is not None}
        self._writer = MapWriter(folder.path, predictor.panel, self._plan.slots, [name for name in more if more[name]])
        self._rows_in_steps = None if asked.steps is None else rows_of(predictor, cover, _ALIKE_IN_STEPS)
        refuse_another_plan(folder.work, self._plan, self._rows_in_steps)
        self._spool = Spool(folder.work, self._plan, len(predictor.panel))
        self._went_through, self._began, self._told = 0, time.monotonic(), -np.inf
        self._first_done = self._windows_done()

    def run(self) -> MapStore | None:
        try:
            return self._run()
        except FileNotFoundError:
            if not self._folder.is_ended:
                raise
            return MapStore(self._folder.path)  # another process ended it, and cleared the work away

    def _run(self) -> MapStore | None:
        part, parts = self._asked.part
        self._predict(number for number in range(part, len(self._plan.batches), parts))
        # what is left then is of processes that are slower, or gone; both may do it, with the same bits
        self._predict(number for number in range(len(self._plan.batches) - 1, -1, -1))
        if self._folder.is_ended:  # another process ended it; nothing is to be left of what was begun since
            self._folder.clear()
            return MapStore(self._folder.path)
        runs = range(len(self._plan.slots))
        for run in runs:
            self._blend(run)
        if not all(self._spool.has_run(run) for run in runs):
            return None  # another process is at the last ones, and finishes
        if self._asked.steps is not None and not self._write_in_steps(self._asked.steps):
            return None
        return self._finish()

    def _write_in_steps(self, steps: Steps) -> bool:
        """Whether all of it is written."""
        work = SlideSteps(self._predictor, self._plan, steps, self._folder.steps, self._writer,
                          rows=self._rows_in_steps, total_N=self._spool.sums().of_bin_N,
                          spread=self._asked.spread)  # fmt: skip
        began, first = time.monotonic(), work.windows_done()
        bins_per_window = len(self._plan.cover) / work.windows

        def tell() -> None:
            now = time.monotonic()
            if self._progress is None or now - self._told < 1.0:
                return
            if (done := work.windows_done()) > first:
                self._told, rate = now, (done - first) / (now - began)
                self._progress(Done("write", done, work.windows, rate * bins_per_window, (work.windows - done) / rate))

        return work.run(self._asked.part, tell)

    def _predict(self, numbers: Iterable[int]) -> None:
        """Predicts batches of which something is needed, while the next are read and the last is written."""
        with concurrent.futures.ThreadPoolExecutor(1) as writing:
            before, written = None, None
            for windows, batch in ahead(self._batches(numbers), _READ_AHEAD):
                rates_BxQxG = self._predictor.call(Tario.rates, self._predictor.placed_on_devices(batch))
                if before is not None:
                    written = self._hand_over(writing, written, *before)
                before = windows, batch, rates_BxQxG
            if before is not None:
                self._hand_over(writing, written, *before).result()

    def _batches(self, numbers: Iterable[int]) -> Iterator[tuple[Any, Any]]:
        for number in numbers:
            if self._folder.is_ended:
                return
            windows = self._plan.batches[number]
            if any(map(self._spool.needs, windows)):
                yield from self._plan.cover.batches(self._rows, numbers=windows)

    def _hand_over(self, writing: concurrent.futures.Executor, written: concurrent.futures.Future | None, windows,
                   batch, rates_BxQxG: jax.Array) -> concurrent.futures.Future:  # fmt: skip
        rates_BxQxG = np.asarray(rates_BxQxG)
        if written is not None:
            written.result()  # no more than one waits: what it holds is a batch's rates
        return writing.submit(self._keep, windows, batch, rates_BxQxG)

    def _keep(self, windows, batch, rates_BxQxG: np.ndarray) -> None:
        if not np.isfinite(rates_BxQxG).all():
            raise diverged(self._section.id)
        for row, window in enumerate(windows):
            self._spool.add(window, self._plan.cover.placed(batch, row, window), rates_BxQxG[row])
        self._went_through += len(windows) * self._plan.cover.places.per_window
        for run in sorted({run for window in windows for run in self._plan.runs_of_window[window]}):
            self._blend(run)
        self._tell()

    def _blend(self, run: int) -> None:
        if self._spool.is_ready(run):
            try:
                spread = self._asked.spread and self._asked.steps is None
                self._spool.blend(run, self._writer, spread=spread, measured=self._measured_of(run))
            except FileNotFoundError:  # another process blended it meanwhile, and let its windows go
                if not self._spool.has_run(run):
                    raise

    def _measured_of(self, run: int) -> np.ndarray | None:
        if self._measured is None:
            return None
        bins, _ = self._plan.slots.run(run)
        places = self._plan.cover.places
        return self._measured.counts(places.x_um_N[bins], places.y_um_N[bins], places.size_um)

    def _windows_done(self) -> int:
        return sum(not self._spool.needs(window) for window in range(len(self._plan.cover.corners)))

    def _tell(self) -> None:
        now = time.monotonic()
        if self._progress is None or now - self._told < 1.0:
            return
        done, of, seconds = self._windows_done(), len(self._plan.cover.corners), now - self._began
        self._told = now
        rate = (done - self._first_done) / seconds  # of all processes
        self._progress(Done("predict", done, of, self._went_through / seconds, (of - done) / rate if rate else np.inf))

    def _finish(self) -> MapStore:
        if self._folder.is_ended:
            return MapStore(self._folder.path)
        cover, section = self._plan.cover, self._section
        sums = self._spool.sums()
        image = section.file.levels[0]
        about = {
            "section": section.id, "place": self._place,
            "slide_px": [image.width_px, image.height_px], "he_um_per_px": section.he_um_per_px,
            "he_full_um_per_px": section.he_full_um_per_px, "he_origin_px": list(section.he_origin_px),
            "panel_hash": self._predictor.panel.hash,
            "trained_on": self._predictor.trained_on, "tissue": self._asked.tissue,
            "banner": banner_of(self._predictor.trained_on, self._asked.tissue), "unit": "expected detections per bin",
            "decoding": ONE_SHOT if self._asked.steps is None else f"{ONE_SHOT}; drawn in {self._asked.steps}",
            "spread": None if not self._asked.spread else "windows" if self._asked.steps is None else "samples",
            "bin_um": cover.data.bin_um, "bins": len(cover),
            "window_um": cover.data.window_um, "windows": len(cover.corners), "overlap": self._asked.overlap,
            "checkpoint": self._predictor.checkpoint, "model": self._predictor.provenance.config.name,
            "mantissa_bits": KEPT_BITS, "tissue_mm2": None if self._mask is None else self._mask.area_mm2,
            "stain": None if self._stain is None else {"found": self._stain.found.to_dict(),
                                                       "wanted": self._stain.wanted.to_dict()},
            "from_training": round(self._look.distance, 3), "outside": self._look.outside(),
            "warnings": self._warnings, "identity": self._folder.identity,
        }  # fmt: skip
        _write_pictures(self._folder.path, self._mask)
        self._writer.finish(about, cover.places.x_um_N, cover.places.y_um_N, total_N=sums.of_bin_N,
                            mean_G=sums.of_gene_G / len(cover), largest_G=sums.largest_G,
                            validation=self._predictor.validation)  # fmt: skip
        self._folder.clear()
        return MapStore(self._folder.path)


def ahead(items: Iterator[T], number: int) -> Iterator[T]:
    """The same items, so many of them made by a thread before they are asked for."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = collections.deque(pool.submit(next, items, None) for _ in range(number))
        try:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item
        finally:
            for one in waiting:
                one.cancel()


def rows_of(predictor: Predictor, cover: TissueCover, alike: int = 1) -> int:
    """Of a batch: those of training, or fewer where they would take much memory.

    alike: arrays as large as the rates that are held at once.
    """
    a_row = cover.layout.tiles * cover.layout.bins_per_tile * cover.layout.genes_padded * 4 * alike
    parts, rows = predictor.parts, min(predictor.rows, _BATCH_BYTES // a_row)
    if jax.default_backend() == "cpu":  # another device's memory held training, which takes more
        rows = min(rows, int(_RUNNING_BYTES / _BYTES_PER_PX / (cover.data.window_um / cover.data.he_um_per_px) ** 2))
    return max(parts, rows // parts * parts)


def _write_pictures(out: Path, mask: TissueMask | None) -> None:
    if mask is None:
        return
    for name, pixels in (("overview.jpg", mask.overview_YxXx3), ("tissue.png", mask.tissue_YxX.astype(np.uint8) * 255)):
        imsave(out / name, pixels, check_contrast=False)

"""A slide's gene maps: over its tissue in windows that overlap, with a memory that does not grow with the slide.

Windows are predicted in batches that are always of the same windows, kept on disk until the bins that they share with
others are blended, and blended run by run into the store. So a prediction that was killed goes on, with the same bits,
and several processes may share one.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from skimage.io import imsave

from tario_jax.config import InputError
from tario_jax.corpus.read import Corpus
from tario_jax.model.model import Tario
from tario_jax.predict.map_store import FILE, KEPT_BITS, MapStore, MapWriter
from tario_jax.predict.maps import ONE_SHOT, VIRTUAL_BANNER
from tario_jax.predict.measured import MeasuredBins
from tario_jax.predict.outside import look_at, warnings
from tario_jax.predict.predictor import Predictor
from tario_jax.predict.slide import SlideSection, opened_section, section_as_slide
from tario_jax.predict.slide_plan import SlidePlan, TissueCover
from tario_jax.predict.spool import Spool
from tario_jax.predict.stain_match import StainMatch, StainStatistics, stain_of
from tario_jax.predict.tissue_mask import TissueMask, find_tissue
from tario_jax.train.whole_file import write_whole

_BATCH_BYTES = 256 << 20  # of the rates of a batch
_READ_AHEAD = 2
_WORK, _ASKED = "work", "asked.json"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of a slide.

    um_per_px: else what the file says; bin_um: else that of training; overlap: of neighbouring windows; everywhere: not
    in tissue alone; stain: densities that the slide's are taken to; spread: the deviation between windows too;
    tissue: real or virtual; force: whatever the µm per px; part: of how many processes this is which, from 0.
    """

    um_per_px: float | None = None
    bin_um: float | None = None
    overlap: float = 0.5
    everywhere: bool = False
    stain: StainStatistics | None = None
    spread: bool = False
    tissue: str = "real"
    force: bool = False
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Done:
    """How far a prediction is."""

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
    predictor.refuse_tissue(path.name, asked.tissue)
    with opened_section(path, asked.um_per_px, genes=len(predictor.panel), force=asked.force, say=say) as section:
        identity = _identity(predictor, section, asked)
        if (done := _done_already(out, identity, say)) is not None:
            return done
        _begin(out, identity)
        return _Work(predictor, section, out, asked, identity, say, progress).run()


def predict_measured(predictor: Predictor, corpus: Corpus, name: str, out: Path, asked: Asked, *,
                     say: Callable[[str], None] = print,
                     progress: Callable[[Done], None] | None = None) -> MapStore | None:  # fmt: skip
    """`predict_slide` for a section of a corpus, all of it, with what was measured in its bins beside the rates.

    Raises `InputError` as that, and where the section is measured in spots.
    """
    held = corpus.section(name)
    if held.spots is not None:
        raise InputError(f"{name}: is measured in spots, which lie on no grid of bins; write AnnData (--out=NAME.h5ad)")
    predictor.refuse_tissue(name, asked.tissue)
    section = section_as_slide(held, genes=len(predictor.panel))
    root = corpus.root if corpus.root.local is None else corpus.root.local.resolve()
    place = {"corpus": str(root), "section": name}
    identity = _identity(predictor, section, asked) | {"corpus_seal": corpus.seal}
    if (done := _done_already(out, identity, say)) is not None:
        return done
    _begin(out, identity)
    measured = MeasuredBins(held, corpus.panel, predictor.panel) if held.has_detections else None
    return _Work(predictor, section, out, asked, identity, say, progress, measured, place).run()


def _done_already(out: Path, identity: dict[str, Any], say: Callable[[str], None]) -> MapStore | None:
    """The maps that are there; None where there are none. Raises `InputError` where they are of something else."""
    if not (out / FILE).exists():
        return None
    store = MapStore(out)
    if store.about["identity"] != identity:
        raise InputError(f"{out}: holds maps of {store.about['section']} already, asked otherwise; give another "
                         "--out, or remove it")  # fmt: skip
    say(f"{out}: is done already")
    return store


def _identity(predictor: Predictor, section: SlideSection, asked: Asked) -> dict[str, Any]:
    """What decides the maps: the pixels, the model, and what was asked."""
    image = section.file.levels[0]
    of_file = section.file.path.stat() if section.file.path.is_file() else None
    side = min(256, *image.shape[:2])
    top, left = (image.height_px - side) // 2, (image.width_px - side) // 2
    middle = hashlib.sha256(np.ascontiguousarray(image[top : top + side, left : left + side]).data).hexdigest()
    return {
        "slide": section.id, "bytes": None if of_file is None else of_file.st_size, "middle_sha256": middle,
        "px": [image.width_px, image.height_px], "um_per_px": section.he_um_per_px,
        "panel_hash": predictor.panel.hash, "checkpoint": predictor.checkpoint,
        "bin_um": asked.bin_um or predictor.provenance.bin_um, "overlap": asked.overlap,
        "everywhere": asked.everywhere, "stain": None if asked.stain is None else asked.stain.to_dict(),
        "spread": asked.spread, "tissue": asked.tissue,
    }  # fmt: skip


def _begin(out: Path, identity: dict[str, Any]) -> None:
    """Makes the folder, or goes on in it. Raises `InputError` where it holds another prediction."""
    asked = out / _ASKED
    if out.exists() and not asked.exists() and any(out.iterdir()):
        raise InputError(f"{out}: is there already, and holds no gene maps; give another --out")
    if asked.exists():
        try:
            before = json.loads(asked.read_text())
        except ValueError:
            raise InputError(f"{asked}: is damaged; remove {out} and predict again") from None
        differs = [name for name in identity if before.get(name) != identity[name]]
        if differs:
            raise InputError(f"{out}: a prediction was begun there with {differs[0]} {before.get(differs[0])}, and "
                             f"this has {identity[differs[0]]}; give another --out, or remove it")  # fmt: skip
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(asked, json.dumps(identity, indent=1))


class _Work:
    """One process at one slide."""

    def __init__(self, predictor: Predictor, section: SlideSection, out: Path, asked: Asked, identity: dict[str, Any],
                 say: Callable[[str], None], progress: Callable[[Done], None] | None,
                 measured: MeasuredBins | None = None, place: dict[str, str] | None = None):  # fmt: skip
        """measured: of the bins; place: where the page finds the H&E, else the slide's file."""
        self._predictor, self._section, self._out, self._asked = predictor, section, out, asked
        self._identity, self._say, self._progress = identity, say, progress
        self._mask = None if asked.everywhere else find_tissue(section)
        self._stain = None
        if asked.stain is not None:
            self._stain = StainMatch(stain_of(section, self._mask), asked.stain)
            section.changed = self._stain
        cover = predictor.tissue_cover(section, self._mask, tissue=asked.tissue, bin_um=asked.bin_um,
                                       overlap=asked.overlap)  # fmt: skip
        self._rows = rows_of(predictor, cover)
        self._plan = SlidePlan.of(cover, self._rows)
        area = "" if self._mask is None else f"{self._mask.area_mm2:.1f} mm² of tissue, "
        say(f"{section.id}: {section.he_um_per_px:.3g} µm per px, {area}{len(cover):,} bins of {cover.data.bin_um:g} "
            f"µm in {len(cover.corners):,} windows")  # fmt: skip
        self._outside = look_at(cover, self._mask, predictor.call_on, predictor.rows).outside()
        self._warnings = warnings(self._outside, section.he_um_per_px, cover.data.he_um_per_px)
        for line in self._warnings:
            say(f"{section.id}: warning: {line}")
        self._measured, self._place = measured, place or {"slide": str(section.file.path.resolve())}
        self._writer = MapWriter(out, predictor.panel, self._plan.slots, spread=asked.spread,
                                 measured=measured is not None)  # fmt: skip
        self._spool = Spool(out / _WORK, self._plan, len(predictor.panel))
        self._spool.drop_broken()
        self._went_through, self._began, self._told = 0, time.monotonic(), -np.inf
        self._first_done = self._windows_done()

    def run(self) -> MapStore | None:
        try:
            return self._run()
        except FileNotFoundError:
            if not (self._out / FILE).exists():
                raise
            return MapStore(self._out)  # another process ended it, and cleared the work away

    def _run(self) -> MapStore | None:
        part, parts = self._asked.part
        self._predict(number for number in range(part, len(self._plan.batches), parts))
        # what is left then is of processes that are slower, or gone; both may do it, with the same bits
        self._predict(number for number in range(len(self._plan.batches) - 1, -1, -1))
        runs = range(len(self._plan.slots))
        for run in runs:
            self._blend(run)
        if not all(self._spool.has_run(run) for run in runs):
            return None  # another process is at the last ones, and finishes
        return self._finish()

    def _predict(self, numbers: Iterable[int]) -> None:
        """Predicts batches of which something is needed, while the next are read and the last is written."""
        with concurrent.futures.ThreadPoolExecutor(1) as writing:
            before, written = None, None
            for windows, batch in ahead(self._batches(numbers), _READ_AHEAD):
                said = self._predictor.call(Tario.rates, self._predictor.placed_on_devices(batch))
                if before is not None:
                    written = self._hand_over(writing, written, *before)
                before = windows, batch, said
            if before is not None:
                self._hand_over(writing, written, *before).result()

    def _batches(self, numbers: Iterable[int]) -> Iterator[tuple[Any, Any]]:
        for number in numbers:
            windows = self._plan.batches[number]
            if any(map(self._spool.needs, windows)):
                yield from self._plan.cover.batches(self._rows, numbers=windows)

    def _hand_over(self, writing: concurrent.futures.Executor, written: concurrent.futures.Future | None, windows,
                   batch, said: jax.Array) -> concurrent.futures.Future:  # fmt: skip
        rates_BxQxG = np.asarray(said)
        if written is not None:
            written.result()  # no more than one waits: what it holds is a batch's rates
        return writing.submit(self._keep, windows, batch, rates_BxQxG)

    def _keep(self, windows, batch, rates_BxQxG: np.ndarray) -> None:
        if not np.isfinite(rates_BxQxG).all():
            raise InputError(f"{self._section.id}: the model's rates are not numbers: its training diverged; see its "
                             "metrics.jsonl, and train again with a lower optim.learning_rate")  # fmt: skip
        for row, window in enumerate(windows):
            self._spool.add(window, self._plan.cover.placed(batch, row, window), rates_BxQxG[row])
        self._went_through += len(windows) * self._plan.cover.places.per_window
        for run in sorted({run for window in windows for run in self._plan.runs_of_window[window]}):
            self._blend(run)
        self._tell()

    def _blend(self, run: int) -> None:
        if self._spool.is_ready(run):
            try:
                self._spool.blend(run, self._writer, spread=self._asked.spread, measured=self._measured_of(run))
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
        self._progress(Done(done, of, self._went_through / seconds, (of - done) / rate if rate else np.inf))

    def _finish(self) -> MapStore:
        cover, section = self._plan.cover, self._section
        sums = self._spool.sums()
        image = section.file.levels[0]
        virtual = self._predictor.trained_on == "virtual" and self._asked.tissue == "real"
        about = {
            "section": section.id, "place": self._place,
            "slide_px": [image.width_px, image.height_px], "he_um_per_px": section.he_um_per_px,
            "panel_hash": self._predictor.panel.hash,
            "trained_on": self._predictor.trained_on, "tissue": self._asked.tissue,
            "banner": VIRTUAL_BANNER if virtual else "", "unit": "expected detections per bin",
            "decoding": ONE_SHOT, "bin_um": cover.data.bin_um, "bins": len(cover),
            "window_um": cover.data.window_um, "windows": len(cover.corners), "overlap": self._asked.overlap,
            "checkpoint": self._predictor.checkpoint, "model": self._predictor.provenance.config.name,
            "mantissa_bits": KEPT_BITS, "tissue_mm2": None if self._mask is None else self._mask.area_mm2,
            "stain": None if self._stain is None else {"found": self._stain.found.to_dict(),
                                                       "wanted": self._stain.wanted.to_dict()},
            "outside": self._outside, "warnings": self._warnings, "identity": self._identity,
        }  # fmt: skip
        _write_pictures(self._out, self._mask)
        self._writer.finish(about, cover.places.x_um_N, cover.places.y_um_N, total_N=sums.of_bin_N,
                            mean_G=sums.of_gene_G / len(cover), largest_G=sums.largest_G,
                            validation=self._predictor.validation)  # fmt: skip
        self._spool.clear()
        (self._out / _ASKED).unlink(missing_ok=True)
        return MapStore(self._out)


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


def rows_of(predictor: Predictor, cover: TissueCover) -> int:
    """Of a batch: those of training, or fewer where their rates would take much memory."""
    a_row = cover.layout.tiles * cover.layout.bins_per_tile * cover.layout.genes_padded * 4
    parts = predictor.parts
    return max(parts, min(predictor.rows, _BATCH_BYTES // a_row // parts * parts))


def _write_pictures(out: Path, mask: TissueMask | None) -> None:
    if mask is None:
        return
    for name, pixels in (("overview.jpg", mask.overview_YxXx3), ("tissue.png", mask.tissue_YxX.astype(np.uint8) * 255)):
        imsave(out / name, pixels, check_contrast=False)

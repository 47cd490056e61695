"""A slide file seen as a section: its H&E alone, read block by block and never whole in memory."""

import collections
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tario_jax.config import InputError
from tario_jax.corpus.feature_grid import FeatureGrid
from tario_jax.corpus.read import Corpus
from tario_jax.corpus.resample import crop_and_resample
from tario_jax.corpus.stored_section import Section
from tario_jax.sources.slide import averaged, full_um_per_px, stored_scale
from tario_jax.sources.slide_files import SlideFile, opened_slide

BLOCK_PX = 512  # side of what is read at once, at the scale that is asked
KEPT_BYTES = 256 << 20  # of blocks: windows that overlap share them
_READ_PX = 4096  # side of what is read of a level at once, at most: 50 MB
_FINER = 1.8  # px that are read for one that is asked, along a side: a level's own rounding does not show in their mean


class SlideSection:
    """What a `Predictor` needs of a section, from an open slide.

    um_per_px: of its finest level. changed: what becomes of each block of pixels once it is read, uint8 to uint8; to be
    set before a window is read.
    """

    spots, has_spots = None, False
    he_origin_px = (0.0, 0.0)
    without_features = ("ingest it into a corpus ('tario ingest --source=slide'), 'tario encode' that, and predict its "
                        "section with --out=NAME.h5ad")  # fmt: skip

    def __init__(self, file: SlideFile, um_per_px: float, *, genes: int):
        self.file, self.id = file, file.path.name
        self.he_um_per_px = self.he_full_um_per_px = um_per_px
        self.height_um, self.width_um = (size * um_per_px for size in file.levels[0].shape[:2])
        self.measured_gene_G = np.ones(genes, bool)
        self.changed: Callable[[np.ndarray], np.ndarray] | None = None
        self._blocks: collections.OrderedDict[tuple[float, int, int], np.ndarray] = collections.OrderedDict()
        self._kept, self._lock = max(4, KEPT_BYTES // (BLOCK_PX**2 * 3)), threading.Lock()

    def holds(self, name: str) -> bool:
        return name == "he"

    def feature_grid(self, encoder: str) -> FeatureGrid:
        """Raises `InputError`: nobody has worked out what a frozen encoder makes of the slide."""
        raise InputError(f"{self.id}: the model reads features of {encoder!r}, which a slide has not; "
                         f"{self.without_features}")  # fmt: skip

    def level_for(self, um_per_px: float) -> int:
        """The coarsest level with two px or about that along a side for one that is asked; else the finest."""
        level_um = [self.he_um_per_px * self.file.downsample(level) for level in range(len(self.file.levels))]
        return max((level for level, um in enumerate(level_um) if um * _FINER <= um_per_px), default=0)

    def begin_he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> Callable[[], np.ndarray]:
        left, top = x_um / um_per_px, y_um / um_per_px
        if abs(left - round(left)) > 1e-6 or abs(top - round(top)) > 1e-6:  # between the px that others share
            return lambda: self._change(self.read(x_um, y_um, side_px, um_per_px))
        return lambda: self._of_blocks(round(left), round(top), side_px, um_per_px)

    @property
    def he_shape_px(self) -> tuple[int, int]:
        """(height, width) of its finest level."""
        return tuple(self.file.levels[0].shape[:2])

    def he_window(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> np.ndarray:
        """As `Section.he_window`."""
        return self.begin_he_window(x_um, y_um, side_px, um_per_px)()

    def _of_blocks(self, left: int, top: int, side_px: int, um_per_px: float) -> np.ndarray:
        pixels = np.empty((side_px, side_px, 3), np.uint8)
        for row in range(top // BLOCK_PX, (top + side_px - 1) // BLOCK_PX + 1):
            for column in range(left // BLOCK_PX, (left + side_px - 1) // BLOCK_PX + 1):
                y, x = row * BLOCK_PX, column * BLOCK_PX
                rows = slice(max(top, y), min(top + side_px, y + BLOCK_PX))
                columns = slice(max(left, x), min(left + side_px, x + BLOCK_PX))
                block = self._block(row, column, um_per_px)
                pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = block[
                    rows.start - y : rows.stop - y, columns.start - x : columns.stop - x
                ]
        return pixels

    def _block(self, row: int, column: int, um_per_px: float) -> np.ndarray:
        key = um_per_px, row, column
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
        side_um = BLOCK_PX * um_per_px
        block = self._change(self.read(column * side_um, row * side_um, BLOCK_PX, um_per_px))
        with self._lock:
            self._blocks[key] = block
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
        return block

    def read(self, x_um: float, y_um: float, side_px: int, um_per_px: float) -> np.ndarray:
        """A square at any scale, as it was scanned: uint8 [side_px, side_px, 3], white beyond the slide."""
        if not (x_um < self.width_um and y_um < self.height_um):
            return np.full((side_px, side_px, 3), 255, np.uint8)
        level = self.level_for(um_per_px)
        image = self.file.levels[level]
        level_um = self.he_um_per_px * self.file.downsample(level)
        if side_px > 1 and side_px * um_per_px > _READ_PX * level_um:  # no level is near: quarter by quarter
            half, squares = side_px // 2, np.empty((side_px, side_px, 3), np.uint8)
            for rows in (slice(0, half), slice(half, side_px)):
                for columns in (slice(0, half), slice(half, side_px)):
                    size = max(rows.stop - rows.start, columns.stop - columns.start)
                    part = self.read(x_um + columns.start * um_per_px, y_um + rows.start * um_per_px, size, um_per_px)
                    squares[rows, columns] = part[: rows.stop - rows.start, : columns.stop - columns.start]
            return squares
        return crop_and_resample(image, image.shape, level_um, x_um, y_um, side_px, um_per_px)

    def _change(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self.changed is None else self.changed(pixels)


@contextlib.contextmanager
def opened_section(path: Path, um_per_px: float | None, *, genes: int, force: bool = False,
                   say: Callable[[str], None] = print,
                   flag: str = "--um-per-px") -> Iterator[SlideSection]:  # fmt: skip
    """A slide as a section, as long as the file is open. um_per_px: by which what the file says is overruled; flag: by
    which it is given, for errors.

    Raises `InputError` where it cannot be read, its µm per px are stated nowhere, or, without `force`, not plausible.
    """
    with opened_slide(path) as file:
        scale, notes = full_um_per_px(file, um_per_px, force=force, flag=flag)
        for note in (*file.notes, *notes):
            say(f"{path}: {note}")
        yield SlideSection(file, scale, genes=genes)


def slide_of_maps(about: Mapping[str, Any], stack: contextlib.ExitStack, *, slide: Path | None = None,
                  say: Callable[[str], None] = print) -> SlideSection:  # fmt: skip
    """What some maps were predicted from, where it lay then, or at `slide`; open as long as the stack is.

    Raises `InputError` where it is not there or cannot be read.
    """
    place = about["place"]
    if slide is None and "corpus" in place:
        return section_as_slide(Corpus.open(place["corpus"]).section(place["section"]), genes=1)
    if slide is None and "slide" not in place:
        raise InputError(f"maps of {about['section']}: do not say where the slide lies")
    return stack.enter_context(opened_section(slide or Path(place["slide"]), about["he_um_per_px"], genes=1,
                                              force=True, say=say))  # fmt: skip


def refuse_another(section: SlideSection, about: Mapping[str, Any]) -> None:
    """Raises `InputError` where a slide has not the px of the one that some maps are of, or others in its middle."""
    image, expected = section.file.levels[0], about["slide_px"]
    if [image.width_px, image.height_px] != expected:
        raise InputError(f"{section.file.path}: has {image.width_px} × {image.height_px} px, and the slide of these "
                         f"maps had {expected[0]} × {expected[1]}")  # fmt: skip
    middle_sha256 = about.get("identity", {}).get("middle_sha256")
    if middle_sha256 is not None and middle_sha256 != middle_of(section):
        raise InputError(f"{section.file.path}: is another slide than the one that these maps are of")


def middle_of(section: SlideSection) -> str:
    """SHA-256 of the pixels in its middle."""
    image = section.file.levels[0]
    side = min(256, *image.shape[:2])
    top, left = (image.height_px - side) // 2, (image.width_px - side) // 2
    return hashlib.sha256(np.ascontiguousarray(image[top : top + side, left : left + side]).data).hexdigest()


def as_ingested(section: SlideSection, he_um_per_px: float) -> SlideSection:
    """The same slide at the scale that 'tario ingest' would store it at, where he_um_per_px is asked of that."""
    scale = stored_scale(section.file, section.he_um_per_px, he_um_per_px)
    image = averaged(section.file.levels[scale.level], scale.factor)
    file = SlideFile(section.file.path, (image,), (scale.stored_um_per_px,) * 2)
    return SlideSection(file, scale.stored_um_per_px, genes=1)


def section_as_slide(section: Section, *, genes: int) -> SlideSection:
    """A section of a corpus, read as a slide is. Raises `InputError` where it has no H&E."""
    file = SlideFile(Path(section.id), (section.he_blocks(),), (section.he_um_per_px,) * 2)
    slide = SlideSection(file, section.he_um_per_px, genes=genes)
    slide.he_full_um_per_px, slide.he_origin_px = section.he_full_um_per_px, section.he_origin_px
    slide.without_features = "write --out=NAME.h5ad, for which the section's stored ones are read"
    return slide

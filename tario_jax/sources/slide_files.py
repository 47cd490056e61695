"""Slide files: what each holds, as levels that are read block by block.

OpenSlide reads the vendors' formats; tifffile reads (OME-)TIFF, since OpenSlide takes one level of an OME pyramid for
the whole and says nothing; PIL reads PNG and JPEG. Only the pixels of the tissue and their scale leave this file:
label, macro and thumbnail images, names and dates stay behind.
"""

import contextlib
import dataclasses
import logging
import math
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ImageOps

from tario_jax.config import InputError
from tario_jax.corpus.section import PLAUSIBLE_UM_PER_PX, BlockImage
from tario_jax.sources.images import exif_orientation, on_white, opened_image, physical_size_um, reason_of

PLAIN = (".png", ".jpg", ".jpeg")
TIFF = (".tif", ".tiff", ".btf")
VENDORS = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")
DICOM = ".dcm"

# PNG, JPEG and TIFF of compressed strips give no block without all the rest: they are decoded whole, up to here.
MOST_WHOLE_PX = 500_000_000
_INCH_UM, _CM_UM = 25400.0, 10000.0
_COLOURS = ("RGB", "YCBCR", "MINISBLACK")  # the last where a writer calls the three channels of RGB grey
_JPEGS = ("JPEG", "OJPEG", "ALT_JPEG", "APERIO_JP2000_YCBC", "JPEG2000", "JPEG_2000_LOSSY")  # they decode to RGB


@dataclasses.dataclass(frozen=True)
class SlideFile:
    """An open slide. Its levels go from fine to coarse; um_per_px (x, y) is of the finest, as the file states it."""

    path: Path
    levels: tuple[BlockImage, ...]
    um_per_px: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def other_scale(self, um_per_px: float) -> float | None:
        """µm per px as the file states it, where that is a scan's and more than 5 % from `um_per_px`; else None."""
        if self.um_per_px is None:
            return None
        stated = math.sqrt(self.um_per_px[0] * self.um_per_px[1])
        low_um, high_um = PLAUSIBLE_UM_PER_PX  # beyond them it is no scale: a TIFF may say 72 px an inch
        return stated if low_um <= stated <= high_um and not 0.95 < stated / um_per_px < 1.05 else None

    def downsample(self, level: int) -> float:
        """Pixels of the finest level for one of this level: a whole number where the sizes, once rounded, allow it."""
        first, this = self.levels[0], self.levels[level]
        whole = round(first.width_px / this.width_px)
        if all(abs(fine / whole - coarse) <= 1 for fine, coarse in zip(first.shape[:2], this.shape[:2], strict=True)):
            return whole
        return (first.width_px / this.width_px + first.height_px / this.height_px) / 2


@contextlib.contextmanager
def opened_slide(path: Path) -> Iterator[SlideFile]:
    """Opens a slide file, or the folder of a DICOM slide; its levels can be read until it is closed.

    Raises `InputError` where it is missing, truncated, no image, not 8-bit RGB, or of a kind that cannot be read in
    blocks and is too large to be read at once.
    """
    if not path.exists():
        raise InputError(f"{path}: no such slide")
    with contextlib.ExitStack() as stack:
        yield _open(path, stack)


def _open(path: Path, stack: contextlib.ExitStack) -> SlideFile:
    if path.suffix.lower() in PLAIN:
        return _plain(path, stack)
    if path.suffix.lower() in TIFF:
        file = _open_tiff(path, stack)
        if file.is_ome or _vendor(path) in (None, "generic-tiff"):
            return _tiff(path, file)
    elif path.is_file() and path.suffix.lower() not in (*VENDORS, DICOM) and _vendor(path) is None:
        return _plain(path, stack)  # of another name: BMP, JPEG 2000, …
    return _vendors_own(path, stack)


def _blocks(path: Path, height_px: int, width_px: int, read: Callable[[slice, slice], np.ndarray]) -> BlockImage:
    """A level whose blocks, where they cannot be decoded, are answered in one line."""

    def one(rows: slice, columns: slice) -> np.ndarray:
        try:
            return read(rows, columns)
        except _broken() as error:
            raise InputError(f"{path}: cannot be read at row {rows.start}, column {columns.start}: {reason_of(error)}; "
                             "copy or export it again") from None  # fmt: skip

    return BlockImage(height_px, width_px, one)


def _broken() -> tuple[type[Exception], ...]:
    """What the libraries raise at a damaged file."""
    kinds: list[type[Exception]] = [OSError, ValueError, IndexError, RuntimeError, SyntaxError, struct.error]
    with contextlib.suppress(ImportError):
        import openslide

        kinds.append(openslide.OpenSlideError)
    with contextlib.suppress(ImportError):
        import tifffile

        kinds.append(tifffile.TiffFileError)
    return tuple(kinds)


def _check_whole(path: Path, width_px: int, height_px: int) -> None:
    if width_px * height_px > MOST_WHOLE_PX:
        raise InputError(
            f"{path}: {width_px:,} × {height_px:,} px that can only be decoded at once; expected at most "
            f"{MOST_WHOLE_PX // 10**6} million px; convert it to a tiled TIFF "
            "(vips tiffsave IN OUT.tif --tile --pyramid --compression=jpeg)"
        )


# PNG and JPEG


def _plain(path: Path, stack: contextlib.ExitStack) -> SlideFile:
    image = stack.enter_context(opened_image(path))
    if image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{path}: image of mode {image.mode!r}; expected 8-bit RGB (an H&E image in colour)")
    _check_whole(path, *image.size)
    notes: tuple[str, ...] = ()
    if exif_orientation(image) != 1:
        image, notes = ImageOps.exif_transpose(image), ("is turned as its EXIF orientation says",)

    one_at_a_time = threading.Lock()  # PIL reads the file at the first look at it

    def read(rows: slice, columns: slice) -> np.ndarray:
        with one_at_a_time:
            cut = np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
        return on_white(cut)

    return SlideFile(path, (_blocks(path, image.height, image.width, read),), None, notes)


# TIFF and OME-TIFF


def _open_tiff(path: Path, stack: contextlib.ExitStack) -> Any:
    try:
        import tifffile
        import zarr  # noqa: F401 — tifffile gives blocks through it
    except ImportError as error:
        raise InputError(f"{path}: needs {error.name}; pip install 'tario-jax[io]'") from None
    said = _Said()
    log = logging.getLogger("tifffile")
    log.addHandler(said)
    try:
        file = stack.enter_context(tifffile.TiffFile(path))
        pages, _ = len(file.pages), file.series  # both are found at first use, and what is amiss is said then
    except (OSError, ValueError, KeyError, IndexError, SyntaxError, struct.error, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: cannot be read as TIFF: {reason_of(error)}; expected a whole slide; copy or export "
                         "it again") from None  # fmt: skip
    finally:
        log.removeHandler(said)
    lost = [line for line in said.lines if "offset" in line]  # a page that is not in the file is only logged
    if lost or not pages:
        raise InputError(f"{path}: is truncated: {(lost or ['no page'])[0]}; copy or export it again")
    return file


class _Said(logging.Handler):
    """Keeps what tifffile logs, which would otherwise go to stderr."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage().partition("> ")[2])


def _tiff(path: Path, file: Any) -> SlideFile:
    # the slide is the largest image: a label or macro image is another series
    series = max(file.series, key=lambda one: one.size)
    orientation = series.keyframe.tags.valueof("Orientation", 1)
    if orientation in range(2, 9):  # not turned here: places and alignments may mean the pixels as they are stored
        raise InputError(f"{path}: its orientation tag is {int(orientation)}, to be shown turned or mirrored; "
                         "expected 1; turn its pixels (vips autorot), or set the tag to 1 if wrong")  # fmt: skip
    notes = () if len(file.series) == 1 else (f"{path.name}: the largest of its {len(file.series)} images is read",)
    levels = tuple(_tiff_level(path, file, series, number) for number in range(len(series.levels)))
    height_px, width_px, _ = levels[0].shape
    stated = physical_size_um(file.ome_metadata, width_px, height_px)
    return SlideFile(path, levels, *_stated(stated or _resolution_um(series.keyframe), notes))


def _tiff_level(path: Path, file: Any, series: Any, number: int) -> BlockImage:
    level = series.levels[number]
    page, axes = level.keyframe, level.axes.replace("C", "S")
    if axes not in ("YXS", "SYX"):
        raise InputError(f"{path}: axes {level.axes} {level.shape}; expected one RGB image (YXS or CYX)")
    channels_first = axes == "SYX"
    channels, height_px, width_px = level.shape if channels_first else np.roll(level.shape, 1)
    colour, compression = page.photometric.name, page.compression.name
    alpha = channels == 4 and colour == "RGB" and not channels_first
    in_rgb = colour in _COLOURS and (colour != "YCBCR" or compression in _JPEGS)
    if level.dtype != np.uint8 or not (channels == 3 or alpha) or not in_rgb:
        raise InputError(f"{path}: {level.dtype}, {channels} channels, {colour}; expected 8-bit RGB (an H&E image in "
                         "colour)")  # fmt: skip
    end = max((offset + size for each in level.pages if each is not None
               for offset, size in zip(each.dataoffsets, each.databytecounts, strict=True)), default=0)  # fmt: skip
    if end > file.filehandle.size:
        raise InputError(f"{path}: is truncated: its pixels end at byte {end:,}, the file at "
                         f"{file.filehandle.size:,}; copy or export it again")  # fmt: skip
    pixels = _tiff_pixels(path, series, number, int(width_px), int(height_px))

    def read(rows: slice, columns: slice) -> np.ndarray:
        if channels_first:
            return np.ascontiguousarray(np.moveaxis(pixels()[:, rows, columns], 0, -1))
        return on_white(np.asarray(pixels()[rows, columns]))

    return _blocks(path, int(height_px), int(width_px), read)


def _tiff_pixels(path: Path, series: Any, number: int, width_px: int, height_px: int) -> Callable[[], Any]:
    """Gives what is sliced: blocks of tiles, a map of the file, or all of it, decoded at first use."""
    level = series.levels[number]
    if level.keyframe.is_tiled:
        import zarr

        blocks = zarr.open(series.aszarr(level=number, fillvalue=255), mode="r")  # tiles that are left out are white
        return lambda: blocks
    if level.dataoffset is not None:  # neither compressed nor scattered
        mapped = np.memmap(path, np.uint8, "r", level.dataoffset, level.shape)
        return lambda: mapped
    _check_whole(path, width_px, height_px)
    whole: list[np.ndarray] = []

    def decoded() -> np.ndarray:
        if not whole:
            whole.append(series.asarray(level=number))
        return whole[0]

    return decoded


def _resolution_um(page: Any) -> tuple[float, float] | None:
    """µm per px by the resolution tags; None where they name no unit."""
    unit = {2: _INCH_UM, 3: _CM_UM}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    per_unit = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    if unit is None or any(ratio is None or not ratio[0] or not ratio[1] for ratio in per_unit):
        return None
    x_um, y_um = (unit * below / above for above, below in per_unit)
    return x_um, y_um


# the vendors' formats


def _openslide(path: Path) -> Any:
    try:
        import openslide
    except (ImportError, OSError):  # the second where its library is not found
        raise InputError(f"{path}: needs OpenSlide; pip install openslide-python openslide-bin") from None
    return openslide


def _vendor(path: Path) -> str | None:
    """Whose format OpenSlide takes it for; None for no slide."""
    return _openslide(path).OpenSlide.detect_format(path)


def _vendors_own(path: Path, stack: contextlib.ExitStack) -> SlideFile:
    file = _of_dicom_folder(path) if path.is_dir() else path
    if _vendor(file) is None:
        raise InputError(f"{path}: no slide that OpenSlide knows, or truncated; expected SVS, NDPI, MRXS, SCN, BIF, "
                         "DICOM, TIFF, PNG or JPEG; copy or export it again")  # fmt: skip
    openslide = _openslide(path)
    try:
        slide = stack.enter_context(openslide.OpenSlide(file))
    except openslide.OpenSlideError as error:
        raise InputError(f"{path}: cannot be opened: {reason_of(error)}; copy or export it again") from None

    def level(number: int) -> BlockImage:
        def read(rows: slice, columns: slice) -> np.ndarray:
            # OpenSlide takes the corner in px of its finest level
            corner = [round(span.start * slide.level_downsamples[number]) for span in (columns, rows)]
            size = columns.stop - columns.start, rows.stop - rows.start
            return on_white(np.asarray(slide.read_region(corner, number, size)))

        width_px, height_px = slide.level_dimensions[number]
        return _blocks(path, height_px, width_px, read)

    stated = [slide.properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    return SlideFile(path, tuple(map(level, range(slide.level_count))), *_stated(stated))


def _stated(sizes: Sequence[Any] | None, notes: tuple[str, ...] = ()
            ) -> tuple[tuple[float, float] | None, tuple[str, ...]]:  # fmt: skip
    """µm per px (x, y) as a file states them, None where they are none; with a note on what it says in their place."""
    if sizes is None or None in sizes:
        return None, notes
    try:
        x_um, y_um = map(float, sizes)
    except ValueError:
        x_um = y_um = math.nan
    if 0 < x_um < math.inf and 0 < y_um < math.inf:
        return (x_um, y_um), notes
    return None, (*notes, f"says {sizes[0]} and {sizes[1]} µm per px, which are no sizes")


def _of_dicom_folder(folder: Path) -> Path:
    """A file of the slide: from any of them OpenSlide finds the others. Raises `InputError` for several slides."""
    openslide, files = _openslide(folder), {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == DICOM and _vendor(path) == "dicom":
            with contextlib.suppress(openslide.OpenSlideError), openslide.OpenSlide(path) as slide:
                files[slide.properties.get("dicom.SeriesInstanceUID")] = path
    if len(files) != 1:
        raise InputError(f"{folder}: holds {len(files)} DICOM slides; expected one, in whole files; give each a folder")
    return files.popitem()[1]

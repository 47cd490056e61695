"""H&E images from ordinary image files and OME-TIFF. Only pixels are read: label and macro images stay behind."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from tario_jax.config import InputError

# A scan of 9,270 × 9,910 px is already more than PIL takes for an attack. Ours are named by the user, so the bound is
# memory: 4 Gpx of RGB are 12 GB.
_MAX_PX = 4_000_000_000
_ORIENTATION = 0x0112  # EXIF


@contextlib.contextmanager
def opened_image(path: Path):
    """An image for PIL. Raises `InputError`, also from within, where the file is missing or broken."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = _MAX_PX
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot be read as an image: {reason_of(error)}; expected a whole JPEG, PNG or TIFF; "
            "copy or export it again"
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


def exif_orientation(image: Image.Image) -> int:
    """2 to 8 where the image is to be shown turned or mirrored, else 1. A PNG may say so behind its pixels, and is read
    whole."""
    orientation = image.getexif().get(_ORIENTATION)
    return orientation if orientation in range(2, 9) else 1


def image_size_px(path: Path) -> tuple[int, int]:
    """(width, height). Raises `InputError` where the image is to be shown turned."""
    with opened_image(path) as image:
        orientation = exif_orientation(image)
        if orientation != 1:  # not turned here: places may mean the pixels as they are stored
            raise InputError(f"{path}: its EXIF orientation is {orientation}, to be shown turned or mirrored; expected "
                             "1; turn its pixels, or set it to 1 if the places are px as stored")  # fmt: skip
        return image.size


def read_rgb(path: Path, box_px: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of the box (left, top, right, bottom), or of the whole."""
    with opened_image(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            raise InputError(f"{path}: image of mode {image.mode!r}; expected RGB (an H&E image in colour)")
        return on_white(np.asarray(image if box_px is None else image.crop(box_px)))


def on_white(pixels: np.ndarray) -> np.ndarray:
    """Uint8 [H, W, 3] of RGB or RGBA; what is transparent was not scanned, and is white."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return (255 - (255 - pixels[..., :3]).astype(np.uint16) * alpha // 255).astype(np.uint8)


def read_ome_tiff(path: Path) -> tuple[np.ndarray, float | None]:
    """Highest level of the first series as uint8 [H, W, 3], and its µm per px where the file says so.

    tifffile sees every level of an OME pyramid; other readers open one of them as if it were the whole.
    """
    with _finest_level(path) as (level, axes, um_per_px):
        pixels = level.asarray()
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels, um_per_px


@contextlib.contextmanager
def _finest_level(path: Path) -> Iterator[tuple]:
    """(highest level, its axes, µm per px). Raises `InputError` where it is no H&E or cannot be read."""
    try:
        import tifffile
    except ImportError:
        raise InputError(f"{path}: needs tifffile; pip install 'tario-jax[io]'") from None
    try:
        with tifffile.TiffFile(path) as file:
            level = max(file.series[0].levels, key=lambda one: one.size)
            axes = level.axes.replace("C", "S")
            if axes not in ("SYX", "YXS"):
                raise InputError(f"{path}: axes {level.axes}; expected one RGB image (YXS or CYX)")
            channels = level.shape[axes.index("S")]
            if level.dtype != np.uint8 or channels != 3:
                raise InputError(f"{path}: {level.dtype} with {channels} channels; expected uint8 RGB (an H&E image)")
            size_px = (level.shape[axes.index(axis)] for axis in "XY")
            stated_um = physical_size_um(file.ome_metadata, *size_px)
            yield level, axes, None if stated_um is None else stated_um[0]
    except InputError:
        raise
    except (OSError, ValueError, IndexError, struct.error, tifffile.TiffFileError) as error:
        raise InputError(f"{path}: cannot be read as (OME-)TIFF: {reason_of(error)}; expected an H&E image") from None
    except ImportError as error:  # a codec of imagecodecs
        raise InputError(f"{path}: {reason_of(error)}; pip install 'tario-jax[io]'") from None


def reason_of(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).splitlines() or [type(error).__name__])[0]


_UM = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}


def physical_size_um(ome: str | None, width_px: int, height_px: int) -> tuple[float, float] | None:
    """µm per px (x, y) by the OME metadata of the image of this size; None where they do not say."""
    try:
        nodes = ElementTree.fromstring(ome.encode()).iter() if ome else ()
    except ElementTree.ParseError:
        return None
    for node in nodes:
        found, size = node.attrib, (str(width_px), str(height_px))
        if node.tag.rpartition("}")[2] != "Pixels" or (found.get("SizeX"), found.get("SizeY")) != size:
            continue
        units = [_UM.get(found.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
        if "PhysicalSizeX" in found and None not in units:
            try:
                x, y = (float(found.get(f"PhysicalSize{axis}", found["PhysicalSizeX"])) for axis in "XY")
            except ValueError:
                return None
            return x * units[0], y * units[1]
    return None

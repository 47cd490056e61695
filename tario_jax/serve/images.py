"""The body of a request as pixels; what is no image, or too large for one, is refused before it is unpacked."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from tario_jax.serve.refusal import Refusal

Image.MAX_IMAGE_PIXELS = None  # sizes are looked at here, by limits that may be larger
RAW = "application/octet-stream"
_IN_COLOUR = ("RGB", "RGBA", "P", "PA")  # the last two with a palette
TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", RAW: ""}


def pixels_of(body: bytes, content_type: str, width_px: int | None, height_px: int | None, *, most_px: int,
              longest_px: int, check: Callable[[int, int], None] = lambda width_px, height_px: None
              ) -> np.ndarray:  # fmt: skip
    """uint8 [H, W, 3].

    width, height: of raw RGB bytes, row by row; of PNG and JPEG the file tells them. check: is told an image's size
    before it is unpacked, and may refuse it.
    """
    kind = TYPES.get(content_type.partition(";")[0].strip().lower())
    if kind is None:
        raise Refusal(415, f"content type is {content_type[:64] or 'absent'}; expected one of {', '.join(TYPES)}")
    if not kind:
        if width_px is None or height_px is None:
            raise Refusal(422, "raw pixels need width_px and height_px")
        _check_size(width_px, height_px, most_px, longest_px)
        if len(body) != 3 * width_px * height_px:
            raise Refusal(422, f"the body holds {len(body)} bytes; {width_px} x {height_px} px of RGB are "
                               f"{3 * width_px * height_px}")  # fmt: skip
        check(width_px, height_px)
        return np.frombuffer(body, np.uint8).reshape(height_px, width_px, 3)
    try:
        with warnings.catch_warnings():  # of Pillow about sizes and chunks: they are checked here, or end in an error
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(body), formats=(kind,)) as image:
                _check_size(*image.size, most_px, longest_px)
                check(*image.size)
                if image.mode not in _IN_COLOUR:
                    raise Refusal(422, f"the image is of mode {image.mode}; expected 8-bit RGB (H&E in colour)")
                # as `tario predict` reads it: the frame of the answer is that of the image as it is seen
                image = ImageOps.exif_transpose(image)
                if image.has_transparency_data:  # glass is white; under what is transparent mostly lies black
                    ground = Image.new("RGBA", image.size, "white")
                    return np.asarray(Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB"))
                return np.asarray(image.convert("RGB"))
    except Refusal:
        raise
    except Exception as error:  # whatever a broken file makes Pillow raise
        raise Refusal(422, f"the body is no {kind} that can be read ({type(error).__name__})") from None


def _check_size(width_px: int, height_px: int, most_px: int, longest_px: int) -> None:
    if max(width_px, height_px) > longest_px or width_px * height_px > most_px:
        raise Refusal(413, f"the image has {width_px} x {height_px} px; expected at most {longest_px} px a side and "
                           f"{most_px / 1e6:g} megapixels")  # fmt: skip
    if min(width_px, height_px) < 1:
        raise Refusal(422, f"the image has {width_px} x {height_px} px; expected at least one")

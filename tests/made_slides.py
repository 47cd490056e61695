"""Small slides for tests: pyramids as scanners and converters write them."""

import numpy as np
import tifffile

PX_PER_CM = 40_000  # 0.25 µm per px


def speckled(height_px, width_px, seed=0):
    """Noise in squares of 4 px, coloured like H&E: a level is told from another by its pixels."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(60, 255, (-(-height_px // 4), -(-width_px // 4), 3), np.uint8)
    return np.kron(squares, np.ones((4, 4, 1), np.uint8))[:height_px, :width_px]


def halved(image):
    """Each second pixel: not the mean, so that a stored level is told from an average."""
    return np.ascontiguousarray(image[::2, ::2])


def write_pyramid(path, image, levels=3, *, ome=False, px_per_cm=PX_PER_CM, label=None, **options):
    """A tiled pyramid of `levels`, each half of the one before; a label page behind it where one is given."""
    options = {"photometric": "rgb", "tile": (64, 64), **options}
    scale = {"resolution": (px_per_cm, px_per_cm), "resolutionunit": "CENTIMETER"} if px_per_cm else {}
    metadata = {"axes": "YXS"}
    if ome and px_per_cm:
        metadata |= {f"PhysicalSize{axis}": 1e4 / px_per_cm for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XY"}
        scale = {}
    with tifffile.TiffWriter(path, ome=ome) as file:
        inside = {"subifds": levels - 1} if ome else {}
        file.write(image, metadata=metadata if ome else None, **inside, **scale, **options)
        for level in range(1, levels):
            image = halved(image)
            scale = {
                name: (px_per_cm / 2**level,) * 2 if name == "resolution" else unit for name, unit in scale.items()
            }
            file.write(image, subfiletype=1, metadata=None, **scale, **options)
        if label is not None:
            file.write(label, photometric="rgb", metadata={"axes": "YXS", "Name": "label"} if ome else None)
    return path

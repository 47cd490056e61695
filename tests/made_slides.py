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


def write_dicom(folder, image, um_per_px, *, levels=2, tile=256):
    """A DICOM whole-slide image (VL Whole Slide Microscopy, TILED_FULL, uncompressed): a file a level, in a folder."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    series = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    for level in range(levels):
        height, width = image.shape[:2]
        rows, columns = -(-height // tile), -(-width // tile)
        whole = np.pad(image, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), constant_values=255)
        frames = whole.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
        size, path, shared, file = Dataset(), Dataset(), Dataset(), Dataset()
        size.PixelSpacing, size.SliceThickness = [um_per_px / 1e3] * 2, 0.001
        path.OpticalPathIdentifier = "1"
        shared.PixelMeasuresSequence = Sequence([size])
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = generate_uid()
        for name, value in (series | {
            "Modality": "SM", "ImageType": ["ORIGINAL" if not level else "DERIVED", "PRIMARY", "VOLUME",
                                            "NONE" if not level else "RESAMPLED"],
            "TotalPixelMatrixColumns": width, "TotalPixelMatrixRows": height, "Rows": tile, "Columns": tile,
            "NumberOfFrames": rows * columns, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB",
            "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
            "DimensionOrganizationType": "TILED_FULL", "InstanceNumber": level + 1, "NumberOfOpticalPaths": 1,
            "TotalPixelMatrixFocalPlanes": 1, "ImagedVolumeWidth": width * um_per_px / 1e3,
            "ImagedVolumeHeight": height * um_per_px / 1e3, "OpticalPathSequence": Sequence([path]),
            "SharedFunctionalGroupsSequence": Sequence([shared]), "PixelData": np.ascontiguousarray(frames).tobytes(),
        }).items():  # fmt: skip
            setattr(file, name, value)
        file.save_as(folder / f"{level}.dcm", enforce_file_format=True)
        image, um_per_px = halved(image), um_per_px * 2

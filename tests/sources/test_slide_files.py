"""Slide files as they go wrong: each in one line that names the file and says what to do."""

import builtins
import sys

import numpy as np
import pytest
import tifffile
from made_slides import halved, speckled, write_dicom, write_pyramid
from PIL import Image
from refusals import refused

from tario_jax.sources import slide_files
from tario_jax.sources.slide import full_um_per_px
from tario_jax.sources.slide_files import opened_slide

IMAGE = speckled(200, 260)


def whole(path):
    """The finest level of a slide."""
    with opened_slide(path) as file:
        return file.levels[0][:, :]


def saved(path, image=IMAGE, **options):
    tifffile.imwrite(path, image, **{"photometric": "rgb"} | options)
    return path


@pytest.mark.parametrize("options", [
    {}, {"compression": "zlib"}, {"compression": "zlib", "rowsperstrip": 16}, {"tile": (64, 64), "compression": "zlib"},
    {"planarconfig": "contig", "bigtiff": True, "tile": (64, 64)},
])  # fmt: skip
def test_every_kind_of_tiff_gives_its_pixels(options, tmp_path):
    np.testing.assert_array_equal(whole(saved(tmp_path / "S1.tif", **options)), IMAGE)


def test_channels_that_come_first_and_colours_of_a_jpeg_are_rgb(tmp_path):
    first = np.ascontiguousarray(np.moveaxis(IMAGE, -1, 0))
    np.testing.assert_array_equal(
        whole(saved(tmp_path / "a.tif", first, planarconfig="separate", tile=(64, 64))), IMAGE
    )
    smooth = np.full((192, 256, 3), (200, 120, 180), np.uint8)
    jpeg = saved(tmp_path / "b.tif", smooth, tile=(64, 64), compression="jpeg")
    with tifffile.TiffFile(jpeg) as file:
        assert file.pages[0].photometric.name == "YCBCR"
    assert np.abs(whole(jpeg).astype(int) - smooth).max() <= 3


def test_tiles_that_are_left_out_and_transparent_pixels_are_white(tmp_path):
    tiles = [IMAGE[:64, :64], None, None, IMAGE[64:128, 64:128]]
    path = tmp_path / "S1.tif"
    tifffile.imwrite(path, iter(tiles), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), photometric="rgb")
    expected = np.full((128, 128, 3), 255, np.uint8)
    expected[:64, :64], expected[64:, 64:] = tiles[0], tiles[3]
    np.testing.assert_array_equal(whole(path), expected)

    clear = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
    clear[:50, :, 3], clear[50:100, :, 3] = 0, 128
    Image.fromarray(clear).save(tmp_path / "S2.png")
    saved(tmp_path / "S2.tif", clear, extrasamples="unassalpha")
    for name in ("S2.png", "S2.tif"):
        seen = whole(tmp_path / name)
        assert (seen[:50] == 255).all() and (seen[100:] == IMAGE[100:]).all()
        half = 255 - (255 - IMAGE[50:100].astype(float)) * 128 / 255
        assert np.abs(seen[50:100] - half).max() <= 1


@pytest.mark.parametrize(("image", "options", "words"), [
    (IMAGE[..., 0], {"photometric": "minisblack"}, ("axes YX", "one RGB image")),
    (IMAGE.astype(np.uint16), {}, ("uint16", "expected 8-bit RGB")),
    (np.dstack([IMAGE, IMAGE[..., 0]]), {"photometric": "separated"}, ("4 channels, SEPARATED", "expected 8-bit RGB")),
    (np.stack([IMAGE] * 3), {}, ("(3, 200, 260, 3)", "one RGB image")),
])  # fmt: skip
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_a_tiff_that_is_not_8_bit_rgb_is_refused(image, options, words, tile, tmp_path):
    refused(lambda: whole(saved(tmp_path / "S1.tif", image, tile=tile, **options)), "S1.tif", *words)


@pytest.mark.parametrize(("mode", "name"), [("L", "S1.png"), ("I;16", "S1.png"), ("CMYK", "S1.jpg"), ("P", "S1.png")])
def test_a_plain_image_that_is_not_8_bit_rgb_is_refused(mode, name, tmp_path):
    image = Image.fromarray(IMAGE[..., 0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(IMAGE).convert(mode)
    image.save(tmp_path / name)
    refused(lambda: whole(tmp_path / name), name, f"mode {mode!r}", "expected 8-bit RGB")


@pytest.mark.parametrize("name", ["S1.svs", "S1.ndpi", "S1.tif", "S1.ome.tif", "S1.png", "S1.jpg"])
def test_what_is_no_image_is_refused_by_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(b"Dear colleague, please find attached " * 100)
    refused(lambda: whole(tmp_path / name), name, "copy or export it again")


@pytest.mark.parametrize("options", [{}, {"tile": None}, {"compression": "jpeg"}, {"ome": True}])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_tiff_is_refused_and_nothing_is_printed(options, share, tmp_path, capfd):
    path = write_pyramid(tmp_path / "S1.tif", IMAGE, **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    message = refused(lambda: whole(path), "S1.tif", "copy or export it again")
    assert "truncated" in message or "cannot be read" in message
    assert capfd.readouterr() == ("", "")


def test_a_tile_that_is_damaged_is_refused_with_its_place(tmp_path):
    path = saved(tmp_path / "S1.tif", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[7], file.pages[0].databytecounts[7]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    refused(lambda: whole(path), "S1.tif", "cannot be read at row 0, column 0", "copy or export it again")
    with opened_slide(path) as file:  # the rest is what it was
        np.testing.assert_array_equal(file.levels[0][128:, :], IMAGE[128:])


@pytest.mark.parametrize("name", ["S1.png", "S1.jpg"])
def test_a_truncated_plain_image_is_refused(name, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    refused(lambda: whole(tmp_path / name), name, "cannot be read", "copy or export it again")


def test_what_can_only_be_decoded_whole_is_refused_where_it_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_files, "MOST_WHOLE_PX", 50_000)
    Image.fromarray(IMAGE).save(tmp_path / "S1.png")
    saved(tmp_path / "S1.tif", compression="zlib")
    for name in ("S1.png", "S1.tif"):
        refused(lambda name=name: whole(tmp_path / name), name, "260 × 200 px", "vips tiffsave")
    for options in ({}, {"tile": (64, 64), "compression": "zlib"}):  # these are read in blocks
        np.testing.assert_array_equal(whole(saved(tmp_path / "S2.tif", **options)), IMAGE)


def test_a_missing_openslide_is_answered_with_the_command_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "S1.svs").write_bytes(b"II*\0")
    path = write_pyramid(tmp_path / "S1.ome.tif", IMAGE, ome=True)
    real_import = builtins.__import__

    def without(name, *arguments, **options):
        if name == "openslide":
            raise ModuleNotFoundError("No module named 'openslide'", name="openslide")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "openslide", raising=False)
    refused(lambda: whole(tmp_path / "S1.svs"), "S1.svs", "pip install openslide-python openslide-bin")
    np.testing.assert_array_equal(whole(path), IMAGE)  # an OME-TIFF does without


def test_a_dicom_slide_is_a_folder(tmp_path):
    pixels = speckled(600, 800)
    write_dicom(tmp_path / "slide", pixels, 0.25)
    with opened_slide(tmp_path / "slide") as file:
        assert file.um_per_px == (0.25, 0.25) and len(file.levels) == 2 and file.downsample(1) == 2
        assert np.array_equal(file.levels[0][:600, :800], pixels)
        assert np.array_equal(file.levels[1][:300, :400], halved(pixels))
    (tmp_path / "slide" / "0.dcm").write_bytes((tmp_path / "slide" / "0.dcm").read_bytes()[:5000])
    with opened_slide(tmp_path / "slide") as file:
        refused(lambda: file.levels[0][:600, :800], str(tmp_path / "slide"), "cannot be read at row 0")


@pytest.mark.parametrize("size", ["0", "-0.5", "abc", "nan", "inf"])
def test_a_size_that_is_none_is_not_taken(size, tmp_path):
    path = tmp_path / "slide.ome.tif"
    write_pyramid(path, speckled(200, 240), ome=True)
    path.write_bytes(path.read_bytes().replace(b'PhysicalSizeX="0.25"', f'PhysicalSizeX="{size:<4}"'.encode()))
    with opened_slide(path) as file:
        assert file.um_per_px is None
        refused(lambda: full_um_per_px(file, None, force=False), "does not say its µm per px; give --um-per-px")
        assert full_um_per_px(file, 0.5, force=False) == (0.5, [])
        for odd in (1e-9, 1e9):
            refused(lambda odd=odd: full_um_per_px(file, odd, force=True), "0.01 to 100", "also with --force")


def test_a_photograph_is_turned_as_its_exif_says(tmp_path):
    pixels = speckled(60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "slide.png", exif=exif)
    with opened_slide(tmp_path / "slide.png") as file:
        assert np.array_equal(file.levels[0][:80, :60], np.rot90(pixels, -1)) and "EXIF" in file.notes[0]


def test_a_tiff_that_is_to_be_shown_turned_is_refused(tmp_path):
    path, upright = (saved(tmp_path / f"{tag}.tif", extratags=[("Orientation", "H", 1, tag, True)]) for tag in (6, 1))
    refused(lambda: whole(path), "6.tif: its orientation tag is 6", "expected 1")
    np.testing.assert_array_equal(whole(upright), IMAGE)


def test_a_pyramid_of_whole_levels_has_whole_downsamples(tmp_path):
    with opened_slide(write_pyramid(tmp_path / "S1.tif", speckled(201, 263), 3)) as file:
        assert [file.downsample(level) for level in range(3)] == [1, 2, 4]
        assert file.um_per_px == pytest.approx((0.25, 0.25))


def test_ome_sizes_are_those_of_the_image_that_is_read_in_their_unit(tmp_path):
    path = tmp_path / "S1.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for size, um in ((50, 9.0), (200, 0.25)):  # a macro image first
            scale = {f"PhysicalSize{axis}": um * 1000 for axis in "XY"}
            unit = {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
            file.write(speckled(size, size), photometric="rgb", metadata={"axes": "YXS", **scale, **unit})
    with opened_slide(path) as file:
        assert file.levels[0].shape == (200, 200, 3) and file.um_per_px == pytest.approx((0.25, 0.25))


def test_ome_metadata_that_cannot_be_read_say_nothing_of_the_scale(tmp_path, capfd):
    path = write_pyramid(tmp_path / "S1.ome.tif", IMAGE, ome=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"</Pixels>", b"</Pixel> "))
    with opened_slide(path) as file:
        np.testing.assert_array_equal(file.levels[0][:, :], IMAGE)
        assert file.um_per_px is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.real_data
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_a_truncated_real_slide_is_refused(share, real_data, tmp_path):
    content = (real_data / "slides/CMU-1-Small-Region.svs").read_bytes()
    (tmp_path / "S1.svs").write_bytes(content[: int(len(content) * share)])
    refused(lambda: whole(tmp_path / "S1.svs"), "S1.svs", "truncated", "copy or export it again")

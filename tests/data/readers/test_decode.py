"""Images as they are found: orientation, modes, formats under other names, and limits."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch

from oekd_fast.data import DataError, load_dataset
from oekd_fast.data.readers import formats
from oekd_fast.data.readers.decode import decode_image, decode_images, has_colour
from oekd_fast.data.readers.formats import UnreadableImage, image_suffixes

Image = pytest.importorskip("PIL.Image", reason="encoded images need Pillow, of the extra 'train'")
ORIENTATION = 0x0112
# What each EXIF orientation means: from the stored pixels to those that are shown.
SHOWN = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def encoded(image, kind: str = "PNG", **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer


def exif(orientation: object):
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.fixture
def pixels() -> np.ndarray:
    """An image of 32 x 48 pixels of four colours, in whole blocks of JPEG, which every turn and mirror changes."""
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:16, :32], image[:16, 32:], image[16:, :32], image[16:, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 128
    return image


# Orientation


@pytest.mark.parametrize("orientation", SHOWN)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_the_exif_orientation_is_applied(pixels, kind, orientation):
    exact = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}.get(kind, {})
    source = encoded(Image.fromarray(pixels), kind, exif=exif(orientation), **exact)
    expected = SHOWN[orientation](pixels).astype(int)
    read = decode_image("x", source)
    assert read.shape == expected.shape and np.abs(read - expected).mean() < 6


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_without_meaning_leaves_the_pixels_as_they_are(pixels, orientation):
    assert np.array_equal(decode_image("x", encoded(Image.fromarray(pixels), exif=exif(orientation))), pixels)


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_metadata_leaves_the_pixels_as_they_are(pixels, damage):
    assert np.array_equal(decode_image("x", encoded(Image.fromarray(pixels), exif=damage)), pixels)


@pytest.mark.parametrize("stream", [False, True])
def test_sizes_are_those_of_the_upright_image(tmp_path, pixels, stream):
    for name, stored, orientation in (("tall", np.rot90(pixels), 6), ("wide", pixels, 1)):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.fromarray(stored).save(tmp_path / name / f"{index}.png", exif=exif(orientation))
    with pytest.raises(DataError, match="expected square images, got 32x48"):
        load_dataset(str(tmp_path), stream=stream)
    data = load_dataset(str(tmp_path), stream=stream, image_size=8)
    shown = data.train.gather(torch.arange(len(data.train)))
    assert (shown == shown[0]).all()


# Modes


@pytest.mark.parametrize(
    ("mode", "kind", "channels"),
    [
        ("1", "PNG", 1),
        ("L", "JPEG", 1),
        ("LA", "PNG", 1),
        ("P", "GIF", 3),
        ("P", "PNG", 3),
        ("PA", "TIFF", 3),
        ("RGBA", "WEBP", 3),
        ("CMYK", "JPEG", 3),
        ("YCbCr", "JPEG", 3),
        ("CMYK", "TIFF", 3),
    ],
)
def test_modes_of_8_bits_become_grey_or_rgb(pixels, mode, kind, channels):
    image = Image.fromarray(pixels).convert(mode)
    source = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    read = decode_image("x", source)
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).astype(int)
    assert read.shape == expected.shape and np.abs(read - expected).mean() < 6
    assert has_colour("x", source) == (channels == 3)


@pytest.mark.parametrize("transparency", [0, bytes(range(256))])
def test_a_palette_with_transparency_keeps_its_colours_without_a_warning(pixels, transparency):
    image = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = decode_image("x", encoded(image, transparency=transparency))
    assert np.array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_first_frame_of_an_animation_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    read = decode_image("x", encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert np.abs(read.reshape(-1, 3).mean(0) - (255, 0, 0)).max() < 6


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (Image.fromarray(np.zeros((4, 4), dtype=np.uint16)), "PNG", "I;16"),
        (Image.new("F", (4, 4)), "TIFF", "F"),
        (Image.new("LAB", (4, 4)), "TIFF", "LAB"),
    ],
)
def test_other_modes_are_refused_by_name(image, kind, mode):
    with pytest.raises(DataError, match=f"image x: expected 8 bits per channel, .*, got Pillow mode '{mode}'"):
        decode_image("x", encoded(image, kind))


# Formats


def test_suffixes_are_those_of_the_formats_that_are_opened():
    suffixes = image_suffixes()
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".pgm", ".pbm", ".tif", ".webp", ".jp2"} <= set(suffixes)
    assert not {".eps", ".ps", ".wmf", ".tga", ".pfm", ".h5", ".mpg"} & set(suffixes)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG2000", "QOI", "AVIF"])
def test_an_image_is_read_by_its_contents_whatever_its_suffix(tmp_path, pixels, kind):
    Image.fromarray(pixels).save(tmp_path / "x.jpg", kind)
    assert decode_image("x", tmp_path / "x.jpg").shape == pixels.shape


@pytest.mark.parametrize("kind", ["EPS", "TGA", "ICO", "PCX", "PDF"])
def test_other_formats_are_refused_and_no_other_program_is_started(tmp_path, pixels, kind, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", None)
    Image.fromarray(pixels).save(tmp_path / "x.png", kind)
    with pytest.raises(UnreadableImage, match="cannot read image x: expected a format of AVIF, .*, got other contents"):
        decode_image("x", tmp_path / "x.png")


# Limits


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of 8-bit grey with `width` x `height` pixels of which only the header is present."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) for body in (fields, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(2**31 - 1, 1), (65536, 32768), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_2_to_the_31_pixels_is_refused_from_its_header(size):
    with pytest.raises(UnreadableImage, match="cannot read image x: .*178956970 pixels") as caught:
        decode_image("x", io.BytesIO(png_header(*size)))
    assert "\n" not in str(caught.value)


def test_the_limit_of_pixels_does_not_depend_on_the_setting_of_pillow(pixels, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadableImage, match="image x: expected 1 to 178,956,970 pixels, got 65536 x 32768"):
        decode_image("x", io.BytesIO(png_header(65536, 32768)))
    monkeypatch.setattr(formats, "MAX_PIXELS", 32 * 48)
    assert decode_image("x", encoded(Image.fromarray(pixels))).shape == pixels.shape
    monkeypatch.setattr(formats, "MAX_PIXELS", 32 * 48 - 1)
    with pytest.raises(UnreadableImage, match="image x: expected 1 to 1,535 pixels, got 48 x 32"):
        has_colour("x", encoded(Image.fromarray(pixels)))


def test_a_file_above_the_limit_of_bytes_is_not_read(tmp_path):
    with open(tmp_path / "x.webp", "wb") as file:
        file.truncate(formats.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match="x.webp: expected at most 1,073,741,824 bytes, got 1,073,741,825"):
        decode_image("x", tmp_path / "x.webp")


@pytest.mark.parametrize("skip_corrupt", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_fifo_among_the_images_is_refused_by_name(tmp_path, pixels, stream, skip_corrupt):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    os.mkfifo(tmp_path / "a" / "0.jpg")
    with pytest.raises(DataError, match="0.jpg: expected a regular file, got a FIFO"):
        load_dataset(str(tmp_path), stream=stream, skip_corrupt=skip_corrupt)


# Arrays of all images


def test_the_array_of_all_images_is_refused_if_it_does_not_fit_in_memory(monkeypatch):
    def sources(colours: str):
        return [(f"{index}.png", encoded(Image.new(mode, (32, 32)))) for index, mode in enumerate(colours.split())]

    monkeypatch.setattr("oekd_fast.data.memory.available_memory", lambda: 3 * 32 * 32)
    assert decode_images(sources("L L L"), 3).images.shape == (3, 1, 32, 32)
    for colours, found in (("RGB L", "2 images of 3 x 32 x 32"), ("L RGB", "2 images of 3 x 32 x 32")):
        with pytest.raises(DataError) as caught:
            decode_images(sources(colours), 2)
        assert str(caught.value) == (
            f"images of the size of 0.png: expected at most 0.0 GiB of free memory, got {found} bytes (0.0 GiB); "
            "set stream=True (--data-placement stream) to leave them on disk, or a smaller image_size"
        )


def test_an_array_that_no_machine_can_hold_is_refused():
    with pytest.raises(DataError, match=r"got 4,611,686,018,427,387,904 images of 1 x 32 x 32 bytes"):
        decode_images([("0.png", encoded(Image.new("L", (32, 32))))], 2**62)

"""Files of images and arrays as an attacker or a broken disk may leave them, drawn from a random generator."""

from __future__ import annotations

import io
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16")
SUFFIXES = (".png", ".jpg", ".JPEG", ".jfif", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".jp2", ".qoi", ".avif")
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x80\0\0\0", b"\0\0\0\x80")
HUGE = (2**31 - 1, 2**31, 2**32 - 1, 65535, 65536, 20000, 13378)
OTHER_FORMATS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch harm) (w) file\n%%EOF\n",
    b"%PDF-1.4\n1 0 obj\n<< /OpenAction << /S /Launch /F (touch harm) >> >>\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>",
    b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x.jpg\"|touch \"harm'\n",
    b"\xd7\xcd\xc6\x9a" + bytes(60),
    b"\x89HDF\r\n\x1a\n" + bytes(60),
    b"GRIB" + bytes(60),
    b"SIMPLE  =                    T" + bytes(90),
    b"8BPS\0\1" + bytes(60),
    b"\0\0\1\xb3" + bytes(60),
    b"\x7fELF" + bytes(60),
    b"#!/bin/sh\ntouch harm\n",
    b"",
    b"\0" * 1000,
)


class Harm:
    """An object whose pickle makes a folder when it is loaded."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("harm",)


def picture(draw: random.Random, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    width, height = size or (draw.choice((1, 8, 8, 33)), draw.choice((1, 8, 8, 17)))
    pixels = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16))
    return Image.fromarray(pixels).convert(mode)


def valid_image(draw: random.Random) -> bytes:
    """Return an encoded image of a random format and mode, some with metadata or several frames."""
    buffer, kind = io.BytesIO(), draw.choice(FORMATS)
    options = {}
    if draw.random() < 0.3:
        options["exif"] = bytes(draw.randrange(256) for _ in range(draw.randrange(40)))
        if draw.random() < 0.5:
            exif = Image.Exif()
            exif[0x0112] = draw.randrange(12)
            options["exif"] = exif.tobytes()
    if kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF") and draw.random() < 0.2:
        options |= {"save_all": True, "append_images": [picture(draw, size=(8, 8)) for _ in range(2)]}
    if kind == "TIFF":
        options["compression"] = draw.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"))
    try:
        picture(draw, draw.choice(MODES)).save(buffer, kind, **options)
    except Exception:  # Pillow's writers raise many types for a mode or metadata that a format does not have
        buffer = io.BytesIO()
        picture(draw).save(buffer, kind)
    return buffer.getvalue()


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Return `data` after some random changes: flipped bits, extreme numbers, cuts, insertions and repeats."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        # Half of the changes are in the first bytes, which are the header in most formats.
        at = draw.randrange(min(len(changed), 64) if draw.random() < 0.5 else len(changed)) if changed else 0
        change = draw.randrange(7)
        if change == 0 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif change == 1 and changed:
            changed[at] = draw.randrange(256)
        elif change == 2:
            changed[at : at + 4] = draw.choice(EXTREMES)
        elif change == 3:
            del changed[at:]
        elif change == 4:
            del changed[at : at + draw.randrange(64)]
        elif change == 5:
            changed[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(64)))
        else:
            changed[at:at] = changed[at : at + draw.randrange(200)]
    return bytes(changed)


def png(width: int, height: int, data: bytes, *others: tuple[bytes, bytes], depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG with the given header and compressed data, and other chunks before the data."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), *others, (b"IDAT", data), (b"IEND", b""))
    body = (
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def huge_header(draw: random.Random) -> bytes:
    """Return an image that says it has far more pixels than it holds data for."""
    width, height = draw.choice(HUGE), draw.choice((*HUGE, 1, 8))
    low, few = (min(width, 65535), min(height, 65535)), draw.randbytes(64)
    wide, high = width & 0xFFFFFFFF, height & 0xFFFFFFFF
    jpeg = io.BytesIO()
    picture(draw, size=(8, 8)).save(jpeg, "JPEG")
    start = jpeg.getvalue().index(b"\xff\xc0") + 5
    crafted = (
        png(width, height, zlib.compress(bytes(100))),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width & 0x7FFFFFFF, -(height & 0x7FFFFFFF), 1,
                            draw.choice((1, 8, 24, 32)), draw.choice((0, 1, 3)), 0, 1, 1, 0, 0) + few,
        b"GIF89a" + struct.pack("<HHBBB", *low, 0x80, 0, 0) + few + b"," + struct.pack("<HHHHB", 0, 0, *low, 0) + few,
        b"P%d %d %d 255\n" % (draw.randrange(1, 7), width, height) + few,
        b"II*\0\x08\0\0\0\x04\0" + b"".join(
            struct.pack("<HHII", tag, 4, 1, value)
            for tag, value in ((256, wide), (257, high), (262, 1), (273, 8))
        ) + few,
        b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\xff\xff" * 2 + few,
        b"qoif" + struct.pack(">IIBB", wide, high, 4, 0) + few,
        jpeg.getvalue()[:start] + struct.pack(">HH", *low) + jpeg.getvalue()[start + 4 :],
        b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIH", 47, 0, *(wide, high, 0, 0) * 2, 3) + b"\7\1\1" * 3 + few,
    )  # fmt: skip
    return draw.choice(crafted)


def bomb(draw: random.Random) -> bytes:
    """Return a small file that expands to tens or hundreds of megabytes of pixels or metadata."""
    zeros = zlib.compress(bytes(draw.choice((20, 150)) * 2**20), 1)
    side = draw.choice((4000, 9000))
    kind = draw.randrange(6)
    if kind == 0:
        return png(side, side, zlib.compress(bytes(side * (side + 1)), 1))
    if kind == 1:
        return png(8, 8, zlib.compress(bytes(72)), (b"iCCP", b"x\0\0" + zeros))
    if kind == 2:
        return png(8, 8, zlib.compress(bytes(72)), *[(b"zTXt", b"x\0\0" + zeros)] * 3)
    if kind == 3:
        return png(8, 8, zlib.compress(bytes(72)), (b"iTXt", b"x\0\1\0\0\0" + zeros))
    if kind == 4:
        return png(8, 8, zeros)  # more data than pixels
    buffer = io.BytesIO()
    Image.new(draw.choice(("L", "RGB")), (side, side)).save(buffer, draw.choice(("TIFF", "GIF")))
    return buffer.getvalue()


def special_file(draw: random.Random, path: Path) -> None:
    """Put something at `path` that is no plain file of a few bytes."""
    kind = draw.randrange(9)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(draw.choice(("/dev/zero", "/dev/random", "/dev/stdin", "/dev/full", "/dev/tty")))
    elif kind == 2:
        path.symlink_to(
            draw.choice(("/proc/self/mem", "/proc/self/maps", "/proc/kmsg", "/proc/self/fd/0", "/etc/passwd"))
        )
    elif kind == 3:
        path.symlink_to(draw.choice((path.name, "missing", "..", ".", "../..", "../dog", "../cat")))
    elif kind == 4:
        with open(path, "wb") as file:
            file.truncate(draw.choice((2**30, 2**30 + 1, 2**40)))
    elif kind == 5:
        with socket.socket(socket.AF_UNIX) as server:
            here = os.open(path.parent, os.O_RDONLY)
            try:  # paths of sockets are short
                server.bind(f"/proc/self/fd/{here}/{path.name[-20:]}")
            finally:
                os.close(here)
    elif kind == 6:
        path.mkdir()
        (path / "x.png").symlink_to(path)
    elif kind == 7:
        deepest = path
        for _ in range(draw.choice((5, 60))):
            deepest = deepest / "d"
        deepest.mkdir(parents=True)
        (deepest / "up").symlink_to(path)
    else:
        path.write_bytes(draw.choice(OTHER_FORMATS))


def odd_name(draw: random.Random) -> str:
    """Return a name of bytes that terminals, shells, markup or formats may take for something else."""
    names = (
        b"caf\xe9", b"\xff\xfe", b"a\nb", b"\x1b]0;x\x07", b"-rf", b"$(touch harm)", b"`touch harm`", b"%s%n", b"{0}",
        b"[red]x", b"<script>", b"..\\..\\x", b"...", b"~", b"$HOME", b"con", b" ", b"x" * 240, b"|touch harm",
        "\u202egnp".encode(), "\u2028".encode(), "\U0001f600".encode(), b"*", b"?", b"'\"",
    )  # fmt: skip
    return os.fsdecode(draw.choice(names))


def npy_bytes(draw: random.Random, array: np.ndarray) -> bytes:
    """Return a NumPy file of `array` that is damaged, crafted, or no NumPy file at all."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    valid = buffer.getvalue()
    kind = draw.randrange(7)
    if kind < 2:
        return mutated(draw, valid)
    if kind == 2:
        buffer = io.BytesIO()
        np.save(buffer, np.array([Harm()], dtype=object), allow_pickle=True)
        return buffer.getvalue()
    if kind == 3:
        return pickle.dumps(Harm())
    if kind == 4:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../harm.npy", bytes(2**24))
        return buffer.getvalue()
    shape = draw.choice(
        ("(2**60,)", "(4611686018427387904, 8, 8)", "(-1, 8, 8)", "(8, 8, 8, 1152921504606846976)", "()")
    )
    shape = draw.choice((shape, "(True, 8, 8)", "(0, 9223372036854775808)", "(8, 0, 0)", "(1e3, 8)", "'x'"))
    types = (
        "'|u1'",
        "'<i8'",
        "'|O'",
        "'|V0'",
        "'<U999999999'",
        "[('a', '|O')]",
        "'<f8'",
        "'<M8[s]'",
        "'|b1'",
        "(" * 99,
    )
    header = (
        f"{{'descr': {draw.choice(types)}, 'fortran_order': {draw.choice(('False', 'True', '7'))}, 'shape': {shape}}}\n"
    )
    version = draw.choice((b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"))
    length = struct.pack("<H" if version == b"\1\0" else "<I", draw.choice((len(header), len(header), 65535, 0)))
    return b"\x93NUMPY" + version + length + header.encode() + draw.randbytes(64)

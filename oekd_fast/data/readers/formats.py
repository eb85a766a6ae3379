"""Image files that are opened: their formats, suffixes and limits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

from oekd_fast.data.error import DataError
from oekd_fast.data.names import printable
from oekd_fast.data.readers.files import open_regular
from oekd_fast.data.readers.reading import require

# Formats of photographs, scans and drawings that Pillow reads itself. Some of its other readers start another program
# (EPS) or recognise a file by its suffix only (TGA).
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TIFF", "WEBP")
# Portable float maps hold floats, which are not read as images.
_UNREAD_SUFFIXES = (".pfm",)

# The number of pixels above which Pillow refuses to open an image by default.
MAX_PIXELS = 178_956_970
MAX_FILE_BYTES = 2**30


class UnreadableImage(DataError):
    """Raised for an image whose bytes cannot be decoded."""


def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes of image files, in lower case, that the installed Pillow reads, such as ".jpg"."""
    suffixes = require("PIL.Image").registered_extensions().items()
    return tuple(sorted(name for name, kind in suffixes if kind in FORMATS and name not in _UNREAD_SUFFIXES))


@contextmanager
def opened(name: str, source: Path | BytesIO) -> Iterator[Any]:
    """Open an image with Pillow; errors inside the `with` block become errors of this image.

    The format is recognised by the contents, whatever the suffix. Only the header is read here.

    Args:
        name: name of the image, for errors.
        source: file or bytes.

    Raises:
        UnreadableImage: the image cannot be decoded, has another format, or more than `MAX_PIXELS` pixels.
        DataError: the file cannot be read, is not a regular file, or is larger than `MAX_FILE_BYTES`.
    """
    pillow = require("PIL.Image")
    try:
        file = open_regular(source, MAX_FILE_BYTES) if isinstance(source, Path) else nullcontext(source)
        with file as contents, pillow.open(contents, formats=_formats(pillow)) as image:
            width, height = image.size
            if not 1 <= width * height <= MAX_PIXELS:
                raise UnreadableImage(
                    f"cannot read image {name}: expected 1 to {MAX_PIXELS:,} pixels, got {width} x {height}"
                )
            yield image
    except DataError:
        raise
    except pillow.UnidentifiedImageError as error:
        raise UnreadableImage(
            f"cannot read image {name}: expected a format of {', '.join(FORMATS)}, got other contents"
        ) from error
    except Exception as error:  # Pillow's readers raise many types on a damaged file
        # An OSError with a number comes from the system, not from the contents of the image.
        from_system = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)
        reason = printable(str(error)) or type(error).__name__
        raise (DataError if from_system else UnreadableImage)(f"cannot read image {name}: {reason}") from error


def _formats(pillow: Any) -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow has a reader for."""
    pillow.init()  # all readers register themselves; later calls do nothing
    return tuple(name for name in FORMATS if name in pillow.OPEN)

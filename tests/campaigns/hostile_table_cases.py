"""Tables that were made to leave their folder, to take memory or to confuse the reader."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..support.tables import LABELS, PNGS, save_to_disk, structs, table

# Rows that would take six gigabytes together.
MANY = 300


def _parquet(folder: Path, arrow: Any = None, **columns: Any) -> dict[str, Any]:
    pq.write_table(pa.table(columns) if arrow is None else arrow, folder / "train.parquet")
    return {}


def _path(path: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: _parquet(folder, image=structs([None] * 16, [path] * 16), label=LABELS)


def _link(target: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "0.png").symlink_to(target)
        return _path("0.png")(folder)

    return make


def _fifo(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "0.png")
    return _path("0.png")(folder)


def _table_is_fifo(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "train.parquet")
    return {}


def _image_of_many_pixels(folder: Path) -> dict[str, Any]:
    header = struct.pack(">IIBBBBB", 2**16, 2**15, 8, 2, 0, 0, 0)  # 2^31 pixels

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    return _parquet(folder, image=[png] * 16, label=LABELS)


def _postscript(folder: Path) -> dict[str, Any]:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(started) (w) file closefile\n%%EOF\n"
    return _parquet(folder, image=[program] * 16, label=LABELS)


def _rows_in_few_bytes(folder: Path) -> dict[str, Any]:
    group = pa.table({"image": pa.nulls(4_000_000, pa.binary()), "label": pa.repeat(pa.scalar(0), 4_000_000)})
    with pq.ParquetWriter(folder / "train.parquet", group.schema) as writer:
        for _ in range(51):
            writer.write_table(group)
    return {}


def _large_cell_many_times(folder: Path) -> dict[str, Any]:
    cell = PNGS[0] + bytes(20_000_000)  # Pillow ignores what follows an image
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * MANY, pa.int32()), pa.array([cell]))
    return _parquet(folder, image=cells, label=[row % 2 for row in range(MANY)])


def _large_label_many_times(folder: Path) -> dict[str, Any]:
    labels = pa.DictionaryArray.from_arrays(
        pa.array([0, 1] * (MANY // 2), pa.int32()), pa.array(["a", "b" * 50_000_000])
    )
    return _parquet(folder, image=[PNGS[0]] * MANY, label=labels)


def _nested(folder: Path) -> dict[str, Any]:
    kind = pa.int64()
    for _ in range(90):
        kind = pa.struct([("bytes", kind)])
    return _parquet(folder, image=pa.nulls(16, kind), label=LABELS)


def _metadata(value: bytes) -> Callable[[Path], dict[str, Any]]:
    arrow = pa.table({"image": PNGS, "label": LABELS})
    return lambda folder: _parquet(folder, arrow.replace_schema_metadata({b"huggingface": value}))


def _declared(names: Any) -> Callable[[Path], dict[str, Any]]:
    arrow = table({"label": {"_type": "ClassLabel", "names": names}}, image=PNGS, label=LABELS)
    return lambda folder: _parquet(folder, arrow)


def _arrow_length(folder: Path) -> dict[str, Any]:
    """Declare metadata of 2^31 - 1 bytes at the start of the stream."""
    return _patched(folder, lambda content: content[:4] + b"\xff\xff\xff\x7f" + content[8:])


def _patched(folder: Path, patch: Callable[[bytes], bytes]) -> dict[str, Any]:
    save_to_disk(folder / "saved", pa.table({"image": PNGS, "label": LABELS}))
    for path in (folder / "saved").iterdir():
        path.rename(folder / path.name)
    (folder / "saved").rmdir()
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(patch(path.read_bytes()))
    return {}


def _compressed_length(folder: Path) -> dict[str, Any]:
    """Declare 2^62 bytes for a compressed buffer."""
    _patched(folder, bytes)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    cells = [PNGS[0] + bytes(100_000)] * 16
    path = folder / "data-00000-of-00001.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema, options=options) as writer:
        writer.write_table(pa.table({"image": cells, "label": LABELS}, schema))
    content, length = path.read_bytes(), struct.pack("<q", sum(map(len, cells)))
    assert content.count(length) >= 1
    path.write_bytes(content.replace(length, struct.pack("<q", 2**62)))
    return {}


def _offsets(stream: bool) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        right = struct.pack("<4i", *(sum(map(len, PNGS[:row])) for row in range(4)))
        wrong = struct.pack("<4i", 0, 2**30, -(2**30), 2**31 - 1)
        _patched(folder, lambda content: content.replace(right, wrong))
        return {"stream": stream}

    return make


def _state(name: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        _patched(folder, bytes)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        return {}

    return make


def _many_columns(folder: Path) -> dict[str, Any]:
    return _parquet(folder, pa.table({f"column {number}\n\x1b[31m": LABELS for number in range(5000)}))


# A function that writes a data set and returns arguments of `load_dataset`; a part of the error, or "read".
CRAFTED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "path above the folder": (_path("../../../../etc/hostname"), "without links that leave it"),
    "absolute path": (_path("/etc/hostname"), "without links that leave it"),
    "path of a device": (_path("/dev/zero"), "without links that leave it"),
    "path with a null byte": (_path("a\0b"), "without links that leave it"),
    "path with control characters": (_path("\x1b[2J\n.png"), "No such file"),
    "long path": (_path("a/" * 5000), "image"),
    "address": (_path("http://localhost/0.png"), "No such file"),
    "link out of the folder": (_link("/etc/hostname"), "without links that leave it"),
    "link to itself": (_link("0.png"), "image"),
    "path of a FIFO": (_fifo, "expected a regular file, got a FIFO"),
    "table that is a FIFO": (_table_is_fifo, "expected a regular file, got a FIFO"),
    "image of 2^31 pixels": (_image_of_many_pixels, "pixels"),
    "PostScript": (_postscript, "expected a format of"),
    "204 million rows in few bytes": (_rows_in_few_bytes, "expected at most 200,000,000 rows"),
    "a cell of 20 MB in 300 rows of few bytes": (_large_cell_many_times, "read"),
    "a label of 50 MB in 150 rows": (_large_label_many_times, "of at most 1000 characters"),
    "90 nested types": (_nested, "expected an image column"),
    "5000 columns with control characters": (_many_columns, "expected an image column"),
    "metadata of 100,000 brackets": (_metadata(b"[" * 100_000), "expected JSON in the metadata"),
    "metadata of another form": (_metadata(b'{"info": {"features": [1]}}'), "read"),
    "metadata that is not UTF-8": (_metadata(b"\xff\xfe"), "expected JSON in the metadata"),
    "names of classes that are numbers": (_declared([1, 2]), "(train): expected the names of the classes"),
    "names of classes that are missing": (_declared(None), "(train): expected the names of the classes"),
    "Arrow metadata of 2^31 bytes": (_arrow_length, "cannot read"),
    "Arrow buffer of 2^62 bytes": (_compressed_length, "cannot read"),
    "Arrow offsets out of the file": (_offsets(stream=False), "cannot read"),
    "Arrow offsets out of the file, streamed": (_offsets(stream=True), "cannot read"),
    "saved file above the folder": (_state("../x.arrow"), "expected names without folders"),
    "saved file that is absolute": (_state("/dev/zero"), "expected names without folders"),
}

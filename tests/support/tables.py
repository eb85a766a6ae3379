"""Small tables of encoded images, written with pyarrow."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs the extra 'train'")
pa = pytest.importorskip("pyarrow", reason="needs the extra 'train'")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra 'train'")

LABELS = [row % 2 for row in range(16)]


def png(shade: int) -> bytes:
    """Return a 4x4 image of one grey level as PNG."""
    content = BytesIO()
    Image.fromarray(np.full((4, 4), shade, dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


# The image in row i has grey level i.
PNGS = [png(row) for row in range(16)]


def structs(contents: list[bytes | None], paths: list[str | None] | None = None):
    """Return images in the form of `datasets`: structs of bytes and path."""
    paths = paths or [None] * len(contents)
    return pa.StructArray.from_arrays(
        [pa.array(contents, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )


def table(metadata: dict | None = None, **columns):
    """Return an Arrow table; `metadata` holds the types of `datasets` by column."""
    arrow = pa.table(columns)
    if metadata is None:
        return arrow
    return arrow.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})


def write(path: Path, arrow=None, **columns) -> Path:
    """Write a parquet file and return its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(**columns) if arrow is None else arrow, path)
    return path.parent


def class_names(*names: str) -> dict:
    return {"_type": "ClassLabel", "names": list(names)}


def save_to_disk(folder: Path, arrow, shards: int = 1) -> None:
    """Write the files of `Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{shard:05d}-of-{shards:05d}.arrow" for shard in range(shards)]
    size = -(-len(arrow) // shards)
    for shard, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, arrow.schema) as writer:
            writer.write_table(arrow.slice(shard * size, size), max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def save_dict_to_disk(folder: Path, **splits) -> None:
    """Write the files of `DatasetDict.save_to_disk`."""
    for name, arrow in splits.items():
        save_to_disk(folder / name, arrow, shards=2)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))

"""Images in the cells of a table: bytes, or paths of files that stay inside the folder of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from oekd_fast.data.dataset import DataError
from oekd_fast.data.names import printable

PATH_SHOWN = 100


@dataclass(frozen=True)
class CellReader:
    """Turns the cells of an image column into bytes or files.

    Args:
        where: name of the table, for messages.
        folder: folder that relative paths in cells start from; None refuses them.
        caches: folders in which absolute paths may lie.
    """

    where: str
    folder: Path | None = None
    caches: tuple[Path, ...] = ()

    def source(self, row: int, cell: Any) -> tuple[str, Path | BytesIO]:
        """Return the name of an image, for messages, and its bytes or file.

        A cell holds bytes, a path, or a mapping with "bytes" and "path", of which "bytes" is preferred. A missing image
        becomes empty bytes, which the decoder reports.

        Raises:
            DataError: the path leads out of the folder.
        """
        name = f"in row {row} of {self.where}"
        if isinstance(cell, Mapping):
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, str):
            return f"{printable(cell[:PATH_SHOWN])} {name}", self._file(name, cell)
        return name, BytesIO(cell or b"")

    def _file(self, name: str, path: str) -> Path:
        relative = Path(path)
        if relative.is_absolute():
            roots, full = self.caches, relative
        else:
            roots, full = () if self.folder is None else (self.folder,), (self.folder or Path()) / relative
        try:
            # Links are resolved, so that a link inside the folder does not lead out of it.
            resolved = full.resolve()
            inside = ".." not in relative.parts and any(resolved.is_relative_to(root.resolve()) for root in roots)
        except (OSError, ValueError, RuntimeError):  # a null byte, a name that is too long, a loop of links
            inside = False
        if not inside:
            place = f"inside {printable(self.folder)}" if self.folder is not None else "in the cache"
            raise DataError(
                f"image {name}: expected bytes or a path {place}, relative and without links that leave it, "
                f"got {printable(repr(path[:PATH_SHOWN]))}"
            )
        return resolved

"""Training checkpoints that survive a kill at any moment: atomic save, verified load.

A folder belongs to one phase of one run, with one writer. A checkpoint is `step-<step>.pt` with a checksum beside it in
the format of `sha256sum`; it exists once the `.pt` has its final name. Saving a step again gives it a new name
(`step-<step>-r1.pt`, ...), so that no file is replaced while it may be the only intact one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from oekd_fast.common.files import read_regular, sync_folder, target_of_temporary, write_temporary
from oekd_fast.common.torch_files import load_torch

_CHECKPOINT = re.compile(r"step-(?P<step>\d{10}|[1-9]\d{10,})(-r(?P<revision>[1-9]\d*))?\.pt")
_CHECKSUM_SUFFIX = ".sha256"
_LARGEST_CHECKSUM_FILE = 4096  # bytes
_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None))


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none of those present can be read."""


class LoadedCheckpoint(NamedTuple):
    """A checkpoint that was read back.

    state: the saved state.
    path: path of the file.
    step: optimisation steps done before it was saved.
    """

    state: dict[str, Any]
    path: Path
    step: int


def save_checkpoint(folder: Path, state: dict[str, Any], step: int, keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step` and return its path.

    The newest complete checkpoint in `folder` stays loadable even if the process is killed. After the save, only the
    newest `keep` steps are left.

    Args:
        folder: folder of the phase's checkpoints; created if missing.
        state: tensors, numbers, strings and None in lists, tuples and dicts.
        step: optimisation steps done so far.
        keep: how many steps to keep, this one included.

    Raises:
        TypeError: `state` holds something that could not be loaded again; the message names its place.
        ValueError: `step` is negative or `keep` is below 1.
        CheckpointError: writing failed, or `folder` holds an intact checkpoint of a later step.
    """
    if step < 0:
        raise ValueError(f"step: expected an integer >= 0, got {step}")
    if keep < 1:
        raise ValueError(f"keep: expected an integer >= 1, got {keep}")
    _check_plain(state, "state")
    # Serialise in memory first, because torch.save hides the reason when a write fails half-way.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(_leftovers(folder))
        existing = _entries(folder)
        _refuse_to_go_back(folder, existing, step)
        saved = _Entry.after(existing, step)
        path = folder / saved.file_name
        _commit(path, data)
    except OSError as error:
        raise CheckpointError(
            f"could not write the checkpoint of step {step} ({len(data)} bytes) to {folder}: "
            f"{error.strerror or error}; {_what_remains(folder)}"
        ) from error
    _prune(folder, saved, existing, keep)
    return path


def load_latest_checkpoint(folder: Path, map_location: str | torch.device = "cpu") -> LoadedCheckpoint | None:
    """Load the newest intact checkpoint in `folder`; return None if there is no checkpoint.

    Damaged checkpoints are skipped, each with a warning that names it and the damage.

    Args:
        folder: folder that `save_checkpoint` wrote to; may be missing.
        map_location: the device that tensors are loaded to.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    folder = Path(folder)
    entries = _entries(folder) if folder.is_dir() else []
    reasons = []
    for entry in reversed(entries):
        path = folder / entry.file_name
        try:
            state = _load(_read_verified(path), map_location)
        except _DamagedError as damage:
            reasons.append(f"{path}: {damage}")
            warnings.warn(f"skipped a damaged checkpoint, {reasons[-1]}", stacklevel=2)
        else:
            return LoadedCheckpoint(state, path, entry.step)
    if reasons:
        raise CheckpointError("every checkpoint is damaged: " + "; ".join(reasons))
    return None


def checkpoint_bytes(path: Path) -> bytes:
    """Return the content of a checkpoint file after comparing it with its checksum.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return _read_verified(path)
    except _DamagedError as damage:
        raise CheckpointError(f"{path}: {damage}") from damage


def state_of_bytes(data: bytes, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the state that `checkpoint_bytes` returned the content of.

    Raises:
        CheckpointError: it does not hold a state.
    """
    try:
        return _load(data, map_location)
    except _DamagedError as damage:
        raise CheckpointError(str(damage)) from damage


class _DamagedError(Exception):
    """A checkpoint is damaged; the message says how."""


class _Entry(NamedTuple):
    """A checkpoint in a folder; entries sort from the oldest to the newest."""

    step: int
    revision: int

    @classmethod
    def after(cls, existing: Iterable[_Entry], step: int) -> _Entry:
        """Return a new entry for `step`, newer than all existing ones of that step."""
        return cls(step, max((e.revision + 1 for e in existing if e.step == step), default=0))

    @property
    def file_name(self) -> str:
        revision = f"-r{self.revision}" if self.revision else ""
        return f"step-{self.step:010d}{revision}.pt"


def _entries(folder: Path) -> list[_Entry]:
    matches = (_CHECKPOINT.fullmatch(path.name) for path in folder.iterdir())
    return sorted(_Entry(int(m["step"]), int(m["revision"] or 0)) for m in matches if m)


def _commit(path: Path, data: memoryview) -> None:
    """Write the checksum and then the checkpoint; renaming the checkpoint makes both valid."""
    checksum = _checksum_path(path)
    line = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
    temporary: list[Path] = []
    try:
        for target, content in ((path, data), (checksum, line)):
            temporary.append(write_temporary(target, content))
        os.replace(temporary[1], checksum)
        os.replace(temporary[0], path)
    except BaseException:
        _remove(temporary)
        # A signal may arrive after the last rename, and a rename over a network may report an error although it was
        # done. The checksum then belongs to a checkpoint that exists.
        if not _may_exist(path):
            _remove([checksum])
        raise
    sync_folder(path.parent)


def _may_exist(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _read_verified(path: Path) -> bytes:
    """Return the content of a checkpoint after comparing it with its checksum."""
    checksum = _checksum_path(path)
    try:
        expected = read_regular(checksum, _LARGEST_CHECKSUM_FILE).decode("ascii").split()
        data = read_regular(path)
    except FileNotFoundError as error:
        raise _DamagedError(f"{Path(error.filename).name} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _DamagedError(f"cannot be read ({error})") from error
    if expected[:1] != [hashlib.sha256(data).hexdigest()]:
        raise _DamagedError(f"its {len(data)} bytes do not match the checksum in {checksum.name}")
    return data


def _load(data: bytes, map_location: str | torch.device) -> dict[str, Any]:
    """Return the state in the content of a checkpoint file. Objects other than plain values and tensors are refused."""
    try:
        state = load_torch(io.BytesIO(data), map_location)
    except ValueError as error:
        raise _DamagedError(f"torch.load failed ({error})") from error
    if not isinstance(state, dict):
        raise _DamagedError(f"expected a dict, got {type(state).__name__}")
    return state


def _refuse_to_go_back(folder: Path, existing: list[_Entry], step: int) -> None:
    """Raise if there is an intact later step, which a resume would prefer or which saving would remove."""
    newest = _newest_intact(folder, [entry for entry in existing if entry.step > step])
    if newest is not None:
        raise CheckpointError(
            f"step: {newest} is later than the step to save, {step}; resume from it or use another folder"
        )


def _what_remains(folder: Path) -> str:
    newest = None
    with contextlib.suppress(OSError):
        newest = _newest_intact(folder, _entries(folder))
    return f"the last good checkpoint is {newest}" if newest else "there is no earlier good checkpoint"


def _newest_intact(folder: Path, entries: list[_Entry]) -> Path | None:
    for entry in reversed(entries):
        path = folder / entry.file_name
        with contextlib.suppress(_DamagedError):
            _read_verified(path)
            return path
    return None


def _prune(folder: Path, saved: _Entry, existing: list[_Entry], keep: int) -> None:
    """Remove damaged later steps, superseded revisions, and all but the newest `keep` steps."""
    newest_of_step = {entry.step: entry for entry in existing if entry.step < saved.step}
    kept = [*newest_of_step.values(), saved][-keep:]
    names = [entry.file_name for entry in existing if entry not in kept]
    # Remove the checkpoint before its checksum: a checksum alone is a leftover, not a damaged checkpoint.
    paths = [path for name in names for path in (folder / name, _checksum_path(folder / name))]
    try:
        _remove(paths)
    except OSError as error:
        warnings.warn(f"could not remove an old checkpoint: {error}", stacklevel=3)


def _leftovers(folder: Path) -> list[Path]:
    """Return temporary files of interrupted saves, and checksums without a checkpoint."""
    found = []
    for path in folder.iterdir():
        # Version 0.1.0 called temporary files "<name>.tmp".
        name = target_of_temporary(path.name) or path.name.removesuffix(".tmp")
        checkpoint = name.removesuffix(_CHECKSUM_SUFFIX)
        if not _CHECKPOINT.fullmatch(checkpoint) or path.name == checkpoint:
            continue
        if name != path.name or not (folder / checkpoint).exists():
            found.append(path)
    return found


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + _CHECKSUM_SUFFIX)


def _check_plain(value: Any, where: str) -> None:
    """Raise TypeError unless `torch.load(weights_only=True)` will accept `value`."""
    kind = type(value)  # exact: numpy's float64 and named tuples are subclasses that do not load
    if kind in (dict, OrderedDict, Counter):
        for key, item in value.items():
            _check_plain(key, f"{where}, a key")
            _check_plain(item, f"{where}[{key!r}]")
    elif kind in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif kind not in _PLAIN_TYPES:
        raise TypeError(
            f"{where}: expected a tensor, number, string or None, or a list, tuple or dict of these, "
            f"got {kind.__module__}.{kind.__qualname__}"
        )

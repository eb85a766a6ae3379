"""Checkpoints that are damaged or come from a stranger: each is skipped or refused in one line."""

import hashlib
import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from oekd_fast.runs.checkpoint import (
    CheckpointError,
    load_latest_checkpoint,
    save_checkpoint,
)

from ..support.checkpoints import flip_a_byte, state_of


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def remove_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


def garble_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_bytes(b"\xff\xfe")


def empty_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_bytes(b"")


def store_an_object(path: Path) -> None:
    torch.save({"weights": random.Random()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")


def rewrite(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.with_name(path.name + ".sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def compress(path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as compressed:
        for entry in stored.infolist():
            compressed.writestr(entry.filename, stored.read(entry))
    rewrite(path, content.getvalue())


def store_a_pickle(path: Path) -> None:
    rewrite(path, pickle.dumps({"weights": 1}))


def store_a_list(path: Path) -> None:
    content = io.BytesIO()
    torch.save([1], content)
    rewrite(path, content.getvalue())


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "do not match the checksum in step-0000000002.pt.sha256"),
        (truncate, "do not match the checksum in step-0000000002.pt.sha256"),
        (remove_checksum, "step-0000000002.pt.sha256 is missing"),
        (garble_checksum, "cannot be read"),
        (empty_checksum, "do not match the checksum"),
        (store_an_object, r"torch.load failed \([^\n]*\)"),
        (store_a_pickle, "torch.load failed"),
        (store_a_list, "expected a dict, got list"),
        (compress, "expected an archive of uncompressed files, got compressed ones"),
        (replace_by_a_folder, "cannot be read"),
    ],
)


@DAMAGES
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path, damage, reason):
    save_checkpoint(tmp_path, state_of(1), step=1)
    damage(save_checkpoint(tmp_path, state_of(2), step=2))
    with pytest.warns(UserWarning, match=rf"step-0000000002\.pt: .*{reason}"):
        loaded = load_latest_checkpoint(tmp_path)
    assert loaded.step == 1 and torch.equal(loaded.state["weights"], state_of(1)["weights"])


@DAMAGES
@pytest.mark.filterwarnings("ignore:skipped a damaged checkpoint")
def test_a_folder_of_damaged_checkpoints_raises(tmp_path, damage, reason):
    damage(save_checkpoint(tmp_path, state_of(2), step=2))
    with pytest.raises(CheckpointError, match=rf"every checkpoint is damaged: .*step-0000000002\.pt: .*{reason}"):
        load_latest_checkpoint(tmp_path)

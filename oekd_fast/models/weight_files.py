"""Read files of weights that other libraries and training scripts wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from oekd_fast.common.torch_files import load_torch

_SAFETENSORS = ".safetensors"
# What a download often leaves instead of a file, and what to do.
_NOT_WEIGHTS = {
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself with git lfs pull",
    b"<!DOCTYPE html": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}


def read_weight_file(path: Path) -> Any:
    """Return the content of a file of weights, with its tensors on the CPU. No code from the file is run.

    Args:
        path: .safetensors, or a file of `torch.save` with any other suffix (.pth, .pt, .bin, .ckpt). The latter may
            hold plain values and an `argparse.Namespace` too. "~" is expanded.

    Raises:
        ValueError: the file is damaged, is no file of weights, or holds other objects.
        FileNotFoundError: the file does not exist.
        ImportError: the file needs safetensors, which is not installed.
    """
    path = path.expanduser()
    if not path.is_file():
        if path.exists():
            raise ValueError(f"state_dict: expected a file, got {path}, which is not a regular file")
        raise FileNotFoundError(f"state_dict: {path} is missing")
    with path.open("rb") as file:
        start = file.read(64)
        for beginning, what in _NOT_WEIGHTS.items():
            if start.lower().startswith(beginning.lower()):
                raise ValueError(f"state_dict: {path} cannot be read (it is {what})")
        if path.suffix.lower() == _SAFETENSORS:
            return _read_safetensors(path)
        try:
            return load_torch(file, also_allowed=(argparse.Namespace,))
        except ValueError as error:
            raise _unreadable(path, f"{error}{_ADVICE if 'which is not a tensor' in str(error) else ''}") from error


_ADVICE = (
    "; if you trust the file, save its weights alone: python -c \"import torch; weights = torch.load('FILE', "
    "weights_only=False); torch.save({name: tensor for name, tensor in weights['state_dict'].items()}, 'NEW')\""
)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs safetensors: pip install 'oekd_fast[train]'") from error
    try:
        return load_file(path)
    except Exception as error:  # beside SafetensorError, unknown dtypes raise KeyError
        raise _unreadable(path, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(f"state_dict: {path} cannot be read ({reason})")

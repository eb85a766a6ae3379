"""Export of a network to a file, which is run and compared with the network before it is written."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from oekd_fast.common.files import write_atomically
from oekd_fast.common.tensors import not_finite
from oekd_fast.common.text import reason_of
from oekd_fast.family.exporting import onnx_format, program_format
from oekd_fast.family.exporting.comparison import (
    TOLERANCE,
    largest_difference,
    outputs_of,
    plain_numerics,
    tolerance_of,
)
from oekd_fast.family.exporting.contents import ImageInput
from oekd_fast.family.exporting.networks import Normalised

Run = Callable[[Tensor], list[Tensor]]
FORMATS = {module.SUFFIX: module for module in (onnx_format, program_format)}
_TRACED_BATCH = 2  # of a network for any number of images
_CHECKED_BATCHES = (1, 2, 5)


class ExportError(RuntimeError):
    """The network cannot be exported, or what was exported computes something else. No file is written or changed."""


@dataclass(frozen=True)
class ExportedFile:
    """A file that an export has written.

    Args:
        path: the file.
        size: its size in bytes.
        difference: largest difference between its outputs and those of the network, relative to the largest logit.
        tolerance: the difference up to which it is accepted.
    """

    path: Path
    size: int
    difference: float
    tolerance: float


def export_network(
    network: nn.Module,
    path: Path | str,
    images: ImageInput,
    *,
    outputs: Sequence[str] = ("logits",),
    entries: Mapping[str, Any] | None = None,
) -> ExportedFile:
    """Write `network` in evaluation mode to a file for other programs.

    A copy on the CPU in float32 is exported, so that `network` stays as it is, on its device and in its mode. The file
    is run for several batches, one image among them, and compared with that copy before it replaces a file at `path`.

    Args:
        network: takes images [B, C, H, W] that are normalised, and returns logits [B, classes], or a dictionary of
            several logits.
        path: file to write, in a folder that exists; the suffix is one of `FORMATS`, and "~" is expanded.
        images: the images that the exported network takes.
        outputs: names of the outputs.
        entries: what the file says about the network, values that JSON can hold by name.

    Raises:
        ValueError: `path` has another suffix, a weight is NaN or infinite or on the meta device, the weights are too
            large for the format, or `entries` has another number of ``classes`` than there are logits.
        ImportError: a package that the format needs is not installed.
        ExportError: the network cannot be traced, or the file differs from it by more than rounding.
        OSError: the folder does not exist, or the file cannot be written.
    """
    path = checked_path(path)
    form = FORMATS[path.suffix]
    form.check_available()
    _check_weights(network, form)
    with plain_numerics():
        copied = copy.deepcopy(network).to("cpu", torch.float32).eval().requires_grad_(False)
        if images.normalisation is not None:
            copied = Normalised(copied, images.normalisation).eval()
        example = images.example(images.batch or _TRACED_BATCH, seed=0)
        _check_classes((entries or {}).get("classes"), copied, example)
        program = trace(copied, example, dynamic=images.batch is None)
        try:
            content = form.encode(program, example, outputs, entries or {}, images.batch is None)
            run = form.load(content)
        except Exception as error:  # the exporters document no set of exceptions
            raise ExportError(
                f"{path.name}: the network cannot be exported to this format ({reason_of(error)})"
            ) from error
        result = _compared(copied, run, images, path, len(content))
    write_atomically(path, content)
    return result


def checked_path(path: Path | str) -> Path:
    """Return `path` with "~" expanded.

    Raises:
        ValueError: the suffix is not that of a format.
        OSError: the folder of the file does not exist, or `path` is a folder.
    """
    path = Path(path).expanduser()
    if path.suffix not in FORMATS:
        raise ValueError(f"path: expected a name that ends in {' or '.join(FORMATS)}, got {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path


def trace(network: nn.Module, example: Tensor, *, dynamic: bool) -> ExportedProgram:
    """Return the program of `network`, with the argument ``images``.

    Args:
        network: network on the CPU, in evaluation mode.
        example: images [B, C, H, W].
        dynamic: whether the program takes any number of images instead of B.

    Raises:
        ExportError: the network cannot be traced, or not for any number of images.
    """
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic else None
    try:
        return torch.export.export(network, (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export documents no set of exceptions
        advice = "; for one number of images it may work: batch=1" if dynamic else ""
        raise ExportError(f"network: cannot be traced by torch.export ({reason_of(error)}){advice}") from error


def _compared(network: nn.Module, run: Run, images: ImageInput, path: Path, size: int) -> ExportedFile:
    """Return the result of an export, after `run` and `network` have been compared for several batches of images."""
    batches = [
        images.example(count, seed)
        for seed, count in enumerate(_CHECKED_BATCHES if images.batch is None else (images.batch,) * 2, start=1)
    ]
    difference, tolerance = 0.0, TOLERANCE
    for batch in batches:
        expected = outputs_of(network, batch)
        if not all(torch.isfinite(z).all() for z in expected):
            raise ExportError(f"{path.name}: expected finite logits for random images, got NaN or infinity")
        try:
            found = run(batch)
        except Exception as error:  # the runtimes document no set of exceptions
            raise ExportError(f"{path.name}: does not run for {len(batch)} images ({reason_of(error)})") from error
        difference = max(difference, largest_difference(found, expected))
    if difference > tolerance:
        tolerance = max(tolerance_of(network, batch) for batch in batches)
    if difference > tolerance:
        raise ExportError(
            f"{path.name}: expected the logits of the network to within {tolerance:.1e} of the largest, got a "
            f"difference of {difference:.1e}; no file was written"
        )
    return ExportedFile(path, size, difference, tolerance)


def _check_classes(classes: Sequence[str] | None, network: nn.Module, example: Tensor) -> None:
    try:
        logits, *_ = outputs_of(network, example)
    except Exception as error:  # the network may be the user's
        raise ExportError(f"network: does not take images {list(example.shape)} ({reason_of(error)})") from error
    if classes is not None and len(classes) != logits.shape[1]:
        raise ValueError(f"classes: expected {logits.shape[1]} names, as many as logits, got {len(classes)}")


def _check_weights(network: nn.Module, form: Any) -> None:
    tensors = {name: tensor.detach() for name, tensor in network.state_dict(keep_vars=True).items()}
    unloaded = next((name for name, tensor in tensors.items() if tensor.device.type == "meta"), None)
    if unloaded is not None:
        raise ValueError(f"network: expected weights in memory, got {unloaded} on the meta device")
    if (name := not_finite(tensors)) is not None:
        raise ValueError(f"network: expected finite weights, got NaN or infinity in {name}")
    size = 4 * sum(tensor.numel() for tensor in tensors.values())
    if form.LARGEST is not None and size > form.LARGEST:
        raise ValueError(
            f"network: expected at most {form.LARGEST:,} bytes of weights for one {form.SUFFIX} file, got {size:,}; "
            f"{program_format.SUFFIX} files may be larger"
        )

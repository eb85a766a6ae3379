"""Networks that serve as teachers: a saved student, a program of torch.export, or a module that a function returns."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.passes import move_to_device_pass

from oekd_fast.common.python_names import import_python, split_python_name
from oekd_fast.common.text import reason_of
from oekd_fast.family.saved import LoadedStudent, load_student

PROGRAM_SUFFIX = ".pt2"
# Attributes of the networks of the package timm, in current and in older versions.
_CONFIGS = ("pretrained_cfg", "default_cfg")


@dataclass(frozen=True)
class TeacherSource:
    """A network, and what is known of its images; None where the source does not tell.

    network: takes normalised images [B, C, H, W].
    mean, std: one number a channel, for pixels in [0, 1].
    image_size: side length of the images, in pixels.
    in_channels: channels of the images.
    num_classes: number of its logits.
    """

    network: nn.Module
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: int | None = None
    in_channels: int | None = None
    num_classes: int | None = None


def load_source(source: Path, device: torch.device) -> TeacherSource:
    """Load the network that `source` names. A program and a function are code, which runs with the user's rights.

    Args:
        source: path of a saved student; path of a file that ``torch.export.save`` wrote and whose name ends in
            ``.pt2``; or ``package.module:name`` or ``file.py:name``, where the name is that of a module or of a
            function without arguments that returns one.
        device: device that a program is moved to; other networks stay where they are.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError, TypeError: the network cannot be loaded, or is not one for evaluation; the message is one line.
    """
    named = split_python_name(str(source))
    if named is not None:
        return _of_python(*named)
    if source.suffix == PROGRAM_SUFFIX:
        return _of_program(source, device)
    return _of_student(load_student(source))


class ExportedNetwork(nn.Module):
    """A program of torch.export as a network. It has the mode that it was exported in, which `train` does not change.

    Args:
        program: takes one tensor.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def train(self, mode: bool = True) -> ExportedNetwork:
        return self

    def forward(self, images: torch.Tensor) -> Any:
        return self.program(images)


def _of_student(student: LoadedStudent) -> TeacherSource:
    metadata = student.metadata
    return TeacherSource(
        student,
        metadata.normalisation.mean,
        metadata.normalisation.std,
        in_channels=metadata.in_channels,
        num_classes=metadata.num_classes,
    )


def _of_program(path: Path, device: torch.device) -> TeacherSource:
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    if not _is_program(path):  # torch.export.load would print several lines
        raise ValueError(f"{path}: expected a file that torch.export.save wrote")
    try:
        program = torch.export.load(path)
    except Exception as error:  # it documents no set of exceptions
        raise ValueError(f"{path}: cannot be loaded ({reason_of(error)})") from error
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    if len(inputs) != 1 or not isinstance(inputs[0].meta["val"], torch.Tensor):
        raise ValueError(f"{path}: expected a program of one tensor, the images, got {len(inputs)} arguments")
    shape, dtype = inputs[0].meta["val"].shape, inputs[0].meta["val"].dtype
    if not dtype.is_floating_point:
        raise ValueError(
            f"{path}: expected a program of normalised images in a floating-point type, got {dtype}; "
            "export a student with preprocessing=False"
        )
    if len(shape) != 4:
        raise ValueError(f"{path}: expected a program of images [B, C, H, W], got {len(shape)} dimensions")
    if isinstance(shape[0], int):
        raise ValueError(
            f"{path}: expected a program for any number of images, got one for {shape[0]}; export it with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},)'
        )
    if (operator := _in_training_mode(program)) is not None:
        raise ValueError(
            f"{path}: expected a program that was exported in evaluation mode, got {operator} in training mode; "
            "call .eval() before torch.export.export"
        )
    program = move_to_device_pass(program, device)
    channels, height, width = (size if isinstance(size, int) else None for size in shape[1:])
    if None not in (height, width) and height != width:
        raise ValueError(f"{path}: expected a program of square images, got {height} x {width}")
    return TeacherSource(
        ExportedNetwork(program),
        image_size=height or width,
        in_channels=channels,
    )


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] == "archive_format" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _in_training_mode(program: torch.export.ExportedProgram) -> str | None:
    """Return an operator of `program` that computes as in training, such as dropout; None if there is none."""
    for node in program.graph.nodes:
        if node.op == "call_function":
            named = node.normalized_arguments(program.graph_module, normalize_to_only_use_kwargs=True)
            if named is not None and True in (named.kwargs.get("train"), named.kwargs.get("training")):
                return str(node.target)
    return None


def _of_python(where: str, name: str) -> TeacherSource:
    found = getattr(import_python(where, "teacher"), name, None)
    if found is None:
        raise ValueError(f"expected a function or a module called {name!r} in {where}, got none")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise TypeError(f"expected a function or a module, got {type(found).__name__} in {where}:{name}")
        try:
            found = found()
        except Exception as error:  # the user's code
            raise ValueError(f"{where}:{name}() raised {reason_of(error)}") from error
        if not isinstance(found, nn.Module):
            raise TypeError(f"expected an nn.Module, got {type(found).__name__} from {where}:{name}()")
    if isinstance(found, LoadedStudent):
        return _of_student(found)
    for attribute in _CONFIGS:
        if isinstance(config := getattr(found, attribute, None), Mapping):
            return _of_timm(found, config, attribute)
    return TeacherSource(found)


def _of_timm(network: nn.Module, config: Mapping[str, Any], attribute: str) -> TeacherSource:
    """Return a network of timm, whose `config` holds "mean", "std" and "input_size", (channels, height, width)."""
    mean, std = (None if config.get(key) is None else tuple(map(float, config[key])) for key in ("mean", "std"))
    # The channels are those of the published weights, which timm leaves as they are for networks of other channels.
    _, height, width = config.get("input_size") or (None, None, None)
    if height != width:
        raise ValueError(f"{attribute}: expected an input_size of square images, got {height} x {width}")
    return TeacherSource(network, mean, std, height)

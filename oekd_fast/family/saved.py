"""Save and load students, as weights in a safetensors file with metadata in a JSON file beside it, and their gate."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oekd_fast.common.files import read_regular, write_atomically
from oekd_fast.common.meta_copy import meta_copy
from oekd_fast.common.packages import require
from oekd_fast.common.tensors import not_finite
from oekd_fast.common.text import plain
from oekd_fast.family.gate import Gate
from oekd_fast.family.metadata import Normalisation, StudentMetadata, check_names, digest, dump_metadata, parse_metadata
from oekd_fast.family.student import Student
from oekd_fast.models import Architecture, ScalableArchitecture, architecture_names, get_architecture
from oekd_fast.models.model_sources import TIMM, Images, find_architecture, runs_code

if TYPE_CHECKING:
    from oekd_fast.family.exporting.export import ExportedFile

__all__ = [
    "GATE_FILE",
    "LoadedStudent",
    "Normalisation",
    "StudentMetadata",
    "load_gate",
    "load_student",
    "save_gate",
    "save_student",
]

GATE_FILE = "gate.safetensors"  # in the folder of the students that it weights
_WEIGHTS_SUFFIX = ".safetensors"
_METADATA_SUFFIX = ".json"
_CHECKSUM_FIELD = "weights_sha256"
_METADATA_FIELD = "metadata_sha256"  # in the header of the file of weights
# Limits for students of timm, whose networks are built by their metadata before the weights are read.
_LARGEST_UNASKED = {"image_size": 1024, "num_classes": 100_000}
_LARGEST_METADATA = 64 * 2**20  # bytes
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class LoadedStudent(Student):
    """A student read from disk, with its `metadata`; `forward` takes the images that `preprocess` returns."""

    def __init__(self, base: nn.Module, branch: nn.Module, metadata: StudentMetadata) -> None:
        super().__init__(base, branch)
        self.metadata = metadata
        for name in ("mean", "std"):
            values = torch.tensor(getattr(metadata.normalisation, name), dtype=torch.float32, device="cpu")
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise uint8 images [B, in_channels, H, W] as in training, and return float32 images.

        Raises:
            TypeError: `images` is not uint8.
            ValueError: `images` has another number of dimensions or of channels.
        """
        channels = self.metadata.in_channels
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected torch.uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images: expected the shape [B, {channels}, H, W], got {list(images.shape)}")
        return (images.float() / 255 - self.mean.float()) / self.std.float()

    def export(self, path: Path | str, *, preprocessing: bool = True, batch: int | None = None) -> ExportedFile:
        """Write the student to an ONNX file or a program of torch.export; see `Student.export`.

        The images have the size of the training images, and the file holds the `metadata`.

        Args:
            path: ``<name>.onnx`` or ``<name>.pt2``, in a folder that exists; "~" is expanded.
            preprocessing: whether the file takes uint8 images [B, in_channels, H, W] and does what `preprocess` does.
                Without, it takes the float32 images that `preprocess` returns.
            batch: number of images B of each call; None for any number.
        """
        from oekd_fast.family.exporting.students import export_student

        metadata = self.metadata
        return export_student(
            self,
            path,
            preprocessing=preprocessing,
            batch=batch,
            image_shape=(metadata.in_channels, metadata.image_size, metadata.image_size),
            normalisation=metadata.normalisation,
            classes=None,
            metadata=metadata,
        )


def save_student(
    module: nn.Module, path: Path | str, metadata: StudentMetadata, architecture: Architecture | str | None = None
) -> Path:
    """Write the weights of a student and its metadata, and return the path of the weights.

    Args:
        module: student, as returned by `StudentEnsemble.student`, on any device.
        path: `<name>.safetensors`, `<name>.json` or `<name>`, in a folder that exists; "~" is expanded.
        metadata: metadata of `module`.
        architecture: architecture of `module`; needed if it is not registered. See `load_student`.

    Raises:
        ValueError: `module` does not have the tensors that `metadata` describes, or one of them holds NaN or infinity;
            or `architecture` has another name.
        ImportError: safetensors is not installed.
        OSError: writing failed. Each file then has its old or its new content. `load_student` detects by a checksum
            that two files do not belong together.
    """
    weights_path, metadata_path = _paths(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    _check_tensors(tensors, _build(metadata, architecture), "module")
    _check_finite(tensors, "module")

    weights = _encode(tensors, {"format": "pt", _METADATA_FIELD: digest(metadata)})
    document = dump_metadata(metadata, hashlib.sha256(weights).hexdigest())
    write_atomically(weights_path, weights)
    write_atomically(metadata_path, document)
    return weights_path


def load_student(path: Path | str, architecture: Architecture | str | None = None) -> LoadedStudent:
    """Load a saved student on the CPU, in evaluation mode.

    The files may come from a stranger: no code from them is run, and they are compared with the network of that name
    before memory is taken for them.

    Args:
        path: `<name>.safetensors`, `<name>.json` or `<name>`; both files are read, and "~" is expanded.
        architecture: architecture of the student; needed if it is not registered, as for a network of your own. A text
            such as "nets.py:make" is that of the option `--model` of the trainer, and its code is run. Networks of timm
            ("timm:resnet18") are built without it, for images of at most 1024 pixels and 100,000 classes.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, has another format version, does not belong to the other or does not describe the
            network of that name; a weight is NaN or infinite; or the student's architecture is not registered and is
            not `architecture`. The message names the file and the field or the tensor.
        ImportError: safetensors is not installed, or timm for one of its networks.
        OSError: a file cannot be read.
    """
    safetensors = _import_safetensors()
    weights_path, metadata_path = _paths(path)
    for needed in (weights_path, metadata_path):
        if not needed.exists():
            raise FileNotFoundError(f"path: a student needs {needed}, which is missing")
    with _naming(metadata_path):
        metadata, checksum = parse_metadata(_read(metadata_path, _LARGEST_METADATA))
        student = _build(metadata, architecture)
    weights = _read(weights_path, _largest_file(student))
    if hashlib.sha256(weights).hexdigest() != checksum:
        raise ValueError(f"{weights_path}: damaged, or not saved together with {metadata_path.name}")
    try:
        tensors = safetensors.load(weights)
    except Exception as error:  # beside SafetensorError, unknown dtypes raise KeyError
        raise _damaged(weights_path, error) from error
    _check_tensors(tensors, student, str(weights_path))
    _check_finite(tensors, str(weights_path))
    # Version 0.1.0 did not write this digest.
    if _header_metadata(weights).get(_METADATA_FIELD, digest(metadata)) != digest(metadata):
        raise ValueError(
            f"{metadata_path}: changed after it was saved together with {weights_path.name}; "
            "save_student writes both files with other metadata"
        )
    student.load_state_dict(tensors, assign=True)
    return student.eval()


def save_gate(gate: Gate, path: Path) -> None:
    """Write the weights of `gate` and their checksum to the file `path`, atomically.

    Raises:
        ValueError: a weight is NaN or infinite.
        ImportError: safetensors is not installed.
        OSError: writing failed; the file then has its old content.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in gate.state_dict().items()}
    _check_finite(tensors, "gate")
    metadata = {"format": "pt", _CHECKSUM_FIELD: _checksum(tensors)}
    write_atomically(path, _encode(tensors, metadata))


def load_gate(path: Path, channels: int, students: int) -> Gate:
    """Load a saved gate on the CPU, in evaluation mode.

    Args:
        path: file that `save_gate` wrote.
        channels: channels of the map of the base.
        students: number of students that the gate weights.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, holds a gate of other sizes, or a weight is NaN or infinite.
        ImportError: safetensors is not installed.
        OSError: the file cannot be read.
    """
    safetensors = _import_safetensors()
    with torch.device("meta"):
        gate = Gate(channels, students)
    content = _read(path, _largest_file(gate))
    try:
        tensors = safetensors.load(content)
        checksum = _header_metadata(content).get(_CHECKSUM_FIELD)
    except Exception as error:  # beside SafetensorError, unknown dtypes raise KeyError
        raise _damaged(path, error) from error
    _check_tensors(tensors, gate, str(path))
    if checksum != _checksum(tensors):
        raise ValueError(f"{path}: damaged (the checksum of the weights differs)")
    _check_finite(tensors, str(path))
    gate.load_state_dict(tensors, assign=True)
    return gate.eval()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _encode(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file, the same bytes for the same tensors and metadata.

    The library writes the entries of the metadata in an order that changes from call to call.
    """
    content = _import_safetensors().save(dict(tensors), metadata=metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end]) | {"__metadata__": metadata}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[end:]


def _header_metadata(content: bytes) -> dict[str, str]:
    """Return the texts in the header of a safetensors file that the library has read."""
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})


def _build(metadata: StudentMetadata, architecture: Architecture | str | None) -> LoadedStudent:
    """Build the student on the meta device, without memory for its weights and without drawing random numbers.

    An architecture that returns modules with weights has them copied, so that no weights of others are replaced.

    Raises:
        ValueError: the network is unknown, or `metadata` describes another one.
    """
    j, n = metadata.index - 1, metadata.num_students
    with torch.random.fork_rng(devices=[]):
        architecture = _architecture_of(metadata, architecture)
        if isinstance(architecture, ScalableArchitecture):
            architecture = architecture.with_widths(metadata.width_rule)
        with torch.device("meta"):
            base = architecture.build_base(metadata.in_channels)
            branch = architecture.build_branch(j, n, metadata.num_classes)
            widths = tuple(architecture.map_channels(j, n))
    student = LoadedStudent(meta_copy(base, buffers=False), meta_copy(branch, buffers=False), metadata)
    if metadata.widths != widths:
        raise ValueError(f"widths: expected {list(widths)}, as {metadata.model} has, got {list(metadata.widths[:20])}")
    parameters = sum(p.numel() for p in student.parameters())
    if metadata.parameters != parameters:
        raise ValueError(f"parameters: expected {parameters}, as {metadata.model} has, got {metadata.parameters}")
    return student


def _architecture_of(metadata: StudentMetadata, architecture: Architecture | str | None) -> Architecture:
    images = Images(metadata.in_channels, metadata.image_size, metadata.num_classes)
    if isinstance(architecture, str):
        architecture = find_architecture(architecture, images)
    if architecture is None:
        if metadata.model.startswith(TIMM):
            _check_unasked(metadata)
            return find_architecture(metadata.model, images)
        if runs_code(metadata.model):
            raise ValueError(
                f"model: {metadata.model[:80]!r} is a function of a file, which is not run unasked; pass "
                f'architecture="{metadata.model[:80]}" with the path of the file'
            )
        if metadata.model not in architecture_names():
            raise ValueError(
                f"model: {metadata.model[:80]!r} is unknown; pass architecture= for a network of your own, "
                "or call register_architecture first"
            )
        return get_architecture(metadata.model)
    if architecture.name != metadata.model:
        raise ValueError(f"architecture: expected {metadata.model[:80]!r}, got {architecture.name!r}")
    return architecture


def _check_unasked(metadata: StudentMetadata) -> None:
    """Refuse networks of timm that would take much memory before they can be compared with the file."""
    for name, limit in _LARGEST_UNASKED.items():
        if (value := getattr(metadata, name)) > limit:
            model = metadata.model[:80]
            raise ValueError(
                f'{name}: expected at most {limit} for {model}, got {value}; architecture="{model}" builds larger ones'
            )


@contextmanager
def _naming(source: Path | str) -> Iterator[None]:
    """Have a ValueError name `source`, in one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {plain(error)}") from error


def _read(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    try:
        return read_regular(path, limit)
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL):  # too large, or not a regular file
            raise ValueError(f"{path}: {error.strerror}") from error
        raise


def _largest_file(module: nn.Module) -> int:
    """Return the most bytes that a file with the weights of `module` may have."""
    header = 65_536 + sum(512 + len(name) for name in module.state_dict())
    return header + sum(8 * tensor.numel() for tensor in module.state_dict().values())


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: damaged ({plain(error)[:200]})")


def _check_tensors(tensors: Mapping[str, Tensor], student: nn.Module, source: str) -> None:
    expected = student.state_dict()
    with _naming(source):
        check_names(tensors.keys(), expected.keys(), "the tensors are not those of the model")
        for name, wanted in expected.items():
            if tensors[name].shape != wanted.shape:
                raise ValueError(f"expected {name} of shape {list(wanted.shape)}, got {list(tensors[name].shape)[:20]}")
        floating = next((tensors[name].dtype for name in expected if expected[name].is_floating_point()), torch.float32)
        if floating not in _DTYPES:
            raise ValueError(f"expected weights of {', '.join(map(str, _DTYPES))}, got {floating}")
        for name, wanted in expected.items():
            dtype = floating if wanted.is_floating_point() else wanted.dtype
            if tensors[name].dtype != dtype:
                raise ValueError(f"expected {name} of {dtype}, got {tensors[name].dtype}")


def _check_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    name = not_finite(tensors)
    if name is not None:
        raise ValueError(f"{source}: expected finite weights, got NaN or infinity in {name}")


def _paths(path: Path | str) -> tuple[Path, Path]:
    path = Path(path).expanduser()
    name = path.name.removesuffix(_WEIGHTS_SUFFIX).removesuffix(_METADATA_SUFFIX)
    return path.with_name(name + _WEIGHTS_SUFFIX), path.with_name(name + _METADATA_SUFFIX)


def _import_safetensors() -> ModuleType:
    return require("safetensors.torch", "students need", "students")

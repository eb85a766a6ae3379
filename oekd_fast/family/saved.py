"""Save and load students, as weights in a safetensors file with metadata in a JSON file beside it, and their gate."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast import __version__
from oekd_fast.common.files import write_atomically
from oekd_fast.family.ensemble import Student, StudentEnsemble
from oekd_fast.family.gate import Gate
from oekd_fast.models import Architecture, architecture_names, get_architecture

FORMAT_VERSION = 1
GATE_FILE = "gate.safetensors"  # in the folder of the students that it weights
_WEIGHTS_SUFFIX = ".safetensors"
_METADATA_SUFFIX = ".json"
_CHECKSUM_FIELD = "weights_sha256"


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of images in [0, 1], (image - mean) / std, with one number per channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StudentMetadata:
    """Everything that is needed to build and use a student. The JSON file has these fields under the same names.

    Args:
        format_version: version of the file format.
        model: name of the architecture.
        num_students: number of students of the family.
        index: number of the student in the family, from 1.
        in_channels: channels of the images.
        image_size: height and width of the training images in pixels.
        num_classes: number of logits.
        classes: name of each class.
        widths: channels of the student's feature maps, one per block.
        parameters: number of parameters of base and branch.
        accuracy: test accuracy in percent, or None if it was not measured.
        normalisation: statistics that `preprocess` uses.
        oekd_fast_version: version of the package that saved the student.

    Raises:
        ValueError: fields contradict each other; the message names the field.
    """

    format_version: int = FORMAT_VERSION
    model: str
    num_students: int
    index: int
    in_channels: int
    image_size: int
    num_classes: int
    classes: tuple[str, ...]
    widths: tuple[int, ...]
    parameters: int
    accuracy: float | None
    normalisation: Normalisation
    oekd_fast_version: str = __version__

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.num_students:
            raise ValueError(f"index: expected a number in 1..{self.num_students}, got {self.index}")
        _check_length("classes", self.classes, self.num_classes)
        _check_length("normalisation.mean", self.normalisation.mean, self.in_channels)
        _check_length("normalisation.std", self.normalisation.std, self.in_channels)
        if min(self.normalisation.std) <= 0:
            raise ValueError(f"normalisation.std: expected numbers > 0, got {self.normalisation.std}")

    @classmethod
    def of(
        cls,
        ensemble: StudentEnsemble,
        j: int,
        *,
        image_size: int,
        classes: Sequence[str],
        normalisation: Normalisation,
        accuracy: float | None = None,
    ) -> "StudentMetadata":
        """Return the metadata of student `j` of `ensemble`, counted from 0."""
        return cls(
            model=ensemble.architecture.name,
            num_students=ensemble.num_students,
            index=j + 1,
            in_channels=ensemble.in_channels,
            image_size=image_size,
            num_classes=ensemble.num_classes,
            classes=tuple(classes),
            widths=ensemble.architecture.map_channels(j, ensemble.num_students),
            parameters=sum(p.numel() for p in ensemble.student(j).parameters()),
            accuracy=accuracy,
            normalisation=normalisation,
        )


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


def save_student(
    module: nn.Module, path: Path | str, metadata: StudentMetadata, architecture: Architecture | None = None
) -> Path:
    """Write the weights of a student and its metadata, and return the path of the weights.

    Args:
        module: student, as returned by `StudentEnsemble.student`, on any device.
        path: `<name>.safetensors`, `<name>.json` or `<name>`, in a folder that exists.
        metadata: metadata of `module`.
        architecture: architecture of `module`; needed if it is not registered.

    Raises:
        ValueError: `module` does not have the tensors that `metadata` describes, or `architecture` has another name.
        ImportError: safetensors is not installed.
        OSError: writing failed. Each file then has its old or its new content. `load_student` detects by a checksum
            that two files do not belong together.
    """
    safetensors = _import_safetensors()
    weights_path, metadata_path = _paths(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    _check_tensors(tensors, _build(metadata, architecture), "module")

    weights = safetensors.save(tensors, metadata={"format": "pt"})
    checksum = hashlib.sha256(weights).hexdigest()
    document = json.dumps({**asdict(metadata), _CHECKSUM_FIELD: checksum}, indent=2) + "\n"
    write_atomically(weights_path, weights)
    write_atomically(metadata_path, document.encode())
    return weights_path


def load_student(path: Path | str, architecture: Architecture | None = None) -> LoadedStudent:
    """Load a saved student on the CPU, in evaluation mode.

    Args:
        path: `<name>.safetensors`, `<name>.json` or `<name>`; both files are read.
        architecture: architecture of the student; needed if it is not registered, as for a network of your own.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: a file is damaged, has another format version or does not belong to the other; or the student's
            architecture is not registered and is not `architecture`.
        ImportError: safetensors is not installed.
    """
    safetensors = _import_safetensors()
    weights_path, metadata_path = _paths(path)
    for needed in (weights_path, metadata_path):
        if not needed.is_file():
            raise FileNotFoundError(f"path: a student needs {needed}, which is missing")
    metadata, checksum = _read_metadata(metadata_path)
    weights = weights_path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != checksum:
        raise ValueError(f"{weights_path}: damaged, or not saved together with {metadata_path.name}")
    tensors = safetensors.load(weights)
    student = _build(metadata, architecture)
    _check_tensors(tensors, student, str(weights_path))
    student.load_state_dict(tensors, assign=True)
    return student.eval()


def save_gate(gate: Gate, path: Path) -> None:
    """Write the weights of `gate` and their checksum to the file `path`, atomically.

    Raises:
        ImportError: safetensors is not installed.
        OSError: writing failed; the file then has its old content.
    """
    safetensors = _import_safetensors()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in gate.state_dict().items()}
    metadata = {"format": "pt", _CHECKSUM_FIELD: _checksum(tensors)}
    write_atomically(path, safetensors.save(tensors, metadata=metadata))


def load_gate(path: Path, channels: int, students: int) -> Gate:
    """Load a saved gate on the CPU, in evaluation mode.

    Args:
        path: file that `save_gate` wrote.
        channels: channels of the map of the base.
        students: number of students that the gate weights.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or holds a gate of other sizes.
        ImportError: safetensors is not installed.
    """
    _import_safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            checksum = (file.metadata() or {}).get(_CHECKSUM_FIELD)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    with torch.device("meta"):
        gate = Gate(channels, students)
    _check_tensors(tensors, gate, str(path))
    if checksum != _checksum(tensors):
        raise ValueError(f"{path}: damaged (the checksum of the weights differs)")
    gate.load_state_dict(tensors, assign=True)
    return gate.eval()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _build(metadata: StudentMetadata, architecture: Architecture | None) -> LoadedStudent:
    """Build the student on the meta device, without memory for its weights and without drawing random numbers."""
    architecture = _architecture_of(metadata, architecture)
    with torch.device("meta"):
        base = architecture.build_base(metadata.in_channels)
        branch = architecture.build_branch(metadata.index - 1, metadata.num_students, metadata.num_classes)
    return LoadedStudent(base, branch, metadata)


def _architecture_of(metadata: StudentMetadata, architecture: Architecture | None) -> Architecture:
    if architecture is None:
        if metadata.model not in architecture_names():
            raise ValueError(
                f"model: {metadata.model!r} is unknown; pass architecture= for a network of your own, "
                "or call register_architecture first"
            )
        return get_architecture(metadata.model)
    if architecture.name != metadata.model:
        raise ValueError(f"architecture: expected {metadata.model!r}, got {architecture.name!r}")
    return architecture


def _read_metadata(path: Path) -> tuple[StudentMetadata, str]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(document).__name__}")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: expected format_version {FORMAT_VERSION}, got {version!r}")
    expected = {field.name for field in fields(StudentMetadata)} | {_CHECKSUM_FIELD}
    _check_names(document.keys(), expected, f"{path}: the fields are not those of format {version}")
    checksum = document.pop(_CHECKSUM_FIELD)
    try:
        return _parse(document), checksum
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(document: Mapping[str, Any]) -> StudentMetadata:
    scaling = document["normalisation"]
    return StudentMetadata(
        **{
            **document,
            "classes": tuple(document["classes"]),
            "widths": tuple(document["widths"]),
            "normalisation": Normalisation(**{name: tuple(values) for name, values in scaling.items()}),
        }
    )


def _check_tensors(tensors: Mapping[str, Tensor], student: nn.Module, source: str) -> None:
    expected = student.state_dict()
    _check_names(tensors.keys(), expected.keys(), f"{source}: the tensors are not those of the model")
    for name, wanted in expected.items():
        if tensors[name].shape != wanted.shape:
            raise ValueError(
                f"{source}: expected {name} of shape {list(wanted.shape)}, got {list(tensors[name].shape)}"
            )


def _check_names(names: Set[str], expected: Set[str], problem: str) -> None:
    missing, unexpected = sorted(expected - names), sorted(names - expected)
    if missing or unexpected:
        raise ValueError(f"{problem}; missing: {_first(missing)}; unexpected: {_first(unexpected)}")


def _first(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "none") + more


def _check_length(name: str, values: Sequence[Any], expected: int) -> None:
    if len(values) != expected:
        raise ValueError(f"{name}: expected {expected} entries, got {len(values)}")


def _paths(path: Path | str) -> tuple[Path, Path]:
    path = Path(path)
    name = path.name.removesuffix(_WEIGHTS_SUFFIX).removesuffix(_METADATA_SUFFIX)
    return path.with_name(name + _WEIGHTS_SUFFIX), path.with_name(name + _METADATA_SUFFIX)


def _import_safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("students need safetensors: pip install 'oekd_fast[train]'") from error
    return safetensors.torch

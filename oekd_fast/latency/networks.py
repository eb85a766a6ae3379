"""The networks whose latency is measured: each student alone, and the ensemble of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from oekd_fast.family.exporting.contents import ImageInput
from oekd_fast.family.exporting.networks import Normalised, family_outputs
from oekd_fast.family.gate import Gate
from oekd_fast.family.saved import LoadedStudent
from oekd_fast.family.student import Student


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Args:
        module: takes uint8 images [B, C, H, W], on the CPU and in evaluation mode.
        images: shape and normalisation of the images.
        outputs: names of its outputs.
        cost: estimated time of a call, in any unit that all networks share.
    """

    module: nn.Module
    images: ImageInput
    outputs: tuple[str, ...]
    cost: float

    @classmethod
    def of(cls, plain: nn.Module, images: ImageInput, outputs: tuple[str, ...], cost: float) -> Network:
        """Return the network of `plain`, which takes normalised images."""
        return cls(Normalised(plain, images.normalisation).eval(), images, outputs, cost)


def networks_of(students: Sequence[LoadedStudent], flops: Sequence[int], gate: Gate | None = None) -> list[Network]:
    """Return each student, then the ensemble if there are several students.

    Args:
        students: students of one family, on the CPU and in evaluation mode.
        flops: operations of each student for one image.
        gate: gate of the family, on the CPU and in evaluation mode; None without one.
    """
    metadata = students[0].metadata
    images = ImageInput((metadata.in_channels, *[metadata.image_size] * 2), None, metadata.normalisation)
    networks = [
        Network.of(Student(student.base, student.branch), images, ("logits",), cost)
        for student, cost in zip(students, flops, strict=True)
    ]
    if len(students) > 1:
        ensemble = family_outputs(students, gate).eval()
        networks.append(Network.of(ensemble, images, ensemble.names, sum(flops)))
    return networks


def size_of(module: nn.Module) -> dict[str, int]:
    """Return the number of parameters and the bytes of the weights, as in a file without a header.

    What `module` holds several times counts once.
    """
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return {
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "file_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
    }

"""A small family to export, and what exported files hold and compute, read without the code that writes them."""

import io
import json
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from oekd_fast import FunctionalArchitecture, build_ensemble
from oekd_fast.family.saved import Normalisation
from oekd_fast.layers.direct_conv import conv3x3
from oekd_fast.layers.fast_module import FastSequential
from oekd_fast.models.residual import BasicBlock

SHAPE = (3, 8, 8)
CLASSES = ("cat", "chat d'été", "猫", "d")
NORMALISATION = Normalisation(mean=(0.5, 0.25, 0.4), std=(0.2, 0.5, 0.25))


def _base(in_channels):
    return FastSequential(conv3x3(in_channels, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True))


def _blocks(width):
    return [BasicBlock(8, width(8), 1), nn.Sequential(nn.Dropout(0.5), BasicBlock(width(8), width(12), 2))]


ARCHITECTURE = FunctionalArchitecture("tiny", _base, _blocks, nn.Linear, block_type=BasicBlock)


def trained_family(**options):
    """Return a family of two in training mode, whose norms have statistics."""
    torch.manual_seed(0)
    family = build_ensemble(ARCHITECTURE, 2, num_classes=len(CLASSES), **options)
    for _ in range(3):
        family.forward_gated(torch.randn(8, *SHAPE) * 2 + 1)
    return family


def random_pixels(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (NORMALISATION.mean, NORMALISATION.std))
    return (pixels.float() / 255 - mean) / std


def run(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Return the outputs of a file by name."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))
    outputs = torch.export.load(path).module()(images)
    return outputs if isinstance(outputs, dict) else {"logits": outputs}


def metadata(path: Path) -> dict:
    """Return what a file says about its network."""
    if path.suffix == ".onnx":
        return {entry.key: _value(entry.value) for entry in onnx.load(path).metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra)
    return json.loads(extra["metadata.json"])


def _value(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text

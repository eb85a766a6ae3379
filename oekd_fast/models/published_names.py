"""Translate the names of tensors in torchvision's and timm's networks to those of student 1.

timm uses the names of torchvision for ResNets and DenseNets.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

_Rule = tuple[str, str | Callable[[re.Match], str | None]]


class Layout(NamedTuple):
    """Naming scheme of the tensors of one kind of network in one library.

    Args:
        unique_name: name that no other layout contains.
        rules: pairs of a regular expression for the start of a name and its replacement, a string or a function of the
            match. The first rule that matches applies.
    """

    unique_name: str
    rules: tuple[_Rule, ...]

    def translate(self, name: str) -> str | None:
        """Return the name in student 1, or None if the layout does not contain `name`."""
        for pattern, ours in self.rules:
            if match := re.match(pattern, name):
                start = ours if isinstance(ours, str) else ours(match)
                return None if start is None else start + name[match.end() :]
        return None


def find_layout(names: Iterable[str]) -> Layout | None:
    """Return the layout of a state dict with these names, or None if it is unknown."""
    names = set(names)
    return next((layout for layout in LAYOUTS if layout.unique_name in names), None)


# -- ResNet, ResNeXt, Wide ResNet

_RESIDUAL = {"conv": "conv", "bn": "norm", "downsample.0": "shortcut.conv", "downsample.1": "shortcut.norm"}


def _residual(match: re.Match) -> str:
    stage = int(match[1])
    place = "base.stage" if stage == 1 else f"branch.stages.{stage - 2}"
    return f"{place}.{match[2]}.{_RESIDUAL[match[3]]}{match[4]}."


_RESNET = Layout(
    "layer1.0.conv1.weight",
    (
        (r"conv1\.", "base.conv."),
        (r"bn1\.", "base.norm."),
        (r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.[01])(\d?)\.", _residual),
        (r"fc\.", "branch.classifier."),
    ),
)

# -- DenseNet-121


def _dense_layer(match: re.Match) -> str:
    block, layer = int(match[1]), int(match[2]) - 1
    place = {1: "base.block", 4: "branch.stages.2"}.get(block, f"branch.stages.{block - 2}.block")
    return f"{place}.{layer}.{match[3]}{match[4]}."


_DENSENET = Layout(
    "features.conv0.weight",
    (
        (r"features\.conv0\.", "base.conv."),
        (r"features\.norm0\.", "base.norm."),
        # torchvision's DenseNet files date from before 2018 and spell norm1 as norm.1.
        (r"features\.denseblock([1-4])\.denselayer(\d+)\.(norm|conv)\.?([12])\.", _dense_layer),
        (r"features\.transition1\.", "base.transition."),
        (r"features\.transition2\.", "branch.stages.0.transition."),
        (r"features\.transition3\.", "branch.stages.1.transition."),
        (r"features\.norm5\.", "branch.classifier.norm."),
        (r"classifier\.", "branch.classifier.linear."),
    ),
)

# -- EfficientNet

# Position of stages 1 to 7 among the stages of the branch.
_STAGES = ("0.0", "0.1", "0.2", "1.0", "1.1", "2.0", "2.1")
_HEAD = "branch.stages.2.2"
_TORCHVISION_PARTS = {
    "0.0": "expand", "0.1": "norm1", "1.0": "depthwise", "1.1": "norm2", "2.fc1": "squeeze.reduce",
    "2.fc2": "squeeze.expand", "3.0": "project", "3.1": "norm3",
}  # fmt: skip
_TIMM_SQUEEZE = {"se.conv_reduce": "squeeze.reduce", "se.conv_expand": "squeeze.expand"}
_TIMM_PARTS = _TIMM_SQUEEZE | {
    "conv_pw": "expand", "bn1": "norm1", "conv_dw": "depthwise", "bn2": "norm2", "conv_pwl": "project", "bn3": "norm3",
}  # fmt: skip
# Blocks of the first stage have no expansion.
_TIMM_FIRST = _TIMM_SQUEEZE | {"conv_dw": "depthwise", "bn1": "norm2", "conv_pw": "project", "bn2": "norm3"}


def _torchvision_block(match: re.Match) -> str | None:
    stage = int(match[1]) - 1
    part = int(match[3]) + (stage == 0)
    return _mbconv(stage, match[2], _TORCHVISION_PARTS.get(f"{part}.{match[4]}"))


def _timm_block(match: re.Match) -> str | None:
    stage = int(match[1])
    return _mbconv(stage, match[2], (_TIMM_PARTS if stage else _TIMM_FIRST).get(match[3]))


def _mbconv(stage: int, block: str, part: str | None) -> str | None:
    return part and f"branch.stages.{_STAGES[stage]}.{block}.layers.{part}."


_EFFICIENTNET_TORCHVISION = Layout(
    "features.0.0.weight",
    (
        (r"features\.0\.0\.", "base.conv."),
        (r"features\.0\.1\.", "base.norm."),
        (r"features\.([1-7])\.(\d+)\.block\.(\d)\.(\w+)\.", _torchvision_block),
        (r"features\.8\.0\.", f"{_HEAD}.conv."),
        (r"features\.8\.1\.", f"{_HEAD}.norm."),
        (r"classifier\.1\.", "branch.classifier.linear."),
    ),
)
_EFFICIENTNET_TIMM = Layout(
    "conv_stem.weight",
    (
        (r"conv_stem\.", "base.conv."),
        (r"bn1\.", "base.norm."),
        (r"blocks\.([0-6])\.(\d+)\.(se\.\w+|\w+)\.", _timm_block),
        (r"conv_head\.", f"{_HEAD}.conv."),
        (r"bn2\.", f"{_HEAD}.norm."),
        (r"classifier\.", "branch.classifier.linear."),
    ),
)
LAYOUTS = (_RESNET, _DENSENET, _EFFICIENTNET_TORCHVISION, _EFFICIENTNET_TIMM)

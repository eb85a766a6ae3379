"""Networks that can be trained as a family, and the rule that scales their channels.

- `registry`: `get_architecture` returns a network by name, `register_architecture` adds one.
- `architecture`, `functional`: the interface of a network, and its implementation by three functions. `cifar_resnet`,
  `resnet` (with `residual`), `densenet` and `efficientnet` each define a set of networks in this way.
- `scaling`: the width of student j of n, by the `WidthRule` of the family.
- `published_weights`, `published_names`: load weights of torchvision and timm into the largest student.
"""

from oekd_fast.common.width_rule import WidthRule
from oekd_fast.models.architecture import Architecture, ScalableArchitecture, width_rule_of, with_widths
from oekd_fast.models.functional import FunctionalArchitecture
from oekd_fast.models.published_weights import load_standard_weights
from oekd_fast.models.registry import architecture_names, get_architecture, register_architecture
from oekd_fast.models.scaling import Width, compression_ratio, scaled_channels

__all__ = [
    "Architecture",
    "FunctionalArchitecture",
    "ScalableArchitecture",
    "Width",
    "WidthRule",
    "architecture_names",
    "compression_ratio",
    "get_architecture",
    "load_standard_weights",
    "register_architecture",
    "scaled_channels",
    "width_rule_of",
    "with_widths",
]

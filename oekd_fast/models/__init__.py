"""Networks that can be trained as a family: their scaling rules, and a registry of names."""

from oekd_fast.models.architecture import Architecture
from oekd_fast.models.functional import FunctionalArchitecture
from oekd_fast.models.published_weights import load_standard_weights
from oekd_fast.models.registry import architecture_names, get_architecture, register_architecture
from oekd_fast.models.scaling import Width, compression_ratio, scaled_channels

__all__ = [
    "Architecture",
    "FunctionalArchitecture",
    "Width",
    "architecture_names",
    "compression_ratio",
    "get_architecture",
    "load_standard_weights",
    "register_architecture",
    "scaled_channels",
]

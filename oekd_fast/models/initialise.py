"""Initial weights that several families share."""

from torch import nn


def kaiming_fan_out(module: nn.Module) -> None:
    """Convolutions normal with std sqrt(2 / (k_h k_w C_out)) (He et al. 2015); the rest as PyTorch has it."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

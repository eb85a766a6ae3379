"""Removes channels from the parameters of a network, and from the numbers that its modules hold."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from oekd_fast.models.any_network.layouts import dims_of
from oekd_fast.models.any_network.recording import Record

# Attributes of the modules of PyTorch that are sizes of their weight, by dimension.
WEIGHT_SIZES: dict[type[nn.Module], dict[str, int]] = {
    nn.Linear: {"out_features": 0, "in_features": 1},
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], {"out_channels": 0}),
    **dict.fromkeys([nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d], {"in_channels": 0}),
    nn.Embedding: {"embedding_dim": 1},
}
# Attributes of modules of PyTorch, timm, torchvision and transformers that count channels.
CHANNEL_COUNTS = frozenset(
    "all_head_size attention_head_size attn_dim d_model dim dim_out embed_dim embed_dims embedding_dim features"
    " head_dim head_hidden_size hidden_dim hidden_features hidden_size in_channels in_chs in_features inner_dim kdim"
    " key_dim normalized_shape num_channels num_features out_channels out_chs out_dim out_features vdim".split()
)
# Attributes that hold 1 / sqrt(channels of a head).
HEAD_SCALES = ("scale", "scaling")
GROUP_COUNTS = ("groups", "num_groups")


def resize_tensors(tensors: Mapping[str, Tensor], recorded: Record) -> None:
    """Replace the data of each of the parameters and buffers, by name, by the positions whose channels remain."""
    for name, layout in recorded.layouts.items():
        data = tensors[name].detach()
        for factor in layout.factors:
            chosen = recorded.kept_positions(factor)
            if not chosen.all():
                (d,) = dims_of(factor)
                data = data.index_select(d, chosen.nonzero()[:, 0].to(data.device))
        if data.shape != tensors[name].shape:
            tensors[name].data = data.clone(memory_format=_memory_format(tensors[name]))


def _memory_format(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def remaining_rows(recorded: Record) -> dict[str, Tensor]:
    """Return the positions of dimension 0 whose channels remain, int64, for each parameter and buffer with channels."""
    return {
        name: recorded.kept_positions(factor).nonzero()[:, 0]
        for name, layout in recorded.layouts.items()
        for factor in layout.factors
        if dims_of(factor) == (0,)
    }


def resize_attributes(
    network: nn.Module, sizes: Mapping[str, Mapping[int, set[int]]], groups: Mapping[str, int]
) -> None:
    """Set the attributes of modules that count channels or groups, whose parameters have been resized.

    Args:
        network: the network.
        sizes: for each module, by name, the numbers of channels that occur in it, and what has become of each. An
            attribute that holds such a number follows if it has become the same everywhere in the module.
        groups: the number of groups that remain, by module, where it has changed.
    """
    for name, module in network.named_modules():
        for attribute in GROUP_COUNTS:
            if name in groups and hasattr(module, attribute):
                setattr(module, attribute, groups[name])
        exact = _sizes_of_weight(module)
        for attribute in CHANNEL_COUNTS & vars(module).keys():
            value = exact.get(attribute, _followed(getattr(module, attribute), sizes.get(name, {})))
            setattr(module, attribute, value)
        for attribute in HEAD_SCALES:
            if isinstance(scale := vars(module).get(attribute), float):
                setattr(module, attribute, _scale(scale, sizes.get(name, {})))


def _sizes_of_weight(module: nn.Module) -> dict[str, int]:
    """Return the attributes of a module of PyTorch that its weight determines."""
    for kind, attributes in WEIGHT_SIZES.items():
        if isinstance(module, kind):
            shape = module.weight.shape
            sizes = {attribute: shape[d] for attribute, d in attributes.items()}
            if "out_channels" in attributes:
                sizes["in_channels"] = shape[1] * module.groups
            elif "in_channels" in attributes:
                sizes["out_channels"] = shape[1] * module.groups
            return sizes
    return {}


def _followed(value: object, known: Mapping[int, set[int]]) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return next(iter(known[value])) if len(known.get(value, ())) == 1 else value
    if isinstance(value, (tuple, list)):
        return type(value)(_followed(item, known) for item in value)
    return value


def _scale(scale: float, known: Mapping[int, set[int]]) -> float:
    for before, after in known.items():
        if len(after) == 1 and math.isclose(scale, before**-0.5, rel_tol=1e-9):
            return next(iter(after)) ** -0.5
    return scale

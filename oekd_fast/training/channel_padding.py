"""Channels stored as multiples of 8: layers of a family that are padded with zeros for training, and the inverse.

cuDNN pads the channels of channels_last maps that are no multiple of 8 by kernels of its own, in each layer. Here the
weights are padded once instead: each number of channels c becomes the next multiple of 8, and the new channels come
last. Their weights, gamma, beta and running statistics are zero. So are their maps, which no other channel reads, and
all of their gradients, so that SGD, Adam, RMSProp, weight decay and moving averages keep them at exactly zero. The
image channels, the logits and the maps that students are compared with are not padded.

`state_dict()` and `load_state_dict()` of a padded module are those of the module without padding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from oekd_fast.config.train_config import TrainConfig
from oekd_fast.distributed.norms import GlobalBatchNorm2d
from oekd_fast.family.ensemble import StudentEnsemble
from oekd_fast.layers.fast_module import FastModule
from oekd_fast.layers.unmodified import is_unmodified
from oekd_fast.models.functional import Branch, GlobalAverage

MULTIPLE = 8

_CONVOLUTION = {"weight": ("out_channels", "in_channels"), "bias": ("out_channels",)}
_NORM = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("num_features",))
_LINEAR = {"weight": ("out_features", "in_features"), "bias": ("out_features",)}
# Attributes that hold the leading sizes of each tensor of a layer.
_SIZES: Mapping[type[nn.Module], Mapping[str, tuple[str, ...]]] = {
    nn.Conv2d: _CONVOLUTION,
    nn.BatchNorm2d: _NORM,
    nn.SyncBatchNorm: _NORM,
    GlobalBatchNorm2d: _NORM,
    nn.Linear: _LINEAR,
}
# Layers without weights whose output is zero in each channel in which their input is.
_WITHOUT_WEIGHTS = (nn.Identity, nn.ReLU, nn.SiLU, nn.MaxPool2d, nn.AvgPool2d, GlobalAverage)
_CONTAINERS = (nn.Sequential, nn.ModuleList, Branch)
_SHAPES = "unpadded_shapes"  # attribute of a padded layer: the shapes of its tensors without padding, by name


def pads_channels(config: TrainConfig, ensemble: StudentEnsemble) -> bool:
    """Return whether `config` has the channels of `ensemble` padded on its device.

    Raises:
        ValueError: ``config.pad_channels`` is "on", and the network cannot be padded.
    """
    if not _wanted(config, ensemble) or not unaligned_channels(ensemble):
        return False
    why = why_not_padded(ensemble)
    if why is not None and config.pad_channels == "on":
        raise ValueError(f"pad_channels: expected auto or off for {ensemble.architecture.name}, got on; {why}")
    return why is None


def padding_note(config: TrainConfig, ensemble: StudentEnsemble) -> str | None:
    """Return in one line how channels are stored; None where `config` asks for no padding or none is needed.

    Args:
        ensemble: the family, padded or not.
    """
    padded = {
        shapes["weight"][0]
        for network in _networks(ensemble)
        for layer, shapes in _padded_layers(network)
        if isinstance(layer, nn.Conv2d)
    }
    if padded:
        counts = ", ".join(str(count) for count in sorted(padded) if count % MULTIPLE)
        return f"channels: {counts} are stored as multiples of {MULTIPLE} (--pad-channels off stores them as they are)"
    if not _wanted(config, ensemble) or not unaligned_channels(ensemble):
        return None
    return f"channels: stored as they are, since {why_not_padded(ensemble)}"


def why_not_padded(ensemble: StudentEnsemble) -> str | None:
    """Return why channels of zeros would not stay zero or last in `ensemble`; None if they would.

    They do in networks made of layers that this module knows, such as the ResNets. A DenseNet concatenates maps, which
    moves the padding of the first map between its channels and those of the second.
    """
    first = next((layer for layer in ensemble.base.modules() if type(layer) in _SIZES), None)
    of_images = [layer for layer in _convolutions(ensemble.base) if layer.in_channels == ensemble.in_channels]
    if not of_images or first is not of_images[0]:
        return "the base does not begin with a convolution"
    if len(of_images) > 1 and ensemble.in_channels % MULTIPLE:
        return f"several convolutions of the base have {ensemble.in_channels} channels, as the images"
    for i, network in enumerate(_networks(ensemble)):
        name = f"branches.{i - 1}" if i else "base"
        for path, part in network.named_modules():
            if part is not getattr(network, "classifier", None) and not _keeps_zero_channels(part):
                return f"{name}.{path}".rstrip(".") + f" ({type(part).__name__}) may mix or move channels"
        if i and (type(network) is not Branch or type(network.classifier) is not nn.Linear):
            return f"{name} does not end with an average over pixels and a linear layer"
    parameters = [id(parameter) for _, parameter in ensemble.named_parameters(remove_duplicate=False)]
    return "layers share weights" if len(set(parameters)) < len(parameters) else None


def unaligned_channels(ensemble: StudentEnsemble) -> set[int]:
    """Return the numbers of output channels of convolutions, without those of adapters, that are no multiple of 8."""
    counts = {layer.out_channels for network in _networks(ensemble) for layer in _convolutions(network)}
    return {count for count in counts if count % MULTIPLE}


def pad_channels(ensemble: StudentEnsemble) -> None:
    """Pad all layers of `ensemble` in place. Its parameters are replaced, so an optimizer is built afterwards.

    Raises:
        ValueError: the network cannot be padded.
    """
    why = why_not_padded(ensemble)
    if why is not None:
        raise ValueError(f"ensemble: expected a network whose channels can be padded; {why}")
    of_images = next(_convolutions(ensemble.base))
    for layer in ensemble.base.modules():
        _pad_outputs(layer)
        if layer is not of_images:
            _pad_inputs(layer)
    for branch in ensemble.branches:
        for layer in branch.stages.modules():
            _pad_outputs(layer)
            _pad_inputs(layer)
        _pad_inputs(branch.classifier)
    for adapter in ensemble.adapters.modules():
        _pad_inputs(adapter)
    for helper in ensemble.helpers.modules():
        if isinstance(helper, nn.Conv2d):  # an inlet; critics see maps without padding
            _pad_outputs(helper)
    if ensemble.gate is not None:
        _pad_inputs(ensemble.gate.linear)


def without_padding(ensemble: StudentEnsemble) -> StudentEnsemble:
    """Return a copy of `ensemble`, padded or not, that has no padding and shares no memory with it."""
    copied = copy.deepcopy(ensemble)
    for layer, shapes in list(_padded_layers(copied)):
        for name, shape in shapes.items():
            _replace(layer, name, _sliced(getattr(layer, name).detach(), shape))
            for attribute, size in zip(_SIZES[type(layer)][name], shape, strict=False):
                setattr(layer, attribute, size)
        delattr(layer, _SHAPES)
    return copied


def unpadded_shapes(module: nn.Module) -> dict[nn.Parameter, torch.Size]:
    """Return the shapes of the padded parameters of `module` without their padding."""
    return {
        parameter: shapes[name]
        for layer, shapes in _padded_layers(module)
        for name, parameter in layer.named_parameters(recurse=False)
        if name in shapes
    }


def sliced_state(state: Mapping[str, Any], padded: torch.Size, shape: torch.Size) -> dict[str, Any]:
    """Return the optimizer's `state` of a parameter of shape `padded` as that of a parameter of shape `shape`."""
    return {name: _sliced(value, shape) if _has(value, padded) else value for name, value in state.items()}


def padded_state(state: Mapping[str, Any], padded: torch.Size, shape: torch.Size) -> dict[str, Any]:
    """Return the inverse of `sliced_state`, with zeros in the padding."""
    return {name: _padded(value, padded) if _has(value, shape) else value for name, value in state.items()}


def _wanted(config: TrainConfig, ensemble: StudentEnsemble) -> bool:
    if config.pad_channels != "auto":
        return config.pad_channels == "on"
    return config.channels_last and any(parameter.is_cuda for parameter in ensemble.base.parameters())


def _networks(ensemble: StudentEnsemble) -> tuple[nn.Module, ...]:
    return ensemble.base, *ensemble.branches


def _convolutions(module: nn.Module) -> Iterator[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _keeps_zero_channels(module: nn.Module) -> bool:
    """Return whether channels of zeros at the end of the input of `module` are zero and last in its output."""
    kind = type(module)
    if isinstance(module, FastModule):
        return "keeps_zero_channels" in vars(kind)
    if kind in _CONTAINERS:
        return "forward" not in vars(module)
    if not is_unmodified(module, kind) or kind is nn.Linear:
        return False
    if isinstance(module, nn.Conv2d) and module.groups > 1:  # each group would have to be padded
        return kind is nn.Conv2d and module.in_channels % MULTIPLE == module.out_channels % MULTIPLE == 0
    return kind in _SIZES or kind in _WITHOUT_WEIGHTS


def _pad_inputs(layer: nn.Module) -> None:
    _pad(layer, ("in_channels", "in_features"))


def _pad_outputs(layer: nn.Module) -> None:
    _pad(layer, ("out_channels", "num_features"))


def _pad(layer: nn.Module, attributes: tuple[str, ...]) -> None:
    """Round the sizes of `layer` in `attributes` up to multiples of 8, and pad the tensors that have these sizes."""
    sizes = _SIZES.get(type(layer), {})
    for attribute in attributes:
        if any(attribute in names for names in sizes.values()):
            setattr(layer, attribute, -(-getattr(layer, attribute) // MULTIPLE) * MULTIPLE)
    for name, names in sizes.items():
        tensor = getattr(layer, name)
        if tensor is None or isinstance(layer, nn.Conv2d) and layer.groups > 1:
            continue
        shape = torch.Size((*(getattr(layer, attribute) for attribute in names), *tensor.shape[len(names) :]))
        if shape != tensor.shape:
            if not hasattr(layer, _SHAPES):
                setattr(layer, _SHAPES, {})
                layer.register_state_dict_post_hook(_slice_saved)
                layer.register_load_state_dict_pre_hook(_pad_loaded)
            getattr(layer, _SHAPES).setdefault(name, tensor.shape)
            _replace(layer, name, _padded(tensor.detach(), shape))


def _padded_layers(module: nn.Module) -> Iterator[tuple[nn.Module, dict[str, torch.Size]]]:
    for layer in module.modules():
        if hasattr(layer, _SHAPES):
            yield layer, getattr(layer, _SHAPES)


def _replace(layer: nn.Module, name: str, tensor: Tensor) -> None:
    """Set a parameter or buffer of `layer`; a parameter keeps whether it requires a gradient."""
    before = getattr(layer, name)
    if isinstance(before, nn.Parameter):
        tensor = nn.Parameter(tensor, before.requires_grad)
    setattr(layer, name, tensor)


def _slice_saved(layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]) -> None:
    for name, shape in getattr(layer, _SHAPES, {}).items():
        state[prefix + name] = _sliced(state[prefix + name], shape)


def _pad_loaded(layer: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    for name, shape in getattr(layer, _SHAPES, {}).items():
        if _has(state.get(prefix + name), shape):
            state[prefix + name] = _padded(state[prefix + name], getattr(layer, name).shape)


def _has(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape


def _sliced(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a copy of the first `shape` elements of `tensor`, in its memory format."""
    return tensor[tuple(map(slice, shape))].clone()


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return a copy of `tensor` with zeros at the end of each dimension, in its memory format."""
    ends = [end - size for size, end in zip(tensor.shape, shape, strict=True)]
    return functional.pad(tensor, [side for end in reversed(ends) for side in (0, end)])

"""Checks of networks by running them on example images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from oekd_fast.models.any_network.errors import CutError, with_factory_form
from oekd_fast.models.any_network.pieces import Pieces


def check_network(module: object, images: object) -> Tensor:
    """Check the arguments of a family of a module, and return its images.

    Args:
        module: the user's network.
        images: a tensor [B, C, H, W], or a sequence of that tensor alone.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: the images have another shape or device, or weights are on several devices or on meta.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    images = check_images(images)
    devices = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        devices.setdefault(tensor.device, name)
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(
                f"module: expected weights of torch.float32, got {tensor.dtype} in {name!r}; precision= of the trainer "
                "or torch.autocast trains in fewer bits"
            )
    on_meta = next((name for device, name in devices.items() if device.type == "meta"), None)
    if on_meta is not None:
        raise ValueError(f"module: expected weights that have values, got {on_meta!r} on the meta device")
    if len(devices) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
        raise ValueError(f"module: expected weights on one device, got {places}")
    if devices and images.device not in devices:
        raise ValueError(
            f"example_inputs: expected images on {next(iter(devices))}, as the module, got {images.device}"
        )
    return images


def check_images(images: object) -> Tensor:
    """Return the tensor of example images.

    Raises:
        TypeError: `images` is neither a tensor nor a sequence of one tensor, or is not float32.
        ValueError: its shape is not [B, C, H, W], or it is empty.
    """
    if isinstance(images, tuple | list) and len(images) == 1:
        (images,) = images
    if not isinstance(images, Tensor):
        got = f"{len(images)} inputs" if isinstance(images, tuple | list) else type(images).__name__
        raise TypeError(f"example_inputs: expected one tensor of images [B, C, H, W], got {got}")
    if images.dtype != torch.float32:
        raise TypeError(f"example_inputs: expected torch.float32, got {images.dtype}")
    if images.ndim != 4 or images.numel() == 0:
        raise ValueError(f"example_inputs: expected images [B, C, H, W], got shape {list(images.shape)}")
    return images.detach()


def run_network(network: nn.Module, images: Tensor) -> Tensor:
    """Run `network` in evaluation mode, and return its logits [B, C].

    Raises:
        ValueError: it fails on `images`, or returns something else.
    """
    try:
        with torch.no_grad(), evaluating(network):
            logits = network(images)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"example_inputs: {type(network).__name__} fails on images {list(images.shape)}: {reason}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        got = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise with_factory_form(f"expected logits [{len(images)}, classes] as its output, got {got}")
    return logits


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Have all modules of `network` in evaluation mode; they have their own modes again afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def run_pieces(pieces: Pieces, images: Tensor) -> Tensor:
    """Return the logits of a network in pieces, which are in evaluation mode afterwards."""
    x = pieces.eval().base(images)
    for stage in pieces.stages:
        x = stage(x)
    return pieces.classifier(x)


def check_same_outputs(network: nn.Module, pieces: Pieces, images: Tensor) -> None:
    """Raise CutError unless `pieces` return the outputs of `network`, to the bit, for two numbers of images.

    Args:
        images: two images.
    """
    for batch in (images, torch.cat([images, images[:1]])):
        expected, got = run_network(network, batch), run_pieces(pieces, batch)
        if not torch.equal(expected, got):
            difference = (expected - got).abs().max().item()
            raise with_factory_form(
                f"the graph of {type(network).__name__} gives other outputs for {len(batch)} images than its forward "
                f"(largest difference {difference:.1e}), since a value or a size in it depends on the input"
            )


def check_shared_parameters(pieces: Pieces, names: Sequence[str]) -> None:
    """Raise CutError if a parameter belongs to two pieces, which train and are saved on their own.

    Args:
        names: names of base and blocks.
    """
    owners: dict[int, str] = {}
    for name, piece in zip([*names, "the classifier"], [pieces.base, *pieces.stages, pieces.classifier], strict=True):
        for parameter_name, parameter in piece.named_parameters():
            other = owners.setdefault(id(parameter), name)
            if other != name:
                raise CutError(
                    f"blocks: expected parts without common parameters, got {parameter_name!r} in the parts that end "
                    f"after {other!r} and {name!r}; base= and blocks= can move the cut, or pass blocks=()"
                )


@torch.no_grad()
def modules_that_change_inputs(pieces: Pieces, names: Sequence[str], images: Tensor) -> tuple[str, ...]:
    """Return the names of the modules that change the input of a stage or of the classifier, by ``inplace=True``.

    The pieces are in evaluation mode afterwards.

    Args:
        names: names of the blocks, for errors.

    Raises:
        CutError: another operation changes such an input.
    """
    found: list[str] = []
    x = pieces.eval().base(images)
    for name, piece in zip([*names, "the classifier"], [*pieces.stages, pieces.classifier], strict=True):
        with _noting_modules_in_place(piece, x, found):
            before, noted = x._version, len(found)
            y = piece(x)
        if x._version != before and len(found) == noted:
            raise CutError(
                f"blocks: {name} changes its input in place, which other students or the returned maps share; expected "
                "operations without a trailing underscore and modules with inplace=False"
            )
        x = y
    return tuple(found)


@contextmanager
def _noting_modules_in_place(piece: nn.Module, x: Tensor, found: list[str]) -> Iterator[None]:
    """Add to `found` the names of the modules with ``inplace=True`` that are called with the memory of `x`."""
    memory = x.untyped_storage().data_ptr()

    def note(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, args: tuple) -> None:
            if args and isinstance(args[0], Tensor) and args[0].untyped_storage().data_ptr() == memory:
                found.append(name)

        return hook

    in_place = [(name, m) for name, m in piece.named_modules() if getattr(m, "inplace", False) is True]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in in_place]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_weight_of_base(network: nn.Module, modules: Sequence[str], channels: int) -> str | None:
    """Return the name of the last parameter in `modules` with one row for each channel; None without one.

    Args:
        modules: names of the modules that the base calls, in their order.
        channels: channels of the map of the base.
    """
    names = [
        ".".join(part for part in (path, name) if part)
        for path in modules
        for name, parameter in network.get_submodule(path).named_parameters()
        if parameter.shape[:1] == (channels,)
    ]
    return names[-1] if names else None

"""Networks by the text that a user gives: a name of the registry, ``timm:NAME``, or ``FILE.py:FUNCTION``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oekd_fast.common.python_names import import_python, split_python_name
from oekd_fast.common.text import reason_of
from oekd_fast.models.any_network.module_architecture import ModuleArchitecture
from oekd_fast.models.any_network.sources import FactoryNetworks, ScaledNetworks
from oekd_fast.models.architecture import Architecture
from oekd_fast.models.registry import architecture_names, get_architecture
from oekd_fast.models.weight_files import read_weight_file

TIMM = "timm:"  # begins the names of its networks
_FORMS = "or timm:NAME for a network of timm, or FILE.py:FUNCTION for one of your own"


@dataclass(frozen=True)
class Images:
    """The images and classes of the data that a network is for.

    Args:
        channels: channels of an image.
        size: height and width in pixels.
        classes: number of classes.
    """

    channels: int
    size: int
    classes: int

    def example(self) -> Tensor:
        """Return two images, the same at each call."""
        shape = (2, self.channels, self.size, self.size)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu")


def registered(model: str) -> Architecture | None:
    """Return the architecture that is registered as `model`; None if `model` names a network of timm or a function.

    No code of the user runs.

    Raises:
        ValueError: `model` is unknown: it is neither registered nor has one of the other forms, or timm does not have
            it.
        FileNotFoundError: the file is missing.
        ImportError: timm cannot be imported.
    """
    if model not in architecture_names():
        if model.startswith(TIMM):
            _check_timm(model)
            return None
        if (named := split_python_name(model)) is not None:
            if named[0].endswith(".py") and not Path(named[0]).expanduser().is_file():
                raise FileNotFoundError(f"model: {named[0]} is missing")
            return None
        if ":" in model or model.endswith(".py"):
            raise ValueError(f"model: expected a name such as resnet20, {_FORMS}, got {model!r}")
    return get_architecture(model)


def runs_code(model: str) -> bool:
    """Whether `model` names a function, which `find_architecture` would run."""
    return model not in architecture_names() and not model.startswith(TIMM) and split_python_name(model) is not None


def find_architecture(model: str, images: Images, weights: Path | None = None) -> Architecture:
    """Return the architecture that `model` names. ``FILE.py:FUNCTION`` runs code of the user.

    Args:
        model: a registered name; ``timm:NAME``, which is built without published weights; or ``FILE.py:FUNCTION`` or
            ``package.module:FUNCTION``. A function with the argument `width` returns the network of one student, as for
            `StudentEnsemble.from_factory`; others return the largest one, as for `StudentEnsemble.from_module`. It is
            called with those of the arguments `width`, `num_classes` and `in_channels` that it has. The name may also
            be that of an architecture.
        images: images and classes of the data; not used for registered names.
        weights: file with the state dict of the largest network, which all students then start from; None draws
            weights. Not used for registered names.

    Raises:
        ValueError, FileNotFoundError, ImportError: as `registered`; or the network cannot be built, scaled or cut.
        TypeError: a function returns something else than a module.
    """
    architecture = registered(model)
    if architecture is not None:
        return architecture
    if model.startswith(TIMM):
        return _scaled(model, lambda: _of_timm(model, images), images, weights)
    where, name = split_python_name(model)
    found = getattr(import_python(where, "model"), name, None)
    if isinstance(found, Architecture) and not isinstance(found, type):
        return found
    if not callable(found):
        got = "none" if found is None else type(found).__name__
        raise ValueError(f"model: expected a function called {name!r} in {where}, got {got}")
    short = f"{Path(where).name if where.endswith('.py') else where}:{name}"
    call = _caller(found, model, images)
    if "width" not in inspect.signature(found).parameters:
        return _scaled(short, call, images, weights)
    if weights is not None:
        raise ValueError(
            f"initial_weights: expected none with {model}, which builds each student itself, got {weights}"
        )
    return ModuleArchitecture(short, FactoryNetworks(lambda width: call(width=width)), images.example())


def _scaled(name: str, make: Callable[[], nn.Module], images: Images, weights: Path | None) -> ModuleArchitecture:
    if weights is None:
        source = ScaledNetworks(make, images.example(), "fresh")
    else:
        state = read_weight_file(weights)
        source = ScaledNetworks(lambda: _with_weights(make(), state, weights), images.example(), "slice")
    architecture = ModuleArchitecture(name, source, images.example())
    if architecture.num_classes != images.classes:
        raise ValueError(
            f"model: expected {images.classes} logits of {name}, one for each class, got {architecture.num_classes}"
        )
    return architecture


def _with_weights(network: nn.Module, state: Any, path: Path) -> nn.Module:
    if not isinstance(state, Mapping):
        raise ValueError(f"initial_weights: expected a state dict in {path}, got {type(state).__name__}")
    try:
        network.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(
            f"initial_weights: {path} does not fit {type(network).__name__} ({reason_of(error)})"
        ) from error
    return network


def _caller(function: Callable[..., Any], model: str, images: Images) -> Callable[..., nn.Module]:
    """Return a function that calls the user's with what it takes, and checks what it returns."""
    numbers = {"num_classes": images.classes, "in_channels": images.channels}
    taken = inspect.signature(function).parameters
    unknown = [
        name
        for name, parameter in taken.items()
        if name not in ("width", *numbers) and parameter.default is parameter.empty and parameter.kind < 2
    ]
    if unknown:
        raise ValueError(
            f"model: expected arguments among width, num_classes and in_channels in {model}, got {unknown[0]!r}"
        )

    def call(**width: Any) -> nn.Module:
        arguments = {name: value for name, value in numbers.items() if name in taken} | width
        try:
            network = function(**arguments)
        except Exception as error:  # the user's code
            raise ValueError(f"model: {model} raised {reason_of(error)}") from error
        if not isinstance(network, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module from {model}, got {type(network).__name__}")
        return network

    return call


def _of_timm(model: str, images: Images) -> nn.Module:
    name, options = model.removeprefix(TIMM), {"num_classes": images.classes, "in_chans": images.channels}
    create = _timm().create_model
    try:
        try:
            return create(name, img_size=images.size, **options)
        except TypeError:  # networks for images of any size have no such argument
            return create(name, **options)
    except Exception as error:
        raise ValueError(
            f"model: {model} cannot be built for images of {images.size} x {images.size} pixels ({reason_of(error)})"
        ) from error


def _check_timm(model: str) -> None:
    timm, name = _timm(), model.removeprefix(TIMM)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3]
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"model: timm {timm.__version__} has no network {name[:80]!r}{hint}")


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError("model: networks of timm need timm: pip install 'oekd_fast[integrations]'") from error
    except RuntimeError as error:  # of torchvision, which timm imports
        raise ImportError(f"model: timm cannot be imported ({reason_of(error)})") from error
    return timm

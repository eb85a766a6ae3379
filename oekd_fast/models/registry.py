"""Registry of architectures by name."""

from difflib import get_close_matches

from oekd_fast.models import cifar_resnet, densenet, efficientnet, resnet
from oekd_fast.models.architecture import Architecture

_ALL: list[Architecture] = [
    *cifar_resnet.ARCHITECTURES,
    *resnet.ARCHITECTURES,
    *densenet.ARCHITECTURES,
    *efficientnet.ARCHITECTURES,
]
_ARCHITECTURES = {architecture.name: architecture for architecture in _ALL}


def architecture_names() -> tuple[str, ...]:
    """Return the names of all architectures, in the order of registration."""
    return tuple(_ARCHITECTURES)


def register_architecture(architecture: Architecture) -> None:
    """Register `architecture` under its name in this process, for `build_ensemble`, `load_student` and the trainer.

    Registering the same architecture again has no effect.

    Raises:
        ValueError: another architecture is registered under that name.
    """
    name = architecture.name
    if _ARCHITECTURES.setdefault(name, architecture) != architecture:
        raise ValueError(f"architecture: the name {name!r} is taken; expected a name that is not registered")


def get_architecture(name: str) -> Architecture:
    """Return the architecture called `name`.

    Raises:
        ValueError: no architecture has that name; the message lists the nearest names and all names.
    """
    if name in _ARCHITECTURES:
        return _ARCHITECTURES[name]
    near = get_close_matches(name, _ARCHITECTURES)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"model: {name!r} is unknown; {hint}expected one of {', '.join(_ARCHITECTURES)}")

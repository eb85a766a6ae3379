"""Examples of training loops of other packages: imported as modules, with tiny data and gradients to compare with."""

import copy
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import StudentEnsemble, build_ensemble, ensemble_kd_loss

from .smooth_network import PLAIN

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# The packages that each example needs besides those of the trainer.
HOSTS = {
    "accelerate_loop": "accelerate",
    "compiled_loop": None,
    "fabric_loop": "lightning",
    "huggingface_images": "transformers",
    "huggingface_language": "transformers",
    "lightning_module": "lightning",
    "timm_task": "timm",
}


@cache
def load(name: str) -> ModuleType:
    """Import the example `name` without running its main block."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def family(**options) -> StudentEnsemble:
    """Build a family without norms, so that a batch in parts has the gradients of the whole batch."""
    torch.manual_seed(0)
    return build_ensemble(PLAIN, 3, 10, in_channels=1, **{"adapters": False} | options)


def uneven_batch() -> tuple[Tensor, Tensor]:
    """Make 32 images with labels, most of which are ignored in the first half and few in the second."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(32, 1, 8, 8, generator=generator), torch.randint(10, (32,), generator=generator)
    labels[:13] = labels[28] = -100
    return images, labels


def loader(batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(*uneven_batch()), batch_size=batch_size)


def whole_batch_step(ensemble: StudentEnsemble) -> StudentEnsemble:
    """Return a copy of `ensemble` after one step of SGD on the whole uneven batch, with a learning rate of 0.1."""
    return sgd_steps(ensemble, 32)


def sgd_steps(ensemble: StudentEnsemble, batch_size: int) -> StudentEnsemble:
    """Return a copy of `ensemble` after one epoch of SGD on the uneven batch in batches of `batch_size`."""
    ensemble = copy.deepcopy(ensemble)
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=0.1, momentum=0.9)
    for images, labels in loader(batch_size):
        optimizer.zero_grad()
        ensemble_kd_loss(ensemble(images).logits, labels).loss.backward()
        optimizer.step()
    return ensemble


def distance(module: nn.Module, other: nn.Module) -> float:
    """Return the largest difference between parameters."""
    pairs = zip(module.parameters(), other.parameters(), strict=True)
    return max((a.detach() - b.detach()).abs().max().item() for a, b in pairs)


def update(module: nn.Module, before: nn.Module) -> Tensor:
    """Return the change of all parameters as one vector."""
    pairs = zip(module.parameters(), before.parameters(), strict=True)
    return torch.cat([(a.detach() - b.detach()).flatten() for a, b in pairs])

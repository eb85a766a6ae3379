"""Train a family in a loop with Accelerate, with gradients summed over several micro-batches."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import EnsembleKDLoss, StudentEnsemble, build_ensemble


def groups(loader: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` batches, and of fewer at the end."""
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group


def train(
    ensemble: StudentEnsemble, data: DataLoader, *, micro_batches: int = 4, epochs: int = 1, lr: float = 0.1, **options
) -> None:
    """Train `ensemble` on batches (images, labels); one optimizer step for `micro_batches` of them.

    Args:
        options: arguments of ``Accelerator``, such as ``mixed_precision="bf16"``.
    """
    accelerator = Accelerator(**options)
    loss_fn = EnsembleKDLoss()
    optimizer = torch.optim.SGD(ensemble.parameters(), lr=lr, momentum=0.9)
    model, optimizer, loader = accelerator.prepare(ensemble, optimizer, data)
    for _ in range(epochs):
        for group in groups(loader, micro_batches):
            num_items = accelerator.reduce(sum((labels != -100).sum() for _, labels in group))  # of all processes
            for number, (images, labels) in enumerate(group, start=1):
                with nullcontext() if number == len(group) else accelerator.no_sync(model):
                    loss = loss_fn(model(images), labels, num_items)
                    accelerator.backward(loss * accelerator.num_processes)  # the processes' gradients are averaged
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=32, shuffle=True)
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    train(family, loader, epochs=5)
    torch.save(family.student(2).state_dict(), "student_3.pt")

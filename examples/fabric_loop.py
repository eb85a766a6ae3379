"""Train a family in a loop with Lightning Fabric, with gradients summed over several micro-batches."""

import torch
from lightning import Fabric
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import EnsembleKDLoss, StudentEnsemble, build_ensemble


def train(
    ensemble: StudentEnsemble, data: DataLoader, *, parts: int = 4, epochs: int = 1, lr: float = 0.1, **options
) -> None:
    """Train `ensemble` on batches (images, labels), each of which is computed in `parts`.

    Args:
        options: arguments of ``Fabric``, such as ``precision="bf16-mixed"``.
    """
    fabric = Fabric(**options)
    fabric.launch()
    loss_fn = EnsembleKDLoss()
    model, optimizer = fabric.setup(ensemble, torch.optim.SGD(ensemble.parameters(), lr=lr, momentum=0.9))
    loader = fabric.setup_dataloaders(data)
    for _ in range(epochs):
        for images, labels in loader:
            num_items = fabric.all_reduce((labels != -100).sum(), reduce_op="sum")  # of all processes
            pairs = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))
            for number, (part, part_labels) in enumerate(pairs, start=1):
                with fabric.no_backward_sync(model, enabled=number < len(pairs)):
                    loss = loss_fn(model(part), part_labels, num_items)
                    fabric.backward(loss * fabric.world_size)  # the processes' gradients are averaged
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=64, shuffle=True)
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    train(family, loader, epochs=5)
    torch.save(family.student(2).state_dict(), "student_3.pt")

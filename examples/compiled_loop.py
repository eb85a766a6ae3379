"""Train a family in a plain loop with torch.compile, autocast, GradScaler and gradient accumulation."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import EnsembleKDLoss, StudentEnsemble, build_ensemble


def train(
    ensemble: StudentEnsemble,
    data: DataLoader,
    *,
    parts: int = 4,
    epochs: int = 1,
    lr: float = 0.1,
    device: str = "cpu",
    dtype: torch.dtype = torch.float16,
    backend: str = "inductor",
) -> None:
    """Train `ensemble` on batches (images, labels), each of which is computed in `parts` in precision `dtype`."""
    loss_fn = EnsembleKDLoss()
    optimizer = torch.optim.SGD(ensemble.to(device).parameters(), lr=lr, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    @torch.compile(backend=backend, fullgraph=True)
    def loss_of(images: Tensor, labels: Tensor, num_items: Tensor) -> Tensor:
        with torch.autocast(device, dtype):
            return loss_fn(ensemble(images), labels, num_items)

    for _ in range(epochs):
        for images, labels in data:
            images, labels = images.to(device), labels.to(device)
            num_items = (labels != -100).sum()  # a tensor: an integer would be compiled as a constant at first
            for part, part_labels in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                scaler.scale(loss_of(part, part_labels, num_items)).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(ensemble.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()


if __name__ == "__main__":
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=64, shuffle=True, drop_last=True)
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    train(family, loader, epochs=5)
    torch.save(family.student(2).state_dict(), "student_3.pt")

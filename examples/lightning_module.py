"""Train a family with Lightning, by automatic and by manual optimisation."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import EnsembleKDLoss, StudentEnsemble, build_ensemble


class FamilyModule(lightning.LightningModule):
    """A family and its loss; Lightning takes the optimizer's steps."""

    def __init__(self, ensemble: StudentEnsemble, lr: float = 0.1) -> None:
        super().__init__()
        self.ensemble, self.loss, self.lr = ensemble, EnsembleKDLoss(), lr

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        output = self.loss.output(self.ensemble(images), labels)
        self.log_dict({f"ce_{j}": ce for j, ce in enumerate(output.ce, start=1)})
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ManualFamilyModule(FamilyModule):
    """The same by manual optimisation: each batch is computed in `parts`, with the gradients of the whole batch."""

    def __init__(self, ensemble: StudentEnsemble, lr: float = 0.1, parts: int = 4) -> None:
        super().__init__(ensemble, lr)
        self.automatic_optimization = False
        self.parts = parts

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        num_items = (labels != -100).sum()
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for part, part_labels in zip(images.chunk(self.parts), labels.chunk(self.parts), strict=True):
            self.manual_backward(self.loss(self.ensemble(part), part_labels, num_items))
        optimizer.step()


if __name__ == "__main__":
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=64, shuffle=True)
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    lightning.Trainer(max_epochs=5).fit(ManualFamilyModule(family), loader)
    torch.save(family.student(2).state_dict(), "student_3.pt")

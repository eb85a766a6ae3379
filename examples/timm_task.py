"""Train a family with timm's training task, Mixup and CutMix."""

import torch
from sklearn.datasets import load_digits
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from oekd_fast import EnsembleKDLoss, EnsembleOutput, StudentEnsemble, build_ensemble


class TimmFamily(nn.Module):
    """A family as a timm model: the logits of all students in training, and their mean in evaluation."""

    def __init__(self, ensemble: StudentEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> EnsembleOutput | Tensor:
        output = self.ensemble(images)
        return output if self.training else torch.stack(output.logits).mean(0)


def train(task: ClassificationTask, data: DataLoader, mixup: Mixup, *, epochs: int = 1, lr: float = 0.1) -> None:
    """Train the family of `task` on batches (images, labels) of an even number of images."""
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt="sgd", lr=lr, momentum=0.9)
    task.train()
    for _ in range(epochs):
        for images, labels in data:
            images, targets = mixup(images, labels)  # probabilities [B, C]
            optimizer.zero_grad()
            task(images, targets)["loss"].backward()
            optimizer.step()


@torch.no_grad()
def evaluate(task: ClassificationTask, data: DataLoader) -> dict[str, float]:
    model, evaluator = task.get_eval_model().eval(), task.create_evaluator()
    for images, labels in data:
        evaluator.update(model(images), labels)
    return evaluator.compute()


if __name__ == "__main__":
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.tensor(labels)), batch_size=64, shuffle=True, drop_last=True)
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    task = ClassificationTask(TimmFamily(family), EnsembleKDLoss())
    train(task, loader, Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10), epochs=5)
    print(evaluate(task, loader))
    torch.save(family.student(2).state_dict(), "student_3.pt")

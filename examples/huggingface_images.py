"""Train a family of image classifiers with the Trainer of Hugging Face's transformers."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments

from oekd_fast import EnsembleKDLoss, StudentEnsemble, build_ensemble


class ImageFamily(nn.Module):
    """A family that returns a dictionary, whose "logits" the Trainer collects as predictions."""

    def __init__(self, ensemble: StudentEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> dict[str, tuple[Tensor, ...]]:
        return {"logits": self.ensemble(images).logits}


def accuracies(result: EvalPrediction) -> dict[str, float]:
    """Return the accuracy of each student; the predictions are one array [N, C] for each."""
    return {
        f"accuracy_{j}": float((logits.argmax(1) == result.label_ids).mean())
        for j, logits in enumerate(result.predictions, start=1)
    }


def build_trainer(ensemble: StudentEnsemble, train_rows: list, test_rows: list, **arguments) -> Trainer:
    return Trainer(
        ImageFamily(ensemble),
        # Without label_names there are no labels in evaluation, since forward has no argument of that name.
        TrainingArguments(label_names=["labels"], remove_unused_columns=False, report_to="none", **arguments),
        train_dataset=train_rows,
        eval_dataset=test_rows,
        compute_loss_func=EnsembleKDLoss(),
        compute_metrics=accuracies,
    )


def digits() -> list[dict]:
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return [{"images": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


if __name__ == "__main__":
    rows = digits()
    family = build_ensemble("resnet20", num_students=3, num_classes=10, in_channels=1, adapters=False)
    trainer = build_trainer(
        family, rows[:-32], rows[-32:], output_dir="runs/huggingface", num_train_epochs=5, learning_rate=3e-3,
        per_device_train_batch_size=32, gradient_accumulation_steps=4, eval_strategy="epoch",
    )  # fmt: skip
    trainer.train()
    torch.save(family.student(2).state_dict(), "runs/huggingface/student_3.pt")

"""The Trainer of transformers: gradients of accumulated batches, precision, resuming, and its traps."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from oekd_fast import EnsembleKDLoss, ensemble_kd_loss, linear_ensemble_kd_loss

from ..support.host_examples import distance, family, uneven_batch, update, whole_batch_step

pytestmark = pytest.mark.slow
ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
QUIET = {"use_cpu": True, "disable_tqdm": True, "output_dir": "run"}


@pytest.fixture
def images(example):
    return example("huggingface_images")


@pytest.fixture
def language(example):
    return example("huggingface_language")


def image_rows(*, ignored=True):
    images, labels = uneven_batch()
    labels = labels if ignored else torch.arange(32) % 10
    return [{"images": image, "labels": int(label)} for image, label in zip(images, labels, strict=True)]


def texts():
    """Make texts of unequal lengths, with unequal numbers of labels that are ignored at their start."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for i in range(8):
        tokens = torch.randint(97, (5 + 3 * (i % 5),), generator=generator)
        labels = tokens.clone()
        labels[: i % 4] = -100
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def language_family(language):
    torch.manual_seed(0)
    return language.LanguageFamily([language.llama(2, 64), language.llama(1, 32)])


def trained(build_trainer, model, rows, parts, **changes):
    """Return the module of the Trainer after one step on all rows in `parts` micro-batches.

    `loss` replaces the loss, or removes it if it is False; `collate` replaces the collator, `kind` the model's class.
    """
    changes = {"save_strategy": "no"} | changes
    loss, collate, kind = (changes.pop(name, None) for name in ("loss", "collate", "kind"))
    model = copy.deepcopy(model)
    model.__class__ = kind or model.__class__
    trainer = build_trainer(
        model, rows, per_device_train_batch_size=len(rows) // parts, gradient_accumulation_steps=parts,
        **ONE_STEP | QUIET | changes,
    )  # fmt: skip
    trainer.compute_loss_func = trainer.compute_loss_func if loss is None else loss or None
    trainer.data_collator = collate or trainer.data_collator
    trainer.train()
    return trainer.model


@pytest.fixture
def image_step(images):
    def step(parts, *, ignored=True, **changes):
        def build(ensemble, rows, **arguments):
            return images.build_trainer(ensemble, rows, rows, **arguments)

        return trained(build, family(), image_rows(ignored=ignored), parts, **changes).ensemble

    return step


def along(update, right):
    """Return the length of an update along the right one, and the cosine between them."""
    return (update @ right / (right @ right)).item(), torch.cosine_similarity(update, right, dim=0).item()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_images_accumulated_in_parts_have_the_gradients_of_the_whole_batch(image_step, parts):
    assert distance(image_step(parts), whole_batch_step(family())) < 1e-7  # gradients within 1e-6: the rate is 0.1


def test_a_mean_over_each_micro_batch_is_four_times_too_large(image_step):
    def mean(outputs, labels, num_items_in_batch=None):
        return EnsembleKDLoss()(outputs, labels)

    right = update(image_step(1, ignored=False), family())
    length, cosine = along(update(image_step(4, ignored=False, loss=mean), family()), right)
    assert length == pytest.approx(4, abs=1e-4) and cosine > 1 - 1e-6


@pytest.fixture
def text_step(language):
    """Return a function that returns the change of the weights by one step, and the right change."""
    before = language_family(language)
    whole, batch = copy.deepcopy(before), language.collate(texts())
    logits = [z.flatten(0, 1) for z in whole(batch["input_ids"])["logits"]]
    ensemble_kd_loss(logits, batch["labels"].flatten()).loss.backward()
    torch.optim.SGD(whole.parameters(), lr=0.1).step()
    right = update(whole, before)

    def step(parts, **changes):
        return update(trained(language.build_trainer, before, texts(), parts, **changes), before), right

    return step


def test_texts_accumulated_in_parts_have_the_gradients_of_the_whole_batch(text_step):
    for parts in (1, 2, 4):
        found, right = text_step(parts)
        assert (found - right).abs().max() < 1e-7


def test_texts_in_bfloat16(text_step):
    def loss(outputs, labels, num_items_in_batch):
        assert {z.dtype for z in outputs["logits"]} == {torch.float32}  # converted by accelerate
        return EnsembleKDLoss(class_dim=-1)(outputs, labels, num_items_in_batch)

    length, cosine = along(*text_step(4, bf16=True, loss=loss))
    assert length == pytest.approx(1, abs=0.02) and 0.999 < cosine < 1 - 1e-7


def test_hidden_states_of_a_large_vocabulary(text_step, language):
    """A model with `accepts_loss_kwargs` computes its loss itself, without logits."""

    def forward(self, input_ids, labels, num_items_in_batch=None):
        embedded = self.embedding(input_ids)
        hidden = [student.model(inputs_embeds=embedded).last_hidden_state for student in self.students]
        weights = [student.lm_head.weight for student in self.students]
        return {"loss": linear_ensemble_kd_loss(hidden, weights, labels, num_items=num_items_in_batch).loss}

    members = {"forward": forward, "accepts_loss_kwargs": True}
    found, right = text_step(4, loss=False, kind=type("Hidden", (language.LanguageFamily,), members))
    assert (found - right).abs().max() < 1e-7


def test_labels_that_the_loss_shifts_are_counted_before_the_shift(text_step, language):
    """The Trainer counts the first token of each text too, which is not predicted."""

    def padded(rows):
        return {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)
            for name, value in (("input_ids", 0), ("labels", -100))
        }

    def shifting(outputs, labels, num_items_in_batch=None):
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        return EnsembleKDLoss(class_dim=-1)(outputs, shifted, num_items_in_batch)

    counted = sum(int((row["labels"] != -100).sum()) for row in texts())
    predicted = int((language.collate(texts())["labels"] != -100).sum())
    length, _ = along(*text_step(4, loss=shifting, collate=padded))
    assert predicted < counted and length == pytest.approx(predicted / counted, abs=1e-4)


def test_the_embedding_is_saved_once_and_a_student_stands_alone(language, tmp_path):
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    trainer = language.build_trainer(language_family(language), texts(), **QUIET)
    trainer.save_model("saved")
    with safe_open("saved/model.safetensors", "pt") as file:
        assert [name for name in file.keys() if "embed" in name] == ["embedding.weight"]  # noqa: SIM118
    student = trainer.model.student(1)
    student.save_pretrained("student")
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(AutoModelForCausalLM.from_pretrained("student")(tokens).logits, student(tokens).logits)
    assert torch.equal(student(tokens).logits, trainer.model(tokens)["logits"][1])
    # Students that hold one embedding each under their own names are refused.
    for member in trainer.model.students:
        member.set_input_embeddings(trainer.model.embedding)
    with pytest.raises(RuntimeError, match="share memory"):
        trainer.save_model("refused")


def test_a_run_in_bfloat16_resumes_with_the_same_bits(images):
    def run(**arguments):
        options = {"max_steps": 4, "save_steps": 2, "bf16": True, "per_device_train_batch_size": 4}
        trainer = images.build_trainer(
            family(), image_rows(), image_rows(), gradient_accumulation_steps=2, **QUIET | options
        )
        trainer.train(**arguments)
        return trainer

    first = run()
    again = run(resume_from_checkpoint="run/checkpoint-2")
    assert distance(first.model, again.model) == 0
    with open("run/checkpoint-4/trainer_state.json") as file:
        assert json.load(file)["global_step"] == 4


def test_predictions_are_the_logits_of_each_student(images):
    rows = image_rows()
    trainer = images.build_trainer(family(), rows, rows, per_device_eval_batch_size=16, **QUIET)
    result = trainer.predict(rows)
    logits = family()(uneven_batch()[0]).logits
    for found, expected in zip(result.predictions, logits, strict=True):
        assert abs(found - expected.detach().numpy()).max() < 1e-6
    correct = [float((z.argmax(1) == uneven_batch()[1]).float().mean()) for z in logits]
    assert [result.metrics[f"test_accuracy_{j}"] for j in (1, 2, 3)] == pytest.approx(correct)

    class Bare(nn.Module):
        """A family that returns a named tuple, of which the Trainer leaves out the first field."""

        def __init__(self):
            super().__init__()
            self.ensemble = family()

        def forward(self, images):
            return self.ensemble(images)

    trainer = images.Trainer(
        Bare(), trainer.args,
        compute_loss_func=EnsembleKDLoss(),
    )  # fmt: skip
    predictions = trainer.predict(rows).predictions
    assert predictions[0][0].shape == (32, 16, 8, 8)  # the first map of student 1


def test_labels_that_the_trainer_removes_are_an_error(images):
    from datasets import Dataset

    pictures, labels = uneven_batch()
    rows = Dataset.from_dict({"images": pictures.numpy(), "labels": labels.numpy()}).with_format("torch")
    arguments = images.TrainingArguments(report_to="none", max_steps=1, save_strategy="no", **QUIET)
    trainer = images.Trainer(
        images.ImageFamily(family()), arguments, train_dataset=rows, compute_loss_func=EnsembleKDLoss()
    )
    with pytest.raises(ValueError, match="target: expected .*, got None"):
        trainer.train()

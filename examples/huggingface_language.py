"""Train two causal language models on one embedding with the Trainer of Hugging Face's transformers."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from oekd_fast import EnsembleKDLoss


class LanguageFamily(nn.Module):
    """Language models with one embedding, which is saved once: safetensors refuses tensors that share memory."""

    def __init__(self, students: list[PreTrainedModel]) -> None:
        super().__init__()
        self.embedding = students[0].get_input_embeddings()
        self.students = nn.ModuleList(students)
        for student in students:
            student.set_input_embeddings(nn.Identity())

    def forward(self, input_ids: Tensor) -> dict[str, tuple[Tensor, ...]]:
        embedded = self.embedding(input_ids)
        return {"logits": tuple(student(inputs_embeds=embedded).logits for student in self.students)}

    def student(self, j: int) -> PreTrainedModel:
        """Return a copy of student `j` with the embedding, for `generate` and `save_pretrained`."""
        student = copy.deepcopy(self.students[j])
        student.set_input_embeddings(copy.deepcopy(self.embedding))
        return student


def collate(rows: list[dict]) -> dict[str, Tensor]:
    """Shift and pad: position t holds token t, and as its label token t + 1. Padding on the right needs no mask."""
    return {
        "input_ids": pad_sequence([row["input_ids"][:-1] for row in rows], batch_first=True),
        "labels": pad_sequence([row["labels"][1:] for row in rows], batch_first=True, padding_value=-100),
    }


def llama(layers: int, intermediate: int) -> LlamaForCausalLM:
    sizes = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers, intermediate_size=intermediate))


def build_trainer(family: LanguageFamily, rows: list[dict], **arguments) -> Trainer:
    arguments = TrainingArguments(label_names=["labels"], remove_unused_columns=False, report_to="none", **arguments)
    return Trainer(
        family, arguments, data_collator=collate, train_dataset=rows, compute_loss_func=EnsembleKDLoss(class_dim=-1)
    )


if __name__ == "__main__":
    texts = [torch.arange(start, start + 20 + start % 7) % 97 for start in range(256)]
    rows = [{"input_ids": text, "labels": text} for text in texts]
    family = LanguageFamily([llama(layers=2, intermediate=64), llama(layers=1, intermediate=32)])
    build_trainer(family, rows, output_dir="runs/language", gradient_accumulation_steps=4, learning_rate=3e-3).train()
    family.student(1).save_pretrained("runs/language/student_2")

"""Learnt weights of the students in their ensemble (Lan, Zhu, Gong 2018, arXiv 1806.04606, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Gate(nn.Module):
    """Weights of the students for each image: map of the base [B, channels, H, W] -> fp32 [B, students].

    The map is pooled and passed through a linear layer, BatchNorm, ReLU and softmax, so that each row sums to 1.
    """

    def __init__(self, channels: int, students: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, students)
        self.norm = nn.BatchNorm1d(students)

    def forward(self, shared: Tensor) -> Tensor:
        scores = self.norm(self.linear(shared.mean(dim=(2, 3))))
        return functional.softmax(torch.relu(scores).float(), dim=1)
